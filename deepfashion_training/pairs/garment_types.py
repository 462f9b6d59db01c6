"""The three garment types and the 17 DeepFashion categories that map onto them."""

from __future__ import annotations

from collections.abc import Iterable

UPPER, LOWER, FULL = 1, 2, 3

#: Name of each ``cloth_type`` number, as it is typed on a command line.
TYPE_NAMES: dict[int, str] = {UPPER: "upper", LOWER: "lower", FULL: "full"}

#: ``cloth_type`` of each DeepFashion category; ``None`` where the category says only the fabric or the
#: occasion and the caption has to decide. Names as in the ``cloth_type`` column of
#: ``SaffalPoosh/deepFashion-with-masks``.
CATEGORY_TYPES: dict[str, int | None] = {
    "Blouses_Shirts": UPPER,
    "Cardigans": UPPER,
    "Denim": None,
    "Dresses": FULL,
    "Graphic_Tees": UPPER,
    "Jackets_Coats": UPPER,
    "Jackets_Vests": UPPER,
    "Leggings": LOWER,
    "Pants": LOWER,
    "Rompers_Jumpsuits": FULL,
    "Shirts_Polos": UPPER,
    "Shorts": LOWER,
    "Skirts": LOWER,
    "Suiting": None,
    "Sweaters": UPPER,
    "Sweatshirts_Hoodies": UPPER,
    "Tees_Tanks": UPPER,
}


def parse_cloth_types(names: str | Iterable[str]) -> tuple[int, ...]:
    """Numbers of the garment types in ``names``, in ascending order and without repeats.

    ``names`` is a comma-separated string (``"lower,full"``) or an iterable of names. Raises ``ValueError``
    that names the unknown type, also when nothing is named.
    """
    wanted = names.split(",") if isinstance(names, str) else list(names)
    numbers = {name: number for number, name in TYPE_NAMES.items()}
    chosen = set()
    for name in (part.strip().lower() for part in wanted):
        if name not in numbers:
            raise ValueError(f"unknown garment type {name!r}: choose from {', '.join(numbers)}")
        chosen.add(numbers[name])
    if not chosen:
        raise ValueError(f"no garment type named: choose from {', '.join(numbers)}")
    return tuple(sorted(chosen))


def parse_cloth_type(value: object) -> int:
    """Number of the garment type that a dataset cell holds: 1, 2, 3, the same as floats, or a type name.

    Raises ``ValueError`` that names anything else, booleans and missing values included.
    """
    if isinstance(value, str):
        for number, name in TYPE_NAMES.items():
            if value.strip().lower() == name:
                return number
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and value in TYPE_NAMES:
        return int(value)
    known = ", ".join(f"{number} ({name})" for number, name in TYPE_NAMES.items())
    raise ValueError(f"unknown garment type {value!r}: use {known}")
