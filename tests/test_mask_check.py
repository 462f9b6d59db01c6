"""What can be the mask of a photo, and what cannot: true ones of many forms, and other pictures in their place."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from deepfashion_training.embedded.rows import RowSpec, documented_row
from deepfashion_training.images.mask_check import area_fault, mask_fault
from deepfashion_training.images.masks import align_mask
from deepfashion_training.images.pictures import PictureError
from deepfashion_training.inference.dress import mask_given

SIZE = (384, 288)
#: ATR labels of clothes.
CLOTHES = (4, 5, 6, 7)
#: Colours of a parser's map, as the parsers' own scripts paint them.
ATR_COLOURS = (
    (0, 0, 0), (128, 0, 0), (254, 0, 0), (0, 85, 0), (169, 0, 51), (254, 85, 0), (0, 0, 85), (0, 119, 220), (85, 85, 0),
    (0, 85, 85), (85, 51, 0), (52, 86, 128), (0, 128, 0), (0, 0, 254), (51, 169, 220), (0, 254, 254), (85, 254, 169),
    (169, 254, 85),
)  # fmt: skip
#: One person of each type, from another side each; and again before a bare wall.
PEOPLE = [(1, "front", False), (2, "full", True), (3, "additional", False), (1, "back", True), (2, "front", False)]


class Person:
    """A drawn person: ``photo``, ``mask`` (the agnostic one), ``worn`` (the clothes alone), ``garment``, ``parse``."""

    def __init__(self, cloth_type: int, view: str, studio: bool) -> None:
        index = 7 * cloth_type + len(view)
        row = documented_row(RowSpec(31, index, index, 1, view, cloth_type, cloth_type, studio=studio), SIZE)
        self.cloth_type = cloth_type
        self.photo, self.garment = (_opened(row[name]).convert("RGB") for name in ("image", "cloth"))
        self.mask, self.parse = _opened(row["mask"]).convert("L"), np.asarray(_opened(row["parse"]))
        self.worn = Image.fromarray(np.isin(self.parse, CLOTHES).astype(np.uint8) * np.uint8(255))


def _opened(cell: dict) -> Image.Image:
    return Image.open(io.BytesIO(cell["bytes"]))


@cache
def person(number: int) -> Person:
    return Person(*PEOPLE[number])


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=quality)
    return Image.open(io.BytesIO(sink.getvalue()))


def on_black(mask: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    return Image.composite(Image.new("RGB", mask.size, colour), Image.new("RGB", mask.size), mask)


def drawn(mask: Image.Image, form: str) -> Image.Image:
    """A rectangle or an ellipse around what is white."""
    canvas = Image.new("L", mask.size)
    getattr(ImageDraw.Draw(canvas), form)(mask.getbbox(), fill=255)
    return canvas


TRUE_MASKS = {
    "8 bits": lambda p: p.mask,
    "0 and 1": lambda p: p.mask.point(lambda level: level // 255),
    "1 bit": lambda p: p.mask.convert("1"),
    "16 bits": lambda p: Image.fromarray(np.asarray(p.mask, np.uint16) * 257),
    "RGB": lambda p: p.mask.convert("RGB"),
    "alpha": lambda p: Image.merge("RGBA", [Image.new("L", p.mask.size, 255)] * 3 + [p.mask]),
    "red": lambda p: on_black(p.mask, (255, 0, 0)),
    "red JPEG 50": lambda p: jpeg(on_black(p.mask, (255, 0, 0)), 50),
    "palette": lambda p: on_black(p.mask, (128, 128, 0)).quantize(2),
    "grey": lambda p: p.mask.point(lambda level: level * 200 // 255),
    "JPEG 90": lambda p: jpeg(p.mask, 90),
    "JPEG 20": lambda p: jpeg(p.mask, 20),
    "colour JPEG 50": lambda p: jpeg(p.mask.convert("RGB"), 50),
    "soft by 2": lambda p: p.mask.filter(ImageFilter.GaussianBlur(2)),
    "soft by 10": lambda p: p.mask.filter(ImageFilter.GaussianBlur(10)),
    "soft by 30": lambda p: p.mask.filter(ImageFilter.GaussianBlur(30)),
    "ramp of 16": lambda p: p.mask.filter(ImageFilter.BoxBlur(8)),
    "soft JPEG": lambda p: jpeg(p.mask.filter(ImageFilter.GaussianBlur(6)), 40),
    "the garment's outline": lambda p: p.worn,
    "rectangle": lambda p: drawn(p.mask, "rectangle"),
    "ellipse": lambda p: drawn(p.mask, "ellipse"),
    "map of types": lambda p: p.mask.point(lambda level: p.cloth_type if level else 0),
    "map of parts": lambda p: Image.fromarray(np.where(np.asarray(p.worn) > 0, p.parse, 0).astype(np.uint8)),
}

OTHER_PICTURES = {
    "the photo": lambda p: p.photo,
    "the photo in grey": lambda p: p.photo.convert("L"),
    "another photo": lambda p: person((PEOPLE.index((1, "front", False)) + p.cloth_type) % 3).photo,
    "agnostic photo": lambda p: Image.composite(Image.new("RGB", p.mask.size, (128, 128, 128)), p.photo, p.mask),
    "photo with a black hole": lambda p: Image.composite(Image.new("RGB", p.mask.size), p.photo, p.mask),
    "photo with a transparent hole": lambda p: Image.merge("RGBA", [*p.photo.split(), ImageOps.invert(p.mask)]),
    "overlay": lambda p: Image.composite(Image.blend(p.photo, on_black(p.mask, (255, 0, 0)), 0.5), p.photo, p.mask),
    "garment": lambda p: p.garment,
    "garment cut out": lambda p: Image.composite(p.photo, Image.new("RGB", p.mask.size), p.worn),
    "parse colours": lambda p: Image.fromarray(np.array(ATR_COLOURS, np.uint8)[p.parse]),
    "map of a whole person": lambda p: Image.fromarray(p.parse),
    "depth": lambda p: _depth(p),
    "inverted": lambda p: ImageOps.invert(p.mask),
    "inverted JPEG": lambda p: jpeg(ImageOps.invert(p.mask), 60),
    "inverted and soft": lambda p: ImageOps.invert(p.mask).filter(ImageFilter.GaussianBlur(5)),
    "inverted outline": lambda p: ImageOps.invert(p.worn),
    "noise": lambda p: Image.fromarray(np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)),
    "speck": lambda p: _speck(p),
}


def _depth(p: Person) -> Image.Image:
    """A person nearer than a floor that comes nearer."""
    floor = np.linspace(0, 60, SIZE[0])[:, None].repeat(SIZE[1], 1)
    return Image.fromarray(np.where(p.parse > 0, 200, floor).astype(np.uint8))


def _speck(p: Person) -> Image.Image:
    canvas = Image.new("L", p.mask.size)
    canvas.paste(255, (100, 100, 108, 108))
    return canvas


@pytest.mark.parametrize("number", range(len(PEOPLE)))
@pytest.mark.parametrize("form", TRUE_MASKS)
def test_true_masks_are_accepted(form, number):
    p = person(number)
    mask_given(p.photo, TRUE_MASKS[form](p), p.cloth_type)


@pytest.mark.parametrize("number", range(len(PEOPLE)))
@pytest.mark.parametrize("kind", OTHER_PICTURES)
def test_other_pictures_are_refused(kind, number):
    p = person(number)
    with pytest.raises(PictureError):
        mask_given(p.photo, OTHER_PICTURES[kind](p), p.cloth_type)


@pytest.mark.parametrize("number", range(len(PEOPLE)))
@pytest.mark.parametrize("share", [0.7, 0.85])
def test_close_ups_whose_garment_fills_the_frame_are_accepted(share, number):
    """The photo is cropped around the middle of the garment until that covers so much of it."""
    p = person(number)
    worn, size = np.asarray(p.worn) > 0, p.photo.size
    left, top, right, bottom = p.worn.getbbox()
    for step in range(48):
        cut = step / 100
        box = (
            round(left + cut * (right - left)), round(top + cut * (bottom - top)),
            round(right - cut * (right - left)), round(bottom - cut * (bottom - top)),
        )  # fmt: skip
        if worn[box[1] : box[3], box[0] : box[2]].mean() > share:
            break
    else:
        pytest.skip("the garment is too narrow for such a crop")
    photo = p.photo.crop(box).resize(size)
    for mask in (p.mask, p.worn):
        mask_given(photo, mask.crop(box).resize(size, Image.Resampling.NEAREST), p.cloth_type)


@pytest.mark.parametrize(
    ("picture", "kind"),
    [("the photo", "other"), ("parse colours", "other"), ("inverted", "inverted"), ("speck", "speck")],
)
def test_the_fault_has_a_kind(picture, kind):
    p = person(0)
    mask = OTHER_PICTURES[picture](p)
    _, decoded = align_mask(p.photo, mask)
    fault = mask_fault(p.photo, mask, decoded)
    assert fault is not None and fault.kind == kind


def test_a_busy_background_does_not_hide_an_inverted_mask():
    p = person(0)
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (12, 9, 3), np.uint8)).resize(p.photo.size)
    everybody = Image.fromarray((p.parse > 0).astype(np.uint8) * np.uint8(255))
    photo = Image.composite(p.photo, noise, everybody)
    fault = area_fault(photo, np.asarray(ImageOps.invert(p.mask)) // 255)
    assert fault is not None and fault.kind == "inverted"
    assert area_fault(photo, np.asarray(p.mask) // 255) is None


@pytest.mark.parametrize("number", range(len(PEOPLE)))
@pytest.mark.parametrize("factor", [2, 4])
def test_a_small_person_before_a_large_wall(number, factor):
    """The garment is then a hundredth of the picture, and an inverted mask nearly all white."""
    p = person(number)
    large = (factor * p.photo.width, factor * p.photo.height)
    place = ((large[0] - p.photo.width) // 2, (large[1] - p.photo.height) // 2)
    photo, mask = Image.new("RGB", large, p.photo.getpixel((2, 2))), Image.new("L", large)
    photo.paste(p.photo, place)
    mask.paste(p.worn, place)
    assert mask_given(photo, mask, None).any()
    with pytest.raises(PictureError, match="inverted"):
        mask_given(photo, ImageOps.invert(mask), None)


@pytest.mark.parametrize("level", [232, 245, 255])
def test_a_close_up_of_a_white_garment_is_no_photo_of_its_own_mask(level):
    photo, mask = Image.new("RGB", (288, 384), (level, level, level)), Image.new("L", (288, 384), 255)
    mask_given(photo, mask, 1)
    for picture, colour in ((photo, (90, 70, 60)), (mask, 0)):
        picture.paste(colour, (250, 300, 288, 384))
    mask_given(photo, mask, 1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_dark_photo_is_no_mask_of_itself(mode):
    p = person(1)
    dark = p.photo.point(lambda level: level // 9)
    with pytest.raises(PictureError, match="the photo itself"):
        mask_given(dark, dark.convert(mode), None)
    mask_given(dark, p.worn, None)


def test_an_even_white_picture_over_a_person_is_refused():
    p = person(1)
    fault = area_fault(p.photo, np.ones((p.photo.height, p.photo.width), np.uint8))
    assert fault is not None and fault.kind == "everything"
