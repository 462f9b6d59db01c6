"""Folders of picture files: layouts of VITON-HD and DressCode, and pictures beside a ``metadata.jsonl`` or ``.csv``.

The tables say where each layout keeps what, for reading and for writing. Where a file is looked for in several places,
the first is where it is written. Names are those that CatVTON, IDM-VTON and ladi-vton read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import datasets

from deepfashion_training.data.schema import PAIR_COLUMNS, PARSES
from deepfashion_training.garment_types import FULL, LOWER, UPPER
from training_run.not_data import check_no_pointer, is_no_data

VITON_HD, DRESSCODE = "viton-hd", "dresscode"
#: The folders of DressCode with the types of their garments, in the order of the codes 0, 1, 2 in its common lists.
CATEGORIES: dict[str, int] = {"upper_body": UPPER, "lower_body": LOWER, "dresses": FULL}
#: Where a picture lies: layout -> what it shows -> folders and endings. A person's or garment's file has the name in
#: the list; the ending of any other file takes the place of ``.jpg`` in the person's name. ``parse`` has ATR labels,
#: ``parse_lip`` those of LIP. In VITON-HD the folders lie in ``train`` and ``test``, in DressCode in ``CATEGORIES``.
PLACES: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    VITON_HD: {
        "image": (("image", ""),),
        "cloth": (("cloth", ""),),
        "cloth_mask": (("cloth-mask", ""),),  # of the garment's name
        "mask": (("agnostic-mask", "_mask.png"), ("agnostic-mask", ".png")),
        "parse_lip": (("image-parse-v3", ".png"),),
    },
    DRESSCODE: {
        "image": (("images", ""),),
        "cloth": (("images", ""),),
        "cloth_mask": (("masks", ".png"),),  # of the garment's name
        "mask": (("agnostic_masks", ".png"),),
        "parse": (("label_maps", "_4.png"),),
    },
}
#: Lists of lines "PERSON GARMENT": layout -> split or ``unpaired`` test -> names. Those of VITON-HD lie beside
#: ``train`` and ``test``; those of DressCode in each category, or for all of them beside the categories with the
#: category's code as third word.
LISTS: dict[str, dict[str, tuple[str, ...]]] = {
    VITON_HD: {
        "train": ("train_pairs.txt",),
        "validation": ("validation_pairs.txt",),  # which ``prepare`` writes; the pictures lie in train
        "test": ("test_pairs.txt", "test_pairs_paired.txt", "test_pairs_unpaired.txt"),
        "unpaired": ("test_pairs_unpaired.txt", "test_pairs.txt"),
    },
    DRESSCODE: {
        "train": ("train_pairs.txt",),
        "validation": ("validation_pairs.txt",),  # which ``prepare`` writes; the pictures lie in train
        "test": ("test_pairs_paired.txt",),
        "unpaired": ("test_pairs_unpaired.txt",),
    },
}
#: Captions: of VITON-HD the tags of garments as in IDM-VTON, among which ``prepare`` notes ``cloth_type``; of DressCode
#: a line "GARMENT CAPTION" each.
CAPTIONS: dict[str, str] = {VITON_HD: "vitonhd_{base}_tagged.json", DRESSCODE: "dc_caption.txt"}
#: The tags that make a caption, in this order.
_TAGS = ("sleeveLength", "neckLine", "item")
#: Files that say which pictures are a row, as ``datasets`` has them in a folder of pictures.
METADATA = ("metadata.jsonl", "metadata.csv")
#: Columns of metadata that have another name here; ``NAME_file_name`` is ``NAME``.
_NAMED: dict[str, str] = {"file_name": "image", "text": "caption"}
_PICTURES = ("image", "cloth", "mask", *PARSES)
#: Columns of metadata that are read; others may be there.
_TAKEN = PAIR_COLUMNS.keys() - {"source_row"} | {*PARSES, "pose"}
#: Ends of a DressCode person's and garment's name, between number and ending, as in 000000_0.jpg.
PERSON_END, GARMENT_END = "_0", "_1"


def place_of(layout: str, what: str, name: str, which: int = 0) -> str:
    """Path, below ``train`` or a category, of the picture ``what`` of the person or garment whose file is ``name``."""
    folder, ending = PLACES[layout][what][which]
    stem = _stem(name)
    if ending.startswith("_4"):
        stem = stem.removesuffix(PERSON_END)
    return f"{folder}/{stem}{ending}" if ending else f"{folder}/{name}"


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


class Lists(NamedTuple):
    """What a folder holds: the splits of pairs, and the list of garments of others that the test people try on."""

    layout: str
    """A key of ``PLACES``, or ``metadata``."""
    splits: dict[str, datasets.Dataset]
    """Rows of paths relative to the folder, in the order of the lists."""
    lacking: str
    """Where masks and label maps were looked for, if there are none."""
    unpaired: datasets.Dataset | None
    """Rows of the unpaired test list, a line each: another person's garment in ``cloth``."""


class _Line(NamedTuple):
    base: str  # folder of the pictures
    person: str
    garment: str
    cloth_type: int
    where: str  # of the line


def read_folder(folder: Path) -> Lists | None:
    """The pairs of a folder in one of the three layouts; None for any other. No picture is read.

    The splits of VITON-HD are ``train`` and ``test``, each person with the own garment whatever garment the list names.
    Those of DressCode are the lists' lines, category by category. Metadata files lie in ``train``, ``validation``,
    ``test``, or beside the pictures for ``train`` alone. Raises ``ValueError`` for a folder in two layouts, a list or
    picture that is missing, and for a name or link that leaves the folder.
    """
    metadata = _metadata_files(folder)
    found = {
        "VITON-HD": any((folder / base / name).is_dir() for base in ("train", "test") for name in ("image", "cloth")),
        "DressCode": any((folder / category / "images").is_dir() for category in CATEGORIES),
        "a folder with metadata": bool(metadata),
    }
    layouts = [name for name, is_there in found.items() if is_there]
    if len(layouts) > 1:
        raise ValueError(f"{folder} looks like {' and like '.join(layouts)}: move one of them to a folder of its own")
    if metadata:
        return Lists("metadata", {split: _described(folder, file) for split, file in metadata.items()}, "", None)
    if layouts:
        return _ListReader(folder, VITON_HD if found["VITON-HD"] else DRESSCODE).read()
    if ((folder / "images").is_dir() and folder.name in CATEGORIES) or {"image", "cloth"} <= {*_subfolders(folder)}:
        raise ValueError(f"{folder} is a part of a folder of pairs: name {folder.absolute().parent}")
    for name in dict.fromkeys(name for lists in LISTS.values() for names in lists.values() for name in names):
        if (folder / name).is_file():
            raise ValueError(f"{folder} has {name}, but neither {folder}/train/image nor {folder}/upper_body/images")
    return None


def folder_fingerprint(folder: Path, lists: Lists) -> str:
    """Changes with the rows and with size or time of change of any of their files."""
    digest = hashlib.blake2b(digest_size=16)
    for name, rows in {**lists.splits, "unpaired": lists.unpaired}.items():
        for column in () if rows is None else rows.column_names:
            cells: list[Any] = rows[column][:]
            digest.update(repr((name, column, cells)).encode("utf-8", "surrogateescape"))
            if column in _PICTURES:
                stats = [(folder / cell).stat() for cell in cells if cell]
                digest.update(repr([(at.st_size, at.st_mtime_ns) for at in stats]).encode())
    return digest.hexdigest()


class _Files:
    """Which files a folder has, by one look at each folder in it and not at each file."""

    def __init__(self, root: Path) -> None:
        self.root, self._inside = root, root.resolve()
        self._names: dict[str, dict[str, bool]] = {}

    def has(self, path: str) -> bool:
        """Whether ``path``, relative to the root, is a file; ``ValueError`` for a link that leaves the root."""
        parent, _, name = path.rpartition("/")
        if parent not in self._names:
            self._names[parent] = self._look(self.root / parent)
        leaves = self._names[parent].get(name)
        if leaves:
            raise ValueError(f"{self.root / path} is a link that leaves the data root {self.root}")
        return leaves is not None

    def _look(self, place: Path) -> dict[str, bool]:
        """Name of each file -> whether it leaves the root."""
        if not place.is_dir():
            return {}
        if not place.resolve().is_relative_to(self._inside):
            raise ValueError(f"{place} is a link that leaves the data root {self.root}")
        with os.scandir(place) as entries:
            return {entry.name: self._leaves(entry) for entry in entries if entry.is_file()}

    def _leaves(self, entry: os.DirEntry[str]) -> bool:
        return entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self._inside)

    def check(self, path: str, where: str) -> None:
        """Raise ``ValueError``, naming the file and ``where`` it is named, unless it is there."""
        if not self.has(path):
            raise ValueError(f"{where} names a picture whose file {self.root / path} is missing")


class _ListReader:
    """Reads the lists of ``folder`` in a ``layout`` of ``PLACES``."""

    def __init__(self, folder: Path, layout: str) -> None:
        self.folder, self.layout, self.files, self.lacking = folder, layout, _Files(folder), ""
        self.captions: dict[str, Mapping[str, str]] = {}

    def read(self) -> Lists:
        of_lists = self._viton_lines if self.layout == VITON_HD else self._dresscode_lines
        train, validation, test, unpaired = (of_lists(name) for name in ("train", "validation", "test", "unpaired"))
        if train is None and test is None:
            names = (name for names in LISTS[self.layout].values() for name in names)
            raise ValueError(f"{self.folder} has no pair list: looked for {', '.join(dict.fromkeys(names))} in it")
        splits = {name: self._rows(lines) for name, lines in (("train", train), ("validation", validation)) if lines}
        if test is None:
            return Lists(self.layout, splits, self.lacking, None)
        rows = self._rows([*test, *(unpaired or ())])  # together, so that they have the same columns
        splits["test"] = rows.select(range(len(test)))
        others = rows.select(range(len(test), len(rows))) if unpaired else None
        return Lists(self.layout, splits, self.lacking, others)

    def _viton_lines(self, name: str) -> list[_Line] | None:
        base = "train" if name in ("train", "validation") else "test"
        if not any((self.folder / base / place).is_dir() for place in ("image", "cloth")):
            return None
        files = [self.folder / listed for listed in LISTS[VITON_HD][name] if (self.folder / listed).is_file()]
        if not files and name in ("train", "test"):
            raise ValueError(f"no pair list {self.folder / LISTS[VITON_HD][name][0]}: a VITON-HD folder has one")
        for file in files:
            lines = [_Line(base, words[0], words[1], UPPER, where) for words, where in _words(file, 2)]
            if name != "unpaired":  # each person once, in the own garment
                _check_any(lines, file)
                lines = list({line.person: line._replace(garment=line.person) for line in lines}.values())
            elif all(line.garment == line.person for line in lines):
                continue
            types = self._tagged_types(base)
            return [line._replace(cloth_type=types.get(line.garment, UPPER)) for line in lines]
        return None

    def _dresscode_lines(self, name: str) -> list[_Line] | None:
        (listed,) = LISTS[DRESSCODE][name]
        common = self.folder / listed
        by_code = list(_words(common, 3)) if common.is_file() else []
        found: list[_Line] = []
        there = [category for category in CATEGORIES if (self.folder / category / "images").is_dir()]
        missing = [category for category in there if not (self.folder / category / listed).is_file()]
        if missing and not by_code:
            if len(missing) == len(there):
                return None
            raise ValueError(f"no pair list {self.folder / missing[0] / listed}: other categories have one")
        for category in there:
            of_all = [row for row in by_code if row[0][2] == str(list(CATEGORIES).index(category))]
            rows = of_all if category in missing else _words(self.folder / category / listed, 2)
            found += [_Line(category, words[0], words[1], CATEGORIES[category], where) for words, where in rows]
        _check_any(found, self.folder / there[0] / listed)
        return found

    def _rows(self, lines: Sequence[_Line]) -> datasets.Dataset:
        """The rows of ``lines``, once every file is known to be there."""
        first = list({line.base: line for line in reversed(lines)}.values())
        ways, lost = {"image": 0, "cloth": 0}, []
        for what, places in PLACES[self.layout].items():
            if what not in ("mask", *PARSES):
                continue
            if absent := [line for line in first if not (self.folder / line.base / places[0][0]).is_dir()]:
                lost.append(str(self.folder / self._path(absent[0], what)))
            else:
                fits = [
                    all(self.files.has(self._path(line, what, way)) for line in first) for way in range(len(places))
                ]
                ways[what] = fits.index(True) if True in fits else 0
        paths = {what: [self._path(line, what, way) for line in lines] for what, way in ways.items()}
        for what in paths.keys() & set(PARSES) if "mask" in paths else ():  # where they only help, all or none
            if not all(map(self.files.has, paths[what])):
                del paths[what]
        for of_column in paths.values():
            for path, line in zip(of_column, lines, strict=True):
                self.files.check(path, line.where)
            check_no_pointer(self.folder / of_column[0])
        if not paths.keys() & {"mask", *PARSES}:
            self.lacking = f"Looked for {' and '.join(lost)}. With --parser MODEL prepare makes masks."
        return datasets.Dataset.from_dict(
            {
                **paths,
                "caption": [self._caption(line) for line in lines],
                "cloth_type": [line.cloth_type for line in lines],
                "pid": [_stem(line.person) for line in lines],
                "garment_view": [_stem(line.garment) for line in lines],
            }
        )

    def _path(self, line: _Line, what: str, way: int = 0) -> str:
        name = line.garment if what == "cloth" else line.person
        return f"{line.base}/{place_of(self.layout, what, name, way)}"

    def _tagged_types(self, base: str) -> dict[str, int]:
        """Types of garments that ``prepare`` has noted in their tags."""
        file = self.folder / base / CAPTIONS[VITON_HD].format(base=base)
        return _tag_types(file) if file.is_file() else {}

    def _caption(self, line: _Line) -> str:
        if line.base not in self.captions:
            file = self.folder / line.base / CAPTIONS[self.layout].format(base=line.base)
            read = _tags if self.layout == VITON_HD else _caption_lines
            self.captions[line.base] = read(file) if file.is_file() else {}
        return self.captions[line.base].get(line.garment, "")


def _check_any(lines: Sequence[_Line], file: Path) -> None:
    if not lines:
        raise ValueError(f"{file} names no pairs")


def _words(file: Path, least: int) -> Iterator[tuple[list[str], str]]:
    """The words of each line of a list and where it is; names in lines with a tab may have blanks in them."""
    for number, line in enumerate(_text(file).splitlines(), start=1):
        words = [word.strip() for word in line.split("\t")] if "\t" in line.strip() else line.split()
        where = f"{file} line {number}"
        if any(words):
            if not least <= len(words) <= 3 or (least == 3 and words[2] not in ("0", "1", "2")):
                more = " and the category's code 0, 1 or 2" if least == 3 else ""
                raise ValueError(f"{where}: expected the files of person and garment{more}, found {line!r}")
            for name in words[:2]:
                _check_name(name, where)
            yield words, where


def _text(file: Path) -> str:
    check_no_pointer(file)
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error}): write it again") from error


def _check_name(name: str, where: str) -> None:
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise ValueError(f"{where}: {name!r} leaves the data root")


def _tags(file: Path) -> dict[str, str]:
    """Captions of garments by their tags."""
    try:
        return {
            garment["file_name"]: " ".join(
                tag["tag_category"]
                for wanted in _TAGS
                for tag in garment["tag_info"]
                if tag["tag_name"] == wanted and tag["tag_category"]
            )
            for garments in json.loads(_text(file)).values()
            for garment in garments
        }
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} has no tags of garments ({error!r}): write it again, or move it away") from error


def _tag_types(file: Path) -> dict[str, int]:
    """Types of the garments whose tags give one."""
    _tags(file)  # which checks the form
    every = [
        garment for garments in json.loads(_text(file)).values() for garment in garments if "cloth_type" in garment
    ]
    for garment in every:
        if type(garment["cloth_type"]) is not int or garment["cloth_type"] not in CATEGORIES.values():
            raise ValueError(
                f"{file}: {garment['file_name']} has the cloth_type {garment['cloth_type']!r}, not 1, 2 or 3"
            )
    return {garment["file_name"]: garment["cloth_type"] for garment in every}


def _caption_lines(file: Path) -> dict[str, str]:
    """Captions by garment. The name ends with the first ending of a file, as there may be blanks in it."""
    matches = (re.match(r"\s*(.+?\.\w{3,4}|\S+)(?:\s+|$)", line) for line in _text(file).splitlines())
    return {match[1]: " ".join(match.string[match.end() :].split()) for match in matches if match}


# ---- pictures beside a metadata file


def _subfolders(folder: Path) -> list[str]:
    return [path.name for path in sorted(folder.iterdir()) if path.is_dir() and not is_no_data(path, folder)]


def _metadata_files(folder: Path) -> dict[str, Path]:
    """Split -> its metadata file."""
    found: dict[str, Path] = {}
    for place in (folder, *(folder / name for name in _subfolders(folder))):
        for file in (place / name for name in METADATA):
            if file.is_file():
                split = "train" if place == folder else place.name
                other = found.get(split) or (place != folder and (found.get("train") or file).parent == folder)
                if other:
                    raise ValueError(f"{found.get(split) or found['train']} and {file} both name rows: move one away")
                found[split] = file
    return found


def _described(folder: Path, file: Path) -> datasets.Dataset:
    """The rows of a metadata file; pictures are named relative to it."""
    rows: list[dict[str, Any]] = []
    files, base = _Files(folder), file.parent.relative_to(folder).as_posix()
    read: Callable[[Path], Iterator[tuple[str, Any]]] = _json_rows if file.suffix == ".jsonl" else _csv_rows
    seen: dict[str, None] = {}
    for where, cells in read(file):
        row: dict[str, Any] = {"caption": ""}
        seen |= dict.fromkeys(cells)
        for name, value in cells.items():
            column = _NAMED.get(name) or name.removesuffix("_file_name")
            if column in _TAKEN and (column == name or column not in cells):
                row[column] = _cell(value, name, where)
        for column in _PICTURES:
            if (path := row.get(column)) is not None:
                _check_name(path, where)
                row[column] = PurePosixPath(base, path).as_posix()
                files.check(row[column], where)
        rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    for name, other in {"image": "file_name", "cloth": "cloth_file_name"}.items():
        if name not in columns:
            raise ValueError(f"{file} has no column {other} or {name}, only {', '.join(seen) or 'nothing'}")
    return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns})


def _cell(value: Any, name: str, where: str) -> str | None:
    """A cell as text, None for an empty one; ``ValueError`` for what is neither a text nor a finite number."""
    if value is None or value == "":
        return None
    text = str(value)
    finite = isinstance(value, str) or (type(value) in (int, float) and math.isfinite(value))
    if not finite or text != text.encode("utf-8", "ignore").decode():
        raise ValueError(f"{where}: {name} is {value!a}: a text or a number is needed, or null for none")
    return text


def _json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no object")
            except ValueError as error:
                raise ValueError(f"{file} line {number} is no JSON object ({error}): {line[:80]!r}") from error
            yield f"{file} line {number}", row


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(file), newline=""))  # splitlines would also split at U+2028
    try:
        for row in reader:
            if None in row or None in row.values():  # which stand for cells too many, and for each that is lacking
                many = "more" if None in row else "fewer"
                raise ValueError(f"{file} line {reader.line_num} has {many} cells than the first line has names")
            yield f"{file} line {reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{file} line {reader.line_num} cannot be read: {error}") from error
