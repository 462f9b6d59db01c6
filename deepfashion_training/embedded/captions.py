"""Says in a sentence what a drawn person wears."""

from __future__ import annotations

import numpy as np

from deepfashion_training.embedded.body import Person
from deepfashion_training.embedded.garments import Garment, Outfit
from deepfashion_training.embedded.patterns import PATTERN_WORDS

_NOUNS: dict[str, str] = {
    "tee": "T-shirt", "tank": "tank top", "shirt": "shirt", "blouse": "blouse", "polo": "polo shirt",
    "sweater": "sweater", "sweatshirt": "sweatshirt", "hoodie": "hoodie", "cardigan": "cardigan",
    "jacket": "jacket", "vest": "vest", "trousers": "trousers", "jeans": "jeans", "leggings": "leggings",
    "shorts": "shorts", "skirt": "skirt", "dress": "dress", "jumpsuit": "jumpsuit", "romper": "romper",
}  # fmt: skip
_PLURAL = ("trousers", "jeans", "leggings", "shorts")
_SLEEVES = {
    "strap": "sleeveless", "sleeveless": "sleeveless", "short": "short-sleeve", "elbow": "medium-sleeve",
    "three-quarter": "three-quarter-sleeve", "long": "long-sleeve",
}  # fmt: skip
_NECKLINES = {
    "crew": "a round neckline", "v": "a V-shaped neckline", "scoop": "a low round neckline",
    "square": "a square neckline", "boat": "a boat neckline", "collar": "a lapel collar",
}  # fmt: skip


def describe(garment: Garment) -> str:
    """A noun phrase with its article, such as "a short-sleeve T-shirt with red and white stripe patterns"."""
    pattern = garment.pattern
    words = []
    if garment.pattern.kind in ("plain", "denim", "print", "block"):
        words.append(pattern.base)
    if garment.sleeve:
        words.append(_SLEEVES[garment.sleeve])
    if garment.hem and garment.kind not in ("leggings", "romper"):
        words.append(garment.hem if garment.hem != "long" else "long")
    if garment.kind in ("trousers", "jeans", "skirt", "jumpsuit", "dress") and garment.cut:
        words.append({"wide": "wide-leg", "slim": "slim"}.get(garment.cut, garment.cut))
    if garment.category == "Suiting":
        words.append("suit")
    if garment.category == "Denim" and garment.kind != "jeans" and "denim" not in pattern.base:
        words.append("denim")
    words.append(_NOUNS[garment.kind])
    phrase = " ".join(words)
    if garment.kind not in _PLURAL:
        phrase = f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
    if pattern.kind == "plain":
        return phrase
    if pattern.kind == "denim":
        return phrase
    if pattern.kind == "print":
        return f"{phrase} with a {pattern.second} {pattern.motif} graphic on the chest"
    return f"{phrase} with {pattern.base} and {pattern.second} {PATTERN_WORDS[pattern.kind]} patterns"


def caption(person: Person, outfit: Outfit, rng: np.random.Generator) -> str:
    """What the person wears, in one or two sentences drawn from ``rng``; all of it is in the picture."""
    who = "woman" if person.gender == "WOMEN" else "man"
    verb = str(rng.choice(["wears", "is wearing", "is dressed in"]))
    worn = " and ".join(describe(garment) for garment in outfit.garments())
    text = f"The {who} {verb} {worn}."
    extras = []
    top = outfit.full or outfit.upper
    if top is not None and top.neckline and top.kind not in ("jacket", "cardigan", "vest") and rng.random() < 0.5:
        extras.append(f"The {_NOUNS[top.kind]} has {_NECKLINES[top.neckline]}.")
    if rng.random() < 0.35:
        extras.append(f"There are {person.shoe_colour} {person.shoes} on {'her' if who == 'woman' else 'his'} feet.")
    if person.hat is not None and rng.random() < 0.6:
        extras.append(f"The {who} also wears a hat.")
    return " ".join([text, *extras[:2]])


def caption_flat(garment: Garment) -> str:
    """A caption for the garment alone."""
    return f"The picture shows {describe(garment)}."
