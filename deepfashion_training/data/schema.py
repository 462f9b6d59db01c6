"""The columns of a row, declared once, and how the columns of other datasets map onto them.

*Documented* rows are what training reads. *Raw* rows are what ``SaffalPoosh/deepFashion-with-masks`` has on the
Hub: no garment picture, and a category name where training needs a garment type.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

#: Columns that every documented row has, with their types: person photo, garment picture, area to repaint (white =
#: repaint), text, and 1 upper body, 2 lower body, 3 full body.
DOCUMENTED_COLUMNS: dict[str, str] = {
    "image": "image",
    "cloth": "image",
    "mask": "image",
    "caption": "string",
    "cloth_type": "int64",
}

#: Columns that say where a documented pair came from. All are optional.
PROVENANCE_COLUMNS: dict[str, str] = {
    "pid": "string",
    "variant": "string",
    "view": "string",
    "gender": "string",
    "category": "string",
    "garment_source": "string",
    "garment_view": "string",
    "source_row": "int64",
}

#: Columns of the raw Hub dataset. ``mask_overlay`` is only to look at.
RAW_COLUMNS: dict[str, str] = {
    "images": "image",
    "gender": "string",
    "pose": "string",
    "cloth_type": "string",
    "pid": "string",
    "caption": "string",
    "mask": "image",
    "mask_overlay": "image",
}

#: What ``prepare`` writes: pairs, rows that may not be trained on, and good rows without a garment picture.
PAIR_COLUMNS: dict[str, str] = {**DOCUMENTED_COLUMNS, **PROVENANCE_COLUMNS}
_WHICH_ROW = {
    name: PAIR_COLUMNS[name] for name in ("source_row", "pid", "variant", "view", "gender", "category", "caption")
}
QUARANTINE_COLUMNS: dict[str, str] = {**_WHICH_ROW, "reason": "string", "detail": "string", "thumbnail": "image"}
UNPAIRED_COLUMNS: dict[str, str] = {**_WHICH_ROW, "reason": "string"}

#: What a preparation notes of each row until all rows are known: what became of it and why, its split, and what the
#: decisions over all rows (near duplicates, shares, leak score) and the report need.
NOTES: dict[str, str] = {
    "outcome": "string",  # pair, quarantined or unpaired
    "reason": "string",
    "detail": "string",
    "mined": "bool",  # a lower-body pair from a row of a top
    "split": "string",
    "garment_row": "int64",
    "fingerprint": "binary",
    "garment_digest": "binary",
    "features_as_is": "binary",
    "features": "binary",
    "likeness": "float64",
    "mask_how": "string",
    "mask_inverted": "bool",
    "thumbnail": "image",
}

#: What a row of any dataset may hold, by the name that preparation uses. ``pose`` is variant and view in one.
INPUT_COLUMNS: tuple[str, ...] = (
    *DOCUMENTED_COLUMNS,
    *(name for name in PROVENANCE_COLUMNS if name not in ("garment_source", "garment_view", "source_row")),
    "pose",
)

#: Where the raw schema calls an input column something else. Its ``cloth_type`` holds category names.
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


def features_of(columns: Mapping[str, str]) -> datasets.Features:
    """``columns`` (name -> type, as in the tables above) as ``datasets`` declares them."""
    import datasets

    return datasets.Features(
        {name: datasets.Image() if kind == "image" else datasets.Value(kind) for name, kind in columns.items()}
    )


def missing_columns(found: Collection[str]) -> list[str]:
    """Documented columns that ``found`` lacks, in schema order."""
    return [name for name in DOCUMENTED_COLUMNS if name not in found]


def looks_raw(found: Collection[str]) -> bool:
    """Whether ``found`` are the columns of the raw Hub dataset."""
    return all(name in found for name in RAW_COLUMNS if name != "mask_overlay") and "cloth" not in found


def check_documented(found: Collection[str], source: str) -> None:
    """Raise one ``ValueError`` when documented columns are missing from ``found``, the columns of ``source``.

    It names the fix: ``prepare`` for raw rows, else the column that is probably meant.
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
    unused = [column for column in found if column not in PAIR_COLUMNS]
    hints = [f"rename {near!r} to {name!r}" for name in missing if (near := _nearest(name, unused))]
    raise ValueError(f"{problem} Perhaps {', '.join(hints)}." if hints else problem)


def _nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that is spelt most like ``name``, whatever its capitals; None if none is close."""
    by_spelling = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(name.lower(), by_spelling, n=1)
    return by_spelling[matches[0]] if matches else None


def parse_column_map(text: str | None) -> dict[str, str]:
    """Columns by input name from ``"image=photo,cloth=product"``; empty for ``None`` and for no text.

    Raises ``ValueError`` for a part that is not ``NAME=COLUMN``, a name that is not in ``INPUT_COLUMNS`` and a name
    given twice.
    """
    columns: dict[str, str] = {}
    for part in (text or "").split(",") if (text or "").strip() else []:
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if not (name and equals and column):
            raise ValueError(f"--column {text!r}: {part.strip()!r} is not NAME=COLUMN, such as image=photo")
        if name not in INPUT_COLUMNS:
            raise ValueError(f"--column {text!r}: unknown name {name!r}: {_suggestion(name, INPUT_COLUMNS)}")
        if name in columns:
            raise ValueError(f"--column {text!r}: {name!r} is given twice")
        columns[name] = column
    return columns


def _suggestion(name: str, choices: Collection[str]) -> str:
    near = _nearest(name, choices)
    return f"did you mean {near!r}?" if near else f"choose from {', '.join(choices)}"


def map_columns(found: Collection[str], overrides: Mapping[str, str], source: str) -> dict[str, str]:
    """Column of ``source`` for each of ``INPUT_COLUMNS`` that it has.

    ``found`` are its columns. ``overrides`` (see ``parse_column_map``) win, and a column that they claim serves no
    other name. The schema decides the rest. Rows are *raw* when they have no ``category`` and either ``images`` in
    place of ``image`` or a ``pose`` in place of ``view`` (and not both ``image`` and ``cloth``). In raw rows
    ``cloth_type`` holds category names, elsewhere 1, 2, 3. A ``cloth`` column is one in either schema. Other columns
    are ignored.

    Raises ``ValueError``, one line, for an override that names no column of ``found``, and when the columns do not
    suffice: a photo, a mask, ``category`` or ``cloth_type``, and ``cloth`` or what finds a garment picture (``pid``
    with ``pose`` or with ``variant`` and ``view``).
    """
    for name, column in overrides.items():
        if column not in found:
            raise ValueError(
                f"--column {name}={column}: {source} has no column {column!r}: {_suggestion(column, found)}"
            )
    raw = _is_raw(found)
    unclaimed = [column for column in found if column not in overrides.values()]
    columns = {}
    for name in INPUT_COLUMNS:
        column = _RAW_NAMES.get(name, name) if raw else name
        if name == "image" and column not in found:
            column = "image"
        if column in unclaimed and not (raw and name == "cloth_type"):
            columns[name] = column
    columns |= overrides
    missing = [words for ways, words in _NEEDED if not any(set(way) <= set(columns) for way in ways)]
    if missing:
        unused = [column for column in unclaimed if column not in columns.values()]
        hints = [f"{name}={near}" for name in INPUT_COLUMNS if name not in columns and (near := _nearest(name, unused))]
        example = ",".join(hints) or "image=PHOTO_COLUMN,cloth=GARMENT_COLUMN"
        raise ValueError(
            f"{source} cannot be turned into pairs: found {', '.join(found) or 'no columns'}; "
            f"missing {'; '.join(missing)}. Name the columns that hold it: --column {shlex.quote(example)}"
        )
    return columns


def _is_raw(found: Collection[str]) -> bool:
    if "category" in found:
        return False
    posed = "pose" in found and "view" not in found
    return ("images" in found and "image" not in found) or (posed and not {"image", "cloth"} <= set(found))
