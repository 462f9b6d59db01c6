"""What a LoRA changed, as a page: figures beside the base's, and the cases to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from deepfashion_training.reports.figures import FIGURES, UNPAIRED, Figure, figure_of
from deepfashion_training.reports.page import picture_uri, write_page
from deepfashion_training.reports.verdicts import SIDES, verdict

#: The sections of the page, in order, by their id; those without content are left out.
SECTIONS = {
    "headline": "In short",
    "figures": "Figures by garment type",
    "best": "Best cases",
    "worst": "Worst cases",
    "unpaired": "Garments of other people",
    "left-out": "Left out",
    "settings": "Settings and versions",
}
TYPE_LABELS = {"upper": "Upper body", "lower": "Lower body", "full": "Full body", "all": "All"}


@dataclass(frozen=True)
class ShownCase:
    """A case on the page. ``person`` has the masked area grey; ``results`` and ``figures`` are by model."""

    garment: Image.Image
    person: Image.Image
    results: Mapping[str, Image.Image]
    truth: Image.Image | None
    title: str
    garment_title: str
    type_name: str
    figures: Mapping[str, float]


def write_evaluation_report(
    file: Path,
    facts: Mapping[str, Any],
    by: str,
    *,
    best: Sequence[ShownCase],
    worst: Sequence[ShownCase],
    unpaired: Sequence[ShownCase],
) -> None:
    """Write the page of an evaluation to ``file``, complete or not at all.

    ``facts`` is what ``metrics.json`` holds, ``by`` the figure that orders ``best`` and ``worst``.
    """
    present = {"unpaired": unpaired, "left-out": facts["left_out"] or facts["left_out_cases"]}
    base, figure, labels = facts["models"]["base"], figure_of(by), model_labels(facts["settings"])
    tables = {kind: _lines(facts, kind) for kind in base}
    write_page(
        file,
        "evaluation_report.html.jinja",
        title=_title(facts["settings"]),
        sections={name: heading for name, heading in SECTIONS.items() if present.get(name, True)},
        facts=facts,
        counts={kind: found["n"] for kind, found in base.items()},
        labels=labels | TYPE_LABELS,
        verdicts={kind: verdict(changes) for kind, changes in facts["difference"].items()},
        tables=tables,
        explained=list(dict.fromkeys(FIGURES[line.figure.name.removesuffix(UNPAIRED)] for line in tables["all"])),
        by=figure,
        shown={
            "best": [_tile(case, figure, labels) for case in best],
            "worst": [_tile(case, figure, labels) for case in worst],
            "unpaired": [_tile(case, None, labels) for case in unpaired],
        },
        left_out=left_out_by_reason(facts["left_out"]),
    )


def left_out_by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """Labels of the figures that were left out, by the reason."""
    found: dict[str, list[str]] = {}
    for name, why in left_out.items():
        found.setdefault(why, []).append(figure_of(name).label)
    return found


def model_labels(settings: Mapping[str, Any]) -> dict[str, str]:
    """What the two models are called: the base's place may be another LoRA's."""
    against = settings["against"]
    return {"base": "Base" if against is None else f"against: {_lora_name(against)}", "lora": "LoRA"}


def _title(settings: Mapping[str, Any]) -> str:
    if settings["lora"] is None:
        return f"The base {Path(settings['transformer']).name} by garment type"
    against = settings["against"]
    return f"{_lora_name(settings['lora'])} beside {'its base' if against is None else _lora_name(against)}"


def _lora_name(file: str) -> str:
    """The folder of a LoRA's file: the file has the same name everywhere."""
    return Path(file).parent.name or Path(file).name


@dataclass(frozen=True)
class _Line:
    """A figure in the table of one garment type. ``cells`` are value and interval of each model, then of the change."""

    figure: Figure
    count: str  # of the pictures that it is over, where those are fewer
    cells: list[tuple[str, str]]
    better: str | None  # the model that chance does not explain the difference of
    word: str  # what that makes of the LoRA


def _lines(facts: Mapping[str, Any], kind: str) -> list[_Line]:
    models = [figures[kind] for figures in facts["models"].values()]
    lines = []
    for name in (name + ending for name in FIGURES for ending in ("", UNPAIRED)):
        if not any(name in found for found in models):
            continue
        figure = figure_of(name)
        cells = [(figure.written(found.get(name)), figure.interval(found.get(f"{name}_ci"))) for found in models]
        change = facts["difference"].get(kind, {}).get(name)
        if change is not None:
            cells.append((figure.signed(change["mean"]), figure.interval(change["ci"], sign=True)))
        elif len(models) > 1:
            cells.append(("", ""))
        counts = dict.fromkeys(str(found.get(f"{name}_n", found["n"])) for found in models)
        fewer = any(f"{name}_n" in found for found in models)
        better = change["better"] if change else None
        lines.append(_Line(figure, " / ".join(counts) if fewer else "", cells, better, SIDES.get(better or "", "")))
    return lines


def _tile(case: ShownCase, figure: Figure | None, labels: Mapping[str, str]) -> dict[str, Any]:
    """A case for the template: its pictures as ``data:`` URIs, in the order in which they are looked at."""
    pictures = [("garment", case.garment), ("person", case.person), *case.results.items()]
    if case.truth is not None:
        pictures.append(("photo", case.truth))
    lines = [TYPE_LABELS[case.type_name]]
    if case.garment_title:
        lines.append(f"garment of {case.garment_title}")
    if figure is not None:
        values = ", ".join(f"{labels[model]} {figure.written(value)}" for model, value in case.figures.items())
        lines.append(f"{figure.label}: {values}")
    return {
        "title": case.title,
        "lines": lines,
        "aspect": case.person.width / case.person.height,
        "pictures": [(labels.get(name, name), picture_uri(picture)) for name, picture in pictures],
    }
