"""The model card of a trained LoRA: ``README.md`` of the output directory, as the Hub shows it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from deepfashion_training.reports.figures import Figure, figure_of, figures_in, verdict
from deepfashion_training.reports.page import write_page
from training_run.hub import is_hub_id, local_path, subfolder_of_transformer
from training_run.sheets import sheets_in

#: Arguments that a reader of the card wants to know, in this order.
SHOWN_ARGUMENTS = (
    "lora_rank lora_alpha lora_target_modules height width train_batch_size gradient_accumulation_steps learning_rate "
    "lr_scheduler mixed_precision quantize_base use_captions guidance_scale seed"
).split()

EVALUATION_FILE = "evaluation.json"


def write_model_card(output_dir: Path, repo_id: str | None = None) -> Path:
    """Write ``README.md`` from what lies in ``output_dir``: ``run.json``, validation pictures and ``evaluation.json``.

    ``repo_id`` is where the LoRA is published, None for what ``run.json`` says. An evaluation is shown only when it is
    that of the LoRA that lies there. Returns the card's path.
    """
    run: dict[str, Any] = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
    arguments = run["arguments"]
    transformer = arguments["pretrained_inpaint_model_name_or_path"]
    pictures = sheets_in(output_dir)
    card = output_dir / "README.md"
    sources = [part["source"] for part in run["dataset"]["train"].get("parts", [run["dataset"]["train"]])]
    write_page(
        card,
        "model_card.md.jinja",
        run=run,
        arguments=arguments,
        is_lora=not arguments["train_base_model"],
        settings={name: arguments[name] for name in SHOWN_ARGUMENTS if arguments.get(name) is not None},
        picture=pictures[-1].relative_to(output_dir).as_posix() if pictures else None,
        name=output_dir.resolve().name,
        subfolder=subfolder_of_transformer(transformer, arguments.get("inpaint_revision"), arguments.get("cache_dir")),
        here=repo_id or arguments.get("publish_as") or "PATH/TO/THIS/FOLDER",
        base_model=_hub_id(transformer),
        datasets=[name for name in map(_hub_id, _listed(arguments.get("raw_dataset_name")) or sources) if name],
        sources=sources,
        raw_sources=_listed(arguments.get("raw_dataset_name")),
        local_name=local_name,
        source=lambda name: _hub_id(name) or f"PATH/TO/{Path(name).name}",
        evaluation=_evaluation(output_dir),
        evaluation_file=EVALUATION_FILE,
    )
    return card


def local_name(source: str) -> str:
    """``source`` as others may read it: a repository by its id, a path by its last part alone."""
    return _hub_id(source) or local_path(source).resolve().name


def _listed(names: str | list[str] | None) -> list[str]:
    return names if isinstance(names, list) else [names] if names else []


def _hub_id(source: str) -> str | None:
    return source if is_hub_id(source) else None


def _evaluation(output_dir: Path) -> dict[str, Any] | None:
    """What ``evaluation.json`` holds, with its table; None unless it is of the LoRA that lies there."""
    path, lora = output_dir / EVALUATION_FILE, output_dir / LORA_WEIGHT_NAME_SAFE
    if not path.is_file() or not lora.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["settings"]["lora_sha256"] != hashlib.sha256(lora.read_bytes()).hexdigest():
        return None
    kinds = facts["models"]["lora"]
    rows = [
        ["base → LoRA", *(kind if kind == "all" else f"{kind} body" for kind in kinds)],
        ["---"] * (1 + len(kinds)),
        ["pictures", *(str(found["n"]) for found in kinds.values())],
        ["the LoRA is", *(verdict(facts["difference"][kind]) for kind in kinds)],
    ]
    rows += [[figure.heading, *(_cell(figure, facts, kind) for kind in kinds)] for figure in figures_in(facts)]
    return {**facts, "rows": rows, "not_measured": [figure_of(name).label for name in facts["left_out"]]}


def _cell(figure: Figure, facts: Mapping[str, Any], kind: str) -> str:
    """The base's value and the LoRA's with the interval of the change; the better one in bold, unless by chance."""
    shown = {model: figure.written(kinds[kind].get(figure.name)) for model, kinds in facts["models"].items()}
    change = facts["difference"][kind].get(figure.name)
    if change and change["better"] in shown:
        shown[change["better"]] = f"**{shown[change['better']]}**"
    interval = figure.interval(change["ci"], sign=True) if change else ""
    return f"{shown['base']} → {shown['lora']}" + (f" ({interval})" if interval else "")
