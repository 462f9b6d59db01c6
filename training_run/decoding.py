"""Pictures: stored bytes to pixels, within limits, or one line that says why not."""

from __future__ import annotations

import functools
import importlib
import io
import logging
import re
import warnings
import zlib

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError, features

from training_run.colour import to_srgb
from training_run.not_data import what_else

logger = logging.getLogger(__name__)

#: Formats that are opened. Pillow knows more, but some of them call other programs (EPS starts Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
#: How a file in a container of ISO/IEC 14496-12 says in its bytes 8 to 11 what it is, and Pillow's name for it. Of
#: "mif1" and "msf1", which may be either, the rest of the first box says more.
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"), "HEIF"
)
#: What a picture without pixels to show needs.
_NEEDS = {
    "HEIF": "a HEIC picture, which needs pillow-heif: pip install -r requirements-heif.txt, or save it as JPEG or PNG",
    "AVIF": "an AVIF picture, which this build of Pillow cannot read: pip install Pillow==12.3.0, or save it as PNG",
}

#: Largest colour profile that a PNG may unpack to, and most that its EXIF and XMP may have, in bytes; what is larger is
#: left out. Pillow's own limit of 1 MiB is below what some scanners and printers have for a profile.
_MOST_METADATA = 64 * 2**20
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MOST_METADATA
# Where Pillow warns, ``open_picture`` refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Of EXIF that is damaged, with the path of Pillow; ``images.pictures.orientation`` says it in one line.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

#: Chunks of text in a PNG, and how those begin in which programs keep EXIF and XMP: which way is up. Older editions of
#: ImageMagick call either "APP1".
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_WAY_UP = re.compile(rb"(?:Raw profile type (exif|APP1|xmp)|XML:com\.adobe\.xmp)\0")
_XMP_IN_APP1 = b"http://ns.adobe.com/xap/1.0/\0"

WHITE = (255, 255, 255)


class PictureError(ValueError):
    """A picture that cannot be used: what is wrong with it, in one line."""


class TooManyPixelsError(PictureError):
    """A picture with more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``: perhaps a decompression bomb."""


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of what can be opened here: ``FORMATS``, AVIF where Pillow has it, HEIF with pillow-heif."""
    found = [*FORMATS, *(["AVIF"] if features.check("avif") else [])]
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
        found.append("HEIF")
    except ImportError:
        pass  # said where a picture needs it
    return tuple(found)


def open_picture(
    data: bytes | str, max_pixels: int | None = None, min_side: int = 1, *, decode: bool = True
) -> Image.Image:
    """The picture in ``data``, decoded to its last pixel, in the mode in which it was stored; of several the first.

    Without ``decode`` only what stands before the pixels is read: size, mode, colour profile, EXIF.

    Raises ``PictureError`` for what Pillow cannot read completely, for formats beyond ``formats()``, for a side under
    ``min_side`` and for a ``str``, which says why there are no bytes; ``TooManyPixelsError`` above
    ``max_pixels``, by default ``PIL.Image.MAX_IMAGE_PIXELS`` (Pillow itself refuses only twice as many).
    """
    if isinstance(data, str):
        raise PictureError(data)
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    try:
        picture = Image.open(io.BytesIO(_without_texts(data)), formats=formats())
        if limit is not None and picture.width * picture.height > limit:
            raise TooManyPixelsError(_too_many(f"{picture.width}x{picture.height}", limit))
        if min(picture.size) < min_side:
            raise PictureError(f"{picture.width}x{picture.height} pixels, a side under {min_side}")
        if decode:
            picture.load()
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))  # of the size, Pillow says the product alone
        raise TooManyPixelsError(_too_many(pixels[0] if pixels else "too many", limit)) from error
    except UnidentifiedImageError as error:  # whose message is an address in memory
        raise PictureError(_why_unknown(data)) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error and others
        raise PictureError(f"not readable as a picture: {type(error).__name__}: {error}") from error
    return picture


def _too_many(size: str, limit: int | None) -> str:
    return f"{size} pixels, above the limit of {limit}: make it smaller"


def _without_texts(data: bytes) -> bytes:
    """A PNG without what may be of any size and says nothing of its pixels, or is above ``_MOST_METADATA``.

    That are texts, but for those that say which way is up, in the form that Pillow reads. Other data stays as it is.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or not any(name in data for name in (*_TEXTS, b"iCCP")):
        return data
    kept, start, room = [data[:8]], 8, _MOST_METADATA
    while start < len(data):  # length, name, content and checksum of each chunk
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        name, content, chunk = data[start + 4 : start + 8], data[start + 8 : end - 4], data[start:end]
        start = end
        found = _WAY_UP.match(content) if name in _TEXTS else None
        if end <= len(data) and (found or name == b"iCCP"):
            value = _unpacked(name, content, room if found else _MOST_METADATA)
            if found and value is not None:
                room -= len(value)
                kept.append(_way_up(found[1], value))
            elif value is not None:
                kept.append(chunk)
            elif not found:
                _say_left_out(zlib.crc32(content))
        elif name not in _TEXTS or found:
            kept.append(chunk)
    return b"".join(kept)


def _unpacked(name: bytes, content: bytes, most: int) -> bytes | None:
    """The text or profile in a chunk of a PNG; None for one of more than ``most`` bytes and one that is damaged."""
    value, packed = content.partition(b"\0")[2], name != b"tEXt"
    if name == b"iTXt":  # whether it is packed and how, language, keyword in that language
        packed, value = value[:1] != b"\0", value[2:].split(b"\0", 2)[-1]
    elif packed:  # how
        value = value[1:]
    if not packed:
        return value if len(value) <= most else None
    unpacker = zlib.decompressobj()
    try:
        value = unpacker.decompress(value, most)
    except zlib.error:
        return None
    return None if unpacker.unconsumed_tail else value


def _way_up(kind: bytes | None, value: bytes) -> bytes:
    """Chunk of a PNG in which Pillow looks for EXIF or XMP. ``kind`` is ImageMagick's, whose text has hex digits."""
    name, content = b"tEXt", b"Raw profile type exif\0" + value
    if kind in (b"APP1", b"xmp"):
        try:  # an empty line, the kind, the length
            raw = bytes.fromhex(b"".join(value.split(b"\n")[3:]).decode("ascii"))
        except ValueError:
            raw = b""  # which Pillow cannot read, either
        if kind == b"xmp" or raw.startswith(_XMP_IN_APP1):
            kind, value = None, raw.removeprefix(_XMP_IN_APP1)
    if kind is None:
        name, content = b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + value
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


@functools.lru_cache(maxsize=64)
def _say_left_out(profile: int) -> None:
    """Warn of a profile, which its checksum tells from others: once, as pictures are opened several times."""
    logger.warning("a colour profile is damaged or of more than %d bytes: sRGB is assumed", _MOST_METADATA)


def _why_unknown(data: bytes) -> str:
    """What to say of data in which Pillow knows no picture."""
    if data and (fault := what_else(data)):
        return fault
    kind = _BRANDS.get(data[8:12], "") if data[4:8] == b"ftyp" else ""
    if kind == "HEIF" and b"avif" in data[16 : int.from_bytes(data[:4], "big")]:
        kind = "AVIF"
    if kind:
        return f"not readable as a picture: {kind} that is cut short or damaged" if kind in formats() else _NEEDS[kind]
    return f"not readable as a picture: {'none of ' + ', '.join(formats()) if data else 'it has no bytes'}"


def eight_bit(picture: Image.Image) -> Image.Image:
    """``picture`` with 8 bits a channel. 16-bit grey is scaled by 1/257, so that 65535 becomes 255.

    Raises ``PictureError`` for floating-point pictures, whose scale nobody knows.
    """
    if picture.mode == "F":
        raise PictureError("floating-point picture (mode F): save it with 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return picture
    values = np.clip(np.asarray(picture, dtype=np.int32), 0, 65535)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    grey.info = {name: value for name, value in picture.info.items() if name == "icc_profile"}
    return grey


def to_rgb(picture: Image.Image) -> Image.Image:
    """``picture`` as 8-bit sRGB, transparent parts over white. The pixels stay as they are stored, whatever EXIF says.

    A colour profile is applied and left out of the result, see ``training_run.colour``; for 16 bits and errors see
    ``eight_bit``.
    """
    picture = to_srgb(eight_bit(picture))
    if picture.has_transparency_data:
        return over(WHITE, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def over(colour: tuple[int, int, int], picture: Image.Image) -> Image.Image:
    """``picture`` over an even ``colour``, as RGB."""
    rgba = picture.convert("RGBA")
    canvas = Image.new("RGB", rgba.size, colour)
    canvas.paste(rgba, mask=rgba)
    return canvas
