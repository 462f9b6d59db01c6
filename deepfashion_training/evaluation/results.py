"""What an evaluation writes: metrics.json, metrics.csv, report.html, before_after.png, and the LoRA's card."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from deepfashion_training.evaluation.cases import Case
from deepfashion_training.evaluation.evaluation_plan import BEFORE_AFTER, METRICS, REPORT, TABLE, EvaluationPlan
from deepfashion_training.evaluation.measure_cases import MeasuredCases
from deepfashion_training.evaluation.published import published_figures
from deepfashion_training.evaluation.summary import differences, summarise
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.paste import repainted
from deepfashion_training.models.features import Dino
from deepfashion_training.reports.evaluation_report import (
    RANKED_BY,
    ShownCase,
    model_labels,
    save_before_after,
    write_evaluation_report,
)
from deepfashion_training.reports.figures import FEWEST_FOR_SETS, comparison_table, figure_of, published_table
from deepfashion_training.reports.model_card import EVALUATION_FILE, local_name, write_model_card
from training_run.atomic import write_file
from training_run.record import package_versions

#: Typical cases of each garment type, and unpaired ones, in the report.
_TYPICAL, _UNPAIRED = 2, 4
#: Best and worst cases that the report shows; of fewer than twice as many, half are best and half worst.
_SHOWN = 10


def write_results(plan: EvaluationPlan, dino: Dino | None, measured: Sequence[MeasuredCases]) -> str:
    """Write everything; returns what to say of it: the table of the comparison, warnings, and where everything is.

    ``measured`` are the paired cases and, where there are any, the unpaired ones.
    """
    rows = [row for one in measured for row in one.rows]
    facts = _facts(plan, dino, measured, rows)
    write_file(plan.folder / METRICS, _json(facts))
    write_table(plan.folder / TABLE, rows)
    paired, order = measured[0], ordered(measured[0])
    many = min(_SHOWN, max(1, len(order) // 2))
    shown = {
        "typical": [_shown(plan, paired, case) for case in _of_each_type(order, _TYPICAL)],
        "best": [_shown(plan, paired, case) for case in order[:many]],
        "worst": [_shown(plan, paired, case) for case in order[: -many - 1 : -1]],
        "unpaired": [_shown(plan, one, case) for one in measured[1:] for case in _of_each_type(one.cases, _UNPAIRED)],
    }
    write_evaluation_report(plan.folder / REPORT, facts, shown)
    lines = [
        "",
        *comparison_table(facts),
        *published_table(facts),
        *(f"warning   {line}" for line in facts["warnings"]),
    ]
    lines += [f"left out  {figure_of(name).label}: {why}" for name, why in facts["left_out"].items() if why[:2] != "--"]
    if plan.trained_folder is not None:
        lines.append(f"card      {_write_card(plan, plan.trained_folder, facts)}")
    lines.append(f"report    {plan.folder / REPORT}, figures in {plan.folder / METRICS}")
    if plan.choice.loras:
        save_before_after(plan.folder / BEFORE_AFTER, [_shown(plan, paired, case) for case in _of_each_type(order, 1)])
    return "\n".join([*lines, ""])


def _facts(
    plan: EvaluationPlan, dino: Dino | None, measured: Sequence[MeasuredCases], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    seed, parser = plan.settings["seed"], plan.cases.parser
    models = summarise(rows, seed)
    left_out_cases: dict[str, str] = {}
    for one in reversed(measured):
        left_out_cases |= {name: f"unpaired: {why}" if one.unpaired else why for name, why in one.left_out.items()}
        for model, kinds in one.distances.items():
            for kind, figures in kinds.items():
                models[model][kind] |= figures
    facts: dict[str, Any] = {
        "settings": {
            **plan.settings,
            "dino_model": plan.dino,
            "dino_revision": None if dino is None else dino.revision,
            "parser": plan.parser,
            "parser_revision": None if parser is None else parser.revision,
            "garment_area": "the column parse" if plan.cases.has_parse else plan.parser or "the mask",
        },
        "models": models,
        "difference": differences(rows, seed) if plan.choice.loras else {},
        "left_out": plan.left_out,
        "left_out_cases": left_out_cases,
        "same_photo_rows_left_out": plan.cases.same_photo,
        "garment_areas_unknown": measured[0].areas_unknown,
        "versions": package_versions() | {name: version(name) for name in ("torchmetrics", "scikit-image")},
    }
    counts = Counter(case.type_name for case in measured[0].cases)
    counts["all"] = len(measured[0].cases)
    if published := published_figures(plan.cases, plan.settings, counts):
        facts["published"] = published
    return {**facts, "warnings": _warnings(facts)}


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing the figures."""
    found = []
    base = facts["models"]["base"]
    few = ", ".join(f"{figures['n']} of {kind}" for kind, figures in base.items() if figures["n"] < FEWEST_FOR_SETS)
    if few and {"fd_dinov2", "fid"} & set(base["all"]):
        found.append(f"fewer than {FEWEST_FOR_SETS} pictures ({few}): FD, KD, FID and KID depend on their number")
    if left_out := facts["left_out_cases"]:
        found.append(f"{len(left_out)} of the cases could not be measured: the report says why")
    if unknown := facts["garment_areas_unknown"]:
        found.append(f"colours of {unknown} photos are compared in the whole mask: their garment's area is not known")
    if facts["settings"]["split"] == "train":
        found.append("the split train was evaluated: the LoRA may have seen these people")
    return found


def ordered(paired: MeasuredCases) -> list[Case]:
    """Cases by what the LoRA gained on its base, most first; by the figure itself where there is no LoRA."""
    values = {(row["row"], row["model"]): row["figures"][RANKED_BY.name] for row in paired.rows}

    def error(case: Case) -> float:
        base = values[case.row, "base"]
        return values[case.row, "lora"] - base if (case.row, "lora") in values else base

    return sorted(paired.cases, key=lambda case: (error(case), case.row))


def _of_each_type(cases: Sequence[Case], count: int) -> list[Case]:
    """The ``count`` cases in the middle of each garment type: neither luck nor bad luck."""
    found = []
    for kind in TYPE_NAMES:
        of_type = [case for case in cases if case.cloth_type == kind]
        first = max(0, (len(of_type) - count) // 2)
        found += of_type[first : first + count]
    return found


def _shown(plan: EvaluationPlan, measured: MeasuredCases, case: Case) -> ShownCase:
    """A case to look at, with its results in the photo, as try-on gives them."""
    truth, labels = plan.cases.truth(case), model_labels(plan.settings)
    masked = truth.photo.copy()
    masked[truth.mask] = 127
    pictures = {"garment": plan.cases.garment(case), "person": Image.fromarray(masked)}
    for model in plan.drawing:
        with Image.open(plan.picture(model, case)) as picture:
            drawn = picture.convert("RGB")
        if not plan.settings["repaint"]:
            drawn = repainted(Image.fromarray(truth.photo), drawn, truth.mask)
        pictures[labels[model]] = drawn
    if case.unpaired:
        return ShownCase(case.name, case.type_name, f"garment of {case.garment_name}", pictures)
    pictures["photo"] = Image.fromarray(truth.photo)
    figures = {row["model"]: row["figures"][RANKED_BY.name] for row in measured.rows if row["row"] == case.row}
    values = ", ".join(f"{labels[model]} {RANKED_BY.written(value)}" for model, value in figures.items())
    return ShownCase(case.name, case.type_name, f"{RANKED_BY.label}: {values}", pictures)


def _write_card(plan: EvaluationPlan, folder: Path, facts: Mapping[str, Any]) -> str:
    """Put the figures beside a LoRA of our own training and into its card; returns what was done.

    A table of more pictures of the same LoRA stays: a quick look must not replace an evaluation. Paths of this machine
    stay here.
    """
    card, file, count = folder / "README.md", folder / EVALUATION_FILE, facts["models"]["lora"]["all"]["n"]
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if earlier and earlier["settings"]["lora_sha256"] == facts["settings"]["lora_sha256"]:
        there = earlier["models"]["lora"]["all"]["n"]
        if there > count:
            write_model_card(folder, plan.publish_as)
            return f"{card} keeps its table of {there} pictures, these are {count}; delete {file} to replace it"
    settings = dict(facts["settings"])
    for name in ("lora", "data", "transformer", "pipeline", "dino_model", "parser", "garment_area"):
        settings[name] = None if settings[name] is None else local_name(settings[name])
    # Reasons name paths, and cases rows of the data: neither is for those who get the LoRA.
    shared = {name: value for name, value in facts.items() if name != "left_out_cases"}
    shared |= {"settings": settings, "left_out": dict.fromkeys(facts["left_out"], "not available on the machine")}
    write_file(file, _json(shared))
    write_model_card(folder, plan.publish_as)
    return f"{card} has these figures now"


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_table(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line of CSV for each picture; text that a spreadsheet would run as a formula gets an apostrophe before it."""
    lines = [{name: row[name] for name in ("row", "name", "garment", "type", "model")} for row in rows]
    for line, row in zip(lines, rows, strict=True):
        for name in ("name", "garment"):
            line[name] = f"'{line[name]}" if line[name].startswith(("=", "+", "-", "@", "\t", "\r")) else line[name]
        line |= row["figures"]
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, list(dict.fromkeys(name for line in lines for name in line)), restval="")
    writer.writeheader()
    writer.writerows(lines)
    write_file(file, sink.getvalue())
