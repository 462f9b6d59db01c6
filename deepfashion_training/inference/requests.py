"""What to draw: one person and one garment, or a CSV of them, checked as a whole before anything is drawn."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepfashion_training.garment_types import parse_cloth_type, type_of_name
from deepfashion_training.images.pictures import PictureError, opacity
from deepfashion_training.inference.dress import DrawingSettings, check_left, mask_given, mask_of_type
from deepfashion_training.inference.picture_files import check_there, read_picture, without_exif
from deepfashion_training.models.human_parser import HumanParser
from training_run.not_data import check_no_pointer

COLUMNS = ("person", "garment", "mask", "garment_type", "caption", "output")
#: Columns of the garments that are worn with the first.
_MORE_COLUMNS = re.compile(r"(?:garment|mask|garment_type|caption)(_[2-9])")


@dataclass(frozen=True)
class TryOnRequest:
    """One person, one garment; a mask, or the garment type to make one for.

    ``more`` are garments that the same person is dressed in after that, each over what was drawn before.
    """

    person: Path
    garment: Path
    mask: Path | None
    cloth_type: int | None
    caption: str
    output: Path
    more: tuple[TryOnRequest, ...] = ()
    type_found: bool = False  # by the garment's name

    @property
    def outfit(self) -> dict[str, TryOnRequest]:
        """The garments in the order of dressing, by what is added to their names: nothing, ``_2``, ``_3``..."""
        return {"": self} | {f"_{number}": one for number, one in enumerate(self.more, 2)}

    def files(self) -> dict[str, Path]:
        """The pictures to read, by what they are: ``person``, ``garment``, ``mask``, ``garment_2``..."""
        found = {"person": self.person, "garment": self.garment, "mask": self.mask}
        for end, one in enumerate(self.more, 2):
            found |= {f"garment_{end}": one.garment, f"mask_{end}": one.mask}
        return {name: path for name, path in found.items() if path is not None}

    def record(self, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """What a result says of how it was made: ``settings``, and the pictures by their content.

        Of the human parser in ``settings`` only where it made the mask.
        """
        hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.files().items()}
        parsed = any(one.mask is None for one in self.outfit.values())
        made = {"seed": seed, "parser": settings.get("parser") if parsed else None, "pictures": hashes}
        for end, one in self.outfit.items():
            made |= {f"garment_type{end}": one.cloth_type, f"caption{end}": one.caption}
        return {**settings, **made}


def request_of(person: Path, output: Path, worn: Sequence[tuple[Path, Path | None, int | None, str]]) -> TryOnRequest:
    """The request to dress ``person`` in one garment after the other; each is its picture, mask, type and caption.

    In an outfit, types that are not given are taken from the names of garments without a mask. Raises ``ValueError``
    for a name that does not say it.
    """
    requests = []
    for garment, mask, cloth_type, caption in worn:
        found = mask is None and cloth_type is None
        if found and len(worn) > 1 and (cloth_type := type_of_name(garment.stem)) is None:
            raise ValueError(
                f"garment {garment}: its name does not say whether it is upper, lower or full: give garment_type for "
                "each garment"
            )
        requests.append(TryOnRequest(person, garment, mask, cloth_type, caption, output, type_found=found))
    return replace(requests[0], more=tuple(requests[1:]))


def default_name(person: Path, *garments: Path) -> str:
    """File name of a result without a name of its own; long names are cut, as file systems allow 255 bytes."""
    names = "-".join(garment.stem[: 40 // len(garments)] for garment in garments)
    return f"{person.stem[:40]}-{names}.png"


def read_requests(table: Path, folder: Path, garment_type: int | None) -> list[TryOnRequest]:
    """The rows of a CSV with the columns ``person``, ``garment`` and, as needed, the others of ``COLUMNS``.

    An outfit has ``garment_2`` and, as needed, ``mask_2``, ``garment_type_2``, ``caption_2``, and so on up to 9.

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
    named = {name for name in columns if not _MORE_COLUMNS.fullmatch(name)}
    if not {"person", "garment"} <= named <= set(COLUMNS):
        raise ValueError(
            f"--batch {table}: its first line names the columns {', '.join(columns) or 'none'}; person and garment are "
            f"needed, {', '.join(COLUMNS[2:])} may be there, garment_2... for an outfit, with commas between them"
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
    cells = {name: cell.strip() for name, cell in row.items()}
    if not cells["person"] or not cells["garment"]:
        raise ValueError("person and garment are needed")
    more = sorted({match[1] for match in map(_MORE_COLUMNS.fullmatch, cells) if match and cells[match[0]]})
    worn = []
    for end in ("", *more):
        garment, mask, named = (cells.get(f"{name}{end}", "") for name in ("garment", "mask", "garment_type"))
        if not garment:
            raise ValueError(f"garment{end} is needed beside what else is given of it")
        for name, cell in ((f"garment{end}", garment), (f"mask{end}", mask)):
            if cell:
                check_there(home / cell, name)
        cloth_type = parse_cloth_type(named) if named else None if end else garment_type
        worn.append((home / garment, home / mask if mask else None, cloth_type, cells.get(f"caption{end}", "")))
    person = home / cells["person"]
    check_there(person, "person")
    if len(worn) == 1 and worn[0][1] is worn[0][2] is None:
        raise ValueError("neither mask nor garment_type: give one in the table, or --garment_type for all rows")
    name = cells.get("output") or f"{line}-{default_name(person, *(one[0] for one in worn))}"
    if Path(name).name != name or Path(name).suffix.lower() != ".png" or name.startswith("."):
        raise ValueError(f"output {name!r}: a file name without folders, not hidden, is needed that ends in .png")
    return request_of(person, folder / name, worn)


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
    with naming(f"the person {request.person}"):
        photo = without_exif(stored)
    with naming(f"the garment {request.garment}"):
        without_exif(garment)
        alpha = opacity(garment)
        if alpha is not None and not alpha.any():
            raise PictureError("it is transparent all over, so there is nothing to put on")
    with naming(f"the person {request.person}" if request.mask is None else f"the mask {request.mask}"):
        if drawn_mask is not None:
            mask = mask_given(stored, drawn_mask, request.cloth_type)
        else:
            assert parser is not None and request.cloth_type is not None  # a mask, or a type and a parser
            mask = mask_of_type(photo, request.cloth_type, parser)
        check_left(mask, settings)
    return photo, garment, mask


def open_outfit(
    request: TryOnRequest, parser: HumanParser | None, settings: DrawingSettings
) -> tuple[Image.Image, list[tuple[Image.Image, np.ndarray]]]:
    """The photo, and garment and mask of each garment of a request: ``open_pictures`` for all of them.

    All masks are those of the photo: a parser need not know drawn pictures.
    """
    opened = [open_pictures(one, parser, settings) for one in request.outfit.values()]
    return opened[0][0], [(garment, mask) for _, garment, mask in opened]


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Let a ``PictureError`` begin with ``what`` it is about."""
    try:
        yield
    except PictureError as error:
        raise ValueError(f"{what}: {error}") from error
