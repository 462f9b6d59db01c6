"""Picture files that people hand in: opened within limits, or refused in one line."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

from PIL import Image

from deepfashion_training.images.pictures import FORMATS, PictureError, open_picture, upright

#: Largest photo, garment or mask that is opened: 8 times 4K, far below what fills main memory.
MAX_PIXELS = 64_000_000
#: Smallest side: below it there is nothing to see a garment by.
MIN_SIDE = 32


def read_picture(path: str | Path, what: str) -> Image.Image:
    """The picture in a file, decoded. ``what`` it is, such as ``the person``, begins the message of a ``ValueError``.

    Refused are files that are missing or no picture, pipes and devices (reading one may never end), more than
    ``MAX_PIXELS`` and sides under ``MIN_SIDE``.
    """
    check_header(path, what)
    try:
        return open_picture(Path(path).read_bytes(), MAX_PIXELS)
    except (OSError, PictureError) as error:
        raise ValueError(f"{what} {path}: {_reason(error)}") from error


def check_header(path: str | Path, what: str) -> None:
    """Raise the ``ValueError`` of ``read_picture`` for whatever can be known without decoding the picture."""
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise PictureError("a picture file is needed, and this is a folder, pipe or device")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
        if width * height > MAX_PIXELS:
            raise PictureError(f"{width}x{height} pixels, more than {MAX_PIXELS:,}: shrink it")
        if min(width, height) < MIN_SIDE:
            raise PictureError(f"{width}x{height} pixels, a side under {MIN_SIDE}")
    except Image.DecompressionBombError:
        raise ValueError(f"{what} {path}: more than {MAX_PIXELS:,} pixels: shrink it") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and others
        raise ValueError(f"{what} {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, PictureError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"not readable as a picture: none of {', '.join(FORMATS)}"


def without_exif(photo: Image.Image) -> Image.Image:
    """``photo`` as ``upright`` shows it, without its EXIF, which would turn it once more."""
    seen = upright(photo).copy()
    seen.info = {}
    return seen
