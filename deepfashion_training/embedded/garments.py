"""Garments and outfits: what can be worn, under which of the 17 categories it is sold, and how captions name it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from deepfashion_training.embedded.body import Person
from deepfashion_training.embedded.patterns import (
    CLOTH_COLOURS,
    DENIMS,
    PALETTE,
    PATTERN_WORDS,
    SUIT_COLOURS,
    Pattern,
    random_pattern,
    weighted,
)
from deepfashion_training.garment_types import FULL, LOWER, UPPER

#: How far a sleeve of each name reaches along the arm, in arm lengths from shoulder to wrist.
SLEEVES: dict[str, float] = {
    "strap": 0.0, "sleeveless": 0.0, "short": 0.31, "elbow": 0.46, "three-quarter": 0.74, "long": 0.985
}  # fmt: skip

#: Body height of each hem.
LEG_HEMS: dict[str, float] = {
    "three-point": 0.600, "knee-length": 0.695, "cropped": 0.850, "ankle-length": 0.915, "long": 0.938
}  # fmt: skip
SKIRT_HEMS: dict[str, float] = {"mini": 0.600, "knee-length": 0.700, "midi": 0.800, "maxi": 0.915}

TOP_KINDS = ("tee", "tank", "shirt", "blouse", "polo", "sweater", "sweatshirt", "hoodie", "cardigan", "jacket", "vest")
LEGGED_KINDS = ("trousers", "jeans", "leggings", "shorts")
FULL_KINDS = ("dress", "jumpsuit", "romper")
OPEN_KINDS = ("cardigan", "jacket", "vest")

#: Necklines, and how captions call them.
NECKLINES = {
    "crew": "a round neckline", "v": "a V-shaped neckline", "scoop": "a low round neckline",
    "square": "a square neckline", "boat": "a boat neckline", "collar": "a lapel collar",
}  # fmt: skip

#: How often each pattern comes in each sort of cloth.
_PATTERNS: dict[str, dict[str, float]] = {
    "top": {"plain": 0.90, "horizontal": 0.13, "vertical": 0.07, "diagonal": 0.06, "dots": 0.09, "check": 0.06,
            "plaid": 0.06, "leaves": 0.05, "stars": 0.05, "flowers": 0.06, "block": 0.07},
    "legs": {"plain": 0.80, "vertical": 0.11, "horizontal": 0.06, "diagonal": 0.05, "dots": 0.07, "check": 0.06,
             "plaid": 0.07, "leaves": 0.05, "flowers": 0.06, "block": 0.05},
    "graphic": {"print": 0.8, "stars": 0.1, "leaves": 0.1},
    "knit": {"plain": 0.6, "horizontal": 0.22, "block": 0.13, "stars": 0.05},
    "suit": {"plain": 0.68, "vertical": 0.18, "check": 0.14},
    "denim": {"denim": 1.0},
}  # fmt: skip

#: Pattern kinds that captions and ``Garment.in_plain`` take as they are: these have no second colour all over.
_PLAIN_KINDS = ("plain", "denim", "print", "block")


@dataclass(frozen=True)
class Garment:
    """One piece of clothing, without a wearer."""

    kind: str  # one of TOP_KINDS, LEGGED_KINDS, FULL_KINDS or "skirt"
    category: str  # one of the 17 names
    pattern: Pattern
    sleeve: str = ""  # a key of SLEEVES, for tops and full garments
    neckline: str = ""  # a key of NECKLINES
    cut: str = ""  # slim, straight, wide; or a-line, pencil, pleated, flared
    hem: str = ""  # a key of LEG_HEMS or SKIRT_HEMS
    ease: float = 0.010  # distance from the body, body units
    length: float = 0.50  # body height of a top's hem
    belted: bool = False

    @property
    def cloth_type(self) -> int:
        """1 upper body, 2 lower body, 3 full body."""
        return _type_of(self.kind)

    @property
    def skirted(self) -> bool:
        """Whether it hangs around both legs as one."""
        return self.kind in ("skirt", "dress")

    def in_plain(self) -> Garment:
        """The same garment in its ground colour alone; denim, prints and colour blocks are what they are."""
        if self.pattern.kind in _PLAIN_KINDS:
            return self
        return replace(self, pattern=replace(self.pattern, kind="plain"))


def _type_of(kind: str) -> int:
    return UPPER if kind in TOP_KINDS else FULL if kind in FULL_KINDS else LOWER


@dataclass(frozen=True)
class Outfit:
    """Everything that a person wears but shoes: a top with a bottom, or one full garment."""

    garments: tuple[Garment, ...]  # top first
    inner: str = "white"  # colour of the tee under an open top
    tucked: bool = False
    scarf: str | None = None  # palette colour


#: Kinds sold under each category, by gender.
CATEGORY_KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "WOMEN": {
        "Blouses_Shirts": ("blouse", "shirt"), "Cardigans": ("cardigan",), "Graphic_Tees": ("tee",),
        "Jackets_Coats": ("jacket",), "Jackets_Vests": ("vest",), "Sweaters": ("sweater",),
        "Sweatshirts_Hoodies": ("hoodie", "sweatshirt"), "Tees_Tanks": ("tee", "tank"),
        "Denim": ("jeans", "jeans", "skirt", "jacket"), "Leggings": ("leggings",), "Pants": ("trousers",),
        "Shorts": ("shorts",), "Skirts": ("skirt",), "Suiting": ("trousers", "jacket", "skirt"),
        "Dresses": ("dress",), "Rompers_Jumpsuits": ("jumpsuit", "romper"),
    },
    "MEN": {
        "Shirts_Polos": ("shirt", "polo"), "Jackets_Vests": ("jacket", "vest"), "Sweaters": ("sweater",),
        "Sweatshirts_Hoodies": ("hoodie", "sweatshirt"), "Tees_Tanks": ("tee", "tank"), "Graphic_Tees": ("tee",),
        "Denim": ("jeans", "jeans", "jacket"), "Pants": ("trousers",), "Shorts": ("shorts",),
        "Suiting": ("trousers", "jacket"), "Rompers_Jumpsuits": ("jumpsuit",),
    },
}  # fmt: skip

#: How often each category is worn on each part of the body.
_TYPE_CATEGORIES: dict[str, dict[int, dict[str, float]]] = {
    "WOMEN": {
        UPPER: {"Tees_Tanks": 0.28, "Blouses_Shirts": 0.20, "Sweaters": 0.12, "Graphic_Tees": 0.10,
                "Sweatshirts_Hoodies": 0.09, "Cardigans": 0.07, "Jackets_Coats": 0.06, "Jackets_Vests": 0.03,
                "Denim": 0.03, "Suiting": 0.02},
        LOWER: {"Pants": 0.26, "Skirts": 0.30, "Shorts": 0.20, "Leggings": 0.08, "Denim": 0.12, "Suiting": 0.04},
        FULL: {"Dresses": 0.72, "Rompers_Jumpsuits": 0.28},
    },
    "MEN": {
        UPPER: {"Tees_Tanks": 0.28, "Shirts_Polos": 0.22, "Sweatshirts_Hoodies": 0.14, "Sweaters": 0.12,
                "Graphic_Tees": 0.10, "Jackets_Vests": 0.07, "Denim": 0.03, "Suiting": 0.04},
        LOWER: {"Pants": 0.44, "Shorts": 0.28, "Denim": 0.2, "Suiting": 0.08},
        FULL: {"Rompers_Jumpsuits": 1.0},
    },
}  # fmt: skip


def random_category(rng: np.random.Generator, gender: str, cloth_type: int) -> str:
    """A category that people of that gender wear on that part of the body."""
    return weighted(rng, _TYPE_CATEGORIES[gender][cloth_type])


def random_garment(
    rng: np.random.Generator, gender: str, category: str, cloth_type: int, unlike: str | None = None
) -> Garment:
    """A garment of a category; ``unlike`` is a palette colour that its ground must differ from.

    ``cloth_type`` decides for Denim and Suiting, which name no part of the body.
    """
    kind = str(rng.choice([kind for kind in CATEGORY_KINDS[gender][category] if _type_of(kind) == cloth_type]))
    cloth = {"Denim": "denim", "Suiting": "suit", "Graphic_Tees": "graphic", "Sweaters": "knit"}.get(category)
    if cloth is None:
        cloth = "legs" if cloth_type == LOWER else "top"
        if kind in ("sweatshirt", "hoodie", "cardigan"):
            cloth = "knit"
    colours = {"denim": DENIMS, "suit": SUIT_COLOURS}.get(cloth, CLOTH_COLOURS)
    pattern = random_pattern(rng, _PATTERNS[cloth], colours=colours, unlike=unlike)
    if kind in TOP_KINDS:
        return _random_top(rng, gender, kind, category, pattern)
    if kind in FULL_KINDS:
        return _random_full(rng, gender, kind, category, pattern)
    if kind == "skirt":
        cut, hem = "pencil", "knee-length"
        if category != "Suiting":
            cut = str(rng.choice(["a-line", "pencil", "pleated", "flared"]))
            hem = weighted(rng, {"mini": 0.32, "knee-length": 0.34, "midi": 0.24, "maxi": 0.10})
        return Garment(kind, category, pattern, cut=cut, hem=hem, ease=0.004, belted=bool(rng.random() < 0.15))
    cut = "slim" if kind == "leggings" else weighted(rng, {"slim": 0.3, "straight": 0.4, "wide": 0.3})
    hems = ["ankle-length", "ankle-length", "long", "cropped"]
    if kind == "shorts":
        hems = ["three-point", "three-point", "knee-length"]
    elif cut == "wide":
        hems = ["long", "ankle-length", "cropped"]
    hem = str(rng.choice(hems))
    return Garment(kind, category, pattern, cut=cut, hem=hem, ease=0.004, belted=bool(rng.random() < 0.2))


def _random_top(rng: np.random.Generator, gender: str, kind: str, category: str, pattern: Pattern) -> Garment:
    sleeves = {
        "tee": ("short", "short", "long", "elbow", "three-quarter"), "tank": ("sleeveless", "strap"),
        "shirt": ("long", "long", "short"), "blouse": ("long", "three-quarter", "short", "sleeveless"),
        "polo": ("short",), "vest": ("sleeveless",),
    }.get(kind, ("long",))  # fmt: skip
    necklines = {
        "tee": ("crew", "crew", "v", "scoop", "boat"), "tank": ("scoop", "square", "crew"), "shirt": ("collar",),
        "blouse": ("v", "collar", "boat", "crew"), "polo": ("collar",), "sweater": ("crew", "v", "boat"),
        "hoodie": ("crew",), "sweatshirt": ("crew",),
    }.get(kind, ("v",))  # fmt: skip
    sleeve = str(rng.choice(sleeves))
    if gender == "MEN" and sleeve == "strap":
        sleeve = "sleeveless"
    neckline = str(rng.choice(necklines))
    if sleeve == "strap":
        neckline = "scoop"
    loose = kind in ("sweater", "sweatshirt", "hoodie", "jacket")
    cut = str(rng.choice(["straight", "slim"])) if gender == "WOMEN" and not loose else "straight"
    ease = float(rng.uniform(0.011, 0.018) if loose else rng.uniform(0.004, 0.010))
    length = float(rng.uniform(0.485, 0.545))
    return Garment(kind, category, pattern, sleeve, neckline, cut, ease=ease, length=length)


def _random_full(rng: np.random.Generator, gender: str, kind: str, category: str, pattern: Pattern) -> Garment:
    sleeve = str(rng.choice(["short", "long", "elbow"]))
    neckline = str(rng.choice(["crew", "collar", "v"]))
    cut, hem = str(rng.choice(["slim", "straight", "wide"])), "ankle-length"
    if gender == "WOMEN":
        sleeve = str(rng.choice(list(SLEEVES), p=[0.18, 0.24, 0.22, 0.10, 0.10, 0.16]))
        neckline = str(rng.choice(["crew", "v", "scoop", "square", "boat"]))
        hem = str(rng.choice(["long", "ankle-length", "cropped"]))
    if kind == "romper":
        hem, cut = "three-point", "straight"
    elif kind == "dress":
        cut = weighted(rng, {"a-line": 0.4, "flared": 0.25, "pencil": 0.2, "pleated": 0.15})
        hem = weighted(rng, {"mini": 0.30, "knee-length": 0.34, "midi": 0.22, "maxi": 0.14})
    if sleeve == "strap":
        neckline = "scoop"
    ease = float(rng.uniform(0.003, 0.006)) if gender == "WOMEN" else 0.010
    belted = bool(rng.random() < 0.3)
    return Garment(kind, category, pattern, sleeve, neckline, cut, hem, ease, belted=belted)


def random_outfit(rng: np.random.Generator, gender: str, cloth_type: int, category: str | None = None) -> Outfit:
    """A full outfit around one garment of ``cloth_type`` and ``category``, which is random where it is None."""
    named = random_garment(rng, gender, category or random_category(rng, gender, cloth_type), cloth_type)
    scarf = str(rng.choice(CLOTH_COLOURS)) if rng.random() < 0.05 else None
    if cloth_type == FULL:
        return Outfit((named,), scarf=scarf)
    other_type = LOWER if cloth_type == UPPER else UPPER
    other = random_garment(rng, gender, random_category(rng, gender, other_type), other_type, unlike=named.pattern.base)
    upper, lower = (named, other) if cloth_type == UPPER else (other, named)
    inner = [name for name in ("white", "black", "grey", "beige") if PALETTE[name] != upper.pattern.colour]
    tuckable = upper.kind in ("tee", "tank", "shirt", "blouse")
    tucked = tuckable and bool(rng.random() < (0.5 if lower.kind == "skirt" else 0.25))
    return Outfit((upper, lower), str(rng.choice(inner)), tucked, scarf)


_NOUNS = {"tee": "T-shirt", "tank": "tank top", "polo": "polo shirt"}


def describe(garment: Garment) -> str:
    """A noun phrase with its article, such as "a short-sleeve T-shirt with red and white stripe patterns"."""
    pattern, kind = garment.pattern, garment.kind
    words = [pattern.base] if pattern.kind in _PLAIN_KINDS else []
    if garment.sleeve:
        sleeveless = dict.fromkeys(("strap", "sleeveless"), "sleeveless")
        words.append((sleeveless | {"elbow": "medium-sleeve"}).get(garment.sleeve, f"{garment.sleeve}-sleeve"))
    if garment.hem and kind not in ("leggings", "romper"):
        words.append(garment.hem)
    if kind in ("trousers", "jeans", "skirt", "jumpsuit", "dress") and garment.cut:
        words.append("wide-leg" if garment.cut == "wide" else garment.cut)
    if garment.category == "Suiting":
        words.append("suit")
    phrase = " ".join([*words, _NOUNS.get(kind, kind)])
    if kind not in LEGGED_KINDS:
        phrase = f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
    if pattern.kind in ("plain", "denim"):
        return phrase
    if pattern.kind == "print":
        return f"{phrase} with a {pattern.second} {pattern.motif} graphic on the chest"
    return f"{phrase} with {pattern.base} and {pattern.second} {PATTERN_WORDS[pattern.kind]} patterns"


def caption(person: Person, outfit: Outfit, rng: np.random.Generator) -> str:
    """What the person wears, in one to three sentences drawn from ``rng``; all of it is in the picture."""
    who = "woman" if person.gender == "WOMEN" else "man"
    verb = str(rng.choice(["wears", "is wearing", "is dressed in"]))
    worn = " and ".join(describe(garment) for garment in outfit.garments)
    extras = []
    top = outfit.garments[0]
    if top.neckline and top.kind not in OPEN_KINDS and rng.random() < 0.5:
        extras.append(f"The {_NOUNS.get(top.kind, top.kind)} has {NECKLINES[top.neckline]}.")
    if rng.random() < 0.35:
        extras.append(f"There are {person.shoe_colour} {person.shoes} on {'her' if who == 'woman' else 'his'} feet.")
    if person.hat is not None and rng.random() < 0.6:
        extras.append(f"The {who} also wears a hat.")
    return " ".join([f"The {who} {verb} {worn}.", *extras[:2]])
