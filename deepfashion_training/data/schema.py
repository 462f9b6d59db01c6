"""The columns of a row, declared once, and how the columns of other datasets map onto them.

*Documented* rows are what training reads. *Raw* rows are what ``SaffalPoosh/deepFashion-with-masks`` has on the
Hub: no garment picture, and a category name where training needs a garment type.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
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

#: Columns with a map of the person's parts, from which a mask is made where there is none: the 18 labels of ATR, or the
#: 20 of LIP.
PARSES = ("parse", "parse_lip")

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

#: What ``prepare`` writes: pairs, and rows that may not be trained on or have no garment picture.
PAIR_COLUMNS: dict[str, str] = {**DOCUMENTED_COLUMNS, **PROVENANCE_COLUMNS}
QUARANTINE, UNPAIRED = "quarantine.parquet", "unpaired.parquet"
_WHICH_ROW = {
    name: PAIR_COLUMNS[name] for name in ("source_row", "pid", "variant", "view", "gender", "category", "caption")
}
UNPAIRED_COLUMNS: dict[str, str] = {**_WHICH_ROW, "reason": "string"}
QUARANTINE_COLUMNS: dict[str, str] = {**UNPAIRED_COLUMNS, "detail": "string", "thumbnail": "image"}

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
    "features_as_is": "binary",
    "features": "binary",
    "likeness": "float64",
    "mask_how": "string",
    "mask_inverted": "bool",
    "thumbnail": "image",
}

#: What preparation may know of a row of any dataset. ``pose`` is variant and view in one.
INPUT_COLUMNS: tuple[str, ...] = (*DOCUMENTED_COLUMNS, "pid", "variant", "view", "gender", "category", "pose")


def features_of(columns: Mapping[str, str]) -> datasets.Features:
    """``columns`` (name -> type, as in the tables above) as ``datasets`` declares them."""
    import datasets

    return datasets.Features(
        {name: datasets.Image() if kind == "image" else datasets.Value(kind) for name, kind in columns.items()}
    )


def looks_raw(found: Collection[str]) -> bool:
    """Whether ``found`` are the columns of the raw Hub dataset."""
    return RAW_COLUMNS.keys() - {"mask_overlay"} <= set(found) and "cloth" not in found


def check_documented(found: Collection[str], source: str) -> None:
    """Raise ``ValueError`` when documented columns are missing from ``found``, the columns of ``source``.

    A column of ``PARSES`` will do for ``mask``. For raw rows it names ``prepare``.
    """
    missing = [name for name in DOCUMENTED_COLUMNS if name not in found]
    if "mask" in missing and set(PARSES) & set(found):
        missing.remove("mask")
    if not missing:
        return
    problem = (
        f"{source} lacks the columns {', '.join(missing)}: "
        f"found {', '.join(found) or 'none'}; needed {', '.join(DOCUMENTED_COLUMNS)}."
    )
    if looks_raw(found):
        problem += (
            " This looks like the Hub's raw schema. Turn it into pairs first: python -m "
            f"deepfashion_training.prepare --dataset_name {shlex.quote(source)} --output_dir OUT"
        )
    raise ValueError(problem)


def map_columns(
    found: Collection[str], source: str, overrides: Mapping[str, str], *, has_parser: bool = False
) -> dict[str, str]:
    """Column of ``source`` for each of ``INPUT_COLUMNS`` that it has; other columns are ignored.

    ``found`` are its columns. ``overrides`` (input name -> column) win, and a column that they claim serves no other
    name. The photo may be in ``images``, as on the Hub. Where there is no mask, a column of ``PARSES`` will do, from
    which masks are made, and with ``has_parser`` none is needed.

    Raises ``ValueError``, one line, for an override that names no column of ``found``, and when the columns do not
    suffice: a photo, a mask, ``category`` or ``cloth_type``, and ``cloth`` or what finds a garment picture (``pid``
    with ``pose`` or with ``variant`` and ``view``).
    """
    for name, column in overrides.items():
        if column not in found:
            raise ValueError(f"--column {name}={column}: {source} has only the columns {', '.join(found)}")
    unclaimed = set(found) - set(overrides.values())
    columns = {"image": "images"} if "images" in unclaimed else {}
    columns |= {name: name for name in INPUT_COLUMNS if name in unclaimed}
    columns |= overrides
    missing = [name for name in ("image", "mask") if name not in columns]
    if "mask" in missing:
        parses = [name for name in PARSES if name in unclaimed][:1]
        columns |= {name: name for name in parses}
        if parses or has_parser:
            missing.remove("mask")
    if not {"category", "cloth_type"} & set(columns):
        missing.append("category or cloth_type (what the garment is)")
    finds_garment = "pid" in columns and ("pose" in columns or {"variant", "view"} <= set(columns))
    if "cloth" not in columns and not finds_garment:
        missing.append("cloth (the garment's picture), or pid with pose (or with variant and view) to find one")
    if missing:
        raise ValueError(
            f"{source} cannot be turned into pairs: found {', '.join(found) or 'no columns'}; "
            f"missing {'; '.join(missing)}. Name the columns that hold it: --column image=PHOTO,cloth=GARMENT"
        )
    return columns
