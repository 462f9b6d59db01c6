"""The three garment types and the 17 DeepFashion categories that map onto them."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping
from typing import Any

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

#: Other words for each type, spelled as in ``_key``: those of VITON-HD (tops alone, in a folder ``cloth``), DressCode
#: (``upper_body``, ``lower_body``, ``dresses``) and the try-on tools that train on them. Categories are words, too.
TYPE_WORDS: dict[int, str] = {
    UPPER: "upper upperbody top tops uppercloth upperclothes upperclothing uppergarment cloth inner outer",
    LOWER: "lower lowerbody bottom bottoms lowercloth lowerclothes lowerclothing lowergarment",
    FULL: "full fullbody dress overall overalls onepiece onepieces whole wholebody",
}

#: Tops that may well end at the knees or below.
LONG_TOPS = ("Cardigans", "Jackets_Coats")


def one_type(text: str) -> int:
    """Converter for argparse: the number of one garment type, in any form of ``parse_cloth_type``."""
    try:
        return parse_cloth_type(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def type_list(text: str) -> str:
    """Converter for argparse: a comma-separated list of garment types, in ascending order and without repeats."""
    return ",".join(TYPE_NAMES[number] for number in sorted({one_type(name) for name in text.split(",")}))


def parse_cloth_types(names: str) -> tuple[int, ...]:
    """Numbers of the garment types in ``names`` (``"lower,full"``), in ascending order and without repeats.

    Raises ``ValueError`` that names what is no garment type.
    """
    return tuple(sorted({parse_cloth_type(name) for name in names.split(",")}))


def parse_cloth_type(value: Any, caption: str = "") -> int:
    """Number of the garment type that a cell or a flag names: what ``coded_type`` knows, categories, garments.

    Garments are the words of ``GARMENT_WORDS``, one or many. ``caption`` decides for Denim and suits. Raises
    ``ValueError`` that names anything else, booleans and missing values included, with what there is and the nearest
    of it.
    """
    if number := coded_type(value):
        return number
    key = _key(value) if isinstance(value, str) else ""
    if key in _TYPES_BY_KEY:
        if number := _captioned_type(key, caption) if _TYPES_BY_KEY[key] is None else _TYPES_BY_KEY[key]:
            return number
        raise ValueError(f"garment type {value!r} may be any: give upper, lower or full")
    garments = [word for word in _TYPES_BY_GARMENT if key.endswith(word)]  # "trenchcoat"
    near = sorted(garments, key=len)[-1:] or difflib.get_close_matches(key, _TYPES_BY_KEY, n=1, cutoff=0.8)
    shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}..."
    raise ValueError(
        f"unknown garment type {shown}: use 1 (upper), 2 (lower), 3 (full), a word such as upper_body, "
        f"lower_body, dresses, or a garment such as skirt or trousers{f'; the nearest is {near[0]!r}' if near else ''}"
    )


def coded_type(value: Any, overrides: Mapping[str, int] | None = None) -> int | None:
    """Number of a garment type that is given as a number, in whatever type or text, or by a word of ``TYPE_WORDS``.

    None for anything else: categories, the keys of ``overrides`` (category -> type), booleans, missing values. Raises
    ``ValueError`` for 0: in DressCode's code, which begins there, 1 and 2 would be other types than here.
    """
    if value is None or isinstance(value, bool):
        return None
    text = str(value).strip()
    if overrides and _key(text) in {_key(name) for name in overrides}:
        return None
    if number := re.fullmatch(r"0*([0-3])(?:\.0*)?", text, re.ASCII):
        if number[1] == "0":
            raise ValueError(
                f"unknown garment type {value!r}: use 1 (upper), 2 (lower), 3 (full); a code that begins at 0, like "
                "DressCode's, is another one: its 1 is lower and its 2 full, so add 1, or give upper_body and the like"
            )
        return int(number[1])
    return _TYPES_BY_WORD.get(_key(text)) if isinstance(value, str) else None


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


def type_of_name(stem: str) -> int | None:
    """Garment type that the words of a file's name say: ``red_trousers-2`` is lower. None for no type, and for several.

    ``cloth`` says nothing: it is what any garment picture is called.
    """
    words = re.findall(r"[^\W\d_]+", stem.casefold())
    types = {_TYPES_BY_KEY[word] for word in words if word in _TYPES_BY_KEY and word != "cloth"} - {None}
    return types.pop() if len(types) == 1 else None


class UnknownCategoryError(ValueError):
    """A category that is not in ``CATEGORY_TYPES`` and that no override names."""


def type_of(category: str, caption: str, overrides: Mapping[str, int] | None = None) -> int | None:
    """Garment type (1, 2, 3) of a row with that category and caption; ``None`` where the caption cannot decide.

    ``overrides`` (category -> type) come first, then ``CATEGORY_TYPES``, then, for Denim and Suiting, the caption. It
    describes the whole outfit, so a garment counts only when it is called by the category's word. Categories are
    compared without regard to capitals, spaces, hyphens, ``_``, ``&`` and "and"; ``TYPE_WORDS`` are categories too,
    and so is a garment of ``GARMENT_WORDS``.
    Raises ``UnknownCategoryError`` for any other.
    """
    key = _key(category)
    types = _TYPES_BY_KEY | {_key(name): number for name, number in (overrides or {}).items()}
    if key not in types:
        raise UnknownCategoryError(f"unknown category {category!r}: give its type, such as {category}=lower")
    return types[key] or _captioned_type(key, caption)


def _key(category: str) -> str:
    """A category's spelling without what differs between copies of the dataset."""
    return "".join(word for word in re.findall(r"[^\W_]+", category.casefold()) if word != "and")


_TYPES_BY_WORD = {word: number for number, words in TYPE_WORDS.items() for word in words.split()}
#: One garment and many; a suit's parts are of several types.
_TYPES_BY_GARMENT: dict[str, int | None] = {
    **{_key(word) + end: number for word, number in GARMENT_WORDS.items() for end in ("", "s", "es")},
    **dict.fromkeys(("suit", "suits"), None),
}
_TYPES_BY_KEY: dict[str, int | None] = {
    **_TYPES_BY_GARMENT,
    **_TYPES_BY_WORD,
    **{_key(name): number for name, number in CATEGORY_TYPES.items()},
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
