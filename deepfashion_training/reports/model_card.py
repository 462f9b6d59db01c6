"""The model card of a trained LoRA: ``README.md`` of the output directory, as the Hub shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

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
    "guidance_scale",
    "seed",
)


def write_model_card(output_dir: Path, transformer_subfolder: str | None = None) -> Path:
    """Write ``README.md`` from the ``run.json`` and the validation pictures of ``output_dir``; returns its path.

    ``transformer_subfolder`` is where the trained transformer's repository keeps it, None for its root.

    Raises ``FileNotFoundError`` when there is no ``run.json``.
    """
    run: dict[str, Any] = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
    arguments = run["arguments"]
    pictures = sorted((output_dir / "validation").glob("step-*.png"), key=lambda path: int(path.stem.split("-")[1]))
    environment = Environment(
        loader=PackageLoader("deepfashion_training.reports"), undefined=StrictUndefined, trim_blocks=True
    )
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
    )
    path = output_dir / "README.md"
    path.write_text(text, encoding="utf-8")
    return path
