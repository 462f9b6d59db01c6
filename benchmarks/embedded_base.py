"""How well the small base dresses drawn people that it never saw, by garment type, with and without a LoRA.

    python benchmarks/embedded_base.py [--base FOLDER] [--lora FOLDER] [--people 60] [--json F] [--sheet PNG]

Mean CIEDE2000 over the masked area and over the garment itself, and 1-SSIM over the masked area, of people of another
seed than any training; beside a grey fill, the photo itself moved by 2 pixels or through the VAE, and results for
another person's garment of the same type. ``swap`` says how far the mean colour that such a result has on the garment
is from the mean colour of the garment picture that it was given, and from that of the garment that the person wears:
CIEDE2000 of two colours.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a command, from anywhere

from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.figure import draw_flat
from deepfashion_training.embedded.rows import RowSpec, documented_specs
from deepfashion_training.evaluation.paired import ciede2000, ciede2000_masked, ssim_masked
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.layout import pair_tensors
from deepfashion_training.models.fill import FillModel, Recipe
from deepfashion_training.models.lora_files import find_lora, read_lora

SIZE = (128, 96)
#: No training draws people of this seed.
SEED = 424242


def drawn(spec: RowSpec) -> tuple[Any, ...]:
    """Photo, garment, and as pictures too the area to repaint, the garment's in the photo and in its own; its type."""
    drawing = spec.draw(SIZE)
    flat, lies = draw_flat(spec.garment(), drawing.person.gender, SIZE, drawing.outfit.inner)
    masks = (drawing.agnostic[spec.cloth_type], drawing.garment_mask(spec.cloth_type), lies)
    return drawing.photo, flat, *(Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks), spec.cloth_type


def held_out(people: int, num_proc: int) -> list[tuple[Any, ...]]:
    """``people`` rows of each type whose garment shows within the area to repaint."""
    with multiprocessing.get_context("spawn").Pool(num_proc) as pool:
        rows = pool.map(drawn, list(documented_specs(3 * people, SEED)), chunksize=8)
    return [row for row in rows if (np.asarray(row[2]) & np.asarray(row[3])).any()]


def figures(result: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor, area: torch.Tensor) -> dict[str, Any]:
    """Figures of people [n,3,H,W] in [0,1] over masks [n,1,H,W], one value a person."""
    return {
        "ciede2000_masked": ciede2000_masked(result, truth, mask),
        "ciede2000_garment": ciede2000_masked(result, truth, area),
        "dssim_masked": 1 - ssim_masked(result, truth, mask),
    }


def vae_of(base: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pictures [n,3,H,W] in [-1,1] encoded and decoded by the VAE of ``base``, in [0,1]."""
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")

    def coded(pictures: torch.Tensor) -> torch.Tensor:
        parts = [vae.decode(vae.encode(some).latent_dist.mean).sample for some in pictures.split(16)]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    return coded


def mean_colour(pictures: torch.Tensor, areas: torch.Tensor) -> torch.Tensor:
    """Mean over areas [n,1,H,W] of pictures [n,3,H,W], as pictures [n,3,1,1]."""
    weights = areas.float()
    return (pictures * weights).sum(dim=(2, 3), keepdim=True) / weights.sum(dim=(2, 3), keepdim=True)


@torch.inference_mode()
def judge(args: argparse.Namespace) -> dict[str, Any]:
    """Draw, measure, and write the sheet."""
    rows = held_out(args.people, args.num_proc)
    kinds = np.array([row[5] for row in rows])
    partner = np.empty(len(rows), int)  # the next person of the same type
    for kind in TYPE_NAMES:
        places = np.flatnonzero(kinds == kind)
        partner[places] = np.roll(places, -1)
    samples = [pair_tensors(photo, flat, mask, SIZE) for photo, flat, mask, *_ in rows]
    others = [pair_tensors(row[0], rows[other][1], row[2], SIZE) for row, other in zip(rows, partner, strict=True)]
    truth, masked = (
        torch.stack([sample[name][..., SIZE[1] :] for sample in samples]) / 2 + 0.5 for name in ("image", "im_mask")
    )
    mask = torch.stack([sample["inpaint_mask"][..., SIZE[1] :] for sample in samples])
    area = torch.stack([torch.from_numpy(np.asarray(row[3]) > 127) for row in rows])[:, None] & (mask == 1)
    lora = read_lora(find_lora(str(args.lora))) if args.lora else None
    recipe = Recipe(
        pipeline=str(args.base), transformer=str(args.transformer or args.base), height=SIZE[0], width=SIZE[1],
        max_sequence_length=args.max_sequence_length,
    )  # fmt: skip
    model = FillModel(recipe, [recipe.prompt_of()], loras={"lora": lora} if lora else {})

    def results(given: list[dict[str, Any]], name: str | None) -> torch.Tensor:
        parts = []
        for first in range(0, len(given), 16):
            some = given[first : first + 16]
            seeds = range(first, first + len(some))
            drawn = model.draw(
                some, list(seeds), prompts=[recipe.prompt_of()] * len(some), steps=args.steps, guidance_scale=1,
                lora=name,
            )  # fmt: skip
            parts.append(drawn[..., SIZE[1] :])
        return torch.cat(parts)

    coded = vae_of(args.base)(torch.stack([sample["image"] for sample in samples]))[..., SIZE[1] :]
    aside = truth * (1 - mask) + truth.roll(2, dims=3) * mask
    made = {
        "grey fill": masked,
        "photo, 2 pixels aside": aside,
        "photo through the VAE": coded,
        "base": results(samples, None),
        "base, wrong garment": results(others, None),
    }
    if lora:
        made["LoRA"] = results(samples, "lora")
    found: dict[str, Any] = {}
    for name, pictures in made.items():
        measured = figures(pictures, truth, mask, area)
        found[name] = {
            TYPE_NAMES[kind]: {
                figure: round(values[kinds == kind].mean().item(), 4) for figure, values in measured.items()
            }
            for kind in TYPE_NAMES
        }
    lies = torch.stack([torch.from_numpy(np.asarray(row[4]) > 127) for row in rows])[:, None]
    flats = mean_colour(torch.stack([sample["cloth_pure"] for sample in samples]) / 2 + 0.5, lies)
    worn = mean_colour(made["base, wrong garment"], area)
    distances = {"to the garment given": ciede2000(worn, flats[partner]), "to their own": ciede2000(worn, flats)}
    found["swap"] = {
        TYPE_NAMES[kind]: {
            name: round(far.flatten()[kinds == kind].mean().item(), 4) for name, far in distances.items()
        }
        for kind in TYPE_NAMES
    }
    found["n"] = {TYPE_NAMES[kind]: int((kinds == kind).sum()) for kind in TYPE_NAMES}
    if args.sheet:
        sheet(args.sheet, kinds, [torch.stack([s["cloth_pure"] for s in samples]) / 2 + 0.5, masked,
              *(made[name] for name in ("base", "LoRA") if name in made), truth,
              torch.stack([s["cloth_pure"] for s in others]) / 2 + 0.5, made["base, wrong garment"]])  # fmt: skip
    return found


def sheet(path: Path, kinds: np.ndarray, columns: list[torch.Tensor], each: int = 6) -> None:
    """One row a person, ``each`` of every type: garment, masked person, results, truth, other garment, its result."""
    rows = [place for kind in TYPE_NAMES for place in np.flatnonzero(kinds == kind)[:each]]
    grid = torch.cat([torch.cat([column[place] for column in columns], dim=2) for place in rows], dim=1)
    half = [grid[:, : grid.shape[1] // 2], grid[:, grid.shape[1] // 2 :]] if len(rows) % 2 == 0 else [grid]
    picture = Image.fromarray((torch.cat(half, dim=2).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())
    picture.save(path)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--base", type=Path, default=TINY_FLUX_FILL, help="pipeline folder")
    parser.add_argument("--transformer", type=Path, help="another transformer for it, as the trainer saves one")
    parser.add_argument("--lora", type=Path, help="folder of a LoRA")
    parser.add_argument("--people", type=int, default=60, help="people of each type")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps")
    parser.add_argument("--max_sequence_length", type=int, default=8, help="T5 tokens")
    parser.add_argument("--num_proc", type=int, default=2, help="processes that draw")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sheet", type=Path, help="write a picture to look at here")
    return parser


def main() -> int:
    """Run the command."""
    args = build_parser().parse_args()
    found = judge(args)
    for name, by_type in found.items():
        sys.stdout.write(f"{name:<20} {json.dumps(by_type)}\n")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
