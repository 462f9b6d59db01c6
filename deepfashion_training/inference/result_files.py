"""Pictures that people hand in: opened with limits, refused in one line."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

from PIL import Image

from deepfashion_training.images.pictures import (
    FORMATS,
    PictureError,
    TooManyPixelsError,
    open_picture,
    orientation,
    to_rgb,
    turn,
)

#: Largest photo, garment or mask that is opened: 8 times 4K, far below what fills main memory.
MAX_PIXELS = 64_000_000
#: Smallest side: below it there is nothing to see a garment by.
MIN_SIDE = 32
#: Largest file that is read: several times what a picture of ``MAX_PIXELS`` takes.
MAX_BYTES = 2**30


def read_picture(path: str | Path, what: str) -> Image.Image:
    """The picture in a file, decoded; ``what`` it is, such as ``the person``, begins the message of a ``ValueError``.

    Refused are files that are not there or no picture, whatever is no regular file (reading a pipe may never end), more
    than ``MAX_PIXELS`` and sides under ``MIN_SIDE``.
    """
    check_header(path, what)
    try:
        return open_picture(Path(path).read_bytes(), MAX_PIXELS)
    except (OSError, PictureError) as error:
        raise ValueError(f"{what} {path}: {_reason(error)}") from error


def check_header(path: str | Path, what: str) -> None:
    """Raise the ``ValueError`` of ``read_picture`` for whatever can be told without decoding the picture."""
    _check_file(Path(path), what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        raise ValueError(f"{what} {path}: more than {MAX_PIXELS:,} pixels: shrink it") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and others
        raise ValueError(f"{what} {path}: {_reason(error)}") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"{what} {path}: {width}x{height} pixels, more than {MAX_PIXELS:,}: shrink it")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{what} {path}: {width}x{height} pixels, a side under {MIN_SIDE}")


def _check_file(path: Path, what: str) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ValueError(f"{what} {path}: no such file") from None
    except (OSError, ValueError) as error:  # such as a part that is no folder, a name too long, or with a zero byte
        raise ValueError(f"{what} {path}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{what} {path}: a folder, where a picture is needed")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{what} {path}: a pipe or device, where a picture in a file is needed")
    if not status.st_size:
        raise ValueError(f"{what} {path}: the file is empty")
    if status.st_size > MAX_BYTES:
        raise ValueError(
            f"{what} {path}: {status.st_size / 2**30:.1f} GiB, more than {MAX_BYTES // 2**30} GiB: shrink it"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, TooManyPixelsError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"not readable as a picture; {', '.join(FORMATS)} are, whole and undamaged"


def upright(photo: Image.Image) -> Image.Image:
    """``photo`` in RGB as it is meant to be seen, without its EXIF: whoever reads that would turn it once more."""
    seen = turn(to_rgb(photo), orientation(photo)).copy()
    seen.info = {}
    return seen
