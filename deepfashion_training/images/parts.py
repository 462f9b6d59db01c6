"""Parts of a person in a parse map: the 18 ATR labels, which of them is which garment, and what is never repainted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.graph import MCP_Geometric

from deepfashion_training.garment_types import FULL, LOWER, UPPER

Mask = npt.NDArray[np.bool_]

#: The 18 labels of the ATR data set, by number, as ``mattmdjaga/segformer_b2_clothes`` gives them.
LABELS: tuple[str, ...] = (
    "background", "hat", "hair", "sunglasses", "upper-clothes", "skirt", "pants", "dress", "belt", "left-shoe",
    "right-shoe", "face", "left-leg", "right-leg", "left-arm", "right-arm", "bag", "scarf",
)  # fmt: skip

#: The ATR number of each of the 20 LIP labels, as the label maps of VITON-HD have them: background, hat, hair, glove,
#: sunglasses, upper clothes, dress, coat, socks, pants, neck (in LIP itself jumpsuits), scarf, skirt, face, left and
#: right arm, left and right leg, left and right shoe. Gloves are arms here, socks a leg, and the neck is the face's.
ATR_OF_LIP = np.array([0, 1, 2, 14, 3, 4, 7, 4, 12, 6, 11, 17, 5, 11, 14, 15, 12, 13, 9, 10], np.uint8)

HAT, HAIR, SUNGLASSES, FACE, BAG = 1, 2, 3, 11, 16
SHOES, LEGS, ARMS = (9, 10), (12, 13), (14, 15)
HEAD_LABELS: tuple[int, ...] = (HAT, HAIR, SUNGLASSES, FACE)
#: What belongs to the person's outline; a bag or a scarf's end may hang anywhere.
ON_THE_PERSON: tuple[int, ...] = tuple(range(1, 16))
#: Whole labels that are never repainted.
PROTECTED_LABELS: tuple[int, ...] = (*HEAD_LABELS, *SHOES, BAG)

#: Labels that a garment of each type has.
GARMENT_LABELS: dict[int, tuple[int, ...]] = {UPPER: (4,), LOWER: (5, 6), FULL: (7,)}
ALL_GARMENTS: tuple[int, ...] = tuple(label for labels in GARMENT_LABELS.values() for label in labels)

#: Lengths of hand and foot (ankle to sole) as shares of the standing height: Drillis and Contini (1966) give .108 and
#: .039. Of the hand it is the palm with curled fingers, as it shows beyond a long sleeve: keeping more of a bare
#: forearm than of a sleeved one would tell the sleeve's length, and did, by 10 points of the leak score.
HAND_LENGTH, FOOT_HEIGHT = 0.06, 0.039


def protected(parse: np.ndarray) -> Mask:
    """What is never repainted in a parse map ``[h, w]`` of the 18 ATR labels: bool ``[h, w]``.

    Face, hair, hat, glasses, shoes and bag are labels. Hands and bare feet are not: hands are the far ends of the
    arm regions, of which a long sleeve leaves nothing else, and feet the lower ends of the leg regions where no
    shoe is seen. Their lengths go by the person's standing height.
    """
    kept = np.isin(parse, PROTECTED_LABELS)
    seen = np.flatnonzero(np.isin(parse, ON_THE_PERSON).any(axis=1))
    if not len(seen):
        return kept
    height = _standing_height(parse, int(seen[0]), int(seen[-1]) + 1)
    face = np.flatnonzero((parse == FACE).any(axis=1))
    chin = float(face[-1]) if len(face) else seen[0] + 0.13 * height
    for label in ARMS:
        kept |= _hand(parse == label, chin, height)
    if not np.isin(parse, SHOES).any():
        for label in LEGS:
            kept |= _foot(parse == label, height)
    return kept


def _standing_height(parse: np.ndarray, top: int, bottom: int) -> float:
    """In pixels: what is seen from ``top`` to ``bottom``, or where the picture ends above the feet by the shoulders.

    Clothes begin at .18 of the height (see ``person``).
    """
    seen = float(bottom - top)
    clothes = np.flatnonzero(np.isin(parse, (*GARMENT_LABELS[UPPER], *GARMENT_LABELS[FULL])).any(axis=1))
    if bottom < len(parse) or not len(clothes) or np.isin(parse, SHOES).any():
        return seen
    return float(np.clip((clothes[0] - top) / 0.18, seen, 3 * seen))


def _hand(arm: Mask, chin: float, height: float) -> Mask:
    """The far ends of the pieces of an arm region ``[h, w]``; chin row and standing height in pixels.

    The other end is a piece's highest pixel, or the lowest where it is raised above the chin.
    """
    hand = np.zeros_like(arm)
    pieces, _ = ndimage.label(arm, np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(pieces), 1):
        top, bottom = box[0].start, box[0].stop - 1
        # Bare skin at the neckline may be labelled arm, and has no hand.
        if bottom <= chin + 0.20 * height and top >= chin - 0.02 * height:
            continue
        piece = pieces[box] == number
        shoulder = len(piece) - 1 if top < chin - 0.02 * height else 0
        paths = MCP_Geometric(np.where(piece, 1.0, -1.0))  # through what is negative there is no way
        distances = paths.find_costs([(shoulder, int(piece[shoulder].argmax()))])[0]
        hand[box] |= piece & (distances > distances[piece].max() - HAND_LENGTH * height)
    return hand


def _foot(leg: Mask, height: float) -> Mask:
    """The lower end of a leg region ``[h, w]`` that does not run out of the picture."""
    foot = np.zeros_like(leg)
    rows = np.flatnonzero(leg.any(axis=1))
    if len(rows) and rows[-1] < len(leg) - 1:
        first = max(0, round(rows[-1] + 1 - FOOT_HEIGHT * height))
        foot[first:] = leg[first:]
    return foot
