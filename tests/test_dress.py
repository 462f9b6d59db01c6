"""Masks by type and masks that people hand in, and what becomes of one person, garment and mask."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import box_mask, noise, turned
from PIL import Image

from deepfashion_training.embedded import DRAWN_PARSER
from deepfashion_training.embedded.figure import Drawing
from deepfashion_training.embedded.rows import documented_specs
from deepfashion_training.images.masks import repaint_mask
from deepfashion_training.images.parts import FACE, GARMENT_LABELS, protected
from deepfashion_training.images.paste import feathered, seam_of
from deepfashion_training.images.pictures import PictureError
from deepfashion_training.inference.dress import DrawingSettings, crop_of, dress, mask_given, mask_of_type, picture_of
from deepfashion_training.inference.picture_files import read_picture, without_exif
from deepfashion_training.models.human_parser import HumanParser, load_human_parser

UPPER, LOWER, FULL = 1, 2, 3


@pytest.fixture(scope="module")
def parser() -> HumanParser:
    return load_human_parser(str(DRAWN_PARSER))


@pytest.fixture(scope="module")
def people() -> list[Drawing]:
    """Six people of 256x192, two in each type of garment, seen whole: the small parser has learned no other."""
    return [dataclasses.replace(spec, studio=False).draw((256, 192)) for spec in list(documented_specs(9, 5))[3:]]


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one > 0, other > 0
    return float((one & other).sum() / (one | other).sum())


# -------------------------------------------------------------------------------------------------- masks by the parser


def worn(person: Drawing, cloth_type: int) -> np.ndarray:
    """Where the person wears a garment of the type, by the drawing itself."""
    return np.isin(person.parse, GARMENT_LABELS[cloth_type]).astype(np.uint8)


def test_the_mask_of_a_type_lies_where_the_drawing_says(people, parser):
    """Beside the mask of the same policy on the drawn labels, and beside the row's own, which is another policy's."""
    same, own, crossed = [], [], []
    for person in people:
        masks = {kind: mask_of_type(person.photo, kind, parser) for kind in (UPPER, LOWER, FULL)}
        for kind, mask in masks.items():
            assert mask.shape == (256, 192) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
            garment = worn(person, kind)
            same.append(overlap(mask, repaint_mask(garment, kind, None, person.parse)))
            own.append(overlap(mask, person.agnostic[kind]))
            if garment.any():
                assert mask[garment > 0].mean() > 0.93
        crossed += [overlap(masks[UPPER], person.agnostic[LOWER]), overlap(masks[LOWER], person.agnostic[UPPER])]
    assert min(same) > 0.75 and np.mean(same) > 0.85
    assert min(own) > 0.55 and np.mean(own) > 0.7
    assert max(crossed) < 0.4


def test_the_mask_spares_face_and_hands(people, parser):
    faces = []
    for person in people:
        kept = protected(parser.parse([person.photo])[0])
        for kind in (UPPER, LOWER, FULL):
            mask = mask_of_type(person.photo, kind, parser)
            assert kept.sum() > 500 and not mask[kept].any()
            if (person.parse == FACE).any():
                faces.append(mask[person.parse == FACE].mean())
    assert len(faces) >= 9 and max(faces) < 0.12 and np.mean(faces) < 0.03


def test_a_type_that_is_not_worn_is_placed_where_it_would_be(people, parser):
    """Of a person in a dress, the lower mask is about what the drawing would repaint for trousers."""
    dressed = [person for person in people if not worn(person, LOWER).any()]
    assert dressed
    for person in dressed:
        assert overlap(mask_of_type(person.photo, LOWER, parser), person.agnostic[LOWER]) > 0.55
        assert overlap(mask_of_type(person.photo, UPPER, parser), person.agnostic[UPPER]) > 0.55


def test_the_mask_of_somebody_in_a_panorama_is_as_close_as_the_parser_sees_best(parser):
    """The first part around the person follows from a window in which the person is small, and is too large."""
    tops = [spec for spec in documented_specs(200, 51515) if spec.cloth_type == UPPER][:2]
    for spec in tops:
        person = dataclasses.replace(spec, view="full").draw((256, 192))
        wide = np.pad(np.asarray(person.photo), ((100, 28), (1700, 1108), (0, 0)), mode="edge")
        mask = mask_of_type(Image.fromarray(wide), UPPER, parser)
        assert overlap(mask[100:356, 1700:1892], person.agnostic[UPPER]) > 0.72
        assert not mask[:, :1700].any() and not mask[:, 1892:].any()


@pytest.mark.parametrize("left", [0, 2712])
def test_the_mask_of_somebody_at_the_end_of_a_panorama_has_the_photos_size(parser, left):
    """There the part around the person is the window itself, in which the parser saw them smaller than they are."""
    spec = next(spec for spec in documented_specs(30, 51515) if spec.cloth_type == UPPER)
    person = dataclasses.replace(spec, view="full").draw((384, 288))
    around = ((0, 0), (left, 2712 - left), (0, 0))
    mask = mask_of_type(Image.fromarray(np.pad(np.asarray(person.photo), around, mode="edge")), UPPER, parser)
    assert mask.shape == (384, 3000)
    assert overlap(mask[:, left : left + 288], person.agnostic[UPPER]) > 0.6


def labels(parse: np.ndarray) -> HumanParser:
    """A parser that gives one map."""
    return SimpleNamespace(parse=lambda photos: [parse], size=parse.shape)


def test_nobody_in_the_photo(people):
    with pytest.raises(PictureError, match="finds no person"):
        mask_of_type(noise(256, 192), UPPER, labels(np.zeros((256, 192), np.uint8)))


def test_clothes_up_to_the_corners(people, parser):
    """The small parser takes noise for clothes."""
    with pytest.raises(PictureError, match="no plausible area of clothes"):
        mask_of_type(noise(256, 192), UPPER, parser)


def test_the_part_is_not_in_the_photo():
    """A face alone, up to the chin."""
    parse = np.zeros((100, 100), np.uint8)
    parse[10:, 5:95] = FACE
    with pytest.raises(PictureError, match="pass a mask"):
        mask_of_type(noise(100, 100), LOWER, labels(parse))


# ------------------------------------------------------------------------------------------------------- masks as given


def test_a_mask_of_another_size_and_in_other_forms():
    photo = noise(80, 60)
    wanted = np.asarray(box_mask()) > 0
    assert ((mask_given(photo, box_mask(), None) == 1) == wanted).all()
    double = box_mask().resize((120, 160), Image.Resampling.NEAREST)
    assert (mask_given(photo, double, None) == wanted).all()
    rgba = Image.merge("RGBA", [Image.new("L", (60, 80), 255)] * 3 + [box_mask()])
    for form in (box_mask().convert("RGB"), box_mask().convert("1"), box_mask().convert("P"), rgba):
        assert (mask_given(photo, form, None) == wanted).all()


def test_a_label_map_of_types():
    values = np.zeros((80, 60), np.uint8)
    values[10:30], values[30:70] = UPPER, LOWER
    mask = Image.fromarray(values)
    for kind in (UPPER, LOWER):
        assert (mask_given(noise(80, 60), mask, kind) == (values == kind)).all()
    assert (mask_given(noise(80, 60), mask, None) == (values > 0)).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (60, 80), 0), "it is empty"),
        (noise(80, 60), "the photo itself"),
        (Image.eval(box_mask(), lambda value: 255 - value), "seems to be inverted"),
        (Image.new("L", (80, 80), 255), "mask of 80x80 on a photo of 60x80: another aspect"),
    ],
)
def test_masks_that_will_not_do(mask, message):
    with pytest.raises(PictureError, match=message):
        mask_given(noise(80, 60), mask, None)


@pytest.mark.parametrize("drawn_on", ["what is seen", "stored pixels", "turned too"])
def test_a_photo_that_its_exif_turns(drawn_on, tmp_path):
    photo, mask = noise(80, 60), box_mask()
    stored = read_picture(turned(photo, tmp_path / "p.png"), "the person")
    seen = without_exif(stored)
    assert stored.size == (80, 60) and seen.tobytes() == photo.tobytes()
    assert without_exif(seen).tobytes() == photo.tobytes(), "turned once more"
    if drawn_on == "turned too":
        mask = read_picture(turned(mask, tmp_path / "m.png"), "the mask")
    elif drawn_on == "stored pixels":
        mask = mask.transpose(Image.Transpose.ROTATE_90)
    assert (mask_given(stored, mask, None) == (np.asarray(box_mask()) > 0)).all()


# ---------------------------------------------------------------------------------------------------------------- dress


class Painter:
    """In place of the model: the pair as it came, and every pixel to repaint in one colour."""

    def __init__(self, colour: tuple[float, float, float] = (0, 1, 0)) -> None:
        self.colour, self.asked = torch.tensor(colour)[:, None, None], []

    def draw(self, samples, seeds, **how):
        self.asked.append((list(seeds), how))
        pairs = [torch.where(one["inpaint_mask"] > 0, self.colour, (one["image"] + 1) / 2) for one in samples]
        return torch.stack(pairs)


def test_dress_puts_the_result_where_the_mask_is():
    photo, garment = Image.new("RGB", (501, 400), (200, 10, 10)), Image.new("RGB", (50, 50), (0, 0, 255))
    mask = np.zeros((400, 501), np.uint8)
    mask[100:300, 150:350] = 1
    look = DrawingSettings((128, 96), 4, 2.5, {"lora": 0.7})
    painter = Painter()
    picture, pair = dress(painter, photo, garment, mask, look, "p", 5, on_step=print)
    assert picture.size == (501, 400) and pair.size == (192, 128)
    seeds, how = painter.asked[0]
    assert seeds == [5] and how["prompts"] == ["p"] and how["loras"] == {"lora": 0.7}
    assert (how["steps"], how["guidance_scale"], how["on_step"]) == (4, 2.5, print)
    got = np.asarray(picture)
    assert (got[feathered(mask, 3) == 0] == (200, 10, 10)).all() and (got[120:280, 170:330] == (0, 255, 0)).all()
    assert (np.asarray(pair)[:, :96] == (0, 0, 255)).all()
    whole, _ = dress(painter, photo, garment, mask, dataclasses.replace(look, repaint=False), "p", 5)
    assert whole.size == (501, 400) and (np.asarray(whole)[120:280, 170:330] == (0, 255, 0)).all()


def test_dress_refuses_a_mask_that_vanishes():
    look = DrawingSettings((128, 96), 4, 2.5)
    speck = np.zeros((3000, 2000), np.uint8)
    speck[1501, 1001] = 1
    with pytest.raises(PictureError, match="nothing of it is left at 128x96"):
        dress(Painter(), Image.new("RGB", (2000, 3000)), noise(50, 40), speck, look, "", 0)


@pytest.mark.parametrize("repaint", [True, False])
def test_a_crop_is_drawn_and_pasted_back(repaint):
    """The model sees the part alone, at its own aspect; beyond it every pixel is the photo's."""
    photo, mask = noise(300, 1200), np.zeros((300, 1200), np.uint8)
    mask[60:260, 700:780] = 1
    look = DrawingSettings((128, 96), 4, 2.5, repaint=repaint, crop=True)
    box = crop_of(mask, look)
    assert box is not None and box.height * 3 == box.width * 4
    painter = Painter()
    picture, pair = dress(painter, photo, Image.new("RGB", (50, 50), (0, 0, 255)), mask, look, "p", 5)
    assert picture.size == (1200, 300) and pair.size == (192, 128)
    changed = np.abs(np.asarray(picture, int) - np.asarray(photo)).max(axis=2) > 0
    seam = feathered(mask, seam_of((box.height, box.width))) > 0
    outside = np.ones_like(changed)
    outside[box.top : box.top + box.height, box.left : box.left + box.width] = False
    assert not changed[~seam if repaint else outside].any()
    assert (np.asarray(picture)[80:240, 710:770] == (0, 255, 0)).all()
    whole, _ = dress(painter, photo, noise(50, 40), mask, dataclasses.replace(look, crop=False), "p", 5)
    assert not (np.asarray(whole)[80:240, 710:770] == (0, 255, 0)).all()


def test_a_mask_that_vanishes_in_the_whole_photo_is_drawn_in_a_crop():
    line = np.zeros((1000, 4000), np.uint8)
    line[400:440, 2003:2006] = 1
    look = DrawingSettings((64, 48), 1, 1.0)
    with pytest.raises(PictureError, match="nothing of it is left"):
        dress(Painter(), Image.new("RGB", (4000, 1000)), noise(50, 40), line, look, "", 0)
    picture, _ = dress(
        Painter(), Image.new("RGB", (4000, 1000)), noise(50, 40), line, dataclasses.replace(look, crop=True), "", 0
    )
    assert np.asarray(picture)[420, 2004, 1] > 240


@pytest.mark.parametrize("size", [(256, 1600), (1600, 256)])
def test_the_mask_of_a_person_in_a_panorama(size, people, parser):
    """The parser squeezes a panorama; it gets a window with the person in it. The mask is that of the small photo."""
    for person in people[::2]:
        photo, place = (
            Image.new("RGB", size[::-1], person.photo.getpixel((3, 3))),
            (32, 700) if size[0] > 256 else (700, 0),
        )
        photo.paste(person.photo, place)
        own = np.zeros(size, np.uint8)
        own[place[1] : place[1] + 256, place[0] : place[0] + 192] = mask_of_type(person.photo, FULL, parser)
        assert overlap(mask_of_type(photo, FULL, parser), own) > (
            0.75 if size[1] > 256 else 0.5
        )  # of a tall one the windows are less close


def test_picture_of_rounds_and_clips():
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, -0.2, 0.1])[None, None].expand(3, 1, 6)
    assert np.asarray(picture_of(values))[0, :, 0].tolist() == [0, 128, 255, 255, 0, 26]
