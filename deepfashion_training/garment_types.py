"""The three garment types and the 17 DeepFashion categories that map onto them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping

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


def parse_cloth_types(names: str | Iterable[str]) -> tuple[int, ...]:
    """Numbers of the garment types in ``names``, in ascending order and without repeats.

    ``names`` is a comma-separated string (``"lower,full"``) or an iterable of names. Raises ``ValueError``
    that names the unknown type, also when nothing is named.
    """
    wanted = names.split(",") if isinstance(names, str) else list(names)
    if not wanted:
        raise ValueError(f"no garment type named: choose from {', '.join(TYPE_NAMES.values())}")
    return tuple(sorted({parse_cloth_type(name) for name in wanted}))


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
#: are how the captions of DeepFashion-MultiModal name garments that they have no better word for (seen in the
#: examples that public code quotes from its ``captions.json``). Entries of several words, with hyphens here, win over
#: their parts: a "dress shirt" is a shirt, and a "shirt dress" is a dress.
GARMENT_WORDS: dict[str, int] = {
    **dict.fromkeys(
        """shirt tshirt tee tank polo blouse sweater pullover jumper sweatshirt hoodie cardigan jacket blazer
        coat overcoat trench parka waistcoat vest gilet tuxedo top tunic camisole cami bodysuit poncho outerwear
        upper-clothing outer-clothing upper-garment tank-top tank-shirt dress-shirt dress-coat jean-jacket
        jeans-jacket jean-shirt jean-vest""".split(),
        UPPER,
    ),
    **dict.fromkeys(
        """trouser trousers pant pants jean jeans jegging leggings legging shorts skirt miniskirt skort chino slacks
        culottes capri jogger sweatpants bottoms bermuda cutoffs lower-clothing lower-garment dress-pants dress-trousers
        jean-shorts jean-skirt""".split(),
        LOWER,
    ),
    **dict.fromkeys(
        """dress gown sundress minidress jumpsuit romper playsuit overalls dungarees pantsuit pinafore shirt-dress
        tshirt-dress jumper-dress sweater-dress jacket-dress blazer-dress jean-dress""".split(),
        FULL,
    ),
}  # fmt: skip

#: Garments that only a suit has, and garments that a suit may consist of: a shirt or a tee is none.
SUIT_GARMENTS = ("blazer", "waistcoat", "tuxedo")
SUIT_PARTS = (
    "jacket", "coat", "overcoat", "vest", "outerwear", "outer-clothing", "trouser", "trousers", "pant", "pants",
    "skirt", "shorts", "dress-pants", "dress-trousers", "dress", "jumpsuit", "pantsuit",
)  # fmt: skip

#: The hyphen of "t-shirt" and "a-line": it joins, where other hyphens only link whole words.
_JOINING_HYPHEN = re.compile(r"\b([a-z])[- ](?=(?:shirt|tee|line|neck|shape)s?\b)")
#: What counts in a caption: garments, words that say what a garment is, and what ends a noun phrase, so that no
#: adjective reaches past it.
_TOKEN = re.compile(
    rf"\b(?:(?P<garment>{'|'.join(sorted(GARMENT_WORDS, key=len, reverse=True))})(?:e?s)?"
    r"|(?P<denim>denim)|(?P<suit>suit(?:ing)?)|fabric|cloth|material|textile|texture|and|or|with|of|in|on|is|are|its?"
    r"|has|have|the|an?|his|her|over|under)\b|[.,;]"
)


class UnknownCategoryError(ValueError):
    """A category that is not in ``CATEGORY_TYPES`` and that no override names; ``category`` is what the row says."""

    def __init__(self, category: str) -> None:
        super().__init__(category)
        self.category = category

    def __str__(self) -> str:
        """One line with the fix."""
        return f"unknown category {self.category!r}: give its type with an override, such as {self.category}=lower"


def type_of(category: str, caption: str, overrides: Mapping[str, int] | None = None) -> int | None:
    """Garment type (1, 2, 3) of a row with that category and caption; ``None`` where the caption cannot decide.

    ``overrides`` (category -> type, see ``parse_type_overrides``) come first, then ``CATEGORY_TYPES``, then, for
    Denim and Suiting, the caption. It describes the whole outfit, so a garment counts only when it is called by
    the category's word. Categories are compared without regard to capitals, spaces, hyphens, ``_``, ``&`` and
    "and"; the names of the types are categories too. Raises ``UnknownCategoryError`` for any other.
    """
    key = _key(category)
    for name, number in (overrides or {}).items():
        if _key(name) == key:
            return number
    if key not in _TYPES_BY_KEY:
        raise UnknownCategoryError(category)
    decided = _TYPES_BY_KEY[key]
    if decided is not None:
        return decided
    return _captioned_type("denim" if key == _key("Denim") else "suit", caption or "")


def parse_type_overrides(text: str | None) -> dict[str, int]:
    """Type by category from ``"Denim=lower,Suiting=upper"``; empty for ``None`` and for no text.

    A type is a name or its number. Raises ``ValueError`` for a part of another form, an unknown type and a category
    named twice, also in another spelling.
    """
    overrides: dict[str, int] = {}
    for part in (text or "").split(",") if (text or "").strip() else []:
        category, equals, name = (piece.strip() for piece in part.partition("="))
        if not (category and equals and name):
            raise ValueError(f"type overrides {text!r}: {part.strip()!r} is not CATEGORY=TYPE, such as Denim=lower")
        if _key(category) in map(_key, overrides):
            raise ValueError(f"type overrides {text!r}: {category!r} is given twice")
        overrides[category] = parse_cloth_type(int(name) if name.isdecimal() else name)
    return overrides


def _key(category: str) -> str:
    """A category's spelling without what differs between copies of the dataset."""
    return "".join(word for word in re.findall(r"[^\W_]+", category.casefold()) if word != "and")


_TYPES_BY_KEY: dict[str, int | None] = {
    **{_key(name): number for name, number in CATEGORY_TYPES.items()},
    **{_key(f"{name}{suffix}"): number for number, name in TYPE_NAMES.items() for suffix in ("", " body")},
}


def _captioned_type(what: str, caption: str) -> int | None:
    """Type of the garments that are called denim or a suit's (``what``); ``None`` for none and for several types.

    The word belongs to the garment that it precedes in its phrase ("a denim jacket"). Denim may also follow: then it
    belongs to the garment that was named last ("The pants are with denim fabric"). Jeans are denim by themselves, as
    blazers are a suit's. Where nothing is called a suit's, whatever a suit may consist of counts.
    """
    text = "-".join(re.findall(r"[a-z]+|[.,;]", _JOINING_HYPHEN.sub(r"\1", caption.lower())))
    tokens = list(_TOKEN.finditer(text))
    named: set[str] = set()
    for place, token in enumerate(tokens):
        garment = token["garment"]
        if garment and (garment.startswith("je") if what == "denim" else garment in SUIT_GARMENTS):
            named.add(garment)
        if token[what]:
            following = next((each for each in tokens[place:] if not (each["denim"] or each["suit"])), None)
            before = [each["garment"] for each in tokens[:place] if each["garment"]]
            if following and following["garment"]:
                named.add(following["garment"])
            elif what == "denim":
                named.update(before[-1:])
    if what == "suit" and not named:
        named = {token["garment"] for token in tokens} & set(SUIT_PARTS)
    types = {GARMENT_WORDS[garment] for garment in named}
    return types.pop() if len(types) == 1 else None
