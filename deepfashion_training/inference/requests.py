"""What to draw: one person and one garment, or a CSV of them, read and checked as a whole."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepfashion_training.garment_types import parse_cloth_type
from deepfashion_training.images.pictures import PictureError, opacity
from deepfashion_training.inference.dress import check_left, mask_given, mask_of_type
from deepfashion_training.inference.result_files import check_header, read_picture, upright
from deepfashion_training.models.human_parser import HumanParser
from training_run.colour import profile_name

COLUMNS = ("person", "garment", "mask", "garment_type", "caption", "output")

#: Longest file name of a result in bytes: file systems allow 255, and other files are named after it.
LONGEST_NAME = 200


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

    def record(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What a picture of this request is made from: ``settings``, and the pictures by their content."""
        hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.files().items()}
        return {**settings, "pictures": hashes, "garment_type": self.cloth_type, "caption": self.caption}


def default_name(person: Path, garment: Path) -> str:
    """File name of a result that nobody has named; long names are cut."""
    stems = (path.stem.encode()[:80].decode(errors="ignore") for path in (person, garment))
    return f"{'-'.join(stems)}.png"


def read_requests(table: Path, folder: Path, garment_type: int | None) -> list[TryOnRequest]:
    """The rows of a CSV with the columns ``person``, ``garment`` and, as needed, the others of ``COLUMNS``.

    Paths are relative to the CSV's own folder. ``output`` is a file name under ``folder`` ending in .png, by default
    ``<line>-<person>-<garment>.png``; ``garment_type`` holds for rows that have neither mask nor type.

    Raises ``ValueError`` that names the line, for whatever of the whole table can be told without decoding pictures.
    """
    try:
        if table.exists() and not table.is_file():
            raise ValueError(f"--batch {table}: a CSV file is needed, and this is a folder, pipe or device")
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            reader.fieldnames = found = [name.strip() for name in reader.fieldnames or ()]
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise ValueError(f"--batch {table}: {(error.strerror or str(error)).lower()}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--batch {table} is no CSV in UTF-8: {error}") from error
    if {"person", "garment"} - set(found) or set(found) - set(COLUMNS) or len(set(found)) < len(found):
        raise ValueError(
            f"--batch {table}: its first line names the columns {', '.join(found) or 'none'}; person and garment are "
            f"needed, {', '.join(COLUMNS[2:])} may be there, each once, with commas between them"
        )
    if not rows:
        raise ValueError(f"--batch {table} has no rows")
    requests: list[TryOnRequest] = []
    lines_of: dict[Path, int] = {}
    for line, row in rows:
        try:
            request = _request(line, row, table.parent, folder, garment_type)
            if request.output in lines_of:
                raise ValueError(f"output {request.output.name} is that of line {lines_of[request.output]} too")
        except ValueError as error:
            raise ValueError(f"--batch {table} line {line}: {error}") from error
        lines_of[request.output] = line
        requests.append(request)
    return requests


def _request(line: int, row: Mapping[Any, Any], home: Path, folder: Path, garment_type: int | None) -> TryOnRequest:
    if None in row or None in row.values():
        raise ValueError("it has another number of cells than the first line")
    cells = {name: row.get(name, "").strip() for name in COLUMNS}
    paths = {name: home / cells[name] for name in ("person", "garment", "mask") if cells[name]}
    for name in ("person", "garment"):
        if name not in paths:
            raise ValueError(f"no {name}")
    for name, path in paths.items():
        check_header(path, name)
    cloth_type = parse_cloth_type(cells["garment_type"]) if cells["garment_type"] else garment_type
    if "mask" not in paths and cloth_type is None:
        raise ValueError("neither mask nor garment_type: give one in the table, or --garment_type for all rows")
    name = cells["output"] or f"{line}-{default_name(paths['person'], paths['garment'])}"
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"output {name!r} has more than {LONGEST_NAME} bytes: shorten it")
    if Path(name).name != name or name[0] == "." or not name.isprintable() or not name.lower().endswith(".png"):
        raise ValueError(f"output {name!r}: a file name without folders that ends in .png is needed")
    return TryOnRequest(
        paths["person"], paths["garment"], paths.get("mask"), cloth_type, cells["caption"], folder / name
    )


@dataclass(frozen=True)
class Ready:
    """A request with its pictures open: ``photo`` upright sRGB, ``mask`` uint8 ``[h, w]`` in {0, 1}, 1 = repaint.

    ``profile`` names the person's colour profile where it was another one.
    """

    request: TryOnRequest
    photo: Image.Image
    garment: Image.Image
    mask: np.ndarray
    profile: str | None = None


def make_ready(request: TryOnRequest, parser: HumanParser | None, size: tuple[int, int] | None = None) -> Ready:
    """Open the pictures of ``request``, and make its mask with ``parser`` where it brings none.

    Raises ``ValueError`` for pictures and masks that will not do; with ``size`` (height, width), that of one half of
    the pair, also for a mask of which nothing is left in it.
    """
    stored = read_picture(request.person, "the person")
    garment = read_picture(request.garment, "the garment")
    photo = _seen(stored, f"the person {request.person}")
    _seen(garment, f"the garment {request.garment}")
    alpha = opacity(garment)
    if alpha is not None and not alpha.any():
        raise ValueError(f"the garment {request.garment}: it is transparent all over, so there is nothing to put on")
    drawn_mask = None if request.mask is None else read_picture(request.mask, "the mask")
    try:
        if drawn_mask is not None:
            mask = mask_given(stored, drawn_mask, request.cloth_type)
        else:
            assert parser is not None and request.cloth_type is not None  # a request has a mask, or a type and a parser
            mask = mask_of_type(photo, request.cloth_type, parser)
        if size is not None:
            check_left(mask, size)
    except PictureError as error:
        what = f"the person {request.person}" if request.mask is None else f"the mask {request.mask}"
        raise ValueError(f"{what}: {error}") from error
    return Ready(request, photo, garment, mask, profile_name(stored))


def _seen(stored: Image.Image, what: str) -> Image.Image:
    """``stored`` upright in RGB; a ``ValueError`` for a kind of picture that has no RGB begins with ``what``."""
    try:
        return upright(stored)
    except PictureError as error:
        raise ValueError(f"{what}: {error}") from error
