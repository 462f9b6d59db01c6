"""A LoRA evaluated against itself: exit 1 when any figure of any garment type differs. And what evaluating takes.

    python benchmarks/evaluate.py [--height H --width W] [--steps N] [--limit N] [--dino tiny|base] [--json F]

The small embedded model, a LoRA with random weights, drawn people, all settings that `evaluate` has by default, and a
DINOv2 with random weights: `tiny`, or of the size of facebook/dinov2-base, whose time is the true one.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from diffusers import FluxTransformer2DModel
from transformers import Dinov2Config, Dinov2Model

import train_flux_inpaint as trainer
from deepfashion_training import evaluate
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.evaluation import draw_cases as drawing
from deepfashion_training.evaluation import measure_cases as measuring

DINO: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}
#: Figures that have to be there for the comparison to be one of all metrics that need no torchvision.
EXPECTED = ("ssim", "ssim_masked", "psnr", "psnr_masked", "ciede2000_masked", "drift", "dino", "fd_dinov2", "kd_dinov2")


def save_lora(folder: Path) -> None:
    """A LoRA of the embedded model whose every matrix changes something."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel.from_pretrained(TINY_FLUX_FILL, subfolder="transformer")
    models = ("--pretrained_model_name_or_path", "--pretrained_inpaint_model_name_or_path")
    named = [part for flag in models for part in (flag, str(TINY_FLUX_FILL))]
    args = trainer.parse_args(["--dataroot", "none", *named, "--lora_rank", "4"])
    for parameter in trainer.make_trainable(transformer, args):
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder.mkdir()
    trainer.save_lora(transformer, args, folder)


def save_dino(folder: Path, size: str) -> None:
    """A DINOv2 with random weights."""
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(image_size=224, patch_size=14, **DINO[size])).save_pretrained(folder)


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """``function``, whose calls add up in ``seconds``."""

    def call(*args: Any, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **more)
        finally:
            seconds.append(time.perf_counter() - began)

    return call


def differing(report: Path) -> list[str]:
    """Figures in which the two models differ: means and intervals of each type, each picture's, and the changes."""
    facts = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    base, lora = facts["models"]["base"], facts["models"]["lora"]
    found = [f"{kind} {name}" for kind in base for name in base[kind] if base[kind][name] != lora[kind].get(name)]
    found += [f"missing: {name}" for name in EXPECTED if base["all"].get(name) is None]
    for kind, changes in facts["difference"].items():
        found += [f"{kind} {name}" for name, change in changes.items() if [change["mean"], *change["ci"]] != [0, 0, 0]]
    with (report / "metrics.csv").open(newline="", encoding="utf-8") as lines:
        rows = [{key: value for key, value in row.items() if key != "model"} for row in csv.DictReader(lines)]
    found += [f"row {row['row']}" for row in rows if rows.count(row) % 2]
    return found


def main(argv: list[str] | None = None) -> int:
    """Evaluate, compare, print the figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--height", type=int, default=128, help="height that the model draws at (128)")
    parser.add_argument("--width", type=int, default=96, help="width of one half of the pair (96)")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="denoising steps (4)")
    parser.add_argument("--limit", type=int, default=12, metavar="N", help="cases, of 72 (12)")
    parser.add_argument("--dino", choices=tuple(DINO), default="tiny", help="size of DINOv2 (tiny)")
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures to F")
    args = parser.parse_args(argv)
    drew: list[float] = []
    measured: list[float] = []
    drawing.draw_missing = timed(drawing.draw_missing, drew)
    measuring.measure = timed(measuring.measure, measured)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        people = write_wardrobe(root / "people", rows=90, size=(args.height, args.width))
        save_lora(root / "lora")
        save_dino(root / "dino", args.dino)
        size = f"--height {args.height} --width {args.width} --limit {args.limit}".split()
        size += ["--num_inference_steps", str(args.steps)]
        flags = ["--embedded", "--data", str(people), "--split", "train", "--lora", str(root / "lora"), *size]
        flags += ["--against", str(root / "lora"), "--dino_model", str(root / "dino")]
        code = evaluate.main([*flags, "--output_dir", str(root / "report")])
        if code != 0:
            return code
        pictures = len(list((root / "report" / "pictures").rglob("*.png")))
        cases = json.loads((root / "report" / "metrics.json").read_text(encoding="utf-8"))["models"]["lora"]["all"]["n"]
        different = differing(root / "report")
    figures: dict[str, Any] = {
        "pictures": pictures,
        "seconds_per_picture_drawn": sum(drew) / pictures,  # loading the model among it
        # A case is measured twice, paired and unpaired, each time of two models.
        "seconds_per_case_measured": sum(measured) / cases,
        "differing": different,
    }
    setting = f"{args.height}x{args.width}, {args.steps} steps, DINOv2 {args.dino}"
    drawn, seen = figures["seconds_per_picture_drawn"], figures["seconds_per_case_measured"]
    print(f"{setting}: {drawn:.2f} s per picture drawn ({pictures}), {seen:.2f} s per case measured ({cases})")
    print(f"a LoRA against itself differs in: {', '.join(different) or 'nothing'}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
