"""Views: what a pose says, and which photo may lend its garment to which."""

from __future__ import annotations

import random

import pytest

from deepfashion_training.embedded.body import PERSON_VIEWS, VIEW_NUMBERS
from deepfashion_training.preparation.garment_views import (
    DRESSED_BY,
    SOURCES,
    VIEWS,
    Candidate,
    Choice,
    choose_garment,
    parse_pose,
)


@pytest.mark.parametrize(
    ("pose", "parsed"),
    [
        ("01_1_front", ("01", "front")),
        ("02_4_full", ("02", "full")),
        (" 12_7_Additional.jpg ", ("12", "additional")),
        ("03_6_flat.PNG", ("03", "flat")),
    ],
)
def test_poses(pose, parsed):
    assert parse_pose(pose) == parsed


@pytest.mark.parametrize("pose", ["", "front", "01_front", "01_1_", "01-1-front", "01_1_front_2", "01_1_front.txt"])
def test_another_form_is_named(pose):
    with pytest.raises(ValueError, match="is not VARIANT_NUMBER_VIEW") as caught:
        parse_pose(pose)
    assert repr(pose) in str(caught.value)


def test_the_drawn_wardrobe_has_the_same_views():
    assert {*PERSON_VIEWS, "flat"} == set(VIEW_NUMBERS) == set(VIEWS)


def test_no_back_dresses_a_front_and_no_front_a_back():
    for view in ("front", "full", "additional"):
        assert "back" not in DRESSED_BY[view]
    assert DRESSED_BY["front"][:2] == ("front", "full")
    assert DRESSED_BY["back"] == ("back", "side")
    assert set(DRESSED_BY["side"]) == {"side", "front", "full", "additional", "back"}
    assert DRESSED_BY["flat"] == ()
    assert not any("flat" in views for views in DRESSED_BY.values())


FRONT, SIDE, BACK, FULL, FLAT = (
    Candidate(10, "front", 900, False),
    Candidate(11, "side", 800, False),
    Candidate(12, "back", 700, False),
    Candidate(13, "full", 600, False),
    Candidate(14, "flat", 500, False),
)
ALL = (FRONT, SIDE, BACK, FULL, FLAT)


@pytest.mark.parametrize(
    ("row", "view", "sources", "choice"),
    [
        (10, "front", SOURCES, Choice("flat", 14, "flat")),
        (10, "front", ("cross_view", "flat"), Choice("cross_view", 13, "full")),
        (13, "full", ("cross_view",), Choice("cross_view", 10, "front")),
        (12, "back", ("cross_view",), Choice("cross_view", 11, "side")),
        (11, "side", ("cross_view",), Choice("cross_view", 10, "front")),
        (12, "back", ("same_photo", "flat"), Choice("same_photo", 12, "back")),
        (14, "flat", SOURCES, None),
        (10, "front", (), None),
    ],
)
def test_the_first_source_that_has_one_decides(row, view, sources, choice):
    assert choose_garment(row, view, ALL, sources) == choice


def test_a_back_is_left_without_a_garment_where_only_fronts_are():
    assert choose_garment(12, "back", (FRONT, FULL, BACK), ("flat", "cross_view")) is None
    assert choose_garment(12, "back", (FRONT, FULL, BACK), SOURCES) == Choice("same_photo", 12, "back")
    # A photo whose own garment is not usable is no candidate.
    assert choose_garment(12, "back", (FRONT, FULL), SOURCES) is None


def test_among_equal_views_whole_garments_then_large_ones_then_the_first_row():
    cut = Candidate(1, "full", 5000, True)
    small, large, later = (Candidate(row, "full", px, False) for row, px in ((2, 100), (3, 400), (4, 400)))
    candidates = [cut, small, large, later, Candidate(5, "additional", 9000, False)]
    for seed in range(5):
        random.Random(seed).shuffle(candidates)
        assert choose_garment(9, "front", candidates, SOURCES) == Choice("cross_view", 3, "full")
    assert choose_garment(9, "front", [cut], SOURCES) == Choice("cross_view", 1, "full")
