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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from diffusers import FluxTransformer2DModel

from deepfashion_training.cli import describe, load_preset
from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.upstream import script as upstream
from training_run import forecast
from training_run.flags import NOT_COMPILED
from training_run.flops import matmul_ceiling
from training_run.forecast import GIB, MeasuredRun
from training_run.hub import subfolder_of_transformer
from training_run.speed import free_memory
from training_run.stopping import Stopping

#: Steps of a measurement; the first ones also start workers, choose kernels, compile and fill the memory.
STEPS, WARM_UP = 6, 2
#: Drawn rows: ten people. A run goes through them again and again.
ROWS = 30
#: Weights of a transformer that a CPU takes steps with in a time that one can wait for, in bytes.
SMALL = 2 * GIB

#: Trains as the arguments say, on what the dataset class reads.
Train = Callable[[argparse.Namespace, Any], None]


def plan(args: argparse.Namespace, script: Any, state: Any, rows: int | None, preset_flags: Mapping[str, str]) -> None:
    """Say what the run of ``script`` will take; of the run itself nothing is done, and nothing stays on the disk.

    ``rows`` is how many there are to train on, where that is known. Raises ``ValueError`` when it does not fit the GPU
    that is here, after the plan for flags that do. With ``--check`` only what would keep the plan from being made. All
    ranks call this.
    """
    steps = forecast.steps_of(args, rows, state.num_processes)
    if args.check:
        return

    def say(line: str) -> None:
        if state.is_main_process:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    with Stopping():  # a signal is an exception here, so that what was measured in is removed
        if is_measured(args, state):
            answer(args, script, state, steps, rows, say)
        else:
            presets = {"own": args.preset, **preset_flags}
            presets.pop("--quick-test", None)
            needed = {flag: load_preset(name).gpu_memory_gib for flag, name in presets.items()}
            asked = {flag: gib for flag, gib in needed.items() if gib}
            trainable = lora_parameters(script, args)
            for line in forecast.estimate(args, steps, rows, trainable, asked, forecast.load_cards()):
                say(line)


def is_measured(args: argparse.Namespace, state: Any) -> bool:
    """Whether steps can be taken here: on a GPU with any model, on a CPU with a small one that lies in a folder."""
    if state.device.type == "cuda":
        return True
    folder = Path(args.pretrained_inpaint_model_name_or_path)
    weights = [path for place in (folder, folder / "transformer") for path in place.glob("*.safetensors")]
    small = bool(weights) and sum(path.stat().st_size for path in weights) < SMALL
    return small and Path(args.pretrained_model_name_or_path).is_dir()


def answer(
    args: argparse.Namespace, script: Any, state: Any, steps: int, rows: int | None, say: Callable[[str], None]
) -> None:
    """Tell ``say``, line by line, what the run will take by measured steps. Raises ``ValueError`` as ``plan`` does."""
    gpu = state.device.type == "cuda"
    name = torch.cuda.get_device_name(state.device) if gpu else "the CPU"
    say(forecast.headline(args, steps, state.num_processes, f"{state.num_processes} x {name}" if gpu else name))
    found = measure_all(args, functools.partial(upstream.train, script), state)
    if not state.is_main_process:
        return
    own, best = found[""], forecast.fastest(found)
    chosen = "" if isinstance(own, MeasuredRun) else best
    if chosen is not None:
        if chosen:
            say(f"memory    does not fit as it is; this is the plan with {chosen}")
        with_flags = argparse.Namespace(**vars(args) | variants(args, fits=False).get(chosen, {}))
        memory = torch.cuda.get_device_properties(state.device).total_memory / GIB if gpu else None
        ceiling = matmul_ceiling(state.device, script.DTYPES[args.mixed_precision])
        result = found[chosen]
        assert isinstance(result, MeasuredRun)  # given: it is the user's own or the fastest of those that ran
        folder = Path(args.output_dir).absolute()
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        device = forecast.Device(name, ceiling, memory)
        for line in forecast.describe(with_flags, result, device, steps, rows, free):
            say(line)
    if gpu and state.num_processes == 1:
        for line in forecast.choice(found):
            say(line)
    else:
        where = "on one GPU alone: CUDA_VISIBLE_DEVICES=0" if gpu else "on a GPU"
        say(f"choose    no other flags were tried: that is done {where}")
    if isinstance(own, str):
        raise ValueError(own)


def lora_parameters(script: Any, args: argparse.Namespace) -> int:
    """Parameters that ``script`` trains of a transformer of FLUX.1-Fill's shape; no memory is taken for any."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**forecast.FLUX_FILL)
    return sum(parameter.numel() for parameter in script.make_trainable(transformer, args))


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
        options = DatasetOptions(resize_mode=args.resize_mode, cache_dir=str(folder / "rows"))
        train(argparse.Namespace(**vars(args) | short), functools.partial(DeepFashionDataset, options=options))
        if not state.is_main_process:
            return None
        run = json.loads((folder / "run" / "run.json").read_text("utf-8"))
        checkpoint = folder / "run" / f"checkpoint-{STEPS}"
        written = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        weights = (folder / "run" / run["weights"]).stat().st_size
    where, hub = args.pretrained_inpaint_model_name_or_path, (args.inpaint_revision, args.cache_dir)
    config = FluxTransformer2DModel.load_config(
        where, subfolder=subfolder_of_transformer(where, *hub), revision=hub[0], cache_dir=hub[1]
    )
    steady = run["last_step_seconds"][WARM_UP:]
    return MeasuredRun(
        statistics.median(steady), len(steady), run.get("peak_gpu_memory_gib"), dict(config), run["world_size"],
        written, weights,
    )  # fmt: skip


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
        offered = [{**single, **quantized}]
        if batch > 1:
            offered.insert(0, single)
        if args.gradient_checkpointing != 1:  # which is all that auto could come to
            offered.insert(0, auto)
    found = {}
    for changes in offered:
        changes = {name: value for name, value in changes.items() if getattr(args, name) != value}
        typed = " ".join(_typed(name, value) for name, value in changes.items())
        if typed:
            found[typed] = changes
    return found


def _typed(name: str, value: Any) -> str:
    return f"--{name}" if value is True else f"--no-{name}" if value is False else f"--{name} {value}"


def measure_all(args: argparse.Namespace, train: Train, state: Any) -> dict[str, MeasuredRun | str]:
    """What steps take with the user's flags, under "", and with the flags of ``variants``, under what is typed.

    A text says why it did not run. The user's own flags may fail for memory only, anything else is raised. Other flags
    are tried on one GPU alone: where there are several, one that fails would leave the others waiting. Empty on all
    ranks but the main one.
    """
    found: dict[str, MeasuredRun | str] = {}
    try:
        if (own := measure(args, train, state)) is None:
            return found
        found[""] = own
    except Exception as error:
        if state.num_processes > 1 or not does_not_fit(error):
            raise
        found[""] = str(error)
    if state.device.type != "cuda" or state.num_processes > 1:
        return found
    fits = isinstance(found[""], MeasuredRun)
    for typed, changes in variants(args, fits).items():
        free_memory()
        try:
            result = measure(argparse.Namespace(**vars(args) | changes), train, state)
            assert result is not None  # given: there is one process
            found[typed] = result
        except Exception as error:  # of flags that the user has not given: told in the plan, which goes on
            found[typed] = "does not fit" if does_not_fit(error) else describe(error)
        if not fits and isinstance(found[typed], MeasuredRun):
            break
    free_memory()
    return found
