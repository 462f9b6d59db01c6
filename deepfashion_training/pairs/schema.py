"""Column names of the two dataset schemas, and what a row of each holds.

*Documented* rows are what training reads. *Raw* rows are what ``SaffalPoosh/deepFashion-with-masks`` has on the
Hub: no garment picture, and a category name where training needs a garment type.
"""

from __future__ import annotations

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
RAW_COLUMNS: tuple[str, ...] = (
    "images",
    "gender",
    "pose",
    "cloth_type",
    "pid",
    "caption",
    "mask",
    "mask_overlay",
)

#: Columns without which raw rows cannot be turned into pairs; ``mask_overlay`` is a picture to look at.
RAW_REQUIRED_COLUMNS: tuple[str, ...] = tuple(name for name in RAW_COLUMNS if name != "mask_overlay")


def missing_columns(found: Collection[str]) -> list[str]:
    """Documented columns that ``found`` lacks, in schema order."""
    return [name for name in DOCUMENTED_COLUMNS if name not in found]


def looks_raw(found: Collection[str]) -> bool:
    """Whether ``found`` are the columns of the raw Hub dataset."""
    return all(name in found for name in RAW_REQUIRED_COLUMNS) and "cloth" not in found
