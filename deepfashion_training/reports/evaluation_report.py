"""What a LoRA changed, as a page: figures beside the base's, and the cases to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from deepfashion_training.reports.figures import FIGURES, UNPAIRED, Figure, better, figure_of
from deepfashion_training.reports.page import picture_uri, write_page
from deepfashion_training.reports.verdicts import SIDES, decisive, verdict

#: The sections of the page, in order, by their id; those without content are left out.
SECTIONS = {
    "headline": "In short",
    "warnings": "Warnings",
    "figures": "Figures by garment type",
    "sweep": "Guidance",
    "best": "Best cases",
    "worst": "Worst cases",
    "unpaired": "Garments of other people",
    "left-out": "Left out",
    "settings": "Settings and versions",
}
TYPE_LABELS = {"upper": "Upper body", "lower": "Lower body", "full": "Full body", "all": "All"}
MODEL_LABELS = {"base": "Base", "lora": "LoRA"}


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
    present = {
        "warnings": facts["warnings"],
        "sweep": facts.get("sweep"),
        "unpaired": unpaired,
        "left-out": facts["left_out"] or facts["left_out_cases"],
    }
    sections = {name: heading for name, heading in SECTIONS.items() if present.get(name, True)}
    figure, labels = figure_of(by), _model_labels(facts["settings"])
    tables = {TYPE_LABELS[kind]: _table(facts, kind) for kind in next(iter(facts["models"].values()))}
    write_page(
        file,
        "evaluation_report.html.jinja",
        title=_title(facts["settings"]),
        sections=sections,
        facts=facts,
        models=list(facts["models"]),
        model_labels=labels,
        verdicts=_verdicts(facts),
        tables=tables,
        explained=list({line.figure.name: line.figure for lines in tables.values() for line in lines}.values()),
        sweep=_sweep(facts, figure),
        by=figure,
        best=[_tile(case, figure, labels) for case in best],
        worst=[_tile(case, figure, labels) for case in worst],
        unpaired=[_tile(case, None, labels) for case in unpaired],
        left_out=left_out_by_reason(facts["left_out"]),
    )


def left_out_by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """Labels of the figures that were left out, by the reason."""
    found: dict[str, list[str]] = {}
    for name, why in left_out.items():
        found.setdefault(why, []).append(figure_of(name).label)
    return found


def _title(settings: Mapping[str, Any]) -> str:
    if settings["lora"] is None:
        return f"The base {Path(settings['transformer']).name} by garment type"
    beside = "its base" if settings["against"] is None else _lora_name(settings["against"])
    return f"{_lora_name(settings['lora'])} beside {beside}"


def _lora_name(file: str) -> str:
    """The folder of a LoRA's file, as the file is called alike everywhere."""
    return Path(file).parent.name or Path(file).name


def _model_labels(settings: Mapping[str, Any]) -> dict[str, str]:
    against = settings["against"]
    return MODEL_LABELS if against is None else MODEL_LABELS | {"base": f"against: {_lora_name(against)}"}


@dataclass(frozen=True)
class _Cell:
    """A figure of one model: its value, its interval, and whether it is the better of two."""

    value: str
    interval: str
    is_better: bool


@dataclass(frozen=True)
class _Line:
    """A figure in the table of one garment type."""

    figure: Figure
    n: str  # how many pictures; of both models where they differ
    cells: list[_Cell]
    change: str
    interval: str
    verdict: str  # "better", "worse" or "" for no difference that chance would not make


def _table(facts: Mapping[str, Any], kind: str) -> list[_Line]:
    models = {model: figures[kind] for model, figures in facts["models"].items()}
    lines = []
    for name in _names(models):
        figure = figure_of(name)
        values = {model: found.get(name) for model, found in models.items()}
        cells = [
            _Cell(
                figure.written(value),
                _interval(figure, models[model].get(f"{name}_ci")),
                all(better(name, value, other) == 1 for other_model, other in values.items() if other_model != model)
                and len(values) > 1,
            )
            for model, value in values.items()
        ]
        change = facts["difference"].get(kind, {}).get(name)
        counts = dict.fromkeys(f"{found.get(f'{name}_n', found['n']):,}" for found in models.values())
        lines.append(
            _Line(
                figure,
                " / ".join(counts),
                cells,
                "" if change is None else figure.signed(change["mean"]),
                "" if change is None else _interval(figure, change["ci"], sign=True),
                "" if change is None else SIDES.get(change["better"], ""),
            )
        )
    return lines


def _names(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Figures that any model has, in the order of ``FIGURES``, each followed by its unpaired one."""
    known = [ending for name in FIGURES for ending in (name, name + UNPAIRED)]
    return [name for name in known if any(name in found for found in models.values())]


def _interval(figure: Figure, interval: Sequence[float] | None, sign: bool = False) -> str:
    if interval is None:
        return ""
    return " to ".join(figure.signed(end) if sign else figure.written(end) for end in interval)


def _verdicts(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Garment type, what the figures say of it, and ``good``, ``bad`` or nothing."""
    found = []
    for kind, base in facts["models"]["base"].items():
        lora, changes = facts["models"].get("lora", {}).get(kind), facts["difference"].get(kind, {})
        told = verdict(changes) if lora is not None else None
        figures = []
        for name in decisive(base):
            figure, change = figure_of(name), changes.get(name)
            after = "" if lora is None else f" to {figure.written(lora[name])}"
            interval = "" if change is None else _interval(figure, change["ci"], sign=True)
            figures.append(f"{figure.label} {figure.written(base[name])}{after}{f' ({interval})' if interval else ''}")
        text = f"{', '.join(figures)}, n {base['n']:,}"
        found.append((TYPE_LABELS[kind], f"{told.text}: {text}" if told else text, told.tone if told else ""))
    return found


def _sweep(facts: Mapping[str, Any], figure: Figure) -> list[tuple[str, list[str], bool]]:
    """Guidance, the figure of each model over all types, and whether it is the best."""
    best = facts.get("best_guidance_scale", {}).get("guidance_scale")
    lines = []
    for guidance, models in facts.get("sweep", {}).items():
        values = [figure.written(found["all"].get(figure.name)) for found in models.values()]
        lines.append((guidance, values, guidance == f"{best:g}"))
    return lines


@dataclass(frozen=True)
class _Tile:
    """A case as ``data:`` URIs with their names, in the order in which they are looked at."""

    case: ShownCase
    type_label: str
    aspect: float  # width by height of the person
    pictures: list[tuple[str, Markup]]
    figures: str


def _tile(case: ShownCase, figure: Figure | None, labels: Mapping[str, str]) -> _Tile:
    pictures = [("garment", case.garment), ("person", case.person), *case.results.items()]
    if case.truth is not None:
        pictures.append(("truth", case.truth))
    said = ""
    if figure is not None:
        told = ", ".join(f"{labels[model]} {figure.written(value)}" for model, value in case.figures.items())
        said = f"{figure.label}: {told}"
    named = [(labels.get(name, name), picture_uri(picture)) for name, picture in pictures]
    return _Tile(case, TYPE_LABELS[case.type_name], case.person.width / case.person.height, named, said)
