"""The state of a run on disk: one JSON file for structure and numbers, one safetensors file for tensors. No pickle."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

NAME = "training_state"
_TENSOR = "$tensor"


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``folder``: nested dicts and lists of numbers, strings, None and tensors.

    Floats come back bit for bit, tuples as lists, names that are digits as numbers. Raises ``ValueError`` for anything
    else.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = _encode(state, "", tensors)
    (folder / f"{NAME}.safetensors").write_bytes(save(tensors))
    (folder / f"{NAME}.json").write_text(json.dumps(structure, indent=1) + "\n", "utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """What ``write_state`` has written to ``folder``; tensors are on the CPU. Raises ``ValueError`` for another's."""
    try:
        tensors = load((folder / f"{NAME}.safetensors").read_bytes())
        state = _decode(json.loads((folder / f"{NAME}.json").read_text("utf-8")), tensors)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no readable training state: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{folder / NAME}.json holds no training state")
    return state


def _encode(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()  # safetensors refuses shared memory
        return {_TENSOR: place}
    if isinstance(value, dict):
        dot = "." if place else ""
        return {str(key): _encode(inner, f"{place}{dot}{key}", tensors) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(inner, f"{place}.{number}", tensors) for number, inner in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"training state {place}: a {type(value).__name__} cannot be saved")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    # An optimizer counts its parameters, so names that are numbers were numbers.
    return {int(key) if key.isdecimal() else key: _decode(inner, tensors) for key, inner in value.items()}


def random_state() -> dict[str, Any]:
    """State of this process's generators: Python's, NumPy's, torch's, and those of its GPUs."""
    version, internal, gauss_next = random.getstate()
    drawn: Any = np.random.get_state(legacy=False)
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": {**drawn, "state": {**drawn["state"], "key": drawn["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on where ``random_state`` was called."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


#: Arguments that change nothing about what a run computes, or that other facts of a checkpoint tell apart.
FREE = frozenset(
    "output_dir overwrite_output_dir resume_from_checkpoint allow_changed_arguments checkpointing_steps "
    "checkpoints_total_limit save_every_minutes validation_steps num_validation_images num_inference_steps report_to "
    "logging_steps dataloader_num_workers dataloader_prefetch_factor cache_dir dataroot max_skipped_steps "
    "train_data_list validation_data_list num_train_epochs cache_latents latents_dir lora".split()
)


def changed(before: dict[str, Any], now: dict[str, Any], free: frozenset[str] | None = None) -> list[str]:
    """What differs between two sets of facts, as ``name was x and is y``.

    With ``free`` they are arguments: names in it may differ, and a name that only one of the two has is a flag of
    another version, which does not keep a run from going on. Without it every name counts, and one that is not there
    is None.
    """
    names = sorted(set(before) | set(now)) if free is None else sorted((set(before) & set(now)) - free)
    now = json.loads(json.dumps(now, default=str))  # as facts come back from a checkpoint
    return [
        f"{name} was {before.get(name, 'not known')!r} and is {now.get(name, 'not known')!r}"
        for name in names
        if before.get(name) != now.get(name)
    ]
