"""The three garment types and the 17 DeepFashion categories that map onto them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

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


#: Words of a caption for garments of each type, singular. "upper clothing", "lower clothing" and "outer clothing"
#: are how the captions of DeepFashion-MultiModal name garments that they have no better word for (seen in the
#: examples that public code quotes from its ``captions.json``). Entries of several words win over their parts, so
#: that a "dress shirt" is a shirt and a "shirt dress" is a dress.
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

#: Words that say that a garment is of denim, and the type where the word is a garment itself.
DENIM_WORDS: dict[str, int | None] = {"denim": None, "jean": LOWER, "jeans": LOWER, "jegging": LOWER}

#: Words that a suit's garments have of their own.
SUIT_GARMENTS: tuple[str, ...] = ("blazer", "waistcoat", "tuxedo")
#: Garments that a suit may consist of, where nothing is called by a suit's own word: a shirt or a tee is none.
SUIT_PARTS: tuple[str, ...] = (
    "jacket", "coat", "overcoat", "vest", "outerwear", "outer-clothing", "trouser", "trousers", "pant", "pants",
    "skirt", "shorts", "dress-pants", "dress-trousers", "dress", "jumpsuit", "pantsuit",
)  # fmt: skip
_SUIT_WORDS = ("suit", "suiting")

#: Words that end a noun phrase, so that no adjective reaches past them.
_PHRASE_ENDS = frozenset(
    "fabric cloth material textile texture and or with of in on is are it its has have the a an his her over under"
    " . , ;".split()
)
_WORD = re.compile(r"[a-z]+|[.,;]")
#: The hyphen of "t-shirt" and "a-line": it joins, where other hyphens only link whole words.
_JOINING_HYPHEN = re.compile(r"\b([a-z])[- ](?=(?:shirt|tee|line|neck|shape)s?\b)")


class UnknownCategoryError(ValueError):
    """A category that is none of the 17 and that no override names; ``category`` is what the row says."""

    def __init__(self, category: str) -> None:
        super().__init__(category)
        self.category = category

    def __str__(self) -> str:
        """One line with the mend."""
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
    return _denim_type(caption or "") if key == _key("Denim") else _suit_type(caption or "")


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


class _Noun(NamedTuple):
    """A garment that a caption names: its entry in the table, and where its phrase begins and ends."""

    word: str
    start: int
    end: int

    @property
    def cloth_type(self) -> int:
        return GARMENT_WORDS[self.word]


def _read(caption: str) -> tuple[list[str], list[_Noun]]:
    """The words of a caption, whole and in lower case, with the marks that end a phrase, and its garments."""
    words = _WORD.findall(_JOINING_HYPHEN.sub(r"\1", caption.lower()))
    nouns: list[_Noun] = []
    at = 0
    while at < len(words):
        for length in (3, 2, 1):
            word = _entry("-".join(words[at : at + length]))
            if word is not None and at + length <= len(words):
                nouns.append(_Noun(word, at, at + length))
                at += length
                break
        else:
            at += 1
    return words, nouns


def _entry(word: str) -> str | None:
    """The table's word for ``word``, which may be a plural."""
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if form in GARMENT_WORDS:
            return form
    return None


def _denim_type(caption: str) -> int | None:
    """Type of the garments of denim; ``None`` where there are none, or of several types.

    "denim" belongs to the noun that it precedes in its phrase ("a denim jacket"), else to the garment that was
    named last ("The pants are with denim fabric", "The lower clothing is long. The fabric is denim").
    """
    words, nouns = _read(caption)
    types: set[int] = set()
    for place, word in enumerate(words):
        if word in DENIM_WORDS:
            noun = _described(place, words, nouns) or _last_before(place, nouns)
            types.update([noun.cloth_type] if noun is not None else [])
    return _only(types)


def _suit_type(caption: str) -> int | None:
    """Type of the garments that are called a suit's; failing these, of those that a suit may consist of."""
    words, nouns = _read(caption)
    types = {noun.cloth_type for noun in nouns if noun.word in SUIT_GARMENTS}
    for place, word in enumerate(words):
        noun = _described(place, words, nouns) if word in _SUIT_WORDS else None
        types.update([noun.cloth_type] if noun is not None else [])
    return _only(types or {noun.cloth_type for noun in nouns if noun.word in SUIT_PARTS})


def _described(place: int, words: list[str], nouns: list[_Noun]) -> _Noun | None:
    """The garment whose phrase the adjective at ``place`` stands in, itself included."""
    for noun in nouns:
        if noun.end > place:
            return None if _PHRASE_ENDS.intersection(words[place + 1 : noun.start]) else noun
    return None


def _last_before(place: int, nouns: list[_Noun]) -> _Noun | None:
    before = [noun for noun in nouns if noun.end <= place]
    return before[-1] if before else None


def _only(types: set[int]) -> int | None:
    return next(iter(types)) if len(types) == 1 else None
