"""The model card of a trained LoRA: ``README.md`` of the output directory, as the Hub shows it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, PackageLoader, StrictUndefined

from deepfashion_training.reports.figures import FEWEST_FOR_SETS, FIGURES, UNPAIRED, Figure, better, figure_of
from deepfashion_training.reports.page import in_code
from deepfashion_training.reports.verdicts import verdict

#: Arguments that a reader of the card wants to know, in this order.
SHOWN_ARGUMENTS = (
    "lora_rank",
    "lora_alpha",
    "lora_target_modules",
    "height",
    "width",
    "train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler",
    "mixed_precision",
    "quantize_base",
    "use_captions",
    "guidance_scale",
    "seed",
)

EVALUATION_FILE = "evaluation.json"
#: Figures of the card's table: all, and without a truth those that need none. PSNR in the mask says more than PSNR.
SHOWN_FIGURES = (
    *(name for name in FIGURES if name != "psnr"),
    *(name + UNPAIRED for name in ("dino", "fd_dinov2", "kd_dinov2", "fid", "kid")),
)


def write_model_card(output_dir: Path, transformer_subfolder: str | None = None, repo_id: str | None = None) -> Path:
    """Write ``README.md`` from what lies in ``output_dir``: ``run.json``, validation pictures and ``evaluation.json``.

    ``transformer_subfolder`` is where the trained transformer's repository keeps it, None for its root. ``repo_id`` is
    where the LoRA is published, None for where ``run.json`` says that it is, if anywhere. An evaluation is shown only
    when it is that of the LoRA that lies there. Returns the card's path.

    Raises ``FileNotFoundError`` when there is no ``run.json``, ``ValueError`` when ``evaluation.json`` is none.
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
        settings={
            name: arguments[name]
            for name in SHOWN_ARGUMENTS
            if arguments.get(name) is not None and not (arguments["train_base_model"] and name.startswith("lora_"))
        },
        picture=pictures[-1].relative_to(output_dir).as_posix() if pictures else None,
        name=output_dir.resolve().name,
        subfolder=transformer_subfolder,
        here=repo_id or arguments.get("publish_as") or "PATH/TO/THIS/FOLDER",
        base_model=hub_id(arguments["pretrained_inpaint_model_name_or_path"]),
        dataset=hub_id(arguments.get("raw_dataset_name") or run["dataset"]["train"]["source"]),
        evaluation=_evaluation(output_dir),
        evaluation_file=EVALUATION_FILE,
    )
    path = output_dir / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def hub_id(name: str) -> str | None:
    """``name`` where it can be a repository's on the Hub, ``OWNER/NAME``; None for a path, as a card names no paths."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if name.count("/") == 1 and not Path(name).exists() else None


def local_name(source: str) -> str:
    """``source`` as a card that others read names it: a repository by its id, a path by its last part alone."""
    return hub_id(source) or Path(source).name


def _source(name: str) -> str:
    """``name`` in the card's code: a repository by its id, a folder by a path to fill in."""
    return hub_id(name) or f"PATH/TO/{Path(name).name}"


def _evaluation(output_dir: Path) -> dict[str, Any] | None:
    """The table of ``evaluation.json`` and the settings that it was made with; None unless it is this LoRA's."""
    path, lora = output_dir / EVALUATION_FILE, output_dir / LORA_WEIGHT_NAME_SAFE
    if not path.is_file() or not lora.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings, models, left_out = found["settings"], found["models"], found.get("left_out", {})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no evaluation ({error}): delete it, or run evaluate again") from error
    if settings.get("lora_sha256") != hashlib.sha256(lora.read_bytes()).hexdigest():
        return None
    trained = models.get("lora", {})
    types = [name for name in ("upper", "lower", "full", "all") if name in trained]
    rows = [
        (figure.heading, [_cell(figure, found, kind) for kind in types])
        for name, figure in ((name, figure_of(name)) for name in SHOWN_FIGURES)
        if any(trained[kind].get(name) is not None for kind in types)
    ]
    changes = found.get("difference", {})
    return {
        "types": [name if name == "all" else f"{name} body" for name in types],
        "counts": [trained[name]["n"] for name in types],
        "verdicts": [verdict(changes[name]).text if name in changes else "" for name in types],
        "rows": rows,
        "settings": settings,
        "warnings": found.get("warnings", []),
        "left_out": [figure_of(name).label for name in left_out],
    }


def _cell(figure: Figure, found: dict[str, Any], kind: str) -> str:
    """The base's value and the LoRA's with the interval of the change; the better one in bold, unless by chance.

    A distance between sets has no interval: there the better value of ``FEWEST_FOR_SETS`` pictures or more counts.
    """
    base, lora = (found["models"].get(model, {}).get(kind, {}) for model in ("base", "lora"))
    values = {"base": base.get(figure.name), "lora": lora.get(figure.name)}
    shown = {model: figure.written(value) for model, value in values.items()}
    change = found.get("difference", {}).get(kind, {}).get(figure.name)
    ahead = change["better"] if change else None
    if change is None and lora.get("n", 0) >= FEWEST_FOR_SETS:
        ahead = {1: "base", -1: "lora"}.get(better(figure.name, values["base"], values["lora"]))
    if ahead is not None:
        shown[ahead] = f"**{shown[ahead]}**"
    interval = change["ci"] if change else None
    ends = "" if interval is None else f" ({' to '.join(figure.signed(end) for end in interval)})"
    return f"{shown['base']} → {shown['lora']}{ends}"
