"""Pictures: every mode to RGB, orientation, and what cannot be read is an error that says so."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from deepfashion_training.images.pictures import (
    PictureError,
    border_colour,
    box_of,
    opacity,
    open_picture,
    orientation,
    to_rgb,
    turn,
    upright,
)


def encoded(picture: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format_, **options)
    return buffer.getvalue()


def noise(width: int = 32, height: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def sixteen_bit(value: int) -> Image.Image:
    return Image.fromarray(np.full((2, 2), value, np.uint16))


def palette(transparent: bool) -> Image.Image:
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    if transparent:
        picture.info["transparency"] = 1
    return picture


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
        (Image.new("L", (2, 2), 7), (7, 7, 7)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (0, 100, 200, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (0, 100, 255, 128)), (127, 177, 255)),  # half over white
        (Image.new("LA", (2, 2), (40, 255)), (40, 40, 40)),
        (palette(transparent=False), (10, 20, 30)),
        (palette(transparent=True), (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (255, 0, 0, 0)), (0, 255, 255)),  # full cyan
        (sixteen_bit(65535), (255, 255, 255)),
        (sixteen_bit(257 * 99), (99, 99, 99)),
        (Image.new("I", (2, 2), 257 * 99), (99, 99, 99)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_becomes_rgb(picture, colour):
    rgb = to_rgb(picture)
    assert rgb.mode == "RGB"
    assert rgb.getpixel((1, 1)) == colour


def test_sixteen_bit_png_through_a_file():
    assert to_rgb(open_picture(encoded(sixteen_bit(257 * 42)))).getpixel((0, 0)) == (42, 42, 42)


def test_cmyk_jpeg_through_a_file():
    red = to_rgb(open_picture(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))).getpixel((4, 4))
    assert red == pytest.approx((255, 0, 0), abs=3)


def test_floating_point_is_refused():
    with pytest.raises(PictureError, match="floating-point"):
        to_rgb(Image.new("F", (2, 2), 0.5))


def test_opacity_is_none_where_nothing_is_transparent():
    assert opacity(Image.new("RGB", (2, 2))) is None
    assert opacity(Image.new("RGBA", (2, 2), (0, 0, 0, 255))) is None
    assert opacity(Image.new("RGBA", (2, 2), (0, 0, 0, 9))).tolist() == [[9, 9], [9, 9]]


@pytest.mark.parametrize("value", range(1, 9))
def test_turning_agrees_with_pillow(value):
    exif = Image.Exif()
    exif[0x0112] = value
    stored = open_picture(encoded(noise(), exif=exif))
    turned = turn(stored, orientation(stored))
    assert (np.asarray(turned) == np.asarray(ImageOps.exif_transpose(stored))).all()
    assert upright(stored).tobytes() == turned.tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0junkjunkjunk", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0"]
)
def test_unreadable_exif_leaves_the_picture_as_it_is(exif):
    assert orientation(open_picture(encoded(noise(), "JPEG", exif=exif))) == 1


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_an_error(format_, share):
    data = encoded(noise(), format_)
    open_picture(data)
    with pytest.raises(PictureError, match="not readable as a picture"):
        open_picture(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(noise(), "PPM")], ids=["empty", "text", "format"])
def test_what_is_no_picture_is_an_error(data):
    with pytest.raises(PictureError, match="not readable as a picture"):
        open_picture(data)


def test_a_flipped_byte_in_a_png_is_an_error():
    data = bytearray(encoded(noise()))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(PictureError):
        open_picture(bytes(data))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [32 * 24 - 1, 32 * 24 // 3])  # where Pillow only warns, and where it refuses
def test_a_decompression_bomb_is_an_error(monkeypatch, limit):
    data = encoded(noise())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 24)
    open_picture(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(PictureError, match="limit of"):
        open_picture(data)


def test_border_colour_is_the_median_of_the_outermost_ring():
    picture = Image.new("RGB", (9, 9), (1, 2, 3))
    picture.paste((200, 200, 200), (1, 1, 8, 8))  # the inside does not count
    picture.paste((90, 90, 90), (0, 8, 9, 9))  # nor does one side
    assert border_colour(picture) == (1, 2, 3)
    assert border_colour(Image.new("RGB", (1, 1), (5, 6, 7))) == (5, 6, 7)


def test_the_box_of_a_mask_and_room_around_it_within_the_mask():
    mask = np.zeros((20, 30), np.uint8)
    assert box_of(mask) is None
    mask[4:9, 2:12] = 1
    assert box_of(mask) == box_of(mask.astype(bool)) == box_of(mask.astype(int) * 256) == (2, 4, 12, 9)
    assert box_of(mask, room=3) == (0, 1, 15, 12)
    assert box_of(np.ones((5, 6)), room=2) == (0, 0, 6, 5)
