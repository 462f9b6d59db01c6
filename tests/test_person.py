"""Persons: a drawn stick of a known size is found where it was put, and nothing is found where nobody is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deepfashion_training.embedded.rows import raw_specs
from deepfashion_training.images.person import ROWS, assumed_person, find_person, person_of_parse, shrink

WALL, SKIN, SHIRT, HAIR = (220, 220, 225), (214, 165, 128), (40, 60, 160), (40, 30, 30)


def figure(top: int = 24, height: int = 240, wall: tuple[int, int, int] = WALL) -> tuple[Image.Image, np.ndarray]:
    """A person of boxes on 288 x 192: head 28 wide, shirt from .18 to .53, legs to the feet; and the shirt's mask."""
    photo, mask = np.full((288, 192, 3), wall, np.uint8), np.zeros((288, 192), np.uint8)

    def box(first: float, last: float, half: float, colour: tuple[int, int, int]) -> tuple[slice, slice]:
        rows = slice(max(0, round(top + first * height)), max(0, round(top + last * height)))
        place = rows, slice(round(96 - half * height), round(96 + half * height))
        photo[place] = colour
        return place

    box(0.0, 0.13, 0.058, HAIR)
    box(0.05, 0.13, 0.04, SKIN)
    box(0.13, 0.18, 0.03, SKIN)
    mask[box(0.18, 0.53, 0.12, SHIRT)] = 1
    box(0.53, 1.0, 0.09, (90, 70, 60))
    return Image.fromarray(photo), mask


def test_a_standing_person_is_measured_to_a_cell():
    person = find_person(*figure())
    assert person is not None
    cell = 1 / ROWS
    assert person.crown == pytest.approx(24 / 288, abs=cell)
    assert person.bottom == pytest.approx(264 / 288, abs=cell)
    assert person.height == pytest.approx(240 / 288, abs=cell)
    columns = np.flatnonzero(person.silhouette.any(axis=0))
    assert (columns[0], columns[-1] + 1) == pytest.approx((67 / 192 * 64, 125 / 192 * 64), abs=2)
    assert person.crown > 0 and not person.cut_below
    assert person.share(24 / 288 + 0.5 * 240 / 288) == pytest.approx(0.5, abs=0.02)


def test_the_head_ends_at_the_collar():
    photo, mask = figure()
    person = find_person(photo, mask)
    assert person is not None
    rows = np.flatnonzero(person.head.any(axis=1)) / ROWS * 288
    assert rows[0] == pytest.approx(24, abs=3)
    assert rows[-1] + 3 == pytest.approx(24 + 0.18 * 240, abs=4)
    assert not (person.head & (shrink(mask, (64, 96)) > 0.5)).any()


def test_the_height_of_a_person_cut_at_the_knees_goes_by_the_shoulders():
    person = find_person(*figure(height=360))
    assert person is not None and person.cut_below
    assert person.height == pytest.approx(360 / 288, rel=0.06)


def test_a_head_cut_off_lies_above_the_picture():
    person = find_person(*figure(top=-70, height=330))
    assert person is not None
    assert person.crown == pytest.approx(-70 / 288, abs=0.1)
    assert person.height == pytest.approx(330 / 288, rel=0.15)


def test_props_beside_the_person_are_not_the_person():
    photo, mask = figure()
    photo.paste((90, 140, 90), (8, 120, 40, 280))
    photo.paste((160, 160, 165), (0, 250, 192, 288))
    person = find_person(photo, mask)
    assert person is not None
    assert np.flatnonzero(person.silhouette.any(axis=0))[0] == pytest.approx(67 / 192 * 64, abs=2)


def test_nobody_where_the_mask_is_empty_or_there_is_only_a_garment():
    photo, mask = figure()
    assert find_person(photo, np.zeros_like(mask)) is None
    small = np.zeros_like(mask)
    small[100:140, 80:120] = 1
    garment = np.full((288, 192, 3), WALL, np.uint8)
    garment[100:140, 80:120] = SHIRT
    assert find_person(Image.fromarray(garment), small) is None


def test_a_picture_without_a_background_has_no_person():
    checks = np.indices((96, 64)).sum(axis=0) % 2 * 255
    photo = Image.fromarray(checks.astype(np.uint8)).resize((192, 288), Image.Resampling.NEAREST).convert("RGB")
    striped = np.asarray(photo).copy()
    striped[:, :9] = striped[:, -9:] = 128
    assert find_person(Image.fromarray(striped), figure()[1]) is None


def test_a_parse_map_gives_the_same_person():
    spec = next(spec for spec in raw_specs(30, 4) if spec.view == "front")
    drawing = spec.draw((192, 144))
    seen = find_person(drawing.photo, drawing.clothes_mask().view(np.uint8))
    parsed = person_of_parse(drawing.parse)
    assert seen is not None and parsed is not None
    assert seen.crown == pytest.approx(parsed.crown, abs=0.02)
    assert seen.height == pytest.approx(parsed.height, rel=0.05)
    assert person_of_parse(np.zeros((96, 64), np.uint8)) is None


def test_a_person_is_assumed_around_a_pair_of_trousers():
    cells = np.zeros((96, 64), bool)
    cells[40:90, 24:40] = True
    person = assumed_person(cells, 2)
    # 50 rows from .40 to .955 of the height: 90 rows high, so the crown is 36 above the waist.
    assert person.height * ROWS == pytest.approx(50 / 0.555)
    assert person.crown * ROWS == pytest.approx(40 - 0.40 * 50 / 0.555)
