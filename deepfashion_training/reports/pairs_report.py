"""What ``prepare`` made of a dataset: a page to look through before training, and the dataset card of the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.pictures import open_picture, upright
from deepfashion_training.images.quality import REASONS, UNPAIRED_REASONS
from deepfashion_training.reports.model_card import local_name
from deepfashion_training.reports.page import PICTURE_HEIGHT, picture_uri, write_page

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

#: The Hub's words for the number of rows of a dataset, by what it is below.
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K"}

_TINT = np.array([224, 38, 140])  # of the area to repaint: a colour that clothes, skin and studios rarely have

Row = Mapping[str, Any]


def write_pairs_report(
    file: Path, facts: Mapping[str, Any], samples: Sequence[Row], worst: Sequence[Row], rejects: Sequence[Row]
) -> None:
    """Write the page of a preparation to ``file``, complete or not at all.

    ``facts`` is what ``report.json`` holds. ``samples`` (random pairs) and ``worst`` are rows of pairs, ``rejects``
    quarantined rows, with their stored pictures.
    """
    write_page(
        file,
        "pairs_report.html.jinja",
        title=f"Pairs of {facts['source']}",
        sections=SECTIONS,
        facts=facts,
        samples={
            name: [_tile(row) for row in samples if row["cloth_type"] == number] for number, name in TYPE_NAMES.items()
        },
        worst=[_tile(row) for row in worst],
        rejects=[{**row, "picture": row["thumbnail"] and _uri(row["thumbnail"])} for row in rejects],
        reasons=REASONS,
        unpaired_reasons=UNPAIRED_REASONS,
        leak_tolerance=LEAK_TOLERANCE,
    )


def write_pairs_card(file: Path, facts: Mapping[str, Any]) -> None:
    """Write the README of a prepared folder, which the Hub reads as well; ``facts`` are those of ``report.json``.

    A local source is named by its folder alone. `datasets` knows a folder whose card names its files by the folder's
    name and what the card says, and not by where it is or what the files hold; so the card holds a text that is these
    pairs' own.
    """
    splits = [split for split in facts["by_split_and_type"] if facts["by_split"].get(split)]
    size = sum(path.stat().st_size for path in file.parent.glob("data/*.parquet"))
    pairs = facts["pairs"] + facts["mined"]
    write_page(
        file,
        "pairs_card.md.jinja",
        facts=facts,
        splits=splits,
        source=local_name(facts["source"]),
        content=f"{pairs} pairs in {size} bytes, {facts['key']}",
        size_category=next((name for most, name in _SIZES.items() if pairs < most), "100K<n<1M"),
    )


def _uri(stored: Mapping[str, Any]) -> str:
    return picture_uri(open_picture(stored["bytes"]))


def _tile(row: Row) -> dict[str, Any]:
    """A pair and its four pictures as ``data:`` URIs: person, area to repaint, garment, and the pair as trained."""
    from deepfashion_training.images.layout import place_mask, place_picture  # imports torch

    photo, garment = (upright(open_picture(row[name]["bytes"])) for name in ("image", "cloth"))
    mask = np.asarray(open_picture(row["mask"]["bytes"]).convert("L")) > 127
    height = min(PICTURE_HEIGHT, photo.height)
    size = (height, max(1, round(photo.width * height / photo.height)))
    person, beside = (place_picture(each, size).transpose(1, 2, 0) for each in (photo, garment))
    area = place_mask(mask.view(np.uint8), size).view(bool)
    tinted, grey = person.copy(), person.copy()
    tinted[area] = 0.55 * tinted[area] + 0.45 * _TINT
    grey[area] = 127  # 0 in [-1, 1], as the model sees it
    shown = {"person": person, "masked": tinted, "trained": np.concatenate([beside, grey], axis=1)}
    return {
        **row,
        "type_name": TYPE_NAMES[row["cloth_type"]],
        "aspect": size[1] / size[0],
        "garment": picture_uri(garment),
        **{name: picture_uri(Image.fromarray(levels)) for name, levels in shown.items()},
    }
