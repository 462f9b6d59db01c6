"""The three garment types and the 17 DeepFashion categories that map onto them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

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

#: Tops that may well end at the knees or below.
LONG_TOPS = ("Cardigans", "Jackets_Coats")


def type_list(text: str) -> str:
    """Converter for argparse: a comma-separated list of garment types, in ascending order and without repeats."""
    try:
        return ",".join(TYPE_NAMES[number] for number in parse_cloth_types(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_cloth_types(names: str) -> tuple[int, ...]:
    """Numbers of the garment types in ``names`` (``"lower,full"``), in ascending order and without repeats.

    Raises ``ValueError`` that names what is no garment type.
    """
    return tuple(sorted({parse_cloth_type(name) for name in names.split(",")}))


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


#: Words of a caption for garments of each type, singular. "upper clothing", "lower clothing" and "outer clothing"
#: are how the captions of DeepFashion-MultiModal name garments that they have no better word for.
GARMENT_WORDS: dict[str, int] = {
    **dict.fromkeys(
        """shirt tshirt tee tank polo blouse sweater pullover jumper sweatshirt hoodie cardigan jacket blazer coat
        overcoat trench parka waistcoat vest gilet tuxedo top tunic camisole cami bodysuit poncho outerwear""".split(),
        UPPER,
    ),
    **dict.fromkeys(("upper clothing", "outer clothing", "upper garment"), UPPER),
    **dict.fromkeys(
        """trouser trousers pant pants jean jeans jegging leggings legging shorts skirt miniskirt skort chino slacks
        culottes capri jogger sweatpants bottoms bermuda cutoffs""".split(),
        LOWER,
    ),
    **dict.fromkeys(("lower clothing", "lower garment"), LOWER),
    **dict.fromkeys(
        "dress gown sundress minidress jumpsuit romper playsuit overalls dungarees pantsuit pinafore".split(), FULL
    ),
}

#: What is denim or a suit's by itself.
_DENIM = ("jean", "jeans", "jegging")
_SUIT = ("blazer", "waistcoat", "tuxedo")
#: What a suit may consist of where nothing is called a suit's.
_SUIT_PARTS = {
    *("jacket", "coat", "overcoat", "vest", "outerwear", "outer clothing", "trouser", "trousers", "pant", "pants"),
    *("skirt", "shorts", "dress", "jumpsuit", "pantsuit"),
}
_GARMENT = re.compile(rf"\b({'|'.join(sorted(GARMENT_WORDS, key=len, reverse=True))})(?:e?s)?\b")
#: What ends a noun phrase.
_PHRASE_END = re.compile(r"[.,;]|\b(?:and|or|with|of|in|on|over|under|is|are|has|have|the|his|her|its?)\b")


class UnknownCategoryError(ValueError):
    """A category that is not in ``CATEGORY_TYPES`` and that no override names."""


def type_of(category: str, caption: str, overrides: Mapping[str, int] | None = None) -> int | None:
    """Garment type (1, 2, 3) of a row with that category and caption; ``None`` where the caption cannot decide.

    ``overrides`` (category -> type) come first, then ``CATEGORY_TYPES``, then, for Denim and Suiting, the caption. It
    describes the whole outfit, so a garment counts only when it is called by the category's word. Categories are
    compared without regard to capitals, spaces, hyphens, ``_``, ``&`` and "and"; the names of the types are categories
    too. Raises ``UnknownCategoryError`` for any other.
    """
    key = _key(category)
    types = _TYPES_BY_KEY | {_key(name): number for name, number in (overrides or {}).items()}
    if key not in types:
        raise UnknownCategoryError(f"unknown category {category!r}: give its type, such as {category}=lower")
    return types[key] or _captioned_type(key, caption)


def _key(category: str) -> str:
    """A category's spelling without what differs between copies of the dataset."""
    return "".join(word for word in re.findall(r"[^\W_]+", category.casefold()) if word != "and")


_TYPES_BY_KEY: dict[str, int | None] = {
    **{_key(name): number for name, number in CATEGORY_TYPES.items()},
    **{_key(f"{name}{suffix}"): number for number, name in TYPE_NAMES.items() for suffix in ("", " body")},
}


def _captioned_type(category: str, caption: str) -> int | None:
    """Type of the garments that are called denim or a suit's; ``None`` for none and for several types.

    A noun phrase is about its last garment: a "dress shirt" is a shirt. Denim in a phrase without one belongs to the
    garment that was named last ("The pants are with denim fabric").
    """
    word, by_itself = ("denim", _DENIM) if category == "denim" else ("suit", _SUIT)
    named, garments = set(), [""]
    for phrase in _PHRASE_END.split(caption.lower().replace("-", " ")):
        found = _GARMENT.findall(phrase)
        garments += found
        if set(found) & set(by_itself) or (word in phrase.split() and (found or word == "denim")):
            named.add(garments[-1])
    if word == "suit" and not named:
        named = _SUIT_PARTS.intersection(garments)
    types = {GARMENT_WORDS[garment] for garment in named - {""}}
    return types.pop() if len(types) == 1 else None
