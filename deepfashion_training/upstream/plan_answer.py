"""The answer to ``--plan``: measured where there is a GPU or a small model, else worked out from the table."""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from deepfashion_training.upstream.plan_trial import measure_all, variants
from training_run.flops import matmul_ceiling
from training_run.forecast import (
    FLUX_FILL,
    GIB,
    Device,
    Measured,
    choice,
    describe,
    estimate,
    fastest,
    headline,
    load_cards,
    steps_of,
)

#: Weights of a transformer that a CPU takes steps with in a time that one can wait for, in bytes.
SMALL = 2 * GIB


def is_measured(args: argparse.Namespace, state: Any) -> bool:
    """Whether steps can be taken here: on a GPU with any model, on a CPU with a small one that lies in a folder."""
    if state.device.type == "cuda":
        return True
    folder = Path(args.pretrained_inpaint_model_name_or_path)
    weights = [path for place in (folder, folder / "transformer") for path in place.glob("*.safetensors")]
    small = bool(weights) and sum(path.stat().st_size for path in weights) < SMALL
    return small and Path(args.pretrained_model_name_or_path).is_dir()


def answer(
    args: argparse.Namespace,
    script: Any,
    state: Any,
    rows: int | None,
    needed: Mapping[str, float],
    say: Callable[[str], None],
) -> None:
    """Tell the main process's ``say``, line by line, what the run of ``script`` will take. All ranks call this.

    ``rows`` is how many there are to train on, where that is known; ``needed`` as ``estimate`` takes it. Raises
    ``ValueError`` when the run does not fit the GPU, after the plan for flags that do.
    """
    from deepfashion_training.upstream import script as upstream

    steps = steps_of(args, rows, state.num_processes)
    if not is_measured(args, state):
        trainable = lora_parameters(script, args)
        for line in estimate(args, steps, rows, trainable, needed, load_cards()):
            say(line)
        return
    gpu = state.device.type == "cuda"
    name = torch.cuda.get_device_name(state.device) if gpu else "the CPU"
    say(headline(args, steps, state.num_processes, f"{state.num_processes} x {name}" if gpu else name))
    found = measure_all(args, functools.partial(upstream.train, script), state)
    if not state.is_main_process:
        return
    own, best = found[""], fastest(found)
    shown = "" if isinstance(own, Measured) else best
    if shown is not None:
        if shown:
            say(f"memory    does not fit as it is; this is the plan with {shown}")
        with_flags = argparse.Namespace(**{**vars(args), **variants(args, False).get(shown, {})})
        memory = torch.cuda.get_device_properties(state.device).total_memory / GIB if gpu else None
        device = Device(name, matmul_ceiling(state.device, script.DTYPES[args.mixed_precision]), memory)
        result = found[shown]
        assert isinstance(result, Measured)  # given: it is the user's own or the fastest of those that ran
        for line in describe(with_flags, result, device, steps, rows, free_bytes(Path(args.output_dir))):
            say(line)
    if gpu and state.num_processes == 1:
        for line in choice(found):
            say(line)
    else:
        where = "on one GPU alone: CUDA_VISIBLE_DEVICES=0" if gpu else "on a GPU"
        say(f"choose    no other flags were tried: that is done {where}")
    if isinstance(own, str):
        raise ValueError(own)


def free_bytes(folder: Path) -> int:
    """What is free on the disk that ``folder`` will be on."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def lora_parameters(script: Any, args: argparse.Namespace) -> int:
    """Parameters that ``script`` trains of a transformer of FLUX.1-Fill's shape; no memory is taken for any."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**FLUX_FILL)
    return sum(parameter.numel() for parameter in script.make_trainable(transformer, args))
