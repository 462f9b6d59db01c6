"""What a run of a preset will take, from the rate that another run on the same machine was measured at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def hours(run: Mapping[str, Any], flags: Mapping[str, Any]) -> float:
    """Hours of training with a preset's ``flags``, on the processes of ``run``, which is what its ``run.json`` holds.

    A step of FLUX takes time in proportion to its picture tokens, hence pixels: by its published sizes 63 TFLOP for a
    pair of 512x768 and 141 for one of 768x1152, a ratio of 2.24 for 2.25 times the pixels. Batch, precision and
    checkpointing are taken to cost what they cost in ``run``. Validation and checkpoints are not in it.
    """
    did = run["arguments"]
    pairs = did["train_batch_size"] * did["gradient_accumulation_steps"]
    seconds_per_pixel = run["seconds_per_step"] / (pairs * did["height"] * did["width"])
    asked = flags["train_batch_size"] * flags["gradient_accumulation_steps"] * flags["max_train_steps"]
    return seconds_per_pixel * asked * flags["height"] * flags["width"] / 3600


def forecast(run: Mapping[str, Any], flags: Mapping[str, Any], name: str) -> str:
    """One line on what the preset ``name`` with ``flags`` will take."""
    did, taken = run["arguments"], hours(run, flags)
    pairs = flags["train_batch_size"] * flags["gradient_accumulation_steps"] * flags["max_train_steps"]
    per_pair = run["seconds_per_step"] / (did["train_batch_size"] * did["gradient_accumulation_steps"])
    gpus = run["world_size"]
    return (
        f"full run  about {taken:.1f} h on {'this GPU' if gpus == 1 else f'these {gpus} GPUs'}, {taken * gpus:.1f} GPU "
        f"hours to pay: the preset {name} draws {pairs * gpus:,} pairs at {flags['height']}x{flags['width']}; measured "
        f"here were {per_pair:.2f} s a pair at {did['height']}x{did['width']}\n"
    )
