"""Column names of the two dataset schemas, what a row of each holds, and how other datasets map onto them.

*Documented* rows are what training reads. *Raw* rows are what ``SaffalPoosh/deepFashion-with-masks`` has on the
Hub: no garment picture, and a category name where training needs a garment type.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection, Mapping

#: Columns that every documented row has: person photo, garment picture, area to repaint (white = repaint),
#: text, and 1 upper body, 2 lower body, 3 full body.
DOCUMENTED_COLUMNS: tuple[str, ...] = ("image", "cloth", "mask", "caption", "cloth_type")

#: Columns that tell where a documented pair came from. All are optional.
PROVENANCE_COLUMNS: tuple[str, ...] = (
    "pid",
    "variant",
    "view",
    "gender",
    "category",
    "garment_source",
    "garment_view",
    "source_row",
)

#: Columns of the raw Hub dataset.
RAW_COLUMNS: tuple[str, ...] = ("images", "gender", "pose", "cloth_type", "pid", "caption", "mask", "mask_overlay")

#: Columns without which raw rows cannot be turned into pairs; ``mask_overlay`` is a picture to look at.
RAW_REQUIRED_COLUMNS: tuple[str, ...] = tuple(name for name in RAW_COLUMNS if name != "mask_overlay")


def missing_columns(found: Collection[str]) -> list[str]:
    """Documented columns that ``found`` lacks, in schema order."""
    return [name for name in DOCUMENTED_COLUMNS if name not in found]


def looks_raw(found: Collection[str]) -> bool:
    """Whether ``found`` are the columns of the raw Hub dataset."""
    return all(name in found for name in RAW_REQUIRED_COLUMNS) and "cloth" not in found


def check_documented(found: Collection[str], source: str) -> None:
    """Raise one ``ValueError`` when documented columns are missing from ``found``, the columns of ``source``.

    It lists what was found and what is needed, and tells the mend: ``prepare`` for raw rows, else the column that
    a missing one is probably called.
    """
    missing = missing_columns(found)
    if not missing:
        return
    problem = (
        f"{source} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}: "
        f"found {', '.join(found) or 'none'}; needed {', '.join(DOCUMENTED_COLUMNS)}."
    )
    if looks_raw(found):
        raise ValueError(
            f"{problem} This looks like the Hub's raw schema. Turn it into pairs first: python -m "
            f"deepfashion_training.prepare --dataset_name {shlex.quote(source)} --output_dir OUT"
        )
    hints = [f"rename {near!r} to {name!r}" for name in missing if (near := _nearest(name, found))]
    raise ValueError(f"{problem} Perhaps {', '.join(hints)}." if hints else problem)


def _nearest(name: str, found: Collection[str]) -> str | None:
    """The unknown column of ``found`` that is spelt most like ``name``, if any is."""
    known = {*DOCUMENTED_COLUMNS, *PROVENANCE_COLUMNS}
    unknown = {column.lower(): column for column in found if column not in known}
    matches = difflib.get_close_matches(name, list(unknown), n=1, cutoff=0.6)
    return unknown[matches[0]] if matches else None


#: What a row of any dataset may hold, by the name that preparation uses: the documented columns, ``category`` (one
#: of the 17 names), who is in the picture (``pid``), which outfit (``variant``), from where it was seen (``view``,
#: or ``pose``, which holds variant and view in one), and ``gender``.
CANONICAL: tuple[str, ...] = (
    "image", "mask", "cloth", "caption", "cloth_type", "category", "pid", "variant", "view", "pose", "gender",
)  # fmt: skip

#: Where the raw schema calls a canonical column something else. Its ``cloth_type`` holds category names.
_RAW_NAMES: dict[str, str] = {"image": "images", "category": "cloth_type"}

#: What preparation cannot do without: any one alternative of each line, and the words for what is missing.
_NEEDED: tuple[tuple[tuple[tuple[str, ...], ...], str], ...] = (
    ((("image",),), "image (the person's photo)"),
    ((("mask",),), "mask (the area to repaint)"),
    ((("category",), ("cloth_type",)), "category or cloth_type (what the garment is)"),
    (
        (("cloth",), ("pid", "pose"), ("pid", "variant", "view")),
        "cloth (the garment's picture), or pid with pose (or with variant and view) to find one in other photos",
    ),
)


def parse_column_map(text: str | None) -> dict[str, str]:
    """Columns by canonical name from ``"image=photo,cloth=product"``; empty for ``None`` and for no text.

    Raises ``ValueError`` for a part that is not ``NAME=COLUMN``, a name that is not in ``CANONICAL`` (with the
    nearest that is) and a name given twice.
    """
    columns: dict[str, str] = {}
    for part in (text or "").split(",") if (text or "").strip() else []:
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if not (name and equals and column):
            raise ValueError(f"--column {text!r}: {part.strip()!r} is not NAME=COLUMN, such as image=photo")
        if name not in CANONICAL:
            near = difflib.get_close_matches(name.lower(), CANONICAL, n=1, cutoff=0.6)
            mend = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(CANONICAL)}"
            raise ValueError(f"--column {text!r}: unknown name {name!r}: {mend}")
        if name in columns:
            raise ValueError(f"--column {text!r}: {name!r} is given twice")
        columns[name] = column
    return columns


def map_columns(found: Collection[str], overrides: Mapping[str, str], source: str) -> dict[str, str]:
    """Column of ``source`` for each canonical name that it has, in the order of ``CANONICAL``.

    ``found`` are its columns. ``overrides`` (see ``parse_column_map``) win, and a column that they claim serves no
    other name by itself. The rest is told by the schema. Rows are *raw* when they have no ``category`` and either
    ``images`` in place of ``image`` or a ``pose`` in place of ``view`` (and not both ``image`` and ``cloth``); there
    ``cloth_type`` holds category names, elsewhere 1, 2, 3. A ``cloth`` column is one in either schema. Other columns
    are ignored.

    Raises ``ValueError``, one line, for an override that names no column of ``found``, and when the columns do not
    suffice: a photo, a mask, ``category`` or ``cloth_type``, and ``cloth`` or what finds a garment picture (``pid``
    with ``pose`` or with ``variant`` and ``view``). It tells what was found, what is missing and how to mend it.
    """
    columns = dict(overrides)
    for name, column in overrides.items():
        if column not in found:
            near = difflib.get_close_matches(column, list(found), n=1, cutoff=0.6)
            mend = f"did you mean {near[0]!r}?" if near else f"found {', '.join(found) or 'none'}"
            raise ValueError(f"--column {name}={column}: {source} has no column {column!r}: {mend}")
    raw = _is_raw(found)
    claimed = set(overrides.values())
    for name in CANONICAL:
        column = _RAW_NAMES.get(name, name) if raw else name
        if raw and name == "cloth_type":
            continue
        if name == "image" and column not in found:
            column = "image"
        if name not in columns and column in found and column not in claimed:
            columns[name] = column
    missing = [words for ways, words in _NEEDED if not any(set(way) <= set(columns) for way in ways)]
    if missing:
        raise ValueError(
            f"{source} cannot be turned into pairs: found {', '.join(found) or 'no columns'}; "
            f"missing {'; '.join(missing)}. {_mend(found, columns)}"
        )
    return {name: columns[name] for name in CANONICAL if name in columns}


def _is_raw(found: Collection[str]) -> bool:
    if "category" in found:
        return False
    posed = "pose" in found and "view" not in found
    return ("images" in found and "image" not in found) or (posed and not {"image", "cloth"} <= set(found))


def _mend(found: Collection[str], columns: Mapping[str, str]) -> str:
    """The flag that would name what is missing, with the unused columns that are spelt nearest."""
    unused = {column.lower(): column for column in found if column not in columns.values()}
    hints = []
    for name in ("image", "mask", "category", "cloth", "pid", "pose"):
        if name not in columns and not (name == "category" and "cloth_type" in columns):
            near = difflib.get_close_matches(name, list(unused), n=1, cutoff=0.6)
            hints += [f"{name}={unused[near[0]]}"] if near else []
    example = ",".join(hints) or "image=PHOTO_COLUMN,cloth=GARMENT_COLUMN"
    return f"Tell which columns hold it: --column {shlex.quote(example)}"
