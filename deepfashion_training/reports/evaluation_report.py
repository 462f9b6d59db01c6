"""What a LoRA changed, to look at: a page with figures and cases, and one picture of people before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from deepfashion_training.reports.figures import (
    DECISIVE,
    FIGURES,
    SIDES,
    Figure,
    figures_in,
    margins,
    published_rows,
    verdict,
)
from deepfashion_training.reports.page import picture_uri, write_page
from training_run.atomic import replacing

#: The sections of the page, in order, by their id.
SECTIONS = {
    "headline": "In short",
    "typical": "Before and after",
    "changes": "What the LoRA changed",
    "figures": "Figures by garment type",
    "published": "Beside published figures",
    "best": "Best cases",
    "worst": "Worst cases",
    "unpaired": "Garments of other people",
    "left-out": "Left out",
    "settings": "Settings and versions",
}
TYPE_LABELS = {"upper": "Upper body", "lower": "Lower body", "full": "Full body", "all": "All"}
#: Best and worst cases are chosen by it.
RANKED_BY = FIGURES["ciede2000_masked"]
#: Of ``before_after.png``, in pixels: width and height of a picture, the space beside it, and the line of text above.
_TILE, _GAP, _LINE = (288, 384), 12, 40


@dataclass(frozen=True)
class ShownCase:
    """A case to look at; ``pictures`` are by what they are called, in the order in which they are looked at."""

    title: str
    type_name: str
    caption: str
    pictures: Mapping[str, Image.Image]


def model_labels(settings: Mapping[str, Any]) -> dict[str, str]:
    """What the two models are called: the base's place may be another LoRA's."""
    against = settings["against"]
    return {"base": "Base" if against is None else f"Against: {_lora_name(against)}", "lora": "LoRA"}


def write_evaluation_report(file: Path, facts: Mapping[str, Any], shown: Mapping[str, Sequence[ShownCase]]) -> None:
    """Write the page of an evaluation to ``file``, complete or not at all.

    ``facts`` is what ``metrics.json`` holds, ``shown`` has the cases of the sections ``typical``, ``best``, ``worst``
    and ``unpaired``.
    """
    settings, base, figures = facts["settings"], facts["models"]["base"], figures_in(facts)
    write_page(
        file,
        "evaluation_report.html.jinja",
        title=f"{' and '.join(map(_lora_name, _listed(settings['lora']))) or 'The base'} by garment type",
        sections={name: title for name, title in SECTIONS.items() if name != "published" or name in facts},
        facts=facts,
        lora_scales=" and ".join(f"{scale:g}" for scale in _listed(settings["lora_scale"])),
        labels=model_labels(settings) | TYPE_LABELS,
        verdicts={kind: verdict(changes) for kind, changes in facts["difference"].items()},
        margins=margins(),
        bars=change_bars(facts),
        tables={kind: [(figure, _cells(facts, kind, figure)) for figure in figures] for kind in base},
        figures=figures,
        published=published_rows(facts),
        ranked_by=RANKED_BY.label,
        shown=shown,
        picture_uri=picture_uri,
    )


def _listed(setting: Any) -> list[Any]:
    """A setting that is one value, several, or None for none."""
    return setting if isinstance(setting, list) else [] if setting is None else [setting]


def _lora_name(file: str) -> str:
    """The folder of a LoRA's file: the file has the same name everywhere."""
    return Path(file).parent.name


def _cells(facts: Mapping[str, Any], kind: str, figure: Figure) -> list[tuple[str, str, str]]:
    """Value, interval and CSS class of each model and, where there are two, of the difference."""
    change = facts["difference"].get(kind, {}).get(figure.name, {"better": None})
    cells = []
    for model, kinds in facts["models"].items():
        found = kinds[kind]
        interval = figure.interval(found.get(f"{figure.name}_ci"))
        cells.append((figure.written(found.get(figure.name)), interval, "best" if model == change["better"] else ""))
    if "mean" in change:
        word = SIDES.get(change["better"], "")
        cells.append((f"{figure.signed(change['mean'])} {word}", figure.interval(change["ci"], sign=True), word))
    elif len(cells) > 1:
        cells.append(("", "", ""))
    return cells


@dataclass(frozen=True)
class Bar:
    """What became of the error of a figure in a garment type, in percent of the base's: its change and the interval.

    Negative is better. Within ``margin`` to both sides of 0 the error is kept. ``word`` is one of ``SIDES``, or none.
    """

    label: str
    change: float
    low: float
    high: float
    margin: float
    word: str


def change_bars(facts: Mapping[str, Any]) -> dict[str, list[Bar]]:
    """The bars of each garment type: its decisive figures whose error, the distance to a perfect result, is not 0."""
    found: dict[str, list[Bar]] = {}
    for kind, changes in facts["difference"].items():
        for name in DECISIVE:
            figure, base = FIGURES[name], facts["models"]["base"][kind].get(name)
            change = changes.get(name)
            if kind == "all" or base is None or change is None or change["ci"] is None or base == figure.best:
                continue
            percent = (-100 if figure.better == "higher" else 100) / abs(figure.best - base)
            low, high = sorted(percent * end for end in change["ci"])
            bar = (figure.label, percent * change["mean"], low, high, abs(percent) * (figure.margin or 0))
            found.setdefault(kind, []).append(Bar(*bar, SIDES.get(change["better"], "")))
    return found


def save_before_after(file: Path, cases: Sequence[ShownCase]) -> None:
    """Write a PNG of ``cases``: a row for each garment type, its cases beside each other."""
    types = [[case for case in cases if case.type_name == kind] for kind in TYPE_LABELS]
    rows = [[(case, name) for case in chosen for name in case.pictures] for chosen in types if chosen]
    across, down = _TILE[0] + _GAP, _TILE[1] + _LINE
    sheet = Image.new("RGB", (_GAP + max(map(len, rows)) * across, _GAP + len(rows) * down), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(24)
    for row, tiles in enumerate(rows):
        for column, (case, name) in enumerate(tiles):
            left, top = _GAP + column * across, row * down
            label = name if column else f"{TYPE_LABELS[case.type_name]}: {name}"
            draw.text((left, top + _LINE - 8), label, "black", font, anchor="ls")
            tile = ImageOps.pad(case.pictures[name].convert("RGB"), _TILE, color="white")
            sheet.paste(tile, (left, top + _LINE))
    with replacing(file) as draft:
        sheet.save(draft, "PNG")
