"""Memory of a training step of the real model by simulation: no GPU, no weights, no download.

    python benchmarks/predict_memory.py [--preset NAME ...] [--json F]

Says what a block keeps for its backward pass, for one pair of 768x1152 and the trainer's default LoRA, and for each
preset how much a step takes at its peak on the smallest card of ``cards.yaml`` with the memory that the preset asks
for, with a twentieth of it to spare, and how many of the 57 blocks have to be recomputed for that. Exit 1 where a
preset does not fit. Then what drawing one picture takes, as ``tryon``, ``evaluate`` and ``demo`` do.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/predict_memory.py` has only this folder on its path
from deepfashion_training import run_arguments  # noqa: E402
from deepfashion_training.cli import load_cards, load_preset, quiet_libraries  # noqa: E402

quiet_libraries()
from diffusers.training_utils import cast_training_params  # noqa: E402

import train_flux_inpaint as trainer  # noqa: E402
from deepfashion_training.plan import executed_tflop, on_card, pairs_per_step, useful_tflop  # noqa: E402
from training_run import memory  # noqa: E402
from training_run.flops import FLUX_FILL  # noqa: E402
from training_run.lora import lora_config  # noqa: E402
from training_run.memory import predict, saved_by_blocks  # noqa: E402

GIB = 2**30
PRESETS = ["full", *run_arguments.PRESET_FLAGS.values()]
#: Of one half, in pixels.
DRAWN = ((512, 384), (768, 576), (1024, 768))


def as_peft_makes_it(transformer: Any, args: argparse.Namespace) -> list[Any]:
    """Add the LoRA as diffusers' own scripts do, without what the trainer changes in the blocks."""
    transformer.requires_grad_(False)
    transformer.add_adapter(lora_config(args, transformer))
    cast_training_params(transformer)
    return []


def saved_gib() -> dict[str, float]:
    """GiB that a block saves for its backward pass, as diffusers and peft make it, then as the trainer does."""
    found = {}
    for whose, make_trainable in {"": as_peft_makes_it, "trainer_": trainer.make_trainable}.items():
        for how, flags in {"eager": [], "compiled": ["--compile_blocks"]}.items():
            args = trainer.parse_args(["--dataroot=.", "--mixed_precision=bf16", *flags])
            for kind, saved in zip(("double", "single"), saved_by_blocks(args, make_trainable), strict=True):
                found[f"{whose}{how}_{kind}"] = round(saved / GIB, 4)
    return found


def figures_of(preset: str) -> dict[str, Any]:
    """What a step of ``preset`` takes on its card. ``ValueError`` where it does not fit."""
    args, _ = run_arguments.parse(["--preset", preset], load=False)
    needed = load_preset(preset).gpu_memory_gib or 0
    card = min((card for card in load_cards() if card["memory_gib"] >= needed), key=lambda card: card["memory_gib"])
    memory = predict(args, trainer.make_trainable)
    way = on_card(args, card, [({}, memory)])
    if way is None:
        least = memory.least(args.gradient_checkpointing) / GIB
        raise ValueError(f"{preset} takes {least:.1f} GiB, and {card['card']} has {card['memory_gib']}")
    pairs = pairs_per_step(args)
    return {
        "peak_gib": round(way.peak_gib, 2),
        "card_gib": card["memory_gib"],
        "card": card["card"],
        "recomputed_blocks": way.recomputed,
        "batch": args.train_batch_size,
        "all_recomputed_gib": round(memory.peak(sum(memory.blocks)) / GIB, 2),
        "useful_tflop_a_pair": round(useful_tflop(args) / pairs, 1),
        "executed_tflop_a_pair": round(executed_tflop(args, way.recomputed) / pairs, 1),
    }


def as_it_draws(transformer: Any, args: argparse.Namespace) -> list[Any]:
    """Add the LoRA as ``models/fill.py`` does, in the precision of the base."""
    transformer.requires_grad_(False)
    transformer.add_adapter(lora_config(args, transformer))
    return []


def drawing_gib(height: int, width: int) -> dict[str, float]:
    """GiB at the peak of drawing one pair with a LoRA, by how the base is held; the text encoders are gone by then."""
    flags = ["--dataroot=.", "--mixed_precision=bf16", f"--height={height}", f"--width={width}"]
    args = trainer.parse_args([*flags, "--quantize_base=nf4"])
    depths = [{**FLUX_FILL, "num_layers": d, "num_single_layers": s} for d, s in memory._SHAPES]
    step, (vae, decoding) = memory.trace_drawing(args, as_it_draws, depths[0]), memory.decoding(args)
    beside = vae + max(step, decoding)
    found = {}
    for kind in ("nf4", None):
        held = argparse.Namespace(**vars(args) | {"quantize_base": kind})
        models = [memory._on_meta(held, as_it_draws, depth).requires_grad_(False) for depth in depths]
        weights = memory._Linear.through([memory.frozen_bytes(model, held) for model in models])
        found[kind or "bf16"] = weights.at((FLUX_FILL["num_layers"], FLUX_FILL["num_single_layers"])) + beside
    found["offload"] = weights.rest + 2 * max(weights.of_block) + beside  # a block, and the next one on its way
    return {name: round(count / GIB, 2) for name, count in found.items()}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--preset", nargs="+", default=PRESETS, metavar="NAME", help="presets, or YAML files (default: all)"
    )
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures to F")
    args = parser.parse_args()
    began = time.perf_counter()
    found: dict[str, Any] = {"block_saved_gib": saved_gib(), "presets": {}}
    saved = [f"{gib:10.3f}" for gib in found["block_saved_gib"].values()]
    print(f"{'GiB that a block saves':36}{'eager':>20}{'compiled':>20}")
    print(f"{'':36}{'double':>10}{'single':>10}{'double':>10}{'single':>10}")
    print(f"{'diffusers with peft':36}{''.join(saved[:4])}\n{'the trainer':36}{''.join(saved[4:])}")
    print(f"\n{'':54}{'blocks':>11}{'TFLOP a pair':>22}")
    print(f"{'preset':12}{'batch':>6}{'GiB at peak':>16}  {'card':18}{'recomputed':>11}{'useful':>12}{'executed':>10}")
    wrong = []
    for preset in args.preset:
        try:
            row = found["presets"][preset] = figures_of(preset)
        except ValueError as error:
            wrong.append(str(error))
            continue
        peak = f"{row['peak_gib']:.1f} of {row['card_gib']:.1f}"
        print(
            f"{Path(preset).stem:12}{row['batch']:>6}{peak:>16}  {row['card']:18}{row['recomputed_blocks']:>11}"
            f"{row['useful_tflop_a_pair']:>12.1f}{row['executed_tflop_a_pair']:>10.1f}"
        )
    found["drawing"] = {f"{height}x{width}": drawing_gib(height, width) for height, width in DRAWN}
    print(f"\n{'drawing, GiB at peak':24}" + "".join(f"{size:>12}" for size in found["drawing"]))
    for held, flag in {"bf16": "", "nf4": "--quantize_base nf4", "offload": "--offload"}.items():
        print(f"{flag or 'as it is':24}" + "".join(f"{each[held]:>12.1f}" for each in found["drawing"].values()))
    print(f"\n{time.perf_counter() - began:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
