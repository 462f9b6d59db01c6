"""Pictures as people hand them in: which forms are read, what is upright and white, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import spoiled
from PIL import Image

from deepfashion_training.inference.picture_files import read_picture, without_exif


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
        seen = without_exif(read_picture(file, "the person"))
        assert (seen.mode, seen.size) == ("RGB", (64, 48)), file
        assert np.abs(np.asarray(seen, int) - 100).max() <= 3, file


def test_transparent_parts_are_white(tmp_path):
    garment = Image.new("RGBA", (64, 64), (10, 20, 30, 0))
    garment.paste((200, 0, 0, 255), (16, 16, 48, 48))
    seen = without_exif(read_picture(save(garment, tmp_path / "g.png"), "the garment"))
    assert seen.getpixel((2, 2)) == (255, 255, 255) and seen.getpixel((20, 20)) == (200, 0, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.png", "not readable as a picture"),
        ("half.jpg", "not readable as a picture"),
        ("vector.eps", "not readable as a picture"),
        ("large.png", "10000x9500 pixels"),
        ("huge.png", "400000000 pixels"),
        ("thin.png", "10x10000 pixels, a side under 32"),
        ("empty.png", "not readable as a picture"),
        *((name, "no such file") for name in ("folder.png", "pipe.png", "dangling.png", "none.png", "zero\0byte.png")),
    ],
)
def test_pictures_that_are_refused(name, message, tmp_path):
    path = tmp_path / name if "\0" in name else spoiled(name, tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        read_picture(path, "the person")
    assert str(refused.value).startswith(f"the person {path}: ") and "\n" not in str(refused.value)


def test_devices_are_not_read():
    with pytest.raises(ValueError, match="the mask /dev/zero: no such file"):
        read_picture("/dev/zero", "the mask")
