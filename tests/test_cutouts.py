"""Cut-outs: where the garment lies, that nothing of the background shows, and that a warped one cannot be copied."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deepfashion_training.embedded.body import random_person, random_pose
from deepfashion_training.embedded.figure import draw_person
from deepfashion_training.embedded.garments import random_outfit
from deepfashion_training.images.cutouts import cut_out, warped_cut_out
from deepfashion_training.images.pictures import box_of

RED, GREEN, WHITE = (200, 30, 40), (20, 180, 60), (255, 255, 255)


def photo_with(boxes: list[tuple[int, int, int, int]], size: tuple[int, int] = (300, 200)):
    """A green photo of ``size`` (height, width) with red boxes, and the region of those."""
    photo = Image.new("RGB", (size[1], size[0]), GREEN)
    region = np.zeros(size, np.uint8)
    for left, top, right, bottom in boxes:
        photo.paste(RED, (left, top, right, bottom))
        region[top:bottom, left:right] = 1
    return photo, region


def extent(picture: Image.Image) -> tuple[int, int, int, int]:
    """Box of what is not white."""
    return box_of(np.asarray(picture).min(axis=2) < 250)


def test_the_garment_is_centred_and_fits_within_the_margins():
    picture = cut_out(*photo_with([(20, 100, 120, 250)]), (600, 400))
    assert picture.size == (400, 600)
    # 100x150 pixels may become 352x528 within margins of 6%, but no more than twice as large: 200x300.
    left, top, right, bottom = extent(picture)
    assert (left + right, top + bottom) == (400, 600)
    assert 192 <= right - left <= 200
    assert 292 <= bottom - top <= 300
    assert picture.getpixel((200, 300)) == RED


@pytest.mark.parametrize(("box", "width", "height"), [((0, 0, 200, 100), 176, 88), ((50, 0, 150, 300), 88, 264)])
def test_a_large_garment_is_shrunk_to_the_margins(box, width, height):
    left, top, right, bottom = extent(cut_out(*photo_with([box]), (300, 200)))
    assert abs(right - left - width) <= 4
    assert abs(bottom - top - height) <= 4
    assert left >= 12
    assert top >= 18


def test_nothing_of_the_background_shows_and_the_edge_is_soft():
    picture = np.asarray(cut_out(*photo_with([(50, 50, 150, 250)]), (300, 200))).astype(int)
    # Whatever is mixed into the edge is white: on the line from red to white, green grows as fast as blue.
    assert abs((picture[..., 1] - 30) / 225 - (picture[..., 2] - 40) / 215).max() < 0.03
    line = picture[150, :, 1]
    between = (line > 60) & (line < 225)
    assert 2 <= between.sum() <= 6


def test_the_pixels_that_touch_the_background_are_left_out():
    photo, region = photo_with([(50, 50, 150, 250)])
    fringe = np.asarray(photo).copy()
    fringe[50:250, [50, 149]] = fringe[[50, 249], 50:150] = (0, 0, 0)  # dark seam on the region's outermost pixels
    cut = np.asarray(cut_out(Image.fromarray(fringe), region, (300, 200)))
    assert cut.max(axis=2).min() > 190


def test_specks_are_left_out_and_large_pieces_stay():
    body, sleeve, speck = (60, 60, 140, 200), (10, 60, 40, 120), (185, 280, 195, 290)
    alone = extent(cut_out(*photo_with([body, sleeve]), (300, 200)))
    assert extent(cut_out(*photo_with([body, sleeve, speck]), (300, 200))) == alone
    with_body_only = extent(cut_out(*photo_with([body]), (300, 200)))
    assert alone[2] - alone[0] > with_body_only[2] - with_body_only[0]


def test_pieces_are_joined_around_corners():
    # A spiral of thin bars: every one of them would be a speck beside the block, together they are not.
    bars = [(10, 10, 14, 200), (10, 196, 60, 200), (56, 100, 60, 200), (30, 100, 60, 104), (100, 10, 190, 290)]
    without = extent(cut_out(*photo_with(bars[-1:]), (300, 200)))
    joined = extent(cut_out(*photo_with(bars), (300, 200)))
    assert joined[2] - joined[0] > without[2] - without[0] + 20


@pytest.fixture(scope="module")
def drawn():
    """A person in patterned clothes and the region of all of them."""
    rng = np.random.default_rng(5)
    person = random_person(rng)
    drawing = draw_person(person, random_outfit(rng, person.gender, 1), random_pose(rng, "full"), (384, 256))
    return drawing.photo, drawing.clothes_mask().astype(np.uint8)


def same_pixels(photo: Image.Image, region: np.ndarray, picture: Image.Image) -> float:
    """Largest share of the garment's pixels that an integer shift of the photo puts, exactly, into ``picture``."""
    worn, shown = np.asarray(photo).astype(int), np.asarray(picture).astype(int)
    left, top, right, bottom = box_of(region)
    garment, inside = worn[top:bottom, left:right], region[top:bottom, left:right] > 0
    height, width = inside.shape
    best = 0.0
    for y in range(shown.shape[0] - height + 1):
        for x in range(shown.shape[1] - width + 1):
            there = shown[y : y + height : 3, x : x + width : 3]
            alike = (np.abs(there - garment[::3, ::3]).max(axis=2) <= 2)[inside[::3, ::3]]
            best = max(best, float(alike.mean()))
    return best


def test_a_warped_cut_out_is_no_shift_of_the_photo():
    noise = np.random.default_rng(3).integers(0, 230, (60, 40, 3), np.uint8)
    photo = Image.fromarray(noise).resize((80, 120), Image.Resampling.BICUBIC)
    region = np.zeros((120, 80), np.uint8)
    region[20:100, 15:65] = 1
    shifted = Image.new("RGB", photo.size, WHITE)
    shifted.paste(photo.crop((15, 20, 65, 100)), (9, 14))
    assert same_pixels(photo, region, shifted) == 1.0
    for seed in range(3):
        assert same_pixels(photo, region, warped_cut_out(photo, region, (120, 80), seed)) < 0.02


def test_a_warped_cut_out_depends_on_its_seed_alone(drawn):
    pictures = [warped_cut_out(*drawn, (384, 256), seed).tobytes() for seed in (1, 1, 2)]
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize("box", [(0, 0, 200, 300), (60, 0, 120, 300), (0, 100, 200, 160)])
def test_a_warped_cut_out_stays_on_its_canvas_in_about_its_size(box):
    straight = np.count_nonzero(np.asarray(cut_out(*photo_with([box]), (300, 200))).min(axis=2) < 128)
    for seed in range(20):
        warped = warped_cut_out(*photo_with([box]), (300, 200), seed)
        left, top, right, bottom = extent(warped)
        assert min(left, top, 200 - right, 300 - bottom) > 0, seed
        share = np.count_nonzero(np.asarray(warped).min(axis=2) < 128) / straight
        assert 0.82**2 - 0.08 < share < 0.94**2 + 0.08, seed


def test_warping_does_not_tear_the_garment(drawn):
    photo, region = drawn
    flat_red = Image.new("RGB", photo.size, RED)
    warped = np.asarray(warped_cut_out(flat_red, np.ones_like(region), (384, 256), 4)).astype(int)
    inside = np.argwhere(abs(warped - RED).max(axis=2) <= 1)
    (top, left), (bottom, right) = inside.min(axis=0), inside.max(axis=0)
    centre = warped[top + 30 : bottom - 30, left + 30 : right - 30]
    assert abs(centre - RED).max() <= 1
