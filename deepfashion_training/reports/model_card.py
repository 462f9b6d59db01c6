"""The model card of a trained LoRA: ``README.md`` of the output directory, as the Hub shows it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from jinja2 import Environment, PackageLoader, StrictUndefined

from deepfashion_training.reports.figures import FIGURES, UNPAIRED, Figure, figure_of
from deepfashion_training.reports.page import in_code
from deepfashion_training.reports.verdicts import verdict
from training_run.atomic import write_file
from training_run.hub import is_hub_id

#: Arguments that a reader of the card wants to know, in this order.
SHOWN_ARGUMENTS = (
    "lora_rank lora_alpha lora_target_modules height width train_batch_size gradient_accumulation_steps learning_rate "
    "lr_scheduler mixed_precision quantize_base use_captions guidance_scale seed"
).split()

EVALUATION_FILE = "evaluation.json"
#: Figures of the card's table.
SHOWN_FIGURES = (
    *(name for name in FIGURES if name != "psnr"),
    *(name + UNPAIRED for name in ("dino", "fd_dinov2", "kd_dinov2", "fid", "kid")),
)


def write_model_card(output_dir: Path, transformer_subfolder: str | None = None, repo_id: str | None = None) -> Path:
    """Write ``README.md`` from what lies in ``output_dir``: ``run.json``, validation pictures and ``evaluation.json``.

    ``transformer_subfolder`` is where the trained transformer's repository keeps it, None for its root. ``repo_id`` is
    where the LoRA is published, None for what ``run.json`` says. An evaluation is shown only when it is that of the
    LoRA that lies there. Returns the card's path. Raises ``ValueError`` when ``evaluation.json`` is none.
    """
    run: dict[str, Any] = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
    arguments = run["arguments"]
    pictures = sorted((output_dir / "validation").glob("step-*.png"), key=lambda path: int(path.stem.split("-")[1]))
    environment = Environment(
        loader=PackageLoader("deepfashion_training.reports"), undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"named": lambda source: in_code(local_name(source)), "source": _source, "in_code": in_code}
    text = environment.get_template("model_card.md.jinja").render(
        run=run,
        arguments=arguments,
        is_lora=not arguments["train_base_model"],
        settings={name: arguments[name] for name in SHOWN_ARGUMENTS if arguments.get(name) is not None},
        picture=pictures[-1].relative_to(output_dir).as_posix() if pictures else None,
        name=output_dir.resolve().name,
        subfolder=transformer_subfolder,
        here=repo_id or arguments.get("publish_as") or "PATH/TO/THIS/FOLDER",
        base_model=_hub_id(arguments["pretrained_inpaint_model_name_or_path"]),
        dataset=_hub_id(arguments.get("raw_dataset_name") or run["dataset"]["train"]["source"]),
        evaluation=_evaluation(output_dir),
        evaluation_file=EVALUATION_FILE,
    )
    path = output_dir / "README.md"
    write_file(path, text)
    return path


def local_name(source: str) -> str:
    """``source`` as others may read it: a repository by its id, a path by its last part alone."""
    return _hub_id(source) or Path(source).name


def _hub_id(source: str) -> str | None:
    return source if is_hub_id(source) else None


def _source(name: str) -> str:
    """``name`` in the card's code: a repository by its id, a folder by a path to fill in."""
    return _hub_id(name) or f"PATH/TO/{Path(name).name}"


def _evaluation(output_dir: Path) -> dict[str, Any] | None:
    """The table of ``evaluation.json`` and the settings that it was made with; None unless it is this LoRA's."""
    path, lora = output_dir / EVALUATION_FILE, output_dir / LORA_WEIGHT_NAME_SAFE
    if not path.is_file() or not lora.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"]["lora_sha256"] != hashlib.sha256(lora.read_bytes()).hexdigest():
            return None
        models, changes = found["models"], found["difference"]
        kinds = list(models["lora"])
        return {
            "settings": found["settings"],
            "kinds": [kind if kind == "all" else f"{kind} body" for kind in kinds],
            "counts": [models["lora"][kind]["n"] for kind in kinds],
            "verdicts": [verdict(changes[kind]).text for kind in kinds],
            "rows": [
                (figure_of(name).heading, [_cell(figure_of(name), models, changes, kind) for kind in kinds])
                for name in SHOWN_FIGURES
                if any(models["lora"][kind].get(name) is not None for kind in kinds)
            ],
            "warnings": found["warnings"],
            "left_out": [figure_of(name).label for name in found["left_out"]],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no evaluation ({error!r}): delete it, or run evaluate again") from error


def _cell(figure: Figure, models: Mapping[str, Any], changes: Mapping[str, Any], kind: str) -> str:
    """The base's value and the LoRA's with the interval of the change; the better one in bold, unless by chance."""
    shown = {model: figure.written(models[model][kind].get(figure.name)) for model in ("base", "lora")}
    change = changes[kind].get(figure.name)
    if change and change["better"]:
        shown[change["better"]] = f"**{shown[change['better']]}**"
    interval = figure.interval(change["ci"], sign=True) if change else ""
    return f"{shown['base']} → {shown['lora']}" + (f" ({interval})" if interval else "")
