"""The answer to ``--plan``: some steps of the run, really taken where that is possible, else an estimate by a table.

Steps are taken with the user's flags and, on one GPU, with others that may do better.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from diffusers import FluxTransformer2DModel

from deepfashion_training.cli import describe, load_preset
from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset
from deepfashion_training.embedded import is_embedded
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.upstream import script as upstream
from training_run import forecast
from training_run.flags import NOT_COMPILED
from training_run.forecast import GIB, MeasuredRun
from training_run.speed import free_memory
from training_run.stopping import Stopping

#: Steps of a measurement; the first ones also start workers, choose kernels, compile and fill the memory.
STEPS, WARM_UP = 6, 2
#: Drawn rows: ten people. A run goes through them again and again.
ROWS = 30

#: Trains as the arguments say, on what the dataset class reads.
Train = Callable[[argparse.Namespace, Any], None]


def is_measured(args: argparse.Namespace, state: Any) -> bool:
    """Whether steps can be taken here: on a GPU with any model, on a CPU with the small one."""
    return state.device.type == "cuda" or is_embedded(args.pretrained_inpaint_model_name_or_path)


def plan(args: argparse.Namespace, script: Any, state: Any) -> None:
    """Say what the run of ``script`` will take; of the run itself nothing is done, and nothing stays on the disk.

    Raises ``ValueError`` when it does not fit the GPU that is here, after the plan for flags that do. All ranks call
    this.
    """

    def say(line: str) -> None:
        if state.is_main_process:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    if is_measured(args, state):
        with Stopping():  # a signal is an exception here, so that what was measured in is removed
            answer(args, script, state, say)
        return
    for line in forecast.estimate(args, lora_parameters(script, args), load_preset(args.preset).gpu_memory_gib):
        say(line)


def lora_parameters(script: Any, args: argparse.Namespace) -> int:
    """Parameters that ``script`` trains of a transformer of FLUX.1-Fill's shape; no memory is taken for any."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**forecast.FLUX_FILL)
    return sum(parameter.numel() for parameter in script.make_trainable(transformer, args))


def answer(args: argparse.Namespace, script: Any, state: Any, say: Callable[[str], None]) -> None:
    """Tell ``say``, line by line, what the run will take by measured steps. Raises ``ValueError`` as ``plan`` does."""
    gpu = state.device.type == "cuda"
    name = torch.cuda.get_device_name(state.device) if gpu else "the CPU"
    say(forecast.headline(args, state.num_processes, f"{state.num_processes} x {name}" if gpu else name))
    tried = measure_all(args, functools.partial(upstream.train, script), state)
    if not tried:
        return
    ran = {flags: run for flags, run in tried.items() if isinstance(run, MeasuredRun)}
    best = min(ran, key=lambda flags: ran[flags].seconds_per_step, default=None)
    chosen = "" if "" in ran else best
    if chosen is not None:
        if chosen:
            say(f"memory    does not fit as it is; this is the plan with {chosen}")
        memory = torch.cuda.get_device_properties(state.device).total_memory / GIB if gpu else None
        folder = Path(args.output_dir).absolute()
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        with_flags = argparse.Namespace(**vars(args) | variants(args, fits=False).get(chosen, {}))
        for line in forecast.describe(with_flags, ran[chosen], state.num_processes, memory, free):
            say(line)
    for flags, run in tried.items():
        shown = flags or "the flags as they are"
        if isinstance(run, str):
            say(f"tried     {shown}: {run if flags else 'do not fit'}")
        elif flags:
            say(f"tried     {shown}: {run.seconds_per_step:.3g} s a step, {run.peak_gib:.1f} GiB")
    if not gpu or state.num_processes > 1:
        say("choose    other flags are tried on one GPU alone: CUDA_VISIBLE_DEVICES=0")
    elif best is None:
        say("choose    nothing that was tried fits this GPU")
    else:
        say(f"choose    {f'add {best}' if best else 'the flags as they are'}")
    if isinstance(own := tried[""], str):
        raise ValueError(own)


def measure_all(args: argparse.Namespace, train: Train, state: Any) -> dict[str, MeasuredRun | str]:
    """What steps take with the user's flags, under "", and with the flags of ``variants``, under what is typed.

    A text says why it did not run. The user's own flags may fail for memory only, anything else is raised. Other flags
    are tried on one GPU alone: where there are several, one that fails would leave the others waiting. Empty on all
    ranks but the main one.
    """
    tried: dict[str, MeasuredRun | str] = {}
    alone = state.num_processes == 1
    try:
        if (own := measure(args, train, state)) is None:
            return tried
        tried[""] = own
    except Exception as error:
        if not alone or not does_not_fit(error):
            raise
        tried[""] = str(error)
    fits = isinstance(tried[""], MeasuredRun)
    for typed, changes in variants(args, fits).items() if alone and state.device.type == "cuda" else ():
        free_memory()
        try:
            run = measure(argparse.Namespace(**vars(args) | changes), train, state)
            assert run is not None  # given: there is one process
            tried[typed] = run
        except Exception as error:  # of flags that the user has not given: told in the plan, which goes on
            tried[typed] = "does not fit" if does_not_fit(error) else describe(error)
        if not fits and isinstance(tried[typed], MeasuredRun):
            break
    return tried


def does_not_fit(error: BaseException) -> bool:
    """Whether ``error`` is the trainer's way to say that a GPU's memory was too small."""
    return isinstance(error, torch.OutOfMemoryError) or isinstance(error.__cause__, torch.OutOfMemoryError)


def variants(args: argparse.Namespace, fits: bool) -> dict[str, dict[str, Any]]:
    """Flags to try beside the user's on one GPU, as typed, with what they set. A step keeps its number of pairs.

    Where the run ``fits``: those that may make it faster. Else those that make it smaller, the mildest first.
    """
    auto: dict[str, Any] = {"gradient_checkpointing": "auto"}
    batch, passes = args.train_batch_size, args.gradient_accumulation_steps
    if fits:
        quick = {**auto, "compile_blocks": args.quantize_base not in NOT_COMPILED}
        offered = [auto, quick]
        if passes % 2 == 0:
            offered.append({**quick, "train_batch_size": 2 * batch, "gradient_accumulation_steps": passes // 2})
    else:
        single = {**auto, "train_batch_size": 1, "gradient_accumulation_steps": batch * passes}
        quantized = {"use_8bit_adam": args.optimizer == "adamw", "quantize_base": "nf4", "compile_blocks": False}
        offered = [auto, single, {**single, **quantized}]
    found = {}
    for wanted in offered:
        changes = {name: value for name, value in wanted.items() if getattr(args, name) != value}
        if changes:
            found[" ".join(_typed(name, value) for name, value in changes.items())] = changes
    return found


def _typed(name: str, value: Any) -> str:
    return f"--{name}" if value is True else f"--no-{name}" if value is False else f"--{name} {value}"


def measure(args: argparse.Namespace, train: Train, state: Any) -> MeasuredRun | None:
    """Train for some steps as ``args`` say, on drawn people of their size, and keep nothing. All ranks call this.

    None on all ranks but the main one: the trainer leaves them with no way to talk to each other. Raises what ``train``
    raises, ``ValueError`` where the run does not fit.
    """
    if state.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(prefix="plan-") as own:
        (place,) = broadcast_object_list([own])
        folder = Path(place)
        with state.main_process_first():
            if not (folder / "wardrobe").exists():  # people need 64 pixels
                write_wardrobe(folder / "wardrobe", rows=ROWS, size=(max(64, args.height), max(64, args.width)))
        short = {
            "max_train_steps": STEPS, "lr_warmup_steps": 0, "logging_steps": 1, "report_to": "none",
            "checkpointing_steps": STEPS, "checkpoints_total_limit": None, "save_every_minutes": 0.0,
            "validation_steps": 0, "resume_from_checkpoint": None, "latents_dir": None,
            "dataroot": str(folder / "wardrobe"), "output_dir": str(folder / "run"), "overwrite_output_dir": False,
        }  # fmt: skip
        options = DatasetOptions(resize_mode=args.resize_mode, cache_dir=str(folder / "rows"), ledger_dir=str(folder))
        train(argparse.Namespace(**vars(args) | short), functools.partial(DeepFashionDataset, options=options))
        if not state.is_main_process:
            return None
        run = json.loads((folder / "run" / "run.json").read_text("utf-8"))
        checkpoint = folder / "run" / f"checkpoint-{STEPS}"
        written = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        weights = (folder / "run" / run["weights"]).stat().st_size
    steady = statistics.median(run["last_step_seconds"][WARM_UP:])
    return MeasuredRun(steady, run.get("peak_gpu_memory_gib"), written, weights)
