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
_TENSOR, _ITEMS = "$tensor", "$items"


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``folder``: nested dicts and lists of numbers, strings, None and tensors.

    Floats come back bit for bit, tuples as lists. Raises ``ValueError`` for anything else.
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
        if place in tensors:
            raise ValueError(f"training state {place}: two tensors have this name")
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()  # safetensors refuses shared memory
        return {_TENSOR: place}
    if isinstance(value, dict):
        coded = [
            (key, _encode(inner, f"{place}.{key}" if place else str(key), tensors)) for key, inner in value.items()
        ]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(coded)
        return {_ITEMS: [list(item) for item in coded]}
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
    if _ITEMS in value:
        return {key: _decode(inner, tensors) for key, inner in value[_ITEMS]}
    return {key: _decode(inner, tensors) for key, inner in value.items()}


def random_state() -> dict[str, Any]:
    """State of this process's generators: Python's, NumPy's, torch's, and those of its GPUs."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on where ``random_state`` was called."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


#: Arguments that change nothing about what a run computes.
FREE = frozenset(
    "output_dir overwrite_output_dir resume_from_checkpoint allow_changed_arguments checkpointing_steps "
    "checkpoints_total_limit save_every_minutes validation_steps num_validation_images num_inference_steps report_to "
    "logging_steps dataloader_num_workers dataloader_prefetch_factor cache_dir dataroot max_skipped_steps "
    "train_data_list validation_data_list num_train_epochs cache_latents latents_dir".split()
)


def changed(before: dict[str, Any], now: dict[str, Any], free: frozenset[str] | None = None) -> list[str]:
    """What differs between two sets of facts, as ``name was, now is``.

    With ``free`` they are arguments: names in it may differ, and a name that only one of the two has is a flag of
    another version, which does not keep a run from going on. Without it every name has to be on both sides.
    """
    names = sorted(set(before) | set(now)) if free is None else sorted((set(before) & set(now)) - free)
    now = json.loads(json.dumps(now, default=str))  # as facts come back from a checkpoint
    differences = []
    for name in names:
        was = repr(before[name]) if name in before else "not known"
        here = repr(now[name]) if name in now else "not known"
        if was != here and before.get(name, ...) != now.get(name, ...):  # 1 is 1.0, and nan is nan
            differences.append(f"{name} was {was} and is {here}")
    return differences
