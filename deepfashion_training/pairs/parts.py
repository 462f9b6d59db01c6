"""Parts of a person in a parse map: the 18 ATR labels, which of them is which garment, and what is never repainted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deepfashion_training.pairs.garment_types import FULL, LOWER, UPPER

Mask = npt.NDArray[np.bool_]

#: The 18 labels of the ATR data set, by number, as ``mattmdjaga/segformer_b2_clothes`` gives them.
LABELS: tuple[str, ...] = (
    "background", "hat", "hair", "sunglasses", "upper-clothes", "skirt", "pants", "dress", "belt", "left-shoe",
    "right-shoe", "face", "left-leg", "right-leg", "left-arm", "right-arm", "bag", "scarf",
)  # fmt: skip

HAT, HAIR, SUNGLASSES, BELT, FACE, BAG, SCARF = 1, 2, 3, 8, 11, 16, 17
SHOES, LEGS, ARMS = (9, 10), (12, 13), (14, 15)
HEAD_LABELS: tuple[int, ...] = (HAT, HAIR, SUNGLASSES, FACE)
#: What belongs to the person's outline; a bag or a scarf's end may hang anywhere.
ON_THE_PERSON: tuple[int, ...] = tuple(range(1, 16))
#: Whole labels that are never repainted.
PROTECTED_LABELS: tuple[int, ...] = (*HEAD_LABELS, *SHOES, BAG)

_GARMENTS: dict[int, tuple[int, ...]] = {UPPER: (4,), LOWER: (5, 6), FULL: (7,)}
#: Labels that count as clothes.
CLOTHES_LABELS: tuple[int, ...] = (4, 5, 6, 7, BELT, SCARF)

#: Lengths of hand and foot (ankle to sole) as shares of the standing height: Drillis and Contini (1966).
HAND_LENGTH, FOOT_HEIGHT = 0.108, 0.039


def garment_labels(cloth_type: int) -> tuple[int, ...]:
    """Labels that a garment of the type has: upper 4; lower 5, 6; full 7."""
    return _GARMENTS[cloth_type]


def protected(parse: np.ndarray) -> Mask:
    """What is never repainted in a parse map ``[h, w]``: bool ``[h, w]``."""
    return np.isin(parse, PROTECTED_LABELS)
