"""Whether what a checkpoint holds fits the run that is to continue from it: a stranger may have written and sealed it.

torch takes an optimizer's state as it comes, and its kernels read past the end of a tensor that is too small.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from training_run import bases
from training_run.checkpoints import step_of
from training_run.optimizers import Muon

#: How many numbers the Mersenne Twister of NumPy holds; it reads on from a place among them and does not check it.
TWISTER = 624


def check(run: Any, checkpoint: Path, saved: dict[str, Any]) -> None:
    """Raise ``ValueError``, one line, unless ``checkpoint`` and its state ``saved`` fit ``run``. Changes nothing.

    Checked are the entries of the state with their types and shapes, and that the base is the one that the checkpoint
    was trained on, which ``--allow_changed_arguments`` lets pass with a warning.
    """
    for misfit in _misfits(run, checkpoint, saved):
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: {misfit}; continue from another checkpoint")
    bases.refuse_other(saved.get("base"), run.base_facts, checkpoint, run.args.allow_changed_arguments)


def load_transformer(model: torch.nn.Module, checkpoint: Path) -> None:
    """Put the weights that ``--train_base_model`` has saved into ``model``; ``ValueError`` where the two differ."""
    weights = {name: each for file in sorted(checkpoint.glob("transformer/*.safetensors"))
               for name, each in load_file(file).items()}  # fmt: skip
    shapes, there = ({name: each.shape for name, each in part.items()} for part in (model.state_dict(), weights))
    if wrong := [name for name in shapes | there if shapes.get(name) != there.get(name)]:
        raise ValueError(f"{checkpoint} holds another transformer: {wrong[0]} and {len(wrong) - 1} others")
    model.load_state_dict(weights)


def _misfits(run: Any, checkpoint: Path, saved: dict[str, Any]) -> Iterator[str]:
    """What does not fit, a phrase each; only the first is to be trusted, as later checks build on earlier ones."""
    for name in ("step", "skipped_steps"):
        if type(saved.get(name)) is not int or saved[name] < 0:
            yield f"its {name} is no number from 0 up"
    if step_of(checkpoint) not in (None, saved["step"]):
        yield f"the state in it is of step {saved['step']}"
    if type(saved.get("moved")) is not bool:
        yield "its state does not say whether it has moved"
    if type(saved.get("scaler_skips", 0)) is not int:  # checkpoints of earlier versions have none
        yield "its scaler_skips is no number"
    yield from _misfits_of_ranks(saved, run.unlogged)
    for name in run.stateful():
        if not isinstance(saved.get(name), dict):
            yield f"its state has no {name}"
    yield from _misfits_of_groups(run.optimizer, saved["optimizer"])
    yield from _misfits_of_moments(run.optimizer, saved["optimizer"])
    yield from _misfits_of_schedule(run.lr_scheduler, saved["lr_scheduler"], saved["step"])
    if "scaler" in run.stateful():
        for name, value in run.accelerator.scaler.state_dict().items():
            if not _is_number(saved["scaler"].get(name)) or (value > 0 and not 0 < saved["scaler"][name] < math.inf):
                yield f"its scaler has no {name} that fits"


def _misfits_of_ranks(saved: dict[str, Any], unlogged: torch.Tensor) -> Iterator[str]:
    if len(saved["ranks"]) != saved["processes"]:
        yield f"it has states of {len(saved['ranks'])} processes, and was written by {saved['processes']}"
    for number, rank in enumerate(saved["ranks"]):
        losses = rank.get("unlogged") if isinstance(rank, dict) else None
        if not _is_floats(losses, unlogged.shape):
            yield f"its process {number} has no losses that fit"
        try:
            _try_random_state(rank["random"])
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
            yield f"its process {number} has no random state that fits ({type(error).__name__})"


def _try_random_state(state: Any) -> None:
    """Give ``state`` of ``state.random_state`` to generators that nothing else uses: they check most of it."""
    version, internal, following = state["python"]
    random.Random().setstate((version, tuple(internal), following))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    numbers = all(each is None or type(each) is float for each in (following, gauss))
    if not numbers or not 0 <= position <= TWISTER or has_gauss not in (0, 1):
        raise ValueError("a generator's place is outside of its numbers")
    np.random.RandomState().set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.Generator().set_state(state["torch"])
    on_gpus = state["cuda"]
    if on_gpus and len(on_gpus) == torch.cuda.device_count():
        for each in on_gpus:
            torch.Generator("cuda").set_state(each)


def _misfits_of_groups(optimizer: Any, saved: dict[str, Any]) -> Iterator[str]:
    """What does not fit of an optimizer's settings. Names that other versions of torch know may be missing."""
    own, groups = optimizer.state_dict()["param_groups"], saved.get("param_groups")
    if not isinstance(groups, list) or len(groups) != len(own) or not all(isinstance(each, dict) for each in groups):
        yield f"its optimizer has no {len(own)} groups of parameters"
    for group, fresh in zip(groups or [], own, strict=True):
        if group.get("params") != fresh["params"]:
            yield f"its optimizer has other parameters than the {len(fresh['params'])} of this run"
        for name, value in fresh.items():
            there = group.get(name, value if value is None or isinstance(value, bool) else ...)
            if name in ("fused", "foreach"):  # how it is computed, by the device
                fits = there is None or isinstance(there, bool)
            elif value is None or isinstance(value, bool):
                fits = there is value
            elif _is_number(value):
                fits = _is_number(there)
            else:
                fits = isinstance(there, list) and len(there) == len(value)
                fits = fits and (name == "params" or all(map(_is_number, there)))
            if not fits:
                yield f"its optimizer has no {name} that fits"


def _misfits_of_moments(optimizer: Any, saved: dict[str, Any]) -> Iterator[str]:
    """What does not fit of an optimizer's tensors. Prodigy and 8-bit AdamW keep others, and load them with checks."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    by_muon = [group.get("is_muon", False) for group in optimizer.param_groups for _ in group["params"]]
    inner = getattr(optimizer, "optimizer", optimizer)
    states, plain = saved.get("state"), isinstance(inner, (torch.optim.AdamW, Muon))
    if not isinstance(states, dict):
        yield "its optimizer has no state"
    for number, state in (states or {}).items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(state, dict):
            yield f"its optimizer has a state of {number!r}, which is no parameter"
        shapes = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameters[number].shape) | {"step": torch.Size()}
        if by_muon[number]:
            shapes = {"momentum_buffer": parameters[number].shape}
        if plain and state and set(state) != set(shapes):
            yield f"its optimizer has another state of parameter {number} than {', '.join(sorted(shapes))}"
        for name, tensor in state.items() if plain else ():
            if not _is_floats(tensor, shapes[name]):
                yield f"its optimizer's {name} of parameter {number} is no {list(shapes[name])} of floats"


def _misfits_of_schedule(scheduler: Any, saved: dict[str, Any], step: int) -> Iterator[str]:
    """What does not fit of a learning rate's schedule, whose ``load_state_dict`` sets attributes of any name."""
    fresh = scheduler.state_dict()
    for name, value in fresh.items():
        there = saved.get(name, value if isinstance(value, bool) else ...)  # marks that came and went with versions
        if isinstance(value, bool):
            fits = isinstance(there, bool)
        elif isinstance(value, list):
            fits = isinstance(there, list) and len(there) == len(value)
            fits = fits and all(
                new is None if old is None else _is_number(new) for old, new in zip(value, there, strict=True)
            )
        else:
            fits = type(there) is type(value) and there >= 0
        if not fits:
            yield f"its lr_scheduler has no {name} that fits"
    if strange := sorted(str(name) for name in set(saved) - set(fresh) if hasattr(scheduler, str(name))):
        yield f"its lr_scheduler has a {strange[0]}, which is none of its"
    if saved["last_epoch"] > step:
        yield f"its lr_scheduler is at step {saved['last_epoch']}, and it is at step {step}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _is_floats(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == shape and value.is_floating_point()
