"""Picture files that people hand in: opened within limits, or refused in one line."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from deepfashion_training.images.pictures import PictureError, open_picture, upright

#: Largest photo, garment or mask that is opened: 8 times 4K, far below what fills main memory.
MAX_PIXELS = 64_000_000
#: Smallest side: below it there is nothing to see a garment by.
MIN_SIDE = 32


def read_picture(path: str | Path, what: str) -> Image.Image:
    """The picture in a file, decoded. ``what`` it is, such as ``the person``, begins the message of a ``ValueError``.

    Refused are files that are missing or no picture, more than ``MAX_PIXELS`` and sides under ``MIN_SIDE``.
    """
    check_there(path, what)
    try:
        return open_picture(Path(path).read_bytes(), MAX_PIXELS, MIN_SIDE)
    except PictureError as error:
        raise ValueError(f"{what} {path}: {error}") from error


def check_there(path: str | Path, what: str) -> None:
    """Raise ``ValueError`` where there is no file. Pipes and devices are none: reading one may never end."""
    if not Path(path).is_file():
        raise ValueError(f"{what} {path}: no such file")


def without_exif(photo: Image.Image) -> Image.Image:
    """``photo`` as ``upright`` shows it, without its EXIF, which would turn it once more."""
    seen = upright(photo).copy()
    seen.info = {}
    return seen
