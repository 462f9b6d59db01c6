"""What ``--plan`` says: time, memory, disk and price of a whole run, worked out from measured steps or from a table."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_run.flops import FLUX_FILL, useful_flops

GIB = 2**30


@dataclass(frozen=True)
class MeasuredRun:
    """What some steps of a run took."""

    seconds_per_step: float
    steps: int  # that it is the median of
    peak_gib: float | None  # of a GPU's memory; None without one
    config: dict[str, Any]  # of the transformer
    processes: int
    checkpoint_bytes: int
    weights_bytes: int  # of what the run leaves in the end


@dataclass(frozen=True)
class Device:
    """What the steps were measured on."""

    name: str
    ceiling_tflops: float
    memory_gib: float | None  # of a GPU


def pairs_per_step(args: argparse.Namespace, processes: int = 1) -> int:
    """Pairs that a step sees, on all processes."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * processes)


def useful_tflop(args: argparse.Namespace, config: Mapping[str, Any], processes: int = 1) -> float:
    """Useful work of a step on all processes together, in TFLOP; picture tokens are 16x16 pixels each."""
    tokens = (args.height // 16) * (2 * args.width // 16)
    flops = useful_flops(dict(config), tokens, args.max_sequence_length, args.lora_rank)
    return flops.step * pairs_per_step(args, processes) / 1e12


def steps_of(args: argparse.Namespace, rows: int | None, processes: int) -> int:
    """Steps of the whole run. Raises ``ValueError`` where they follow from rows that are not counted yet."""
    if args.max_train_steps:
        return int(args.max_train_steps)
    if rows is None:
        raise ValueError(
            f"--plan: --num_train_epochs {args.num_train_epochs} is as many steps as the rows of {args.dataset_name} "
            "make, and they are not counted before they are prepared or downloaded: give --max_train_steps"
        )
    return math.ceil(args.num_train_epochs * rows / pairs_per_step(args, processes))


def checkpoints_kept(args: argparse.Namespace, steps: int, seconds_per_step: float) -> int:
    """Most checkpoints that lie in the output directory at one time: one more than the limit, while it is written."""
    written = math.ceil(steps / args.checkpointing_steps) if args.checkpointing_steps else 0
    if args.save_every_minutes:
        written += int(steps * seconds_per_step / 60 / args.save_every_minutes)
    return min(written, args.checkpoints_total_limit + 1) if args.checkpoints_total_limit else written


def latents_row_bytes(args: argparse.Namespace) -> int:
    """Disk of a row under ``--cache_latents``: two posteriors of 16 channels at an eighth of the size, and its mask."""
    pixels = args.height * 2 * args.width
    posterior = 2 * 16 * pixels // 64 * (4 if args.mixed_precision == "no" else 2)
    return 2 * posterior + pixels // 8


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as a person says them."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"


def disk_line(
    args: argparse.Namespace, steps: int, seconds_per_step: float, checkpoint: int, weights: int, rows: int | None
) -> tuple[str, float]:
    """The line on disk, and its sum in bytes; a checkpoint and the final weights take so many."""
    kept = checkpoints_kept(args, steps, seconds_per_step)
    parts = [f"LoRA {size(weights)}"]
    total = float(kept * checkpoint + weights)
    if kept:
        parts.insert(0, f"{kept} checkpoint{'s' * (kept > 1)} of {size(checkpoint)}")
    if args.cache_latents:
        row = latents_row_bytes(args)
        total += row * (rows or 0)
        parts.append(f"encoded rows {size(row * 1000)} a thousand" + (f", {rows:,} of them" if rows else ""))
    beside = "encoded rows, " if args.cache_latents and rows is None else ""
    return f"disk      {size(total)}: {', '.join(parts)}; {beside}models, data and pictures on top", total


def headline(args: argparse.Namespace, steps: int, processes: int, where: str) -> str:
    """What is planned, and for what."""
    name = Path(args.preset).stem + (", embedded" if args.embedded else "")
    pairs = pairs_per_step(args, processes)
    return (
        f"plan      {name}: {steps:,} steps of {pairs} pair{'s' * (pairs > 1)} at {args.height}x{args.width}, "
        f"{steps * pairs:,} pairs in all, on {where}"
    )


def describe(
    args: argparse.Namespace, found: MeasuredRun, device: Device, steps: int, rows: int | None, free: int
) -> list[str]:
    """The lines of a run whose steps were measured; ``free`` bytes are left on the disk of its output directory."""
    seconds = found.seconds_per_step
    processes = found.processes
    rate = useful_tflop(args, found.config, processes) / seconds / processes
    fast = device.ceiling_tflops >= 10
    unit = "TFLOP/s" if fast else "GFLOP/s"
    scale = 1.0 if fast else 1000.0
    gpus = 1 if device.memory_gib is None else processes  # on a CPU the processes share one machine
    each = "" if processes == 1 else " a process" if device.memory_gib is None else " a GPU"
    lines = [
        f"speed     {seconds:.3g} s a step (median of {found.steps}), {pairs_per_step(args, processes) / seconds:.3g} "
        "pairs/s",
        f"ceiling   {rate * scale:.0f} of {device.ceiling_tflops * scale:.0f} {unit}{each}: useful work is "
        f"{rate / device.ceiling_tflops:.0%} of what bare matrix products reach here",
    ]
    if found.peak_gib is None or device.memory_gib is None:
        lines.append("memory    no GPU: not measured")
    else:
        spare = device.memory_gib - found.peak_gib
        lines.append(
            f"memory    fits: {found.peak_gib:.1f} of {device.memory_gib:.1f} GiB at the peak, {spare:.1f} to spare"
        )
    lines.append(f"time      {duration(seconds * steps)}; loading, validation pictures and checkpoints on top")
    disk, total = disk_line(args, steps, seconds, found.checkpoint_bytes, found.weights_bytes, rows)
    lines.append(f"{disk}; {size(free)} free" + (": too little" if total > free else ""))
    if args.gpu_hour_price is not None:
        hours = seconds * steps / 3600 * gpus
        lines.append(
            f"price     {hours * args.gpu_hour_price:.2f}, as {hours:.2f} GPU hours at {args.gpu_hour_price:g}"
        )
    return lines


def choice(found: Mapping[str, MeasuredRun | str]) -> list[str]:
    """Lines on the sets of flags that were tried, by what is typed beside the user's; the user's own is "".

    A text says why a set did not run. All have the same pairs in a step, so the fastest step is the best.
    """
    lines = []
    own = found[""]
    for typed, result in found.items():
        if isinstance(result, str):
            lines.append(f"tried     {typed}: {result}" if typed else "tried     the flags as they are: do not fit")
        elif typed:
            times = f", {own.seconds_per_step / result.seconds_per_step:.2f}x" if isinstance(own, MeasuredRun) else ""
            peak = "" if result.peak_gib is None else f", {result.peak_gib:.1f} GiB"
            lines.append(f"tried     {typed}: {result.seconds_per_step:.3g} s a step{times}{peak}")
    best = fastest(found)
    if best is None:
        return [*lines, "choose    nothing that was tried fits this GPU"]
    return [*lines, f"choose    {f'add {best}' if best else 'the flags as they are'}"]


def fastest(found: Mapping[str, MeasuredRun | str]) -> str | None:
    """What to type for the fastest of the sets that ran; None when none did."""
    ran = {typed: result.seconds_per_step for typed, result in found.items() if isinstance(result, MeasuredRun)}
    return min(ran, key=lambda typed: ran[typed]) if ran else None


def load_cards() -> list[dict[str, Any]]:
    """The entries of ``cards.yaml``."""
    import yaml

    cards: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("cards.yaml").read_text("utf-8"))
    return cards


def estimate(
    args: argparse.Namespace,
    steps: int,
    rows: int | None,
    trainable: int,
    needed: Mapping[str, float],
    cards: Sequence[Mapping[str, Any]],
) -> list[str]:
    """The lines of a run of FLUX.1-Fill that trains so many parameters, where there is no GPU to measure it on.

    ``needed`` is the GPU memory in GiB that presets ask for, by the flag that chooses them; the run's own is under
    "own", where it has one.
    """
    work = useful_tflop(args, FLUX_FILL)
    own = needed.get("own")
    asks = f"{own:g} GiB of GPU memory, as its preset asks for" if own else "unknown: its preset does not say"
    moments = 2 if args.use_8bit_adam else 4 if args.optimizer == "muon" else 8  # Adam has two, Muon one
    checkpoint = trainable * (4 + moments)  # weights are fp32
    step_seconds = {card["card"]: work / (card["share"] * card["ceiling_tflops"]) for card in cards}
    slowest = max(step_seconds.values())
    header = f"{'':16}{'fits':22}{'s/step':>7}{'pairs/s':>9}{'time':>9}"
    header += f"{'price':>10}" if args.gpu_hour_price is not None else ""
    lines = [
        headline(args, steps, 1, "one GPU"),
        f"estimate  no GPU is visible here and nothing was measured: {work:,.0f} TFLOP of useful work a step, by the "
        "table below",
        f"memory    {asks}",
        f"{disk_line(args, steps, slowest, checkpoint, 4 * trainable, rows)[0]} (estimate)",
        "",
        f"{header}  preset for it",
    ]
    for card in cards:
        spare = None if own is None else card["memory_gib"] - own
        seconds = step_seconds[card["card"]]
        columns = [f"{seconds:.3g}", f"{pairs_per_step(args) / seconds:.2f}", duration(seconds * steps)]
        if args.gpu_hour_price is not None:
            columns.append(f"{seconds * steps / 3600 * args.gpu_hour_price:.2f}")
        if spare is not None and spare < 0:
            columns = ["-"] * len(columns)
        figures = "".join(f"{text:>{width}}" for text, width in zip(columns, (7, 9, 9, 10), strict=False))
        fits = "?" if spare is None else f"yes, {spare:.1f} to spare" if spare >= 0 else f"no, {-spare:.1f} GiB short"
        presets = [(gib, flag) for flag, gib in needed.items() if flag != "own" and gib <= card["memory_gib"]]
        lines.append(f"{card['card']:16}{fits:22}{figures}  {max(presets)[1] if presets else 'none'}")
    lines.append("")
    for card in cards:
        source = f"{card['share']:.0%} of {card['ceiling_tflops']:g} TFLOP/s, {card['ceiling_source']}"
        lines.append(f"{card['card']:16}{source}")
    shares = {f"{card['share']:.0%}": card["share_source"] for card in cards}
    return [*lines, *(f"{share:16}{source}" for share, source in shares.items())]
