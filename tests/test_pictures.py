"""Pictures: every mode to RGB, orientation, and what cannot be read is an error that says so."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from icc import rgb_profile
from PIL import ExifTags, Image, ImageOps, features

from deepfashion_training.images.pictures import (
    PictureError,
    TooManyPixelsError,
    border_colour,
    box_of,
    opacity,
    open_picture,
    orientation,
    to_rgb,
    turn,
    upright,
)
from training_run.decoding import formats


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


# PNGs with much beside the pixels ----------------------------------------------------------------------------------


def chunk(name: bytes, content: bytes, wrong_checksum: bool = False) -> bytes:
    checksum = zlib.crc32(name + content) ^ wrong_checksum
    return len(content).to_bytes(4, "big") + name + content + checksum.to_bytes(4, "big")


def png_with(*chunks: bytes, late: bool = False) -> bytes:
    """``noise`` with further chunks, behind its head or, ``late``, behind its pixels."""
    data = encoded(noise())
    place = len(data) - 12 if late else 33
    return data[:place] + b"".join(chunks) + data[place:]


MUCH = b"workflow " * 10_000_000
CHUNKS = {
    "plain text": chunk(b"tEXt", b"prompt\0" + MUCH[:3_000_000]),
    "packed text": chunk(b"zTXt", b"prompt\0\0" + zlib.compress(MUCH, 1)),
    "text of any language": chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(MUCH, 1)),
    "text that is no text": chunk(b"iTXt", b"\xff\0"),
    "text with a wrong checksum": chunk(b"tEXt", b"a\0b", wrong_checksum=True),
    "ImageMagick's copy of a profile": chunk(b"zTXt", b"Raw profile type icc\0\0" + zlib.compress(MUCH[:2_000_000])),
    "EXIF": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0\0\0\0\0" + bytes(3_000_000)),
    "EXIF that is none": chunk(b"eXIf", b"junk"),
    "ImageMagick's copy of EXIF that is none": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzz"),
    "profile that is none": chunk(b"iCCP", b"junk\0\0" + zlib.compress(bytes(2_000_000))),
    "unknown": chunk(b"prVt", bytes(2_000_000)),
    "many": chunk(b"tEXt", b"k\0" + bytes(60_000)) * 2_000,
    "large XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(MUCH, 1)),
    "two of the largest XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(MUCH[:40_000_000], 1)) * 2,
    "ImageMagick's copy of large EXIF": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(MUCH, 1)),
    "large profile": chunk(b"iCCP", b"large\0\0" + zlib.compress(MUCH, 1)),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", CHUNKS)
def test_a_png_is_read_whatever_it_has_beside_its_pixels(name, late):
    assert upright(open_picture(png_with(CHUNKS[name], late=late))).tobytes() == noise().tobytes()


@pytest.mark.parametrize("length", [60, 300, 3_000_000])
def test_a_png_that_is_cut_short_in_or_behind_its_text_is_an_error(length):
    with pytest.raises(PictureError):
        open_picture(png_with(chunk(b"tEXt", b"k\0" + bytes(3_000_000)))[:length])


def test_a_large_profile_of_a_png_is_applied():
    profile = rgb_profile("ProPhoto")
    large = profile + bytes(3_000_000 - len(profile))
    packed = chunk(b"iCCP", b"wide\0\0" + zlib.compress(large))
    assert to_rgb(open_picture(png_with(packed))).tobytes() != noise().tobytes()


def test_which_way_is_up_is_read_beside_large_texts():
    way_up = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    assert orientation(open_picture(png_with(CHUNKS["packed text"], chunk(b"iTXt", way_up)))) == 6


SIX = Image.Exif()
SIX[ExifTags.Base.Orientation] = 6
XMP = b'<x tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    ("kind", "raw"),
    [("exif", SIX.tobytes()), ("APP1", SIX.tobytes()), ("APP1", b"http://ns.adobe.com/xap/1.0/\0" + XMP), ("xmp", XMP)],
)
@pytest.mark.parametrize("late", [False, True])
def test_which_way_is_up_is_read_as_imagemagick_keeps_it(kind, raw, late):
    text = f"\n{kind}\n{len(raw):8}\n{raw.hex()}\n".encode()
    packed = chunk(b"zTXt", f"Raw profile type {kind}\0\0".encode() + zlib.compress(text))
    assert orientation(open_picture(png_with(packed, late=late))) == 6


def test_a_profile_above_the_limit_is_said_once(caplog):
    data = png_with(chunk(b"iCCP", b"said once\0\0" + zlib.compress(MUCH, 1)))
    for _ in range(2):
        assert "icc_profile" not in open_picture(data).info
    assert caplog.text.count("sRGB is assumed") == 1


def test_damaged_exif_is_said_in_one_line(tmp_path):
    broken = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\xff\xff"
    (tmp_path / "a.jpg").write_bytes(encoded(noise(), "JPEG", exif=broken + bytes(8)))
    code = (
        "import sys; from deepfashion_training.images.pictures import open_picture, orientation; "
        "print(orientation(open_picture(open(sys.argv[1], 'rb').read())))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout == "1\n"
    assert done.stderr.count("\n") == 1 and "EXIF cannot be read" in done.stderr


# Formats -------------------------------------------------------------------------------------------------------------

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_where_pillow_heif_is_missing_a_heic_picture_names_it(monkeypatch, brand):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it fails
    formats.cache_clear()
    try:
        with pytest.raises(PictureError, match=r"HEIC.*requirements-heif\.txt"):
            open_picture(HEIC.replace(b"ftypheic", b"ftyp" + brand))
        assert "HEIF" not in formats()
    finally:
        formats.cache_clear()


def test_where_pillow_has_no_avif_the_picture_names_it(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    formats.cache_clear()
    try:
        with pytest.raises(PictureError, match=r"AVIF.*Pillow"):
            open_picture(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(40))
    finally:
        formats.cache_clear()


def halves() -> Image.Image:
    """Red on the left, blue on the right; 64x48."""
    picture = Image.new("RGB", (64, 48), (220, 30, 30))
    picture.paste((30, 30, 220), (32, 0, 64, 48))
    return picture


@pytest.mark.parametrize("format_", ["HEIF", "AVIF"])
def test_heic_and_avif_are_read_upright_and_refused_when_cut_short(format_):
    if format_ not in formats():
        pytest.skip(f"{format_}: pillow-heif is not installed, or this Pillow has no AVIF")
    exif = Image.Exif()
    exif[0x0112] = 6  # what is stored on the left is seen above
    data = encoded(halves(), format_, exif=exif.tobytes(), quality=95)
    seen = upright(open_picture(data))
    assert seen.size == (48, 64)
    assert seen.getpixel((24, 10)) == pytest.approx((220, 30, 30), abs=12)
    assert seen.getpixel((24, 54)) == pytest.approx((30, 30, 220), abs=12)
    with pytest.raises(TooManyPixelsError):
        open_picture(data, max_pixels=64 * 48 - 1)
    with pytest.raises(PictureError, match="damaged"):
        open_picture(data[: len(data) * 2 // 3])


def test_of_several_pictures_in_a_file_the_first_is_read():
    for format_ in ("MPO", "GIF", "WEBP", "PNG", "TIFF"):
        frames = {"save_all": True, "append_images": [Image.new("RGB", (64, 48))], "duration": 100}
        seen = upright(open_picture(encoded(halves(), format_, **frames)))
        assert seen.getpixel((10, 10)) == pytest.approx((220, 30, 30), abs=12), format_


def test_pixels_are_not_decoded_where_only_the_head_is_asked_for():
    data = encoded(noise(), icc_profile=rgb_profile("ProPhoto"))
    assert open_picture(data[: len(data) - 40], decode=False).info["icc_profile"] == rgb_profile("ProPhoto")


def test_a_git_lfs_pointer_is_named_as_that():
    with pytest.raises(PictureError, match="git lfs pull"):
        open_picture(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")


@pytest.mark.parametrize(
    ("data", "what"),
    [(b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "web page"), (b'<?xml version="1.0"?><svg xmlns="x"/>', "SVG")],
)
def test_a_web_page_or_drawing_in_a_pictures_place_is_named(data, what):
    with pytest.raises(PictureError, match=what):
        open_picture(data)


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
    with pytest.raises(PictureError, match=f"^(768|32x24) pixels, above the limit of {limit}: make it smaller$"):
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
