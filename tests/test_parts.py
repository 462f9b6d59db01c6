"""Parts: which label is which, and where hands and feet end."""

from __future__ import annotations

import numpy as np
import pytest

from deepfashion_training.embedded.figure import GARMENT_LABELS as DRAWN_LABELS
from deepfashion_training.embedded.rows import raw_specs
from deepfashion_training.images.parts import GARMENT_LABELS, LABELS, protected

FACE, SHIRT, TROUSERS, SHOE, LEG, ARM = 11, 4, 6, 9, 12, 14


def parse_map(sleeve: int, shoes: bool = True) -> np.ndarray:
    """A person 200 high on 220 x 100: one arm 8 wide hangs from row 40 to 110, its first ``sleeve`` rows covered."""
    parse = np.zeros((220, 100), np.uint8)
    parse[10:36, 40:60] = FACE
    parse[36:110, 35:65] = SHIRT
    parse[40 : 40 + sleeve, 25:33] = SHIRT
    parse[40 + sleeve : 110, 25:33] = ARM
    parse[110:210, 40:60] = LEG
    if shoes:
        parse[202:210, 40:60] = SHOE
    return parse


def test_labels_are_the_18_of_atr():
    assert len(LABELS) == 18
    assert [LABELS[number] for number in (4, 5, 6, 7, 11, 16)] == [
        "upper-clothes", "skirt", "pants", "dress", "face", "bag"
    ]  # fmt: skip
    assert GARMENT_LABELS == DRAWN_LABELS


@pytest.mark.parametrize("sleeve", [0, 20, 40])
def test_the_hand_is_the_end_of_the_arm(sleeve):
    kept = protected(parse_map(sleeve))[:, 25:33]
    rows = np.flatnonzero(kept.any(axis=1))
    # .06 of 200 is 12 pixels: rows 98 to 109.
    assert rows[-1] == 109
    assert rows[0] == pytest.approx(98, abs=4)
    assert kept[rows[0] + 4 : 110].all()


def test_a_long_sleeve_leaves_only_the_hand_and_all_of_it_is_kept():
    kept = protected(parse_map(60))
    assert kept[101:110, 25:33].all()
    assert not kept[36:100, 25:65].any()


def test_a_raised_hand_is_the_upper_end():
    parse = parse_map(70)
    parse[4:60, 70:78] = 15
    kept = protected(parse)[:, 70:78]
    assert kept[5:13].all() and not kept[40:60].any()


def test_bare_feet_are_kept_and_bare_legs_are_not():
    kept = protected(parse_map(40, shoes=False))[:, 40:60]
    # .039 of 200 is 8 rows.
    assert kept[202:210].all() and not kept[110:201].any()
    assert not protected(parse_map(40))[110:202, 40:60].any()


def test_drawn_hands_are_kept_and_arms_are_not():
    found = extra = hands_total = 0
    for spec in [spec for spec in raw_specs(40, 2) if spec.view != "flat"][:16]:
        drawing = spec.draw((192, 144))
        kept, arms = protected(drawing.parse), np.isin(drawing.parse, (14, 15))
        hands = drawing.keep & arms
        assert kept[np.isin(drawing.parse, (1, 2, 3, 9, 10, 11, 16))].all()
        found, hands_total = found + (hands & kept).sum(), hands_total + hands.sum()
        extra += (kept & arms & ~drawing.keep).sum()
    assert found / hands_total > 0.85
    assert extra / hands_total < 1.0
