"""What ``prepare`` made of a dataset: a page to look through before training, and the dataset card of the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image, ImageFilter

from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.pictures import open_picture, upright
from deepfashion_training.images.quality import REASONS, UNPAIRED_REASONS
from deepfashion_training.reports.page import PICTURE_HEIGHT, in_code, picture_uri, write_page

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
}

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_TINT = (224, 38, 140)  # of the area to repaint: a colour that clothes, skin and studios rarely have
_MASKED = 127  # mid-grey: 0 in [-1, 1]

Row = Mapping[str, Any]


def write_pairs_report(
    file: Path, facts: Mapping[str, Any], samples: Sequence[Row], worst: Sequence[Row], rejects: Sequence[Row]
) -> None:
    """Write the page of a preparation to ``file``, complete or not at all.

    ``facts`` is what ``report.json`` holds. ``samples`` (random pairs) and ``worst`` are rows of pairs, ``rejects``
    quarantined rows, with their stored pictures.
    """
    became = {"pairs": facts["pairs"], "quarantined": sum(facts["quarantined"].values()), "unpaired": facts["unpaired"]}
    write_page(
        file,
        "pairs_report.html.jinja",
        title=f"Pairs of {facts['source']}",
        sections=SECTIONS,
        facts=facts,
        became=became,
        samples={
            name: [_tile(row) for row in samples if row["cloth_type"] == number] for number, name in TYPE_NAMES.items()
        },
        worst=[_tile(row) for row in worst],
        rejects=[{**row, "picture": _thumbnail(row)} for row in rejects],
        reasons=REASONS,
        unpaired_reasons=UNPAIRED_REASONS,
        leak_tolerance=LEAK_TOLERANCE,
    )


def write_pairs_card(file: Path, facts: Mapping[str, Any]) -> None:
    """Write the README of a prepared folder, which the Hub reads as well; ``facts`` are those of ``report.json``.

    It names no data files, as cards may: `datasets` would then take other folders of the same name for this one. The
    files' own names tell the splits.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), undefined=jinja2.StrictUndefined, autoescape=False
    )
    environment.filters["in_code"] = in_code
    splits = [split for split in facts["by_split_and_type"] if facts["by_split"].get(split)]
    text = environment.get_template("pairs_card.md.jinja").render(facts=facts, splits=splits)
    file.write_text(text, encoding="utf-8")


def _tile(row: Row) -> dict[str, Any]:
    """A pair and its four pictures as ``data:`` URIs: person, area to repaint, garment, and the pair as trained."""
    from deepfashion_training.images.layout import place_mask, place_picture  # imports torch

    photo, garment = (_decoded(row[name]["bytes"]) for name in ("image", "cloth"))
    mask = np.asarray(open_picture(row["mask"]["bytes"]).convert("L")) > 127
    height = min(PICTURE_HEIGHT, photo.height)
    size = (height, max(1, round(photo.width * height / photo.height)))
    person, beside = (Image.fromarray(place_picture(each, size).transpose(1, 2, 0)) for each in (photo, garment))
    area = place_mask(mask.view(np.uint8), size).view(bool)
    return {
        **row,
        "type_name": TYPE_NAMES[row["cloth_type"]],
        "aspect": size[1] / size[0],
        "person": picture_uri(person),
        "masked": picture_uri(mask_over(person, area)),
        "garment": picture_uri(garment),
        "trained": picture_uri(as_trained(person, area, beside)),
    }


def _decoded(stored: bytes) -> Image.Image:
    return upright(open_picture(stored))


def _thumbnail(row: Row) -> str | None:
    return row["thumbnail"] and picture_uri(open_picture(row["thumbnail"]["bytes"]))


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
