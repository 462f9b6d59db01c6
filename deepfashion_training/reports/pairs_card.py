"""The dataset card of prepared pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from deepfashion_training.reports.page import in_code

TEMPLATES = Path(__file__).resolve().parent / "templates"


def write_pairs_card(file: Path, facts: Mapping[str, Any]) -> None:
    """Write the README of a prepared folder, which the Hub reads as well; ``facts`` are those of ``report.json``.

    It names no data files, as cards may: `datasets` would then take other folders of the same name for this one. The
    files' own names tell the splits.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, autoescape=False
    )
    environment.filters["in_code"] = in_code
    splits = [split for split, pairs in facts["by_split"].items() if pairs]
    order = [split for split in facts["by_split_and_type"] if split in splits]
    file.write_text(environment.get_template("pairs_card.md.jinja").render(facts=facts, splits=order), encoding="utf-8")
