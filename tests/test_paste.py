"""Back from the pair into the photo: the feathered edge by hand, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deepfashion_training.images.layout import place_picture
from deepfashion_training.images.paste import feathered, repainted, seam_of, unplace


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    """RGB picture of (height, width) in which every value comes up."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def smooth(size: tuple[int, int]) -> Image.Image:
    """RGB picture of (height, width) whose first two channels rise with the row and the column."""
    rows, columns = (np.linspace(20, 230, side) for side in size)
    planes = np.broadcast_arrays(rows[:, None], columns[None], 128.0)
    return Image.fromarray(np.stack(planes, -1).round().astype(np.uint8))


# ------------------------------------------------------------------------------------------------------ feathered


def test_the_ramp_of_one_pixel_in_a_row():
    """Seam 1: rows 3 to 5 are grown; an average over 3 rows of them gives thirds."""
    mask = np.zeros((1, 9), np.uint8)
    mask[0, 4] = 1
    third = np.float32(1 / 3)
    assert feathered(mask, 1).tolist() == [[0, 0, third, 2 * third, 1, 2 * third, third, 0, 0]]


def test_the_ramp_at_a_corner():
    """Seam 1 around one pixel: the grown square is 3x3, and of nine cells around (1, 1) of the result one is in it."""
    mask = np.zeros((7, 7), np.uint8)
    mask[3, 3] = 1
    ninths = (feathered(mask, 1) * 9).round(4)
    wanted = np.outer([0, 1, 2, 3, 2, 1, 0], [0, 1, 2, 3, 2, 1, 0])
    assert ninths.tolist() == wanted.tolist()


def test_at_the_border_only_what_is_there_is_averaged():
    """A mask on the first pixel of a row, seam 2: places 0 to 2 are grown; place 3 sees 1 to 5, of them 1 and 2."""
    mask = np.zeros((1, 8), np.uint8)
    mask[0, 0] = 1
    shares = [1, 3 / 4, 3 / 5, 2 / 5, 1 / 5, 0, 0, 0]
    assert feathered(mask, 2)[0].tolist() == pytest.approx(shares, abs=1e-6)
    assert feathered(mask, 2)[0, ::-1].tolist() == feathered(mask[:, ::-1], 2)[0].tolist()
    assert (feathered(np.ones((3, 5), np.uint8), 2) == 1).all()
    assert (feathered(np.zeros((3, 5), np.uint8), 2) == 0).all()


def test_seam_0_is_the_mask_itself():
    mask = np.random.default_rng(1).integers(0, 2, (13, 9), np.uint8)
    assert (feathered(mask, 0) == mask).all()


@pytest.mark.parametrize("seam", [1, 2, 5])
def test_1_on_the_mask_0_beyond_two_seams_and_between_them_in_between(seam):
    mask = (np.random.default_rng(seam).random((40, 60)) > 0.995).astype(np.uint8)
    alpha = feathered(mask, seam)
    assert alpha.dtype == np.float32 and mask.sum() > 3
    assert (alpha[mask == 1] == 1).all()
    rows, columns = np.nonzero(mask)
    place = np.mgrid[:40, :60]
    apart = np.abs(place[:, None] - np.array([rows, columns])[:, :, None, None]).max(axis=0).min(axis=0)
    assert ((alpha == 0) == (apart > 2 * seam)).all()
    assert alpha.max() <= 1 and (alpha[(apart > seam) & (apart <= 2 * seam)] < 1).all()


# -------------------------------------------------------------------------------------------------------- unplace


@pytest.mark.parametrize("mode", ["pad", "stretch"])
@pytest.mark.parametrize("source", [(128, 96), (100, 90), (101, 67), (67, 101), (50, 33), (1001, 667), (300, 1000)])
def test_unplace_is_the_inverse_of_place_picture(source, mode):
    """Shrunk and enlarged again, a smooth picture comes back. One pixel of shift in the half would change its first two
    channels by 210 levels over its side, 1.6 at least.
    """
    photo = smooth(source)
    half = Image.fromarray(place_picture(photo, (128, 96), mode).transpose(1, 2, 0))
    back = unplace(half, source, mode)
    assert (back.height, back.width) == source
    apart = np.abs(np.asarray(back, float) - np.asarray(photo, float))
    assert apart.max() <= 2 and apart.mean(axis=(0, 1)).max() < 0.4


@pytest.mark.parametrize("mode", ["pad", "stretch"])
def test_of_the_same_size_nothing_is_resized(mode):
    photo = noise((128, 96), 1)
    half = Image.fromarray(place_picture(photo, (128, 96), mode).transpose(1, 2, 0))
    assert unplace(half, (128, 96), mode).tobytes() == photo.tobytes()


def test_odd_padding_is_cut_off_exactly():
    """A photo of 128x91 leaves 5 columns: 2 to the left, 3 to the right. Its own scale is kept, so no pixel changes."""
    photo = noise((128, 91), 2)
    half = Image.fromarray(place_picture(photo, (128, 96)).transpose(1, 2, 0))
    assert unplace(half, (128, 91)).tobytes() == photo.tobytes()
    assert np.asarray(half)[:, 2:93].tobytes() == photo.tobytes()
    photo = noise((123, 96), 3)
    half = Image.fromarray(place_picture(photo, (128, 96)).transpose(1, 2, 0))
    assert unplace(half, (123, 96)).tobytes() == photo.tobytes() == np.asarray(half)[2:125].tobytes()


# ------------------------------------------------------------------------------------------------------ repainted


def test_seam_is_half_a_percent_of_the_longer_side_and_1_at_least():
    assert [seam_of(size) for size in ((1024, 768), (768, 1024), (128, 96), (4000, 3000))] == [5, 5, 1, 20]


@pytest.mark.parametrize("box", [(100, 120, 250, 310), (0, 0, 40, 30), (300, 400, 401, 507), (0, 200, 507, 201)])
def test_what_changes_and_what_does_not(box):
    """Beyond the feathered mask no pixel changes, on the mask all are as drawn, between them a mixture."""
    photo, drawn = noise((401, 507), 5), noise((401, 507), 6)
    top, left, bottom, right = box
    mask = np.zeros((401, 507), np.uint8)
    mask[top:bottom, left:right] = 1
    alpha = feathered(mask, seam_of(mask.shape))
    old, new, got = (np.asarray(picture, float) for picture in (photo, drawn, repainted(photo, drawn, mask)))
    assert (got[alpha == 0] == old[alpha == 0]).all() and (alpha == 0).sum() > 100_000
    assert (got[mask == 1] == new[mask == 1]).all()
    mixed = alpha[..., None] * new + (1 - alpha[..., None]) * old
    assert np.abs(got - mixed).max() <= 0.5001
    edge = (alpha > 0) & (alpha < 1)
    assert edge.sum() > 100 and (got[edge] != old[edge]).mean() > 0.5


def test_nothing_and_everything_repainted():
    photo, drawn = noise((50, 40), 7), noise((50, 40), 8)
    before = photo.tobytes()
    assert repainted(photo, drawn, np.zeros((50, 40), np.uint8)).tobytes() == before
    assert repainted(photo, drawn, np.ones((50, 40), np.uint8)).tobytes() == drawn.tobytes()
    assert photo.tobytes() == before
