"""What one picture is to be made of, and tables of many: `tryon --batch` reads these."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import box_mask, noise, spoiled, turned
from PIL import Image

from deepfashion_training.inference.dress import DrawingSettings
from deepfashion_training.inference.records import differences
from deepfashion_training.inference.requests import TryOnRequest, open_pictures, read_requests

UPPER, LOWER, FULL = 1, 2, 3


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
    requests = read_requests(table(shop, *lines), shop / "out", FULL)
    person, garment = shop / "p.png", shop / "g.png"
    assert requests == [
        TryOnRequest(person, garment, shop / "m.png", FULL, "", shop / "out" / "2-p-g.png"),
        TryOnRequest(person, garment, None, LOWER, "red, long", shop / "out" / "a.png"),
        TryOnRequest(person, garment, None, FULL, "", shop / "out" / "5-p-g.png"),
    ]
    assert requests[0].files() == {"person": person, "garment": garment, "mask": shop / "m.png"}
    assert requests[1].files() == {"person": person, "garment": garment}


def test_two_columns_are_enough_in_any_order_with_blanks_and_a_byte_order_mark(shop):
    path = table(shop, "g.png, p.png", head="\ufeffgarment, person")
    assert [request.person.name for request in read_requests(path, shop, UPPER)] == ["p.png"]


def test_a_table_that_is_a_git_lfs_pointer_is_named(shop):
    pointer = table(shop, "oid sha256:ab", "size 12", head="version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"t\.csv .*git lfs pull"):
        read_requests(pointer, shop, None)


@pytest.mark.parametrize("kind", ["2", "2.0", "lower_body", "Lower Body", "Skirts"])
def test_types_in_any_form(shop, kind):
    (request,) = read_requests(table(shop, f"p.png,g.png,,{kind},,"), shop, None)
    assert request.cloth_type == LOWER


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("none.png,g.png,m.png,,,", "person .*none.png: no such file"),
        ("p.png,,m.png,,,", "person and garment are needed"),
        ("p.png,g.png,,,,", "neither mask nor garment_type"),
        ("p.png,g.png,,shoes,,", "shoes"),
        ("p.png,g.png,m.png", "another number of cells"),
        ("p.png,g.png,m.png,,,a.png,more", "another number of cells"),
        ("p.png,g.png,m.png,,,a.jpg", "a file name without folders"),
        ("p.png,g.png,m.png,,,../a.png", "a file name without folders"),
        ("p.png,g.png,m.png,,,/tmp/a.png", "a file name without folders"),
        *((f"p.png,g.png,m.png,,,{name}", "a file name without folders") for name in (".png", "..png", ".a.png")),
    ],
)
def test_rows_that_are_refused_by_their_line(row, message, shop):
    path = table(shop, "p.png,g.png,m.png,,,first.png", row)
    with pytest.raises(ValueError, match=message) as refused:
        read_requests(path, shop / "out", None)
    assert str(refused.value).startswith(f"--batch {path} line 3: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("person,garment\n", "has no rows"),
        ("", "names the columns none"),
        ("person,cloth\np.png,g.png\n", "names the columns person, cloth"),
        ("person;garment\np.png;g.png\n", 'semicolons .*"CSV UTF-8'),
        ("person\tgarment\np.png\tg.png\n", 'tabs .*"CSV UTF-8'),
        ("person garment\n", "with commas between them"),
        ("person,garment,mask,garment\np.png,g.png,m.png,g.png\n", "column garment twice"),
        *(("person,garment\np.png,g.png\n".encode(name), 'UTF-16.*"CSV UTF-8') for name in ("utf-16", "utf-16-be")),
        ("person,garment\np.png,gr\u00fcn.png\n".encode("latin-1"), 'Latin-1.*line 2.*"CSV UTF-8'),
        ("person,garment,size\np.png,g.png,1\n", "mask, garment_type, caption, output may be there"),
        (b"person,garment\n\xff\xfe\n", "another encoding"),
    ],
)
def test_tables_that_are_refused(text, message, shop):
    path = shop / "t.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=message) as refused:
        read_requests(path, shop, UPPER)
    assert str(refused.value).startswith(f"--batch {path}")


def test_a_table_that_is_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"--batch .*none.csv: no such file"):
        read_requests(tmp_path / "none.csv", tmp_path, UPPER)
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="no such file"):
            read_requests(path, tmp_path, UPPER)


SETTINGS = DrawingSettings((128, 96), 1, 1.0)


def opened(shop: Path, **changes: Path) -> tuple[Image.Image, Image.Image, np.ndarray]:
    request = TryOnRequest(shop / "p.png", shop / "g.png", shop / "m.png", None, "", shop / "o.png")
    return open_pictures(dataclasses.replace(request, **changes), None, SETTINGS)


def test_the_photo_is_upright_and_the_mask_lies_on_it(shop):
    turned(noise(80, 60), shop / "turned.png")
    photo, garment, mask = opened(shop, person=shop / "turned.png")
    assert photo.tobytes() == noise(80, 60).tobytes() and garment.size == (70, 70)
    assert (mask == (np.asarray(box_mask()) > 0)).all()


def test_what_cannot_be_used_is_named(shop):
    clear, float_, line = shop / "clear.png", shop / "float.tiff", shop / "line.png"
    Image.new("RGBA", (64, 64), (200, 0, 0, 0)).save(clear)
    Image.fromarray(np.ones((80, 60), np.float32)).save(float_)
    box_mask((600, 800), (301, 40, 302, 760)).save(line)
    Image.new("L", (60, 80), 0).save(shop / "black.png")
    noise(800, 600).save(shop / "large.png")
    for changes, message in (
        ({"garment": clear}, f"the garment {clear}: it is transparent"),
        ({"garment": float_}, f"the garment {float_}: floating-point"),
        ({"person": float_}, f"the person {float_}: floating-point"),
        ({"mask": shop / "black.png"}, f"the mask {shop / 'black.png'}: it is empty"),
        ({"person": spoiled("half.jpg", shop)}, f"the person {shop / 'half.jpg'}: not readable"),
        ({"person": shop / "large.png", "mask": line}, f"the mask {line}: the mask is so small"),
    ):
        with pytest.raises(ValueError) as refused:
            opened(shop, **changes)
        assert str(refused.value).startswith(message)


def test_a_record_knows_pictures_by_their_content(shop):
    request = TryOnRequest(shop / "p.png", shop / "g.png", None, LOWER, "blue", shop / "o.png")
    record = request.record({"steps": 3}, 0)
    assert record["steps"] == 3 and record["garment_type"] == LOWER and record["caption"] == "blue"
    shutil.copy(shop / "p.png", shop / "copy.png")
    assert dataclasses.replace(request, person=shop / "copy.png").record({"steps": 3}, 0) == record
    noise(81, 60).save(shop / "p.png")
    assert differences(record, request.record({"steps": 4}, 0)) == ["pictures", "steps"]


def test_quotes_and_commas_in_names(shop):
    """A table written by Python's csv module, with quotes and a comma in a name, is read as it was written."""
    noise(80, 60).save(shop / 'a "big", one.png')
    path = shop / "written.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["person", "garment"], ['a "big", one.png', "g.png"]])
    assert read_requests(path, shop, LOWER)[0].person == shop / 'a "big", one.png'
