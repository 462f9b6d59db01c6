"""What an evaluation found: metrics.json, metrics.csv, report.html, and the table for the LoRA's model card."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepfashion_training.evaluation.cases import Case, garment_rgb
from deepfashion_training.evaluation.evaluation_plan import Plan
from deepfashion_training.evaluation.measure_cases import OF_A_SET, Measured, differences, summarise
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.reports.before_after import save_before_after
from deepfashion_training.reports.evaluation_report import ShownCase, left_out_by_reason, write_evaluation_report
from deepfashion_training.reports.figures import FEWEST_FOR_SETS, FEWEST_FOR_VERDICT, figure_of
from deepfashion_training.reports.model_card import local_name, write_model_card
from deepfashion_training.reports.verdicts import comparison_table
from training_run.hub import subfolder_of_transformer

METRICS, TABLE, REPORT = "metrics.json", "metrics.csv", "report.html"
BEFORE_AFTER = "before_after.png"
#: People of each garment type in that picture.
_OF_EACH_TYPE = 2
CARD = "README.md"
#: Beside a trained LoRA: its evaluation, for the model card.
BESIDE_THE_LORA = "evaluation.json"
#: What the best guidance and the best and worst cases are told by: the first of these that was measured.
CRITERIA = ("dino", "ciede2000_masked")
#: Best, worst and unpaired cases that the report shows; of fewer than twice as many, half are best and half worst.
SHOWN = 10
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "torchmetrics", "numpy", "Pillow")


def criterion(measured: Measured) -> str:
    """The figure that cases and guidances are ordered by."""
    return next(name for name in CRITERIA if name in measured.rows[0]["figures"])


def best_of(sweep: Sequence[Measured]) -> tuple[float, str, str]:
    """The guidance whose pictures are best on average, the figure that says so, and the model that it is best for."""
    name = criterion(sweep[0])
    model = list(sweep[0].setting.looks)[-1]  # the LoRA where there is one

    def mean(one: Measured) -> float:
        return float(np.mean([row["figures"][name] for row in one.rows if row["model"] == model]))

    sign = 1 if figure_of(name).better == "higher" else -1
    return max(sweep, key=lambda one: sign * mean(one)).setting.guidance_scale, name, model


def write_results(
    plan: Plan, best: float, sweep: Sequence[Measured], unpaired: Sequence[Measured], seed: int, rounds: int
) -> tuple[dict[str, Any], str | None]:
    """Write everything, the page last; returns what ``metrics.json`` holds, and what became of the LoRA's card."""
    paired = next(one for one in sweep if one.setting.guidance_scale == best)
    shown = [paired, *unpaired]
    facts: dict[str, Any] = {
        "settings": {**plan.settings, "guidance_scale": best, **_measured_with(plan, paired)},
        "models": summarise(shown, seed, rounds),
        "difference": differences(shown, seed, rounds) if plan.choice.lora is not None else {},
        "left_out": plan.left_out,
        "left_out_cases": _left_out_cases(shown),
        "same_photo_rows_left_out": plan.cases.same_photo,
        "garment_areas_unknown": paired.areas_unknown,
        "without_another_person": len(plan.cases) - len(plan.cases.of(unpaired=True)) if plan.unpaired else 0,
        "bootstrap": {"rounds": rounds, "level": 0.95, "over": "people", "seed": seed},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }
    if len(sweep) > 1:
        _, by, model = best_of(sweep)
        facts["best_guidance_scale"] = {"guidance_scale": best, "by": by, "of": model}
        facts["sweep"] = {f"{one.setting.guidance_scale:g}": summarise([one], seed, rounds) for one in sweep}
    facts["warnings"] = _warnings(facts)
    _write_json(plan.folder / METRICS, facts)
    _write_table(plan.folder / TABLE, [row for one in (*sweep, *unpaired) for row in one.rows])
    by = criterion(paired)
    order = _ordered(paired, by)
    many = min(SHOWN, max(1, len(order) // 2))
    write_evaluation_report(
        plan.folder / REPORT,
        facts,
        by,
        best=[_shown(plan, paired, case, by) for case in order[:many]],
        worst=[_shown(plan, paired, case, by) for case in order[: -many - 1 : -1]],
        unpaired=[_shown(plan, one, case, by) for one in unpaired for case in _in_turn(one.cases)[:SHOWN]],
    )
    if plan.choice.lora is not None:
        chosen = _typical(order)
        save_before_after(plan.folder / BEFORE_AFTER, [_shown(plan, paired, case, by) for case in chosen])
    return facts, _tell_the_card(plan, facts)


def _typical(order: Sequence[Case]) -> list[Case]:
    """Of each garment type the cases in the middle of ``order``, so that neither luck nor bad luck is shown."""
    found = []
    for kind in TYPE_NAMES:
        cases = [case for case in order if case.cloth_type == kind]
        first = max(0, (len(cases) - _OF_EACH_TYPE) // 2)
        found += cases[first : first + _OF_EACH_TYPE]
    return found


def _measured_with(plan: Plan, measured: Measured) -> dict[str, Any]:
    """What the figures depend on beside the pictures: those of another DINOv2 are other figures."""
    dino, parser = measured.instruments.dino, plan.cases.parser
    return {
        "dino_model": plan.dino,
        "dino_revision": None if dino is None else dino.revision,
        "parser": plan.parser,
        "parser_revision": None if parser is None else parser.revision,
        "garment_area": plan.cases.area_source,
    }


def _left_out_cases(measured: Iterable[Measured]) -> dict[str, str]:
    """Why cases could not be measured, by their name; of one that could be paired it is said that it is unpaired."""
    found: dict[str, str] = {}
    for one in measured:
        for name, why in one.left_out.items():
            found.setdefault(name, f"unpaired only: {why}" if one.setting.unpaired else why)
    return found


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing the figures."""
    found = []
    counts = {kind: figures["n"] for kind, figures in next(iter(facts["models"].values())).items()}
    has_sets = any(name.startswith(OF_A_SET) for name in next(iter(facts["models"].values()))["all"])
    few = [f"{count} of {kind}" for kind, count in counts.items() if count < FEWEST_FOR_SETS]
    if few and has_sets:
        found.append(
            f"fewer than {FEWEST_FOR_SETS} pictures ({', '.join(few)}): distances between sets (FD, KD, FID, KID) say "
            "more about that number than about the model"
        )
    elif few:
        found.append(f"fewer than {FEWEST_FOR_SETS} pictures ({', '.join(few)}): the intervals are wide")
    missing = [name for name in ("upper", "lower", "full") if name not in counts]
    if missing:
        found.append(f"no case of the garment type {', '.join(missing)}")
    if left_out := facts["left_out_cases"]:
        name, why = next(iter(left_out.items()))
        found.append(f"{len(left_out)} of the cases could not be measured, first {name}: {why}")
    if alone := facts["without_another_person"]:
        found.append(f"{alone} cases are not among the unpaired ones: nobody else wears a garment of their type")
    few_people = [kind for kind, changes in facts["difference"].items() if _few_people(changes)]
    if few_people:
        found.append(
            f"fewer than {FEWEST_FOR_VERDICT} people ({', '.join(few_people)}): their intervals are too narrow, and "
            "nothing is called better or worse there"
        )
    if "sweep" in facts:
        whose = "LoRA" if facts["best_guidance_scale"]["of"] == "lora" else "base"
        found.append(
            f"the guidance was chosen by these very pictures, and by those of the {whose}, which flatters it: another "
            "split tells more"
        )
    if unknown := facts["garment_areas_unknown"]:
        found.append(
            f"the garment's own area is not known in {unknown} of {counts['all']} photos: there the colour difference "
            "is that of the whole mask"
        )
    if facts["settings"]["split"] == "train":
        found.append("the split train was evaluated: the LoRA may have seen these people")
    return found


def _few_people(changes: Mapping[str, Mapping[str, Any]]) -> bool:
    return max(change["people"] for change in changes.values()) < FEWEST_FOR_VERDICT


def _ordered(paired: Measured, by: str) -> list[Case]:
    """Cases by what the LoRA gained on its base, most first; by the figure itself where there is no LoRA."""
    values: dict[int, dict[str, float]] = {}
    for row in paired.rows:
        values.setdefault(row["row"], {})[row["model"]] = row["figures"][by]
    sign = 1 if figure_of(by).better == "higher" else -1

    def gain(case: Case) -> float:
        found = values[case.row]
        return sign * (found.get("lora", 2 * found["base"]) - found["base"])

    return sorted(paired.cases, key=lambda case: (-gain(case), case.row))


def _in_turn(cases: Iterable[Case]) -> list[Case]:
    """Cases with their garment types in turn."""
    seen: dict[int, int] = {}
    places = []
    for case in cases:
        seen[case.cloth_type] = seen.get(case.cloth_type, 0) + 1
        places.append((seen[case.cloth_type], case.cloth_type, case))
    return [case for *_, case in sorted(places, key=lambda place: place[:2])]


def _shown(plan: Plan, measured: Measured, case: Case, by: str) -> ShownCase:
    truth = plan.cases.truth(case)
    levels = (truth.photo.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    masked = levels.copy()
    masked[truth.mask[0].numpy() > 0] = 127
    results = {}
    for model in measured.setting.looks:
        with Image.open(measured.setting.file(model, case)) as picture:
            results[model] = picture.convert("RGB")
    figures = {row["model"]: row["figures"] for row in measured.rows if row["row"] == case.row}
    name = by if not measured.setting.unpaired else f"{by}_unpaired"
    return ShownCase(
        garment=garment_rgb(plan.cases.garment(case, measured.setting.unpaired)),
        person=Image.fromarray(masked),
        results=results,
        truth=None if measured.setting.unpaired else Image.fromarray(levels),
        title=case.name,
        garment_title=case.partner_name if measured.setting.unpaired else "",
        type_name=case.type_name,
        figures={model: found[name] for model, found in figures.items() if name in found},
    )


def _tell_the_card(plan: Plan, facts: Mapping[str, Any]) -> str | None:
    """Put the figures beside a LoRA of our own training and into its card; returns what was done, None for nothing.

    A table of more pictures stays: a quick look must not replace an evaluation. Paths of this machine stay here.
    """
    folder = plan.trained_folder
    if folder is None:
        return None
    beside, n = folder / BESIDE_THE_LORA, facts["models"]["lora"]["all"]["n"]
    there = _pictures_of(beside, facts["settings"]["lora_sha256"])
    if there > n:
        return f"{folder / CARD} keeps its table of {there} pictures, these are {n}; delete {beside} to change that"
    settings = dict(facts["settings"])
    for name in ("lora", "against", "data", "transformer", "pipeline", "dino_model", "parser"):
        settings[name] = None if settings[name] is None else local_name(settings[name])
    told = {name: value for name, value in facts.items() if name not in ("settings", "left_out", "left_out_cases")}
    # The reasons name paths, and the cases rows of the data: neither is for those who get the LoRA.
    left_out = dict.fromkeys(facts["left_out"], "what it needs was not on the machine")
    _write_json(beside, {"settings": settings, **told, "left_out": left_out})
    arguments = json.loads((folder / "run.json").read_text(encoding="utf-8"))["arguments"]
    trained_on, revision = (
        arguments.get(name) for name in ("pretrained_inpaint_model_name_or_path", "inpaint_revision")
    )
    subfolder = subfolder_of_transformer(trained_on, revision, arguments.get("cache_dir"))
    write_model_card(folder, subfolder, plan.publish_as)
    return f"{folder / CARD} has these figures now"


def _pictures_of(evaluation: Path, lora_sha256: str) -> int:
    """How many pictures an earlier evaluation of the same LoRA is of; 0 where there is none."""
    if not evaluation.is_file():
        return 0
    try:
        earlier = json.loads(evaluation.read_text(encoding="utf-8"))
        return int(earlier["models"]["lora"]["all"]["n"]) if earlier["settings"]["lora_sha256"] == lora_sha256 else 0
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{evaluation} is no evaluation ({error}): delete it, and give the command again") from error


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    """JSON that every reader takes: what is not finite is null."""
    staged = file.with_name(f".{file.name}")
    staged.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    staged.replace(file)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_table(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line for each picture."""
    facts = ("row", "name", "garment", "type", "model", "guidance_scale")
    figures = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    staged = file.with_name(f".{file.name}")
    with staged.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow([*facts, *figures])
        for row in rows:
            told = (_as_text(row[name]) for name in facts)
            writer.writerow([*told, *(row["figures"].get(name, "") for name in figures)])
    staged.replace(file)


def _as_text(value: Any) -> Any:
    """``value`` for a table: a text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def closing_lines(plan: Plan, facts: Mapping[str, Any], card: str | None) -> str:
    """What came out, in lines for people."""
    lines = []
    if "best_guidance_scale" in facts:
        found = facts["best_guidance_scale"]
        figure = figure_of(found["by"])
        swept = {name: models[found["of"]]["all"][found["by"]] for name, models in facts["sweep"].items()}
        values = ", ".join(f"{name}: {figure.written(value)}" for name, value in swept.items())
        of = "the LoRA" if found["of"] == "lora" else "the base"
        lines.append(f"guidance  best {found['guidance_scale']:g}, by {figure.label} of {of} ({values})")
    lines += comparison_table(facts)
    for why, names in left_out_by_reason(facts["left_out"]).items():
        if not why.startswith("--"):  # what was asked to be left out is no news
            lines.append(f"left out  {', '.join(names)}: {why}")
    lines += [f"warning   {line}" for line in facts["warnings"]]
    if card is not None:
        lines.append(f"card      {card}")
    lines.append(f"look at   {plan.folder / REPORT}, figures in {plan.folder / METRICS}")
    if plan.choice.lora is not None:
        lines.append(f"picture   {plan.folder / BEFORE_AFTER}")
    return "\n".join(["", *lines, ""])
