"""What an evaluation writes: metrics.json, metrics.csv, report.html, before_after.png, and the LoRA's card."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from deepfashion_training.evaluation.cases import Case
from deepfashion_training.evaluation.evaluation_plan import BEFORE_AFTER, METRICS, REPORT, TABLE, EvaluationPlan
from deepfashion_training.evaluation.measure_cases import MeasuredCases
from deepfashion_training.evaluation.summary import LEVEL, ROUNDS, differences, summarise
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.models.features import Dino
from deepfashion_training.reports.before_after import save_before_after
from deepfashion_training.reports.evaluation_report import ShownCase, left_out_by_reason, write_evaluation_report
from deepfashion_training.reports.figures import FEWEST_FOR_SETS, FEWEST_FOR_VERDICT, UNPAIRED, figure_of
from deepfashion_training.reports.model_card import EVALUATION_FILE, local_name, write_model_card
from deepfashion_training.reports.verdicts import comparison_table
from training_run.atomic import write_file
from training_run.hub import subfolder_of_transformer

#: Cases of each garment type in ``before_after.png``, and unpaired ones in the report.
_BEFORE_AFTER_OF_A_TYPE, _UNPAIRED_OF_A_TYPE = 2, 4
#: Best and worst cases are chosen by the first of these that was measured.
_CRITERIA = ("dino", "ciede2000_masked")
#: Best and worst cases that the report shows; of fewer than twice as many, half are best and half worst.
_SHOWN = 10
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "torchmetrics", "scikit-image", "numpy", "Pillow")


def write_results(
    plan: EvaluationPlan, dino: Dino | None, paired: MeasuredCases, unpaired: MeasuredCases | None
) -> tuple[dict[str, Any], str | None]:
    """Write everything; returns what ``metrics.json`` holds, and what was done with the LoRA's card, if it has one."""
    facts = _facts(plan, dino, paired, unpaired)
    write_file(plan.folder / METRICS, _json(facts))
    rows = [*paired.rows, *(unpaired.rows if unpaired else ())]
    write_table(plan.folder / TABLE, rows)
    by = next(name for name in _CRITERIA if name in paired.rows[0]["figures"])
    order = ordered(paired, by)
    many = min(_SHOWN, max(1, len(order) // 2))
    others = _of_each_type(unpaired.cases, _UNPAIRED_OF_A_TYPE) if unpaired else []
    write_evaluation_report(
        plan.folder / REPORT,
        facts,
        by,
        best=[_shown(plan, paired, case, by) for case in order[:many]],
        worst=[_shown(plan, paired, case, by) for case in order[: -many - 1 : -1]],
        unpaired=[_shown(plan, unpaired, case, by) for case in others] if unpaired else [],
    )
    if plan.choice.lora is not None:  # neither luck nor bad luck: cases in the middle of the order
        typical = _of_each_type(order, _BEFORE_AFTER_OF_A_TYPE, middle=True)
        save_before_after(plan.folder / BEFORE_AFTER, [_shown(plan, paired, case, by) for case in typical])
    card = None if plan.trained_folder is None else _write_card(plan, plan.trained_folder, facts)
    return facts, card


def _facts(
    plan: EvaluationPlan, dino: Dino | None, paired: MeasuredCases, unpaired: MeasuredCases | None
) -> dict[str, Any]:
    both = [paired, *([unpaired] if unpaired else [])]
    rows, seed, parser = [row for one in both for row in one.rows], plan.settings["seed"], plan.cases.parser
    models = summarise(rows, seed)
    for one in both:
        for model, kinds in one.distances.items():
            for kind, figures in kinds.items():
                models[model][kind] |= figures
    left_out_cases = dict(paired.left_out)
    for name, why in unpaired.left_out.items() if unpaired else ():
        left_out_cases.setdefault(name, f"unpaired only: {why}")
    facts: dict[str, Any] = {
        "settings": {
            **plan.settings,
            "dino_model": plan.dino,
            "dino_revision": None if dino is None else dino.revision,
            "parser": plan.parser,
            "parser_revision": None if parser is None else parser.revision,
            "garment_area": plan.cases.area_source,
        },
        "models": models,
        "difference": differences(rows, seed) if plan.choice.lora is not None else {},
        "left_out": plan.left_out,
        "left_out_cases": left_out_cases,
        "same_photo_rows_left_out": plan.cases.same_photo,
        "garment_areas_unknown": paired.areas_unknown,
        "without_another_person": len(plan.cases) - len(plan.cases.of(unpaired=True)),
        "bootstrap": {"rounds": ROUNDS, "level": LEVEL, "over": "people", "seed": seed},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }
    return {**facts, "warnings": _warnings(facts)}


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing the figures."""
    found = []
    base = facts["models"]["base"]
    counts = {kind: figures["n"] for kind, figures in base.items()}
    few = ", ".join(f"{count} of {kind}" for kind, count in counts.items() if count < FEWEST_FOR_SETS)
    if few and {"fd_dinov2", "fid", "kid"} & set(base["all"]):
        found.append(f"fewer than {FEWEST_FOR_SETS} pictures ({few}): FD, KD, FID and KID depend on their number")
    elif few:
        found.append(f"fewer than {FEWEST_FOR_SETS} pictures ({few}): the intervals are wide")
    if left_out := facts["left_out_cases"]:
        name, why = next(iter(left_out.items()))
        found.append(f"{len(left_out)} of the cases could not be measured, first {name}: {why}")
    people = {kind: max(one["people"] for one in changes.values()) for kind, changes in facts["difference"].items()}
    if few_people := [kind for kind, count in people.items() if count < FEWEST_FOR_VERDICT]:
        found.append(
            f"fewer than {FEWEST_FOR_VERDICT} people ({', '.join(few_people)}): their intervals are too narrow, and "
            "nothing is called better or worse there"
        )
    if unknown := facts["garment_areas_unknown"]:
        found.append(
            f"the garment's own area is not known in {unknown} of {counts['all']} photos: colours are compared in the "
            "whole mask there"
        )
    if facts["settings"]["split"] == "train":
        found.append("the split train was evaluated: the LoRA may have seen these people")
    return found


def ordered(paired: MeasuredCases, by: str) -> list[Case]:
    """Cases by what the LoRA gained on its base, most first; by the figure itself where there is no LoRA."""
    values: dict[int, dict[str, float]] = {}
    for row in paired.rows:
        values.setdefault(row["row"], {})[row["model"]] = row["figures"][by]
    sign = 1 if figure_of(by).better == "higher" else -1

    def gain(case: Case) -> float:
        found = values[case.row]
        return sign * (found["lora"] - found["base"] if "lora" in found else found["base"])

    return sorted(paired.cases, key=lambda case: (-gain(case), case.row))


def _of_each_type(cases: Sequence[Case], count: int, *, middle: bool = False) -> list[Case]:
    """The first ``count`` cases of each garment type, or those in the middle."""
    found = []
    for kind in TYPE_NAMES:
        of_type = [case for case in cases if case.cloth_type == kind]
        first = max(0, (len(of_type) - count) // 2) if middle else 0
        found += of_type[first : first + count]
    return found


def _shown(plan: EvaluationPlan, measured: MeasuredCases, case: Case, by: str) -> ShownCase:
    truth, unpaired = plan.cases.truth(case), measured.unpaired
    masked = truth.photo.copy()
    masked[truth.mask] = 127
    results = {}
    for model in plan.drawing:
        with Image.open(plan.picture(model, case, unpaired)) as picture:
            results[model] = picture.convert("RGB")
    name = by + UNPAIRED if unpaired else by
    figures = {row["model"]: row["figures"] for row in measured.rows if row["row"] == case.row}
    return ShownCase(
        garment=plan.cases.garment(case, unpaired),
        person=Image.fromarray(masked),
        results=results,
        truth=None if unpaired else Image.fromarray(truth.photo),
        title=case.name,
        garment_title=case.partner_name if unpaired else "",
        type_name=case.type_name,
        figures={model: found[name] for model, found in figures.items() if name in found},
    )


def _write_card(plan: EvaluationPlan, folder: Path, facts: Mapping[str, Any]) -> str:
    """Put the figures beside a LoRA of our own training and into its card; returns what was done.

    A table of more pictures of the same LoRA stays: a quick look must not replace an evaluation. Paths of this machine
    stay here.
    """
    card, file = folder / "README.md", folder / EVALUATION_FILE
    n = facts["models"]["lora"]["all"]["n"]
    there = _pictures_of(file, facts["settings"]["lora_sha256"])
    done = f"{card} has these figures now"
    if there > n:
        done = f"{card} keeps its table of {there} pictures, these are {n}; delete {file} to replace it"
    else:
        settings = dict(facts["settings"])
        for name in ("lora", "data", "transformer", "pipeline", "dino_model", "parser"):
            settings[name] = None if settings[name] is None else local_name(settings[name])
        # Reasons name paths, and cases rows of the data: neither is for those who get the LoRA.
        shared = {name: value for name, value in facts.items() if name != "left_out_cases"}
        shared |= {"settings": settings, "left_out": dict.fromkeys(facts["left_out"], "not available on the machine")}
        write_file(file, _json(shared))
    trained = json.loads((folder / "run.json").read_text(encoding="utf-8"))["arguments"]
    model, revision = trained["pretrained_inpaint_model_name_or_path"], trained.get("inpaint_revision")
    write_model_card(folder, subfolder_of_transformer(model, revision, trained.get("cache_dir")), plan.publish_as)
    return done


def _pictures_of(evaluation: Path, lora_sha256: str) -> int:
    """How many pictures an earlier evaluation of the same LoRA is of; 0 where there is none."""
    if not evaluation.is_file():
        return 0
    try:
        earlier = json.loads(evaluation.read_text(encoding="utf-8"))
        return int(earlier["models"]["lora"]["all"]["n"]) if earlier["settings"]["lora_sha256"] == lora_sha256 else 0
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{evaluation} is no evaluation ({error}): delete it, and give the command again") from error


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_table(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line of CSV for each picture."""
    names = ("row", "name", "garment", "type", "model")
    figures = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    writer.writerow([*names, *figures])
    for row in rows:
        writer.writerow([*(_as_text(row[name]) for name in names), *(row["figures"].get(name, "") for name in figures)])
    write_file(file, sink.getvalue())


def _as_text(value: Any) -> Any:
    """``value`` for a table: a text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def closing_lines(plan: EvaluationPlan, facts: Mapping[str, Any], card: str | None) -> str:
    """The table of the comparison, what to know about it, and where everything is."""
    lines = ["", *comparison_table(facts), *(f"warning   {line}" for line in facts["warnings"])]
    for why, names in left_out_by_reason(facts["left_out"]).items():
        if not why.startswith("--"):  # a flag of the user's own
            lines.append(f"left out  {', '.join(names)}: {why}")
    if card is not None:
        lines.append(f"card      {card}")
    lines.append(f"report    {plan.folder / REPORT}, figures in {plan.folder / METRICS}")
    if plan.choice.lora is not None:
        lines.append(f"picture   {plan.folder / BEFORE_AFTER}")
    return "\n".join([*lines, ""])
