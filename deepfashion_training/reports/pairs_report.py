"""What ``prepare`` made of a dataset, as a page that a person looks through before training on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageFilter

from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.quality import REASONS, UNPAIRED_REASONS
from deepfashion_training.reports.page import PICTURE_HEIGHT, picture_uri, words, write_page
from deepfashion_training.reports.plots import bar_chart, grouped_bars

#: How many pairs of each type, worst pairs and rejects a page shows at most: it stays below 3 MB.
PAIRS_OF_A_TYPE, WORST, REJECTS = 12, 12, 24

#: A mask policy whose leak score lies within this of chance hides the garment's form.
LEAK_TOLERANCE = 0.10

#: The sections of the page, in order, by their id.
SECTIONS = {
    "headline": "In short",
    "warnings": "Warnings",
    "counts": "What the pairs are",
    "samples": "Random pairs",
    "worst": "Worst-scoring pairs",
    "quarantined": "Quarantined rows",
    "unpaired": "Rows without a pair",
    "leak": "What the mask tells",
    "settings": "Settings and versions",
}

_TINT = (224, 38, 140)  # of the area to repaint: a colour that clothes, skin and studios rarely have
_MASKED = 127  # mid-grey: 0 in [-1, 1]


@dataclass(frozen=True)
class ShownPair:
    """A pair on the page. ``mask`` is of the person's size, mode L, 255 where it is repainted."""

    person: Image.Image
    mask: Image.Image
    garment: Image.Image
    caption: str
    title: str  # such as "id_00000012 / 01_1_front"
    source: str
    garment_view: str
    score: float
    cloth_type: int
    split: str


@dataclass(frozen=True)
class ShownReject:
    """A quarantined row on the page; ``picture`` is None where nothing could be opened."""

    picture: Image.Image | None
    title: str
    reason: str
    detail: str


def write_pairs_report(
    file: Path,
    facts: Mapping[str, Any],
    samples: Sequence[ShownPair],
    worst: Sequence[ShownPair],
    rejects: Sequence[ShownReject],
) -> None:
    """Write the page of a preparation to ``file``, complete or not at all.

    ``facts`` is what ``report.json`` holds. Of ``samples`` the first of each garment type are shown, of ``worst`` and
    ``rejects`` the first, as many as the constants of this module say.
    """
    write_page(
        file,
        "pairs_report.html.jinja",
        title=f"Pairs of {facts['source']}",
        sections=SECTIONS,
        facts=facts,
        equation=_Equation.of(facts),
        plots=_plots(facts),
        samples={
            name: [_tile(pair) for pair in samples if pair.cloth_type == number][:PAIRS_OF_A_TYPE]
            for number, name in TYPE_NAMES.items()
        },
        worst=[_tile(pair) for pair in worst[:WORST]],
        rejects=[(reject, reject.picture and picture_uri(reject.picture)) for reject in rejects[:REJECTS]],
        reasons=REASONS,
        unpaired_reasons=UNPAIRED_REASONS,
        leaks=_leaks(facts),
        leak_tolerance=LEAK_TOLERANCE,
    )


@dataclass(frozen=True)
class _Equation:
    """Rows in = pairs + quarantined + unpaired. Mined pairs come on top: their rows count by what they are labelled."""

    rows_in: int
    became: dict[str, int]

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> _Equation:
        became = {
            "pairs": int(facts["pairs"]),
            "quarantined": sum(facts["quarantined"].values()),
            "unpaired": int(facts["unpaired"]),
        }
        return cls(int(facts["rows_in"]), became)

    @property
    def holds(self) -> bool:
        return self.rows_in == sum(self.became.values())


@dataclass(frozen=True)
class _Tile:
    """The four pictures of a pair as ``data:`` URIs, all of them as high as the person's."""

    pair: ShownPair
    type_name: str
    aspect: float  # width by height of the person
    person: Markup
    masked: Markup
    garment: Markup
    trained: Markup


def _tile(pair: ShownPair) -> _Tile:
    # It imports torch, which takes seconds that those who only collect a ShownPair need not wait.
    from deepfashion_training.images.layout import place_mask, place_picture

    height = min(PICTURE_HEIGHT, pair.person.height)
    width = max(1, round(pair.person.width * height / pair.person.height))
    person = Image.fromarray(place_picture(pair.person.convert("RGB"), (height, width)).transpose(1, 2, 0))
    mask = place_mask((np.asarray(pair.mask.convert("L")) > 127).view(np.uint8), (height, width)).view(bool)
    garment = Image.fromarray(place_picture(pair.garment.convert("RGB"), (height, width)).transpose(1, 2, 0))
    return _Tile(
        pair=pair,
        type_name=TYPE_NAMES[pair.cloth_type],
        aspect=width / height,
        person=picture_uri(person),
        masked=picture_uri(mask_over(person, mask)),
        garment=picture_uri(pair.garment),
        trained=picture_uri(as_trained(person, mask, garment)),
    )


def mask_over(person: Image.Image, mask: np.ndarray) -> Image.Image:
    """The RGB photo with the masked area tinted and outlined; ``mask`` is bool [h, w] of the photo's size."""
    area = Image.fromarray(mask.astype(np.uint8) * 255)
    inner = np.asarray(area.filter(ImageFilter.MinFilter(3))) > 0
    colour = Image.new("RGB", person.size, _TINT)
    tinted = Image.composite(Image.blend(person, colour, 0.45), person, area)
    tinted.paste(colour, mask=Image.fromarray((mask & ~inner).astype(np.uint8) * 255))
    return tinted


def as_trained(person: Image.Image, mask: np.ndarray, garment: Image.Image) -> Image.Image:
    """Garment left, person right with the masked area grey, as the model sees it; all three of one size."""
    pair = Image.new("RGB", (2 * person.width, person.height))
    pair.paste(garment, (0, 0))
    pair.paste(person, (person.width, 0))
    pair.paste((_MASKED,) * 3, (person.width, 0), Image.fromarray(mask.astype(np.uint8) * 255))
    return pair


def _plots(facts: Mapping[str, Any]) -> list[Markup]:
    splits = facts["by_split_and_type"]
    by_type = {
        name: {split: counts.get(name, 0) for split, counts in splits.items()}
        for name in dict.fromkeys([*TYPE_NAMES.values(), *facts["by_type"]])
    }
    sources = {words(name): count for name, count in _largest_first(facts["by_source"]).items()}
    return [
        grouped_bars(by_type, "Pairs by garment type and split"),
        bar_chart(facts["by_split"], "Pairs by split"),
        bar_chart(sources, "Pairs by source of the garment picture"),
        bar_chart(_largest_first(facts["by_view"]), "Pairs by view of the person"),
        bar_chart(_largest_first(facts["by_category"]), "Pairs by category"),
    ]


def _largest_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class _Leak:
    """One line of the table of leak scores."""

    policy: str
    cloth_type: str
    accuracy: float
    chance: float
    rows: int | None

    @property
    def hides(self) -> bool:
        return self.accuracy - self.chance <= LEAK_TOLERANCE


def _leaks(facts: Mapping[str, Any]) -> list[_Leak]:
    lines = []
    for policy, score in facts["leak_score"].items():
        by_type = score.get("by_type") or {score.get("type", "all"): score}
        for cloth_type, one in by_type.items():
            lines.append(_Leak(policy, cloth_type, one["accuracy"], one["chance"], one.get("rows")))
    return lines
