"""Layout: where pictures end up, worked out by hand on flat rectangles, and filters compared with Pillow's own."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from deepfashion_training.images import layout
from deepfashion_training.images.layout import (
    Box,
    crop_box,
    fit_box,
    garment_mask,
    pair_tensors,
    place_mask,
    place_picture,
)
from deepfashion_training.images.masks import align_mask
from deepfashion_training.images.pictures import PictureError

GREY, RED, BLUE, WHITE = (100, 110, 120), (255, 0, 0), (0, 0, 255), (255, 255, 255)


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int], colour: object, ground: object) -> Image.Image:
    """A picture of ``size`` (width, height) on ``ground`` with ``box`` (left, top, right, bottom) in ``colour``."""
    mode = "L" if isinstance(ground, int) else "RGB"
    picture = Image.new(mode, size, ground)
    picture.paste(colour, box)
    return picture


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def planes(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).transpose(2, 0, 1)


def levels_apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other)


@pytest.mark.parametrize(
    ("source", "size", "expected"),
    [
        ((100, 50), (40, 40), Box(10, 0, 20, 40)),  # tall: 0.4 of it, 10 left and right
        ((50, 100), (40, 40), Box(0, 10, 40, 20)),  # wide: 10 above and below
        ((100, 50), (40, 41), Box(10, 0, 20, 40)),  # 21 to share: the odd one goes right
        ((64, 48), (32, 24), Box(0, 0, 24, 32)),
        ((1000, 1), (10, 10), Box(4, 0, 1, 10)),  # never thinner than a pixel
    ],
)
def test_pad_keeps_the_aspect_and_centres(source, size, expected):
    assert fit_box(source, size, "pad") == expected
    assert fit_box(source, size, "stretch") == Box(0, 0, size[1], size[0])


def test_padding_has_the_colour_of_the_pictures_border():
    tall = rectangle((10, 20), (3, 4, 7, 20), RED, GREY)  # red touches the bottom, but not half of the border
    placed = place_picture(tall, (20, 20))
    assert (placed[:, :, 5:15] == planes(tall)).all()
    for columns in (slice(0, 5), slice(15, 20)):
        assert (placed[:, :, columns].reshape(3, -1).T == GREY).all()

    wide = rectangle((20, 10), (3, 4, 7, 8), RED, BLUE)
    placed = place_picture(wide, (20, 20))
    assert (placed[:, 5:15] == planes(wide)).all()
    assert (placed[:, :5].reshape(3, -1).T == BLUE).all()
    assert (placed[:, 15:].reshape(3, -1).T == BLUE).all()


def test_pictures_are_resized_with_lanczos_and_masks_with_nearest():
    photo, mask = noise(40, 60), noise(40, 60, "L").point(lambda value: value > 127, "L")
    lanczos = photo.resize((20, 30), Image.Resampling.LANCZOS)
    assert levels_apart(place_picture(photo, (30, 20)), planes(lanczos)).max() <= 1
    assert levels_apart(planes(lanczos), planes(photo.resize((20, 30), Image.Resampling.BICUBIC))).max() > 10
    nearest = np.asarray(mask.resize((20, 30), Image.Resampling.NEAREST))
    assert (place_mask(np.asarray(mask), (30, 20)) == nearest).all()

    stretched = photo.resize((50, 30), Image.Resampling.LANCZOS)
    assert levels_apart(place_picture(photo, (30, 50), "stretch"), planes(stretched)).max() <= 1
    nearest = np.asarray(mask.resize((50, 30), Image.Resampling.NEAREST))
    assert (place_mask(np.asarray(mask), (30, 50), "stretch") == nearest).all()


@pytest.mark.parametrize(
    ("stored", "size"),
    [((1024, 768), (768, 576)), ((512, 384), (768, 576)), ((900, 600), (256, 192)), ((1101, 750), (1152, 768))],
)
@pytest.mark.parametrize("spread", [25, 2000])
def test_resized_photos_are_pillows_but_for_rounding(stored, size, spread):
    """At most one level apart, and that in less than 1% of the values; a wide spread is black and white grain."""
    grain = np.random.default_rng(1).normal(0, spread, (*stored, 3))
    photo = Image.fromarray((np.linspace(40, 220, stored[1])[:, None] + grain).clip(0, 255).astype(np.uint8))
    theirs = planes(photo.resize(size[::-1], Image.Resampling.LANCZOS))
    apart = levels_apart(place_picture(photo, size, "stretch"), theirs)
    assert (apart > 0).mean() < 1e-2 and apart.max() <= 1


def test_a_pytorch_without_lanczos_leaves_it_to_pillow(monkeypatch):
    monkeypatch.setattr(layout, "TORCH_RESIZES", False)
    photo = noise(40, 60)
    assert (place_picture(photo, (30, 20)) == planes(photo.resize((20, 30), Image.Resampling.LANCZOS))).all()
    assert (place_picture(photo, (60, 40)) == planes(photo)).all()


def test_a_resized_picture_keeps_its_place_under_padding():
    photo = noise(30, 60)  # to (30, 40): half size, 15x30, with 12 columns left and 13 right
    placed = place_picture(photo, (30, 40))
    assert levels_apart(placed[:, :, 12:27], planes(photo.resize((15, 30), Image.Resampling.LANCZOS))).max() <= 1


def test_a_picture_of_the_right_size_stays_as_it_is():
    photo = noise(24, 32)
    tensors = pair_tensors(photo, photo, Image.new("L", (24, 32), 255), (32, 24))
    assert torch.equal(tensors["cloth_pure"], torch.from_numpy(planes(photo) / np.float32(127.5) - 1))


def area(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    return np.asarray(rectangle(size, box, 1, 0))


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((3000, 384), (1400, 20, 1520, 300)),  # a panorama
        ((3000, 384), (0, 20, 120, 384)),  # at its left and lower border
        ((384, 3000), (150, 1000, 270, 1400)),
        ((4000, 3000), (1000, 1000, 1160, 1300)),  # small in a large photo
        ((4000, 3000), (3940, 0, 4000, 150)),
    ],
)
def test_a_crop_has_the_canvas_aspect_and_holds_the_mask(size, box):
    crop = crop_box(area(size, box), (1024, 768))
    left, top, right, bottom = crop.edges
    assert crop.height * 3 == crop.width * 4 and fit_box((crop.height, crop.width), (1024, 768)) == (0, 0, 768, 1024)
    assert 0 <= left <= box[0] and 0 <= top <= box[1] and box[2] <= right <= size[0] and box[3] <= bottom <= size[1]


def test_a_crop_that_the_photo_is_too_low_for_is_as_high_as_the_photo():
    crop = crop_box(area((3000, 384), (1000, 0, 1600, 384)), (1024, 768))
    assert (crop.top, crop.height) == (0, 384) and crop.left <= 1000 and crop.edges[2] >= 1600


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((768, 1024), (300, 400, 400, 600)),  # as large as the canvas: no pixel of it is lost
        ((300, 400), (100, 100, 120, 140)),
        ((3000, 4000), (900, 600, 2100, 2300)),  # a whole person who fills the photo, in a top
        ((3000, 4000), (900, 1600, 2100, 3800)),  # in trousers
        ((3000, 4000), (850, 900, 2150, 3800)),  # in a dress
        ((3000, 4000), (0, 0, 3000, 4000)),
        ((3000, 4000), (0, 0, 0, 0)),
    ],
)
def test_photos_that_a_crop_gains_little_in_stay_whole(size, box):
    assert crop_box(area(size, box), (1024, 768)) is None


def test_sample_tensors_worked_out_by_hand():
    photo = rectangle((4, 6), (1, 2, 3, 5), (51, 0, 255), (204, 204, 204))
    cloth = rectangle((4, 6), (1, 1, 3, 4), BLUE, WHITE)
    mask = rectangle((4, 6), (1, 2, 3, 5), 255, 0)
    sample = pair_tensors(photo, cloth, mask, (6, 4))

    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in sample.items()}
    assert shapes == {
        "image": ((3, 6, 8), torch.float32),
        "im_mask": ((3, 6, 8), torch.float32),
        "inpaint_mask": ((1, 6, 8), torch.float32),
        "cloth_pure": ((3, 6, 4), torch.float32),
        "cloth_mask": ((1, 6, 4), torch.float32),
    }
    image, person = sample["image"], sample["image"][:, :, 4:]
    assert image[:, 0, 0].tolist() == [1, 1, 1]  # garment half: white ground ...
    assert image[:, 2, 1].tolist() == [-1, -1, 1]  # ... and blue garment
    assert person[:, 0, 0].tolist() == pytest.approx([0.6] * 3)  # 204 / 127.5 - 1
    assert person[:, 2, 1].tolist() == pytest.approx([-0.6, -1, 1])  # 51, 0, 255
    assert torch.equal(sample["cloth_pure"], image[:, :, :4])

    repaint = torch.zeros(6, 8)
    repaint[2:5, 5:7] = 1
    assert torch.equal(sample["inpaint_mask"][0], repaint)
    assert torch.equal(sample["im_mask"][:, repaint == 0], image[:, repaint == 0])
    masked = sample["im_mask"][:, repaint == 1]
    assert (masked == 0).all()
    assert not torch.signbit(masked).any()

    garment = torch.zeros(6, 4)
    garment[1:4, 1:3] = 1
    assert torch.equal(sample["cloth_mask"][0], garment)


@pytest.mark.parametrize(("width", "height"), [(12, 24), (24, 12)])
def test_mask_lies_on_the_photo_under_padding(width, height):
    box = (2, 3, 9, 11)
    photo, mask = rectangle((width, height), box, WHITE, (0, 0, 0)), rectangle((width, height), box, 255, 0)
    sample = pair_tensors(photo, photo, mask, (24, 24))
    repaint = sample["inpaint_mask"][0, :, 24:]
    assert repaint.sum() == 7 * 8
    assert torch.equal(repaint == 1, sample["image"][0, :, 24:] == 1)
    left, top = (24 - width) // 2, (24 - height) // 2
    assert (repaint[top + 3 : top + 11, left + 2 : left + 9] == 1).all()


@pytest.mark.parametrize(
    ("photo_size", "size", "rows", "columns"),
    [
        ((40, 80), (40, 40), slice(10, 20), slice(14, 24)),  # half, 10 columns left: 20..40 x 8..28
        ((80, 40), (40, 40), slice(20, 30), slice(4, 14)),  # half, 10 rows above
    ],
)
def test_resized_mask_and_photo_stay_aligned(photo_size, size, rows, columns):
    box = (8, 20, 28, 40)
    photo, mask = rectangle(photo_size, box, WHITE, (0, 0, 0)), rectangle(photo_size, box, 255, 0)
    sample = pair_tensors(photo, photo, mask, size)
    expected = torch.zeros(size)
    expected[rows, columns] = 1
    assert torch.equal(sample["inpaint_mask"][0, :, size[1] :], expected)
    # LANCZOS blurs the edge, but its middle stays on the border of the mask.
    assert torch.equal(sample["image"][0, :, size[1] :] > 0, expected == 1)


def test_mask_of_another_size_comes_to_the_photo():
    photo = rectangle((24, 32), (8, 8, 16, 24), WHITE, (0, 0, 0))
    small = rectangle((12, 16), (4, 4, 8, 12), 255, 0)
    upright, mask = align_mask(photo, small)
    assert mask.shape == (32, 24)
    assert ((np.asarray(upright)[..., 0] == 255) == (mask == 1)).all()


def test_mask_of_another_aspect_and_empty_mask_are_errors():
    photo = Image.new("RGB", (24, 32))
    with pytest.raises(PictureError, match="mask of 24x24 on a photo of 24x32: another aspect"):
        pair_tensors(photo, photo, Image.new("L", (24, 24), 255), (32, 24))
    with pytest.raises(PictureError, match="mask is empty"):
        pair_tensors(photo, photo, Image.new("L", (24, 32), 0), (32, 24))
    align_mask(photo, Image.new("L", (12, 17), 255))  # a rounded side is the same aspect


def test_exif_turns_the_photo_and_a_mask_of_its_stored_pixels():
    stored = rectangle((20, 10), (0, 0, 5, 10), WHITE, (0, 0, 0))  # white on the left of the stored pixels
    photo = with_orientation(stored, 6)  # to be seen turned clockwise: 10 wide, 20 high, white on top
    seen = rectangle((10, 20), (0, 0, 10, 5), 255, 0)
    for mask in (seen, stored.convert("L")):
        upright, aligned = align_mask(photo, mask)
        assert upright.size == (10, 20)
        assert (np.asarray(upright)[..., 0] == np.asarray(seen)).all()
        assert (aligned == np.asarray(seen) // 255).all()


def test_a_mask_with_an_orientation_of_its_own_is_turned_by_that():
    photo = rectangle((10, 10), (0, 0, 10, 3), WHITE, (0, 0, 0))
    mask = with_orientation(rectangle((10, 10), (0, 0, 3, 10), 255, 0), 6)
    upright, aligned = align_mask(photo, mask)
    assert ((np.asarray(upright)[..., 0] == 255) == (aligned == 1)).all()

    photo = with_orientation(Image.new("RGB", (20, 10)), 6)
    with pytest.raises(PictureError, match="mask of 20x10 on a photo of 10x20"):  # it said which way is up: no guessing
        align_mask(photo, with_orientation(Image.new("L", (20, 10), 255), 3))


def with_orientation(picture: Image.Image, orientation: int) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    return Image.open(io.BytesIO(buffer.getvalue()))


def test_cloth_with_alpha_lies_on_white_and_is_masked_by_it():
    cloth = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    cloth.paste((255, 255, 255, 255), (1, 0, 3, 4))  # a white garment, which no colour rule would find
    photo = Image.new("RGB", (4, 4))
    sample = pair_tensors(photo, cloth, Image.new("L", (4, 4), 255), (4, 4))
    assert (sample["cloth_pure"] == 1).all()
    assert sample["cloth_mask"][0].tolist() == [[0, 1, 1, 0]] * 4


def test_background_reaches_twelve_levels_around_its_colour():
    row = [88, 87, 112, 113, 100]
    placed = np.full((3, 1, 5), 100, np.uint8)
    placed[1, 0] = row  # a single channel decides
    assert garment_mask(placed, (100, 100, 100)).tolist() == [[False, True, False, True, False]]
    placed[:] = np.array([0, 12, 13, 255, 243], np.uint8)
    assert garment_mask(placed, (0, 0, 0)).tolist() == [[False, False, True, True, True]]
    assert garment_mask(placed, WHITE).tolist() == [[True, True, True, False, False]]


def test_jpeg_noise_around_a_garment_is_background():
    buffer = io.BytesIO()
    rectangle((64, 64), (20, 16, 44, 48), (30, 60, 90), WHITE).save(buffer, "JPEG", quality=75)
    cloth = Image.open(io.BytesIO(buffer.getvalue()))
    photo = Image.new("RGB", (64, 64))
    mask = pair_tensors(photo, cloth, Image.new("L", (64, 64), 255), (64, 64))["cloth_mask"][0]
    assert (mask[16:48, 20:44] == 1).all()
    assert mask.sum() <= 34 * 26  # at most a pixel more on each side
