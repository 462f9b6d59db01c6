"""What to draw: one person and one garment, or a CSV of them, checked as a whole before anything is drawn."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepfashion_training.garment_types import parse_cloth_type
from deepfashion_training.images.pictures import PictureError, opacity
from deepfashion_training.inference.dress import DrawingSettings, check_left, mask_given, mask_of_type
from deepfashion_training.inference.picture_files import check_there, read_picture, without_exif
from deepfashion_training.models.human_parser import HumanParser
from training_run.not_data import check_no_pointer

COLUMNS = ("person", "garment", "mask", "garment_type", "caption", "output")


@dataclass(frozen=True)
class TryOnRequest:
    """One person, one garment; a mask, or the garment type to make one for."""

    person: Path
    garment: Path
    mask: Path | None
    cloth_type: int | None
    caption: str
    output: Path

    def files(self) -> dict[str, Path]:
        """The pictures to read, by what they are."""
        found = {"person": self.person, "garment": self.garment, "mask": self.mask}
        return {name: path for name, path in found.items() if path is not None}

    def record(self, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """What a result says of how it was made: ``settings``, and the pictures by their content.

        Of the human parser in ``settings`` only where it made the mask.
        """
        hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.files().items()}
        made = {"seed": seed, "parser": settings.get("parser") if self.mask is None else None, "pictures": hashes}
        return {**settings, **made, "garment_type": self.cloth_type, "caption": self.caption}


def default_name(person: Path, garment: Path) -> str:
    """File name of a result without a name of its own; long names are cut, as file systems allow 255 bytes."""
    return f"{person.stem[:40]}-{garment.stem[:40]}.png"


def read_requests(table: Path, folder: Path, garment_type: int | None) -> list[TryOnRequest]:
    """The rows of a CSV with the columns ``person``, ``garment`` and, as needed, the others of ``COLUMNS``.

    Paths are relative to the CSV's own folder. ``output`` is a file name under ``folder`` ending in .png, by default
    ``<line>-<person>-<garment>.png``; ``garment_type`` holds for rows that have neither mask nor type.

    Raises ``ValueError`` that names the line, for whatever of the whole table can be known without decoding pictures.
    """
    if not table.is_file():
        raise ValueError(f"--batch {table}: no such file")
    check_no_pointer(table)
    try:
        text = _text_of(table.read_bytes())
        reader = csv.DictReader(io.StringIO(text, newline=""))
        reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or ()]
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, csv.Error) as error:
        raise ValueError(f"--batch {table} is no CSV that can be read: {error}") from error
    except ValueError as error:
        raise ValueError(f'--batch {table} {error}: save it as "CSV UTF-8 (comma)"') from error
    if not {"person", "garment"} <= set(columns) <= set(COLUMNS):
        raise ValueError(
            f"--batch {table}: its first line names the columns {', '.join(columns) or 'none'}; person and garment are "
            f"needed, {', '.join(COLUMNS[2:])} may be there, with commas between them"
        )
    if twice := [name for number, name in enumerate(columns) if name in columns[:number]]:
        raise ValueError(f"--batch {table}: its first line names the column {twice[0]} twice: leave one of them")
    if not rows:
        raise ValueError(f"--batch {table} has no rows")
    requests = []
    for line, row in rows:
        try:
            requests.append(_request(line, row, table.parent, folder, garment_type))
        except ValueError as error:
            raise ValueError(f"--batch {table} line {line}: {error}") from error
    return requests


def _text_of(stored: bytes) -> str:
    """A CSV's text, which is UTF-8 with commas. Raises ``ValueError`` that says what else spreadsheets have saved."""
    if b"\0" in stored[:2] or stored.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("is in UTF-16")
    try:
        text = stored.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = stored[: error.start].count(b"\n") + 1
        raise ValueError(
            f"is in another encoding, such as Latin-1 (byte {stored[error.start]:#04x} in line {place})"
        ) from error
    head = text.partition("\n")[0]
    if other := [name for sign, name in ((";", "semicolons"), ("\t", "tabs")) if sign in head and "," not in head]:
        raise ValueError(f"has {other[0]} between its columns")
    return text


def _request(line: int, row: Mapping[Any, Any], home: Path, folder: Path, garment_type: int | None) -> TryOnRequest:
    if None in row or None in row.values():
        raise ValueError("it has another number of cells than the first line")
    cells = {name: row.get(name, "").strip() for name in COLUMNS}
    paths = {name: home / cells[name] for name in ("person", "garment", "mask") if cells[name]}
    if not cells["person"] or not cells["garment"]:
        raise ValueError("person and garment are needed")
    for name, path in paths.items():
        check_there(path, name)
    cloth_type = parse_cloth_type(cells["garment_type"]) if cells["garment_type"] else garment_type
    if "mask" not in paths and cloth_type is None:
        raise ValueError("neither mask nor garment_type: give one in the table, or --garment_type for all rows")
    name = cells["output"] or f"{line}-{default_name(paths['person'], paths['garment'])}"
    if Path(name).name != name or Path(name).suffix.lower() != ".png" or name.startswith("."):
        raise ValueError(f"output {name!r}: a file name without folders, not hidden, is needed that ends in .png")
    return TryOnRequest(
        paths["person"], paths["garment"], paths.get("mask"), cloth_type, cells["caption"], folder / name
    )


def open_pictures(
    request: TryOnRequest, parser: HumanParser | None, settings: DrawingSettings
) -> tuple[Image.Image, Image.Image, np.ndarray]:
    """The photo (upright sRGB), the garment and the mask (uint8 ``[h, w]`` in {0, 1}, 1 = repaint) of a request.

    ``parser`` makes the mask of a request without one. Raises ``ValueError`` for pictures and masks that cannot be
    used in the size of ``settings``.
    """
    stored = read_picture(request.person, "the person")
    garment = read_picture(request.garment, "the garment")
    drawn_mask = None if request.mask is None else read_picture(request.mask, "the mask")
    with _naming(f"the person {request.person}"):
        photo = without_exif(stored)
    with _naming(f"the garment {request.garment}"):
        without_exif(garment)
        alpha = opacity(garment)
        if alpha is not None and not alpha.any():
            raise PictureError("it is transparent all over, so there is nothing to put on")
    with _naming(f"the person {request.person}" if request.mask is None else f"the mask {request.mask}"):
        if drawn_mask is not None:
            mask = mask_given(stored, drawn_mask, request.cloth_type)
        else:
            assert parser is not None and request.cloth_type is not None  # a mask, or a type and a parser
            mask = mask_of_type(photo, request.cloth_type, parser)
        check_left(mask, settings)
    return photo, garment, mask


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Let a ``PictureError`` begin with ``what`` it is about."""
    try:
        yield
    except PictureError as error:
        raise ValueError(f"{what}: {error}") from error
