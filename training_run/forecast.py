"""What ``--plan`` says: time, memory, disk and price of a whole run, worked out from measured steps or from a table."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from training_run.flops import FLUX_FILL, useful_flops

GIB = 2**30


@dataclass(frozen=True)
class MeasuredRun:
    """What some steps of a run took."""

    seconds_per_step: float
    peak_gib: float | None  # of a GPU's memory; None without one
    checkpoint_bytes: int
    weights_bytes: int  # of what the run leaves in the end


def pairs_per_step(args: argparse.Namespace, processes: int = 1) -> int:
    """Pairs that a step sees, on all processes."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * processes)


def useful_tflop(args: argparse.Namespace) -> float:
    """Useful work of a step of FLUX.1-Fill on one GPU, in TFLOP; picture tokens are 16x16 pixels each."""
    tokens = (args.height // 16) * (2 * args.width // 16)
    flops = useful_flops(FLUX_FILL, tokens, args.max_sequence_length, args.lora_rank)
    return flops.step * pairs_per_step(args) / 1e12


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


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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


def describe(
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


def load_cards() -> list[dict[str, Any]]:
    """The entries of ``cards.yaml``."""
    cards: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("cards.yaml").read_text("utf-8"))
    return cards


def estimate(args: argparse.Namespace, trainable: int, needed_gib: float | None) -> list[str]:
    """The lines of a run of FLUX.1-Fill that trains so many parameters, where there is no GPU to measure it on.

    ``needed_gib`` is the GPU memory that its preset asks for; None where the preset does not say.
    """
    work, cards = useful_tflop(args), load_cards()
    seconds = {card["card"]: work / (card["share"] * card["ceiling_tflops"]) for card in cards}
    moments = 2 if args.use_8bit_adam else 4 if args.optimizer == "muon" else 8  # Adam has two, Muon one
    checkpoint = trainable * (4 + moments)  # weights are fp32
    lines = [
        headline(args, 1, "one GPU"),
        f"estimate  no GPU is visible here and nothing was measured: {work:,.0f} TFLOP of useful work a step, by the "
        "table below",
        "memory    "
        + (f"{needed_gib:g} GiB of GPU memory, as its preset asks for" if needed_gib else "its preset does not say"),
        disk_line(args, max(seconds.values()), checkpoint, 4 * trainable)[0],
        "",
        f"{'':16}{'fits':22}{'s/step':>7}{'pairs/s':>9}{'time':>9}"
        + f"{'price':>10}" * (args.gpu_hour_price is not None),
    ]
    for card in cards:
        step, spare = seconds[card["card"]], card["memory_gib"] - (needed_gib or 0)
        whole = step * args.max_train_steps
        figures = f"{step:>7.3g}{pairs_per_step(args) / step:>9.2f}{duration(whole):>9}"
        if args.gpu_hour_price is not None:
            figures += f"{whole / 3600 * args.gpu_hour_price:>10.2f}"
        fits = "?" if needed_gib is None else f"yes, {spare:.1f} to spare"
        if spare < 0:
            fits, figures = f"no, {-spare:.1f} GiB short", ""
        lines.append(f"{card['card']:16}{fits:22}{figures}".rstrip())
    lines.append("")
    for card in cards:
        rate = f"{card['share']:.0%} of {card['ceiling_tflops']:g} TFLOP/s"
        lines.append(f"{card['card']:16}{rate}, {card['ceiling_source']}")
    return [*lines, *{f"{card['share']:<16.0%}{card['share_source']}": None for card in cards}]
