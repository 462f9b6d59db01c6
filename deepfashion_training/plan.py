"""The answer to ``--plan``: some steps of the run, really taken where that is possible, else an estimate by a table.

Steps are taken with the user's flags and, on one GPU, with others that may do better. ``fit_to_gpu`` makes the run of a
preset with smaller steps fit the GPU that is here.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from deepfashion_training.cli import describe, load_cards
from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset
from deepfashion_training.embedded import is_embedded
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.models import access
from deepfashion_training.upstream import script as upstream
from training_run.bases import folder_of
from training_run.checkpoints import newest_whole
from training_run.flags import NOT_COMPILED
from training_run.flops import FLUX_FILL, duration, recomputed_flops, useful_flops
from training_run.guards import gpu_fault, is_out_of_memory
from training_run.hub import transformer_in
from training_run.memory import T5_BYTES, MakeTrainable, StepMemory, predict, state_bytes
from training_run.speed import FILL, free_memory, free_to_use
from training_run.state import FREE, read_state
from training_run.stopping import Stopping

GIB = 2**30
#: Steps of a measurement; the first ones also start workers, choose kernels, compile and fill the memory.
STEPS, WARM_UP = 6, 2
#: Drawn rows: ten people. A run goes through them again and again.
ROWS = 30

#: What CUDA's context takes of a card that nothing else uses, with the kernels of PyTorch, cuBLAS and cuDNN (estimate).
CONTEXT_GIB = 0.5
#: Flags that make a run smaller, one step beside those before it.
Steps = Sequence[dict[str, Any]]

#: Trains as the arguments say, on what the dataset class reads.
Train = Callable[[argparse.Namespace, Any], None]


@dataclass(frozen=True)
class MeasuredRun:
    """What some steps of a run took."""

    seconds_per_step: float
    peak_gib: float | None  # of a GPU's memory; None without one
    checkpoint_bytes: int
    weights_bytes: int  # of what the run leaves in the end


def is_measured(args: argparse.Namespace, state: Any) -> bool:
    """Whether steps can be taken here: on a GPU with any model, on a CPU with the small one."""
    return state.device.type == "cuda" or is_embedded(args.pretrained_inpaint_model_name_or_path)


def plan(args: argparse.Namespace, script: Any, state: Any, steps: Steps = ()) -> None:
    """Say what the run of ``script`` will take; of the run itself nothing is done, and nothing stays on the disk.

    ``steps`` make it smaller for cards that it does not fit. Raises ``ValueError`` when it does not fit the GPU that is
    here, after the plan for flags that do, and for a GPU that PyTorch cannot use. All ranks call this.
    """
    if is_measured(args, state):
        access.check_models(
            args.pretrained_model_name_or_path,
            args.pretrained_inpaint_model_name_or_path,
            revision=args.revision,
            inpaint_revision=args.inpaint_revision,
            cache_dir=args.cache_dir,
        )
        lines = answer(args, script, state)
    else:
        if fault := gpu_fault():
            raise ValueError(fault)
        lines = iter(estimated_lines(args, script.make_trainable, steps))
    with Stopping():  # a signal is an exception here, so that what was measured in is removed
        for line in lines:
            state.print(line, flush=True)


def answer(args: argparse.Namespace, script: Any, state: Any) -> Iterator[str]:
    """What the run will take by measured steps, line by line. Raises ``ValueError`` as ``plan`` does."""
    gpu = state.device.type == "cuda"
    name = torch.cuda.get_device_name(state.device) if gpu else "the CPU"
    yield headline(args, state.num_processes, f"{state.num_processes} x {name}" if gpu else name)
    tried = measure_all(args, functools.partial(upstream.train, script), state)
    if not tried:
        return
    ran = {flags: run for flags, run in tried.items() if isinstance(run, MeasuredRun)}
    best = min(ran, key=lambda flags: ran[flags].seconds_per_step, default=None)
    chosen = "" if "" in ran else best
    if chosen is not None:
        if chosen:
            yield f"memory    does not fit as it is; this is the plan with {chosen}"
        memory = torch.cuda.get_device_properties(state.device).total_memory / GIB if gpu else None
        folder = Path(args.output_dir).absolute()
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        with_flags = argparse.Namespace(**vars(args) | variants(args, fits=False).get(chosen, {}))
        yield from measured_lines(with_flags, ran[chosen], state.num_processes, memory, free)
    for flags, run in tried.items():
        shown = flags or "the flags as they are"
        if isinstance(run, str):
            yield f"tried     {shown}: {run if flags else 'do not fit'}"
        elif flags:
            yield f"tried     {shown}: {run.seconds_per_step:.3g} s a step, {run.peak_gib:.1f} GiB"
    if not gpu or state.num_processes > 1:
        yield "choose    other flags are tried on one GPU alone: CUDA_VISIBLE_DEVICES=0"
    elif best is None:
        yield "choose    nothing that was tried fits this GPU"
    else:
        yield f"choose    {f'add {best}' if best else 'the flags as they are'}"
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
        if not alone or not is_out_of_memory(error):
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
            tried[typed] = "does not fit" if is_out_of_memory(error) else describe(error)
        if not fits and isinstance(tried[typed], MeasuredRun):
            break
    return tried


def variants(args: argparse.Namespace, fits: bool) -> dict[str, dict[str, Any]]:
    """Flags to try beside the user's on one GPU, as typed, with what they set. A step keeps its number of pairs.

    Where the run ``fits``: those that may make it faster. Else those that make it smaller, the mildest first.
    """
    auto: dict[str, Any] = {"gradient_checkpointing": "auto"}
    smaller = [{**auto, **batch} for batch in smaller_batches(args)]
    if fits:
        auto["compile_blocks"] = args.quantize_base not in NOT_COMPILED
        offered = [{"gradient_checkpointing": "auto"}, *({**auto, **batch} for batch in [{}, *smaller])]
        if args.gradient_accumulation_steps % 2 == 0:
            offered.append({**auto, **_batch(args, 2 * args.train_batch_size)})
    else:
        quantized = {"use_8bit_adam": args.optimizer == "adamw", "quantize_base": "nf4", "compile_blocks": False}
        offered = [auto, *smaller, {**auto, **_batch(args, 1), **quantized}]
    found = {}
    for wanted in offered:
        changes = {name: value for name, value in wanted.items() if getattr(args, name) != value}
        if changes:
            found[" ".join(_typed(name, value) for name, value in changes.items())] = changes
    return found


def _batch(args: argparse.Namespace, pairs: int) -> dict[str, Any]:
    """Flags for so many pairs at a time, with as many pairs a step as ``args`` have."""
    whole = args.train_batch_size * args.gradient_accumulation_steps
    return {"train_batch_size": pairs, "gradient_accumulation_steps": whole // pairs}


def smaller_batches(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Flags for half the pairs at a time, a quarter and so on down to one, a step keeping its number of pairs."""
    found, pairs = [], args.train_batch_size
    while pairs > 1:
        pairs = pairs // 2 if pairs % 2 == 0 else 1
        found.append(_batch(args, pairs))
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


# ---- a run that fits the GPU


def fit(
    args: argparse.Namespace, steps: Steps, budgets: Sequence[float], make_trainable: MakeTrainable, shape: Any = None
) -> list[tuple[dict[str, Any], StepMemory, int | None]]:
    """For each of ``budgets``, in bytes, the first of ``steps`` with which a step fits, if any is needed.

    That is the flags of it and of those before, the memory, and how many blocks are recomputed: None where nothing
    fits, with all steps taken. ``shape`` is the transformer's configuration.
    """

    @functools.cache
    def way(count: int) -> tuple[dict[str, Any], StepMemory]:
        changes = {name: value for step in steps[:count] for name, value in step.items()}
        own = argparse.Namespace(**vars(args) | changes)
        return changes, predict(own, make_trainable, shape) if shape else predict(own, make_trainable)

    found = []
    for budget in budgets:
        for count in range(len(steps) + 1):
            changes, memory = way(count)
            recomputed = memory.recomputed(args.gradient_checkpointing, budget)
            if recomputed is not None:
                break
        found.append((changes, memory, recomputed))
    return found


def fit_line(
    args: argparse.Namespace, changes: dict[str, Any], memory: StepMemory, recomputed: int | None, free: float
) -> str:
    """What a step of ``fit`` takes of ``free`` bytes, or how much is missing."""
    own = argparse.Namespace(**vars(args) | changes)
    size_of_half = f"{own.height}x{own.width}" + (", cached latents" if changes.get("cache_latents") else "")
    if recomputed is None:
        least = memory.least(args.gradient_checkpointing)
        missing = f"{(least / FILL - free) / GIB:.1f} GiB are missing"
        return f"{size_of_half}: {least / GIB:.1f} GiB at least and {free / GIB:.1f} free (simulated): {missing}"
    peak = f"{memory.peak(recomputed) / GIB:.1f} of {free / GIB:.1f} GiB free (simulated)"
    is_flux = memory.blocks == (FLUX_FILL["num_layers"], FLUX_FILL["num_single_layers"])
    in_memory = "; T5 runs in main memory" if is_flux and FILL * free < T5_BYTES else ""
    return f"{size_of_half}: {peak}, {recomputed} of {sum(memory.blocks)} blocks recomputed{in_memory}"


def free_on_gpu(state: Any) -> int | None:
    """Bytes that this process may fill of its GPU; None without one."""
    return free_to_use(state.device) if state.device.type == "cuda" else None


def transformer_shape(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration of the transformer; of one that is on the Hub it is FLUX.1-Fill's."""
    folder = folder_of(args.pretrained_inpaint_model_name_or_path, args.inpaint_revision, args.cache_dir)
    config = transformer_in(folder) / "config.json" if folder else None
    found = json.loads(config.read_text("utf-8")) if config and config.is_file() else FLUX_FILL
    return {name: found.get(name, value) for name, value in FLUX_FILL.items()}


def fit_to_gpu(args: argparse.Namespace, steps: Steps, make_trainable: MakeTrainable, state: Any) -> str | None:
    """Change ``args`` by as many of ``steps`` as it takes to fit the GPU with the least free memory, and say it.

    A run that is continued keeps what its checkpoint has of flags that change the result. All ranks call this and
    decide alike; None on a CPU, where nothing is changed.
    """
    free = free_on_gpu(state)
    if free is None:
        return None
    least_free = min(gather_object([free]))
    decided: list[Any] = [{}, None]
    if state.is_main_process:
        asked = args.resume_from_checkpoint
        checkpoint = newest_whole(Path(args.output_dir)) if asked == "latest" else asked and Path(asked)
        before = read_state(checkpoint)["arguments"] if checkpoint else {}
        kept = {name: before[name] for step in steps for name in step if name not in FREE and name in before}
        own = argparse.Namespace(**vars(args) | kept)
        left = [step for step in steps if not step.keys() & kept.keys()]
        ((changes, memory, recomputed),) = fit(own, left, [FILL * least_free], make_trainable, transformer_shape(args))
        line = fit_line(own, changes, memory, recomputed, least_free)
        decided = [kept | changes, line + ("; the size is that of its checkpoint" if kept else "")]
    changes, line = broadcast_object_list(decided)
    vars(args).update(changes, fitted=line)
    return f"{Path(args.preset).stem} on this GPU: {line}"


def card_lines(args: argparse.Namespace, steps: Steps, make_trainable: MakeTrainable) -> list[str]:
    """What ``fit`` finds for each card of ``cards.yaml``."""
    cards = load_cards()
    found = fit(args, steps, [FILL * free_on(card) for card in cards], make_trainable, transformer_shape(args))
    return [f"{card['card']:16}{fit_line(args, *way, free_on(card))}" for card, way in zip(cards, found, strict=True)]


def say_what_fits(args: argparse.Namespace, script: Any, state: Any, steps: Steps) -> None:
    """Take as many of ``steps`` as the GPU needs, and say it; without one ``--check`` says what they do for others."""
    line = fit_to_gpu(args, steps, script.make_trainable, state)
    lines = [line] if line else card_lines(args, steps, script.make_trainable) if args.check else []
    state.print("\n".join(lines), end="\n" * bool(lines), file=sys.stderr)


def free_on(card: dict[str, Any]) -> float:
    """Bytes that are free on a card of ``cards.yaml`` when a run begins."""
    return float((card["memory_gib"] - CONTEXT_GIB) * GIB)


# ---- what is said


def pairs_per_step(args: argparse.Namespace, processes: int = 1) -> int:
    """Pairs that a step sees, on all processes."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * processes)


def useful_tflop(args: argparse.Namespace) -> float:
    """Useful work of a step of FLUX.1-Fill on one GPU, in TFLOP; picture tokens are 16x16 pixels each."""
    tokens = (args.height // 16) * (2 * args.width // 16)
    flops = useful_flops(FLUX_FILL, tokens, args.max_sequence_length, args.lora_rank)
    return flops.step * pairs_per_step(args) / 1e12


def executed_tflop(args: argparse.Namespace, recomputed: int) -> float:
    """What a step of FLUX.1-Fill multiplies on one GPU with so many recomputed blocks, in TFLOP.

    With ``--prior_loss_weight`` at most: as if all its rows were of ``--prior_cloth_types``.
    """
    picture, text = (args.height // 16) * (2 * args.width // 16), args.max_sequence_length
    again = recomputed_flops(FLUX_FILL, picture + text, args.lora_rank, recomputed, pairs_per_step(args))
    if args.prior_loss_weight:
        again += useful_flops(FLUX_FILL, picture, text, 0, pairs_per_step(args)).forward
    return useful_tflop(args) + again / 1e12


def checkpoints_kept(args: argparse.Namespace, seconds_per_step: float) -> int:
    """Most checkpoints that lie in the output directory at one time: one more than the limit, while it is written."""
    written = math.ceil(args.max_train_steps / args.checkpointing_steps) if args.checkpointing_steps else 0
    if args.save_every_minutes:
        written += int(args.max_train_steps * seconds_per_step / 60 / args.save_every_minutes)
    return min(written, args.checkpoints_total_limit + 1) if args.checkpoints_total_limit else written


def latents_row_bytes(args: argparse.Namespace) -> int:
    """Disk of a row under ``--cache_latents``: two posteriors of 16 channels at an eighth of the size, and its mask."""
    pixels = args.height * 2 * args.width
    posterior = 2 * 16 * pixels // 64 * (4 if args.mixed_precision == "no" else 2)
    return 2 * posterior + pixels // 8


def size(count: float) -> str:
    """Bytes as a person says them."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"


def disk_line(args: argparse.Namespace, seconds_per_step: float, checkpoint: int, weights: int) -> tuple[str, int]:
    """The line on disk, and its sum in bytes; a checkpoint and the final weights take so many."""
    kept = checkpoints_kept(args, seconds_per_step)
    total = kept * checkpoint + weights
    beside = "models, data and pictures on top"
    if args.cache_latents:
        beside = f"encoded rows ({size(1000 * latents_row_bytes(args))} a thousand), {beside}"
    return f"disk      {size(total)}: checkpoints {kept} x {size(checkpoint)}, LoRA {size(weights)}; {beside}", total


def headline(args: argparse.Namespace, processes: int, where: str) -> str:
    """What is planned, and for what."""
    name = Path(args.preset).stem + (", embedded" if args.embedded else "")
    steps, pairs = args.max_train_steps, pairs_per_step(args, processes)
    return (
        f"plan      {name}: {steps:,} steps of {pairs} pair{'s' * (pairs > 1)} at {args.height}x{args.width}, "
        f"{steps * pairs:,} pairs in all, on {where}"
    )


def measured_lines(
    args: argparse.Namespace, found: MeasuredRun, processes: int, memory_gib: float | None, free: int
) -> list[str]:
    """The lines of a run whose steps were measured, on a GPU with so much memory or, with None, on a CPU.

    ``free`` bytes are left on the disk of its output directory.
    """
    seconds = found.seconds_per_step
    memory = "no GPU: not measured"
    if found.peak_gib is not None and memory_gib is not None:
        spare = memory_gib - found.peak_gib
        memory = f"fits: {found.peak_gib:.1f} of {memory_gib:.1f} GiB at the peak, {spare:.1f} to spare"
    whole = seconds * args.max_train_steps
    disk, total = disk_line(args, seconds, found.checkpoint_bytes, found.weights_bytes)
    lines = [
        f"speed     {seconds:.3g} s a step, {pairs_per_step(args, processes) / seconds:.3g} pairs/s",
        f"memory    {memory}",
        f"time      {duration(whole)}; loading, validation pictures and checkpoints on top",
        f"{disk}; {size(free)} free" + (": too little" if total > free else ""),
    ]
    if args.gpu_hour_price is not None:
        hours = whole / 3600 * processes
        lines.append(
            f"price     {hours * args.gpu_hour_price:.2f}, as {hours:.2f} GPU hours at {args.gpu_hour_price:g}"
        )
    return lines


@dataclass(frozen=True)
class OnCard:
    """A run on a card that is not here to be measured."""

    changes: dict[str, Any]  # of flags, to the user's
    recomputed: int  # blocks
    peak_gib: float
    seconds: float  # of a step


def on_card(
    args: argparse.Namespace, card: dict[str, Any], memories: list[tuple[dict[str, Any], StepMemory]]
) -> OnCard | None:
    """The quickest of some ways to run on ``card``, each with its flags and its memory; None where none fits."""
    found = []
    for changes, memory in memories:
        recomputed = memory.recomputed(args.gradient_checkpointing, FILL * free_on(card))
        if recomputed is not None:
            own = argparse.Namespace(**vars(args) | changes)
            seconds = executed_tflop(own, recomputed) / (card["share"] * card["ceiling_tflops"])
            found.append(OnCard(changes, recomputed, memory.peak(recomputed) / GIB, seconds))
    return min(found, key=lambda way: way.seconds, default=None)


def estimated_lines(args: argparse.Namespace, make_trainable: MakeTrainable, steps: Steps = ()) -> list[str]:
    """The lines of a run of FLUX.1-Fill where there is no GPU to measure it on.

    Memory is that of simulated steps, time follows from a table; ``make_trainable`` is the trainer's.
    """
    own = predict(args, make_trainable)
    memories: list[tuple[dict[str, Any], StepMemory]] = [({}, own)] + [
        (changes, predict(argparse.Namespace(**vars(args) | changes), make_trainable))
        for changes in smaller_batches(args)
    ]
    cards = load_cards()
    ways = [on_card(args, card, memories) for card in cards]
    short = [number for number, way in enumerate(ways) if way is None and steps]
    fitted = fit(args, steps, [FILL * free_on(cards[number]) for number in short], make_trainable)
    for number, (changes, memory, _) in zip(short, fitted, strict=True):
        memories.append((changes, memory))
        ways[number] = on_card(args, cards[number], memories[-1:])
    checkpoint = own.parameters * (4 + state_bytes(args))  # weights are fp32
    slowest = max((way.seconds for way in ways if way), default=0.0)
    lines = [
        headline(args, 1, "one GPU"),
        f"estimate  no GPU is visible here and nothing was measured: memory by a simulated step, time by "
        f"{useful_tflop(args):,.0f} TFLOP of useful work a step and the table below",
        disk_line(args, slowest, checkpoint, 4 * own.parameters)[0],
        "",
        f"{'':16}{'GiB at the peak':22}{'recomputed':>11}{'s/step':>9}{'pairs/s':>9}{'time':>9}"
        + f"{'price':>10}" * (args.gpu_hour_price is not None),
    ]
    for card, way in zip(cards, ways, strict=True):
        if way is None:
            least = min(memory.least(args.gradient_checkpointing) for _, memory in memories) / GIB
            lines.append(f"{card['card']:16}does not fit: {least:.1f} of {card['memory_gib']:.1f}")
            continue
        whole = way.seconds * args.max_train_steps
        peak = f"{way.peak_gib:.1f} of {card['memory_gib']:.1f}"
        figures = f"{f'{way.recomputed} of {sum(own.blocks)}':>11}{way.seconds:>9.3g}"
        figures += f"{pairs_per_step(args) / way.seconds:>9.2f}{duration(whole):>9}"
        if args.gpu_hour_price is not None:
            figures += f"{whole / 3600 * args.gpu_hour_price:>10.2f}"
        added = " ".join(_typed(name, value) for name, value in way.changes.items())
        lines.append(f"{card['card']:16}{peak:22}{figures}" + (f"   with {added}" if added else ""))
    lines.append("")
    for card in cards:
        rate = f"{card['share']:.0%} of {card['ceiling_tflops']:g} TFLOP/s"
        lines.append(f"{card['card']:16}{rate}, {card['ceiling_source']}")
    return [*lines, *{f"{card['share']:<16.0%}{card['share_source']}": None for card in cards}]
