"""Column names of the two dataset schemas, and what a row of each holds.

*Documented* rows are what training reads. *Raw* rows are what ``SaffalPoosh/deepFashion-with-masks`` has on the
Hub: no garment picture, and a category name where training needs a garment type.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection

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
