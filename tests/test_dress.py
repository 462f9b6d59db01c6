"""What `tryon` and the page are made of: pictures that people hand in, masks, wishes, records, the choice of models."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import train_flux_inpaint as tfi
from deepfashion_training.console.flags import FlagParser
from deepfashion_training.dressing import pictures
from deepfashion_training.dressing.choice import Choice, add_drawing_flags, add_model_flags, choose
from deepfashion_training.dressing.dress import Look, dress, mask_given, mask_of_type, picture_of
from deepfashion_training.dressing.pictures import check_header, read_picture, upright
from deepfashion_training.dressing.records import check_form, differences, made_from, save_picture
from deepfashion_training.dressing.wishes import LONGEST_NAME, Wish, default_name, make_ready, read_wishes
from deepfashion_training.embedded.drawing import Drawing
from deepfashion_training.embedded.make_parser import DRAWN_PARSER
from deepfashion_training.embedded.rows import documented_specs
from deepfashion_training.models.parser import Parser, load_parser
from deepfashion_training.pairs.masks import agnostic
from deepfashion_training.pairs.parts import FACE, garment_labels, protected
from deepfashion_training.pairs.paste import feathered
from deepfashion_training.pairs.pictures import PictureError

UPPER, LOWER, FULL = 1, 2, 3
ORIENTATION = ExifTags.Base.Orientation


@pytest.fixture(scope="module")
def parser() -> Parser:
    return load_parser(str(DRAWN_PARSER))


@pytest.fixture(scope="module")
def people() -> list[Drawing]:
    """Six people of 256x192, two in each type of garment."""
    return [spec.draw((256, 192)) for spec in list(documented_specs(9, 5))[3:]]


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, channels), np.uint8))


def box_mask(size: tuple[int, int] = (60, 80), box: tuple[int, int, int, int] = (20, 20, 40, 60)) -> Image.Image:
    """White within ``box`` (left, top, right, bottom) on black; ``size`` is (width, height)."""
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one > 0, other > 0
    return float((one & other).sum() / (one | other).sum())


# ------------------------------------------------------------------------------------------------ masks by the parser


def worn(person: Drawing, cloth_type: int) -> np.ndarray:
    """Where the person wears a garment of the type, by the drawing itself."""
    return np.isin(person.parse, garment_labels(cloth_type)).astype(np.uint8)


def test_the_mask_of_a_type_lies_where_the_drawing_says(people, parser):
    """Beside the mask of the same policy on the drawn labels, and beside the row's own, which is another policy's."""
    same, own, crossed = [], [], []
    for person in people:
        masks = {kind: mask_of_type(person.photo, kind, parser) for kind in (UPPER, LOWER, FULL)}
        for kind, mask in masks.items():
            assert mask.shape == (256, 192) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
            garment = worn(person, kind)
            same.append(overlap(mask, agnostic(garment, kind, None, person.parse)))
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
    assert len(faces) >= 9 and max(faces) < 0.1 and np.mean(faces) < 0.03


def test_a_type_that_is_not_worn_is_placed_where_it_would_be(people, parser):
    """Of a person in a dress, the lower mask is about what the drawing would repaint for trousers."""
    dressed = [person for person in people if not worn(person, LOWER).any()]
    assert dressed
    for person in dressed:
        assert overlap(mask_of_type(person.photo, LOWER, parser), person.agnostic[LOWER]) > 0.55
        assert overlap(mask_of_type(person.photo, UPPER, parser), person.agnostic[UPPER]) > 0.55


def labels(parse: np.ndarray) -> Parser:
    """A parser that gives one map."""
    return SimpleNamespace(parse=lambda photos: [parse])


def test_nobody_in_the_photo(people):
    with pytest.raises(PictureError, match="finds no person"):
        mask_of_type(noise(256, 192), UPPER, labels(np.zeros((256, 192), np.uint8)))


def test_clothes_up_to_the_corners(people, parser):
    """The small parser takes noise for clothes."""
    with pytest.raises(PictureError, match="up to the photo's corners"):
        mask_of_type(noise(256, 192), UPPER, parser)


def test_the_part_is_not_in_the_photo():
    """A face alone, up to the chin."""
    parse = np.zeros((100, 100), np.uint8)
    parse[10:, 5:95] = FACE
    with pytest.raises(PictureError, match="pass a mask"):
        mask_of_type(noise(100, 100), LOWER, labels(parse))


# --------------------------------------------------------------------------------------------------- masks as given


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
        (Image.new("L", (60, 80), 0), "the mask is empty"),
        (Image.new("L", (60, 80), 255), "seems to be inverted"),
        (Image.eval(box_mask(), lambda value: 255 - value), "seems to be inverted"),
        (Image.new("L", (80, 80), 255), "mask of 80x80 on a photo of 60x80: another aspect"),
    ],
)
def test_masks_that_will_not_do(mask, message):
    with pytest.raises(PictureError, match=message):
        mask_given(noise(80, 60), mask, None)


def turned(picture: Image.Image, path: Path) -> Path:
    """Stored a quarter turned, with the EXIF tag that turns it back: how phones write upright photos."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return path


@pytest.mark.parametrize("drawn_on", ["what is seen", "stored pixels", "turned too"])
def test_a_photo_that_its_exif_turns(drawn_on, tmp_path):
    photo, mask = noise(80, 60), box_mask()
    stored = read_picture(turned(photo, tmp_path / "p.png"), "the person")
    seen = upright(stored)
    assert stored.size == (80, 60) and seen.tobytes() == photo.tobytes()
    assert upright(seen).tobytes() == photo.tobytes(), "turned once more"
    if drawn_on == "turned too":
        mask = read_picture(turned(mask, tmp_path / "m.png"), "the mask")
    elif drawn_on == "stored pixels":
        mask = mask.transpose(Image.Transpose.ROTATE_90)
    assert (mask_given(stored, mask, None) == (np.asarray(box_mask()) > 0)).all()


# ---------------------------------------------------------------------------------------------------------- pictures


def save(picture: Image.Image, path: Path, form: str | None = None, **options: object) -> Path:
    picture.save(path, form, **options)
    return path


def test_forms_that_are_read(tmp_path):
    """Each is upright RGB in the end, near the grey that it was made of."""
    grey = Image.new("RGB", (64, 48), (100, 100, 100))
    sixteen = Image.fromarray(np.full((48, 64), 100 * 257, np.uint16))
    frames = {"save_all": True, "append_images": [Image.new("RGB", (64, 48))], "duration": 100}
    files = [
        save(grey, tmp_path / "rgb.png"),
        save(sixteen, tmp_path / "16bit.png"),
        save(grey.convert("RGBA"), tmp_path / "rgba.png"),
        save(grey.convert("CMYK"), tmp_path / "cmyk.jpg"),
        save(grey.convert("L"), tmp_path / "grey.jpg"),
        save(grey.quantize(4), tmp_path / "palette.png"),
        save(grey, tmp_path / "animated.gif", **frames),
        save(grey, tmp_path / "animated.webp", **frames),
        save(grey, tmp_path / "photo.tiff"),
        save(grey, tmp_path / "photo.bmp"),
        save(grey, tmp_path / "a png.jpg", "PNG"),
    ]
    (tmp_path / "link.png").symlink_to(files[0])
    for file in [*files, tmp_path / "link.png"]:
        seen = upright(read_picture(file, "the person"))
        assert (seen.mode, seen.size) == ("RGB", (64, 48)), file
        assert np.abs(np.asarray(seen, int) - 100).max() <= 3, file


def test_transparent_parts_are_white(tmp_path):
    garment = Image.new("RGBA", (64, 64), (10, 20, 30, 0))
    garment.paste((200, 0, 0, 255), (16, 16, 48, 48))
    seen = upright(read_picture(save(garment, tmp_path / "g.png"), "the garment"))
    assert seen.getpixel((2, 2)) == (255, 255, 255) and seen.getpixel((20, 20)) == (200, 0, 0)


def spoiled(name: str, folder: Path) -> Path:
    """A file of the given name that is no picture to use."""
    path = folder / name
    photo = noise(400, 300)
    whole = io.BytesIO()
    photo.save(whole, "JPEG")
    if name == "text.png":
        path.write_text("I am no picture")
    elif name == "half.jpg":
        path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    elif name == "huge.png":
        Image.new("1", (20_000, 20_000)).save(path)
    elif name == "large.png":
        Image.new("1", (10_000, 9_500)).save(path)
    elif name == "thin.png":
        Image.new("L", (10, 10_000)).save(path)
    elif name == "empty.png":
        path.touch()
    elif name == "folder.png":
        path.mkdir()
    elif name == "pipe.png":
        os.mkfifo(path)
    elif name == "dangling.png":
        path.symlink_to(folder / "nothing.png")
    elif name == "vector.eps":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.png", "not readable as a picture; JPEG, PNG, WEBP, BMP, TIFF, GIF are, whole and undamaged"),
        ("half.jpg", "not readable as a picture"),
        ("vector.eps", "not readable as a picture"),
        ("huge.png", "more than 64,000,000 pixels: shrink it"),
        ("large.png", "10000x9500 pixels, more than 64,000,000: shrink it"),
        ("thin.png", "10x10000 pixels, a side under 32"),
        ("empty.png", "the file is empty"),
        ("folder.png", "a folder, where a picture is needed"),
        ("pipe.png", "a pipe or device, where a picture in a file is needed"),
        ("dangling.png", "no such file"),
        ("none.png", "no such file"),
        ("x" * 300 + ".png", "file name too long"),
        ("zero\0byte.png", "null"),
        ("text.png/inside.png", "not a directory"),
    ],
)
def test_pictures_that_are_refused(name, message, tmp_path):
    spoiled("text.png", tmp_path)
    path = tmp_path / name if "/" in name or "\0" in name or len(name) > 255 else spoiled(name, tmp_path)
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message) as refused:
        warnings.simplefilter("error")
        read_picture(path, "the person")
    assert str(refused.value).startswith(f"the person {path}: ") and "\n" not in str(refused.value)


def test_devices_and_large_files_are_not_read(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"the mask /dev/zero: a pipe or device"):
        read_picture("/dev/zero", "the mask")
    monkeypatch.setattr(pictures, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"p.png: .* more than "):
        read_picture(save(noise(64, 64), tmp_path / "p.png"), "the person")


def test_what_the_header_tells_needs_no_decoding(tmp_path):
    check_header(spoiled("half.jpg", tmp_path), "the person")
    with pytest.raises(ValueError, match="a side under 32"):
        check_header(spoiled("thin.png", tmp_path), "the person")


# ------------------------------------------------------------------------------------------------------------ dress


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
    look = Look((128, 96), 4, 2.5, "lora", 0.7)
    painter = Painter()
    made = dress(painter, photo, garment, mask, look, "p", 5, on_step=print)
    assert made.picture.size == (501, 400) and made.pair.size == (192, 128)
    seeds, how = painter.asked[0]
    assert seeds == [5] and how["prompts"] == ["p"] and (how["lora"], how["lora_scale"]) == ("lora", 0.7)
    assert (how["steps"], how["guidance_scale"], how["on_step"]) == (4, 2.5, print)
    got = np.asarray(made.picture)
    assert (got[feathered(mask, 3) == 0] == (200, 10, 10)).all() and (got[120:280, 170:330] == (0, 255, 0)).all()
    assert (np.asarray(made.pair)[:, :96] == (0, 0, 255)).all()
    whole = dress(painter, photo, garment, mask, dataclasses.replace(look, repaint=False), "p", 5).picture
    assert whole.size == (501, 400) and (np.asarray(whole)[120:280, 170:330] == (0, 255, 0)).all()


def test_dress_refuses_a_mask_of_another_size_and_one_that_vanishes():
    look = Look((128, 96), 4, 2.5)
    with pytest.raises(ValueError, match=r"a mask of \(40, 50\) \(height, width\) on a photo of \(50, 40\)"):
        dress(Painter(), noise(50, 40), noise(50, 40), np.ones((40, 50), np.uint8), look, "", 0)
    speck = np.zeros((3000, 2000), np.uint8)
    speck[1501, 1001] = 1
    with pytest.raises(PictureError, match="nothing of it is left at 128x96"):
        dress(Painter(), Image.new("RGB", (2000, 3000)), noise(50, 40), speck, look, "", 0)


def test_picture_of_rounds_and_clips():
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, -0.2, 0.1])[None, None].expand(3, 1, 6)
    assert np.asarray(picture_of(values))[0, :, 0].tolist() == [0, 128, 255, 255, 0, 26]


# ---------------------------------------------------------------------------------------------------------- wishes


@pytest.fixture
def shop(tmp_path) -> Path:
    """A folder with a person, a garment and a mask."""
    noise(80, 60).save(tmp_path / "p.png")
    noise(70, 70).save(tmp_path / "g.png")
    box_mask().save(tmp_path / "m.png")
    return tmp_path


def table(folder: Path, *rows: str, head: str = "person,garment,mask,garment_type,caption,output") -> Path:
    path = folder / "t.csv"
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def test_rows_of_a_table(shop):
    lines = ["p.png,g.png,m.png,,,", ' p.png ,g.png,,lower,"red, long",a.png', "", f"{shop}/p.png,g.png,,,,"]
    wishes = read_wishes(table(shop, *lines), shop / "out", FULL)
    person, garment = shop / "p.png", shop / "g.png"
    assert wishes == [
        Wish(person, garment, shop / "m.png", FULL, "", shop / "out" / "2-p-g.png"),
        Wish(person, garment, None, LOWER, "red, long", shop / "out" / "a.png"),
        Wish(person, garment, None, FULL, "", shop / "out" / "5-p-g.png"),
    ]
    assert wishes[0].files() == {"person": person, "garment": garment, "mask": shop / "m.png"}
    assert wishes[1].files() == {"person": person, "garment": garment}


def test_two_columns_are_enough_in_any_order_with_blanks_and_a_byte_order_mark(shop):
    path = table(shop, "g.png, p.png", head="\ufeffgarment, person")
    assert [wish.person.name for wish in read_wishes(path, shop, UPPER)] == ["p.png"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("none.png,g.png,m.png,,,", "person .*none.png: no such file"),
        ("p.png,g.png,t.csv,,,", "mask .*t.csv: not readable as a picture"),
        ("p.png,,m.png,,,", "no garment"),
        (",g.png,m.png,,,", "no person"),
        ("p.png,g.png,,,,", "neither mask nor garment_type"),
        ("p.png,g.png,,shoes,,", "shoes"),
        ("p.png,g.png,m.png", "another number of cells"),
        ("p.png,g.png,m.png,,,a.png,more", "another number of cells"),
        ("p.png,g.png,m.png,,,a.jpg", "a file name without folders that ends in .png"),
        ("p.png,g.png,m.png,,,../a.png", "a file name without folders"),
        ("p.png,g.png,m.png,,,/tmp/a.png", "a file name without folders"),
        ("p.png,g.png,m.png,,,.png", "a file name without folders"),
        (f"p.png,g.png,m.png,,,{'x' * 200}.png", "more than 200 bytes"),
        ("p.png,g.png,m.png,,,first.png", "output first.png is that of line 2 too"),
    ],
)
def test_rows_that_are_refused_by_their_line(row, message, shop):
    path = table(shop, "p.png,g.png,m.png,,,first.png", row)
    with pytest.raises(ValueError, match=message) as refused:
        read_wishes(path, shop / "out", None)
    assert str(refused.value).startswith(f"--batch {path} line 3: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("person,garment\n", "has no rows"),
        ("", "names the columns none"),
        ("person,cloth\np.png,g.png\n", "names the columns person, cloth"),
        ("person;garment\np.png;g.png\n", "with commas between them"),
        ("person,garment,person\np.png,g.png,p.png\n", "each once"),
        ("person,garment,size\np.png,g.png,1\n", "mask, garment_type, caption, output may be there"),
        (b"person,garment\n\xff\xfe\n", "no CSV in UTF-8"),
    ],
)
def test_tables_that_are_refused(text, message, shop):
    path = shop / "t.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=message) as refused:
        read_wishes(path, shop, UPPER)
    assert str(refused.value).startswith(f"--batch {path}")


def test_a_table_that_is_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"--batch .*none.csv: no such file"):
        read_wishes(tmp_path / "none.csv", tmp_path, UPPER)
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="a CSV file is needed, and this is a folder, pipe or device"):
            read_wishes(path, tmp_path, UPPER)


def test_default_names_stay_short():
    assert default_name(Path("a/anna.k.jpg"), Path("coat.webp")) == "anna.k-coat.png"
    long = default_name(Path("ä" * 100 + ".jpg"), Path("y" * 200 + ".jpg"))
    assert long == "ä" * 40 + "-" + "y" * 80 + ".png" and len(long.encode()) < LONGEST_NAME


def ready(shop: Path, size=None, **changes) -> object:
    wish = Wish(shop / "p.png", shop / "g.png", shop / "m.png", None, "", shop / "o.png")
    return make_ready(dataclasses.replace(wish, **changes), None, size)


def test_ready_has_the_photo_upright_and_the_mask_on_it(shop):
    turned(noise(80, 60), shop / "turned.png")
    made = ready(shop, person=shop / "turned.png")
    assert made.photo.tobytes() == noise(80, 60).tobytes()
    assert (made.mask == (np.asarray(box_mask()) > 0)).all() and made.garment.size == (70, 70)


def test_what_will_not_do_is_named(shop):
    clear, float_, speck = shop / "clear.png", shop / "float.tiff", shop / "speck.png"
    Image.new("RGBA", (64, 64), (200, 0, 0, 0)).save(clear)
    Image.fromarray(np.ones((80, 60), np.float32)).save(float_)
    box_mask((600, 800), (301, 401, 302, 402)).save(speck)
    Image.new("L", (60, 80), 0).save(shop / "black.png")
    for changes, message in (
        ({"garment": clear}, f"the garment {clear}: it is transparent all over"),
        ({"garment": float_}, f"the garment {float_}: floating-point picture"),
        ({"person": float_}, f"the person {float_}: floating-point picture"),
        ({"mask": shop / "black.png"}, f"the mask {shop / 'black.png'}: the mask is empty"),
        ({"person": spoiled("half.jpg", shop)}, f"the person {shop / 'half.jpg'}: not readable"),
    ):
        with pytest.raises(ValueError) as refused:
            ready(shop, **changes)
        assert str(refused.value).startswith(message)
    noise(800, 600).save(shop / "large.png")
    assert ready(shop, person=shop / "large.png", mask=speck).mask.sum() == 1
    with pytest.raises(ValueError, match=r"the mask .*speck.png: .* nothing of it is left at 128x96"):
        ready(shop, (128, 96), person=shop / "large.png", mask=speck)


def test_a_record_knows_pictures_by_their_content(shop):
    wish = Wish(shop / "p.png", shop / "g.png", None, LOWER, "blue", shop / "o.png")
    record = wish.record({"steps": 3})
    assert record["steps"] == 3 and record["garment_type"] == LOWER and record["caption"] == "blue"
    shutil.copy(shop / "p.png", shop / "copy.png")
    assert dataclasses.replace(wish, person=shop / "copy.png").record({"steps": 3}) == record
    noise(81, 60).save(shop / "p.png")
    assert differences(record, wish.record({"steps": 4})) == ["pictures", "steps"]


# --------------------------------------------------------------------------------------------------------- records


def test_a_png_gives_its_record_back(tmp_path):
    record = {"steps": 3, "prompt": "Kleid für 5 €, 裙", "scale": 0.1, "lora": None}
    save_picture(noise(40, 30), tmp_path / "new" / "a.PNG", record)
    assert made_from(tmp_path / "new" / "a.PNG") == record
    assert Image.open(tmp_path / "new" / "a.PNG").tobytes() == noise(40, 30).tobytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.PNG"]
    assert differences(record, record) == [] and differences({"a": (1, 2)}, {"a": [1, 2]}) == []
    assert differences(record, {**record, "steps": 4, "more": 1}) == ["more", "steps"]


def test_webp_keeps_every_pixel_and_jpeg_comes_near(tmp_path):
    for name, largest in (("a.webp", 0), ("a.jpg", 30), ("a.JPEG", 30)):
        photo = Image.linear_gradient("L").convert("RGB")
        save_picture(photo, tmp_path / name, {})
        apart = np.abs(np.asarray(Image.open(tmp_path / name), int) - np.asarray(photo, int))
        assert apart.max() <= largest
        assert made_from(tmp_path / name) is None


def test_files_that_are_no_record(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("tryon", "{not json")
    noise(40, 40).save(tmp_path / "bad.png", pnginfo=text)
    text = PngImagePlugin.PngInfo()
    text.add_text("tryon", json.dumps([1]))
    noise(40, 40).save(tmp_path / "list.png", pnginfo=text)
    noise(40, 40).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no")
    for name in ("bad.png", "list.png", "plain.png", "text.png", "none.png"):
        assert made_from(tmp_path / name) is None


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_picture_that_could_not_be_saved(error, tmp_path, monkeypatch):
    def fail(self, fp, *args, **more):
        Path(fp).write_bytes(b"half")
        raise error

    (tmp_path / "a.png").write_bytes(b"before")
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(type(error)):
        save_picture(noise(40, 40), tmp_path / "a.png", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"before"


def test_sizes_that_a_form_cannot_hold():
    check_form(Path("a.webp"), (16_383, 100))
    check_form(Path("a.png"), (70_000, 100))
    with pytest.raises(ValueError, match=r"a.webp: WEBP holds no picture of 100x16384 pixels: name a .png"):
        check_form(Path("a.webp"), (100, 16_384))
    with pytest.raises(ValueError, match="JPEG holds no picture"):
        check_form(Path("a.jpg"), (70_000, 100))


# ---------------------------------------------------------------------------------------------------------- choice


@pytest.fixture(scope="module")
def trained(tiny_flux_fill, tmp_path_factory) -> Path:
    """A LoRA as the trainer saves it: 64x48, guidance 3.5, a prompt of its own, captions."""
    models = ["--pretrained_model_name_or_path", "--pretrained_inpaint_model_name_or_path"]
    named = [part for model in models for part in (model, str(tiny_flux_fill))]
    own = "--height 64 --width 48 --guidance_scale 3.5 --instance_prompt mine --use_captions --max_sequence_length 96"
    args = tfi.parse_args(["--dataroot", "data", *named, "--lora_rank", "4", *own.split()])
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel.from_pretrained(tiny_flux_fill, subfolder="transformer")
    tfi.make_trainable(transformer, args)
    return tfi.save_lora(transformer, args, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def lora_with(trained, tmp_path) -> Callable[..., Path]:
    """The same LoRA with other metadata; None takes one away."""

    def make(**changes: str | None) -> Path:
        with safe_open(trained, "pt") as file:
            said = {**file.metadata(), **changes}
        path = tmp_path / "changed.safetensors"
        save_file(load_file(trained), path, {name: value for name, value in said.items() if value is not None})
        return path

    return make


def chosen(*flags: object) -> Choice:
    parser = FlagParser("tryon", "")
    add_model_flags(parser)
    add_drawing_flags(parser)
    return choose(parser.parse_args([str(flag) for flag in flags]))


def refused(*flags: object) -> str:
    with pytest.raises(ValueError) as error:
        chosen(*flags)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_size_prompt_and_guidance_are_the_loras(trained, tiny_flux_fill):
    choice = chosen("--lora", trained)
    recipe = choice.recipe
    assert (recipe.height, recipe.width, recipe.prompt, recipe.guidance_scale) == (64, 48, "mine", 3.5)
    assert recipe.use_captions and recipe.max_sequence_length == 96 and choice.notes == ()
    assert chosen("--lora", trained.parent).described() == choice.described()
    look = choice.look(7, repaint=False)
    assert look == Look((64, 48), 7, 3.5, "lora", 1.0, False)
    described = choice.described()
    assert described["lora"] == str(trained) and len(described["lora_sha256"]) == 64
    assert json.loads(json.dumps(described)) == described


def test_flags_win_and_are_noted(trained):
    choice = chosen(*f"--lora {trained} --height 128 --width 96 --prompt other --guidance_scale 1".split())
    recipe = choice.recipe
    assert (recipe.height, recipe.width, recipe.prompt, recipe.guidance_scale) == (128, 96, "other", 1.0)
    assert choice.notes == (
        "the LoRA was trained at 64x48 (height x width), and draws 128x96 here",
        "the LoRA was trained with another prompt",
    )


def test_another_base_is_noted(trained, tiny_flux_fill, tmp_path):
    shutil.copytree(tiny_flux_fill / "transformer", tmp_path / "mine")
    choice = chosen("--lora", trained, "--base", tmp_path / "mine")
    assert choice.recipe.transformer == str(tmp_path / "mine") and choice.recipe.pipeline == str(tiny_flux_fill)
    assert choice.notes == (f"the LoRA was trained on {tiny_flux_fill}, and is worn by {tmp_path / 'mine'} here",)
    assert chosen("--lora", trained, "--base", tiny_flux_fill / "transformer").notes == ()


def test_a_lora_that_says_little(trained, lora_with, tiny_flux_fill):
    """Nothing is said to be known of it, least of all the base that is taken where nobody says."""
    path = lora_with(transformer=None, base_model=None, height=None, width=None, prompt=None, guidance_scale=None)
    choice = chosen("--lora", path, "--base", tiny_flux_fill)
    assert choice.notes == (
        "the LoRA does not say which base, height, width, prompt and guidance it was trained with: the usual ones, or "
        "what the flags say",
    )
    assert (choice.recipe.height, choice.recipe.guidance_scale) == (768, 30.0)
    partly = chosen("--lora", lora_with(prompt=None)).notes
    assert len(partly) == 1 and "which prompt it was trained with" in partly[0]


def test_a_lora_without_metadata_draws_at_the_small_models_own_size(trained, tmp_path):
    save_file(load_file(trained), tmp_path / "silent.safetensors")
    recipe = chosen("--lora", tmp_path / "silent.safetensors", "--embedded").recipe
    assert (recipe.height, recipe.width, recipe.guidance_scale, recipe.max_sequence_length) == (128, 96, 1.0, 128)
    recipe = chosen("--lora", trained, "--embedded").recipe
    assert (recipe.height, recipe.width, recipe.guidance_scale, recipe.max_sequence_length) == (64, 48, 3.5, 96)


def test_a_base_as_pipeline_folder_as_transformer_folder_and_by_relative_path(tiny_flux_fill, monkeypatch):
    whole = chosen("--base", tiny_flux_fill)
    assert whole.recipe.pipeline == whole.recipe.transformer == str(tiny_flux_fill)
    parts = chosen("--base", tiny_flux_fill / "transformer", "--pipeline", tiny_flux_fill)
    assert parts.recipe.transformer == str(tiny_flux_fill / "transformer")
    monkeypatch.chdir(tiny_flux_fill.parent)
    assert chosen("--base", "tiny_flux_fill").described() == whole.described()
    embedded = chosen("--embedded")
    assert embedded.described() == whole.described() and (embedded.recipe.height, embedded.recipe.width) == (128, 96)


def test_models_that_cannot_be_had(trained, lora_with, tiny_flux_fill, tmp_path):
    gone = tmp_path / "none"
    assert refused("--base", gone, "--pipeline", tiny_flux_fill) == f"--base {gone}: no such folder"
    assert "no transformer at its root" in refused("--base", tmp_path, "--pipeline", tiny_flux_fill)
    assert "not a FluxTransformer2DModel" in refused("--embedded", "--base", tiny_flux_fill / "vae")
    assert f"--pipeline {tmp_path}: no diffusers pipeline" in refused("--embedded", "--pipeline", tmp_path)
    assert "no such file or folder" in refused("--lora", tmp_path / "none")
    assert "no pytorch_lora_weights.safetensors in this folder" in refused("--lora", tmp_path)
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "empty.safetensors").touch()
    for name in ("text", "empty"):
        assert "is not a safetensors file" in refused("--lora", tmp_path / f"{name}.safetensors")
    assert "metadata cannot be read: a side of 65" in refused("--lora", lora_with(height="65"))
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    assert "is not a LoRA of a FLUX transformer" in refused("--lora", tmp_path / "other.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU is told")
def test_a_machine_without_a_gpu():
    assert refused() == "no CUDA GPU is visible, and a 12B model needs one: add --embedded to try it on this machine"
    assert "--offload needs a CUDA GPU" in refused("--embedded", "--offload")
    assert "--quantize nf4 needs a CUDA GPU" in refused("--embedded", "--quantize", "nf4")


def test_a_base_that_is_gone_is_to_be_named(lora_with, tiny_flux_fill):
    """The LoRA of another machine: its base lay in a folder there."""
    path = lora_with(transformer="/gone/net", base_model="/gone/pipe")
    message = refused("--lora", path)
    assert "was trained with the transformer in /gone/net, which is not here: name it with --base" in message
    message = refused("--lora", path, "--base", tiny_flux_fill / "transformer")
    assert "VAE and text encoders in /gone/pipe, which is not here: name it with --pipeline" in message
    for flags in (["--base", tiny_flux_fill], ["--embedded"]):
        choice = chosen("--lora", path, *flags)
        assert choice.recipe.transformer == choice.recipe.pipeline == str(tiny_flux_fill)
        assert "was trained on /gone/net" in choice.notes[0]


def test_a_lora_for_another_size_of_model(trained, lora_with, tiny_flux_fill, tmp_path):
    weights = {name: torch.cat([tensor, tensor], -1) for name, tensor in load_file(trained).items() if "lora_A" in name}
    weights |= {name: tensor for name, tensor in load_file(trained).items() if "lora_B" in name}
    with safe_open(trained, "pt") as file:
        save_file(weights, tmp_path / "wide.safetensors", file.metadata())
    assert "the LoRA is for another transformer than" in refused("--lora", tmp_path / "wide.safetensors")


def test_a_scale_without_a_lora_is_refused(trained):
    assert refused("--embedded", "--lora_scale", "0.5").startswith("--lora_scale 0.5 scales nothing")
    assert chosen("--embedded", "--lora_scale", "1").lora is None
    choice = chosen("--lora", trained, "--lora_scale", "-0.5")
    assert choice.look(1).lora_scale == choice.described()["lora_scale"] == -0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "0 is not from 1 to 1000"),
        (["--steps", "9" * 400], "is not from 1 to 1000"),
        (["--height", "100"], "100 is not from 16 to 4096 and a multiple of 16"),
        (["--width", "100000"], "is not from 16 to 4096"),
        (["--guidance_scale", "-1"], "-1 is not at least 0"),
        (["--guidance_scale", "inf"], "inf is not at least 0"),
        (["--lora_scale", "nan"], "nan is not a finite number"),
        (["--seed", "-1"], "-1 is not from 0"),
        (["--seed", "1.5"], "invalid int value: '1.5'"),
        (["--quantize", "fp8"], "'fp8'"),
    ],
)
def test_numbers_out_of_range(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        chosen(*flags)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and message in err and err.count("\n") == 1


def test_quotes_and_commas_in_names(shop):
    """A table written by Python's csv module, with quotes and a comma in a name, is read as it was written."""
    noise(80, 60).save(shop / 'a "big", one.png')
    path = shop / "written.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["person", "garment"], ['a "big", one.png', "g.png"]])
    assert read_wishes(path, shop, LOWER)[0].person == shop / 'a "big", one.png'
