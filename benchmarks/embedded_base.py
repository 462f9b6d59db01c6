"""How well the small base dresses drawn people that it never saw, by garment type, with and without a LoRA.

    python benchmarks/embedded_base.py [--base FOLDER] [--lora FOLDER] [--people 60] [--json F]

Mean CIEDE2000 over the masked area and over the garment itself, and 1-SSIM over the masked area, of people of another
seed than any training. Beside them are a grey fill, the photo through the VAE, and results for another person's garment
of the same type. ``swap`` is CIEDE2000 between the mean colour that such a result has on the garment and that of the
garment picture that was given, or of the one that the person wears.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a command, from anywhere

from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.rows import RowSpec, documented_specs, draw_all
from deepfashion_training.evaluation.paired import ciede2000_masked, ssim
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.layout import pair_tensors
from deepfashion_training.models.fill import FillModel, Recipe
from deepfashion_training.models.lora_files import find_lora, read_lora

HEIGHT, WIDTH = SIZE = (128, 96)
#: No training draws people of this seed.
SEED = 424242


def drawn(spec: RowSpec) -> dict[str, Any] | None:
    """The sample of a row, with ``area`` where the garment is repainted and ``lies`` where it lies, bool [1,H,W].

    None where nothing of the garment is to be repainted.
    """
    drawing = spec.draw(SIZE)
    flat, lies = spec.draw_garment(SIZE)
    mask = drawing.agnostic[spec.cloth_type]
    area = drawing.garment_mask(spec.cloth_type) & mask
    if not area.any():
        return None
    sample = pair_tensors(drawing.photo, flat, Image.fromarray(mask.astype(np.uint8) * 255), SIZE)
    return {**sample, "kind": spec.cloth_type, "area": torch.tensor(area)[None], "lies": torch.tensor(lies)[None]}


def in_garment(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The sample of ``row`` with the garment of ``other``."""
    halves = {
        name: torch.cat([other[name][..., :WIDTH], row[name][..., WIDTH:]], dim=2) for name in ("image", "im_mask")
    }
    return {**row, **halves, "cloth_pure": other["cloth_pure"], "cloth_mask": other["cloth_mask"]}


def mean_colour(pictures: torch.Tensor, areas: torch.Tensor) -> torch.Tensor:
    """Mean over areas [n,1,H,W] of pictures [n,3,H,W], as pictures [n,3,1,1]."""
    weights = areas.float()
    return (pictures * weights).sum(dim=(2, 3), keepdim=True) / weights.sum(dim=(2, 3), keepdim=True)


def channels_last(picture: torch.Tensor) -> np.ndarray:
    """A picture [3,H,W] as float64 [H,W,3]."""
    return picture.double().permute(1, 2, 0).numpy()


def colours_apart(ones: torch.Tensor, others: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean CIEDE2000 over masks [n,1,H,W] of pairs of pictures [n,3,H,W]."""
    return torch.tensor(
        [
            ciede2000_masked(channels_last(one), channels_last(other), mask[0].numpy() > 0)
            for one, other, mask in zip(ones, others, masks, strict=True)
        ]
    )


@torch.inference_mode()
def judge(args: argparse.Namespace) -> dict[str, Any]:
    """Draw and measure: figures by result and garment type."""
    rows = [row for row in draw_all(drawn, documented_specs(3 * args.people, SEED), args.num_proc) if row]
    kinds = np.array([row["kind"] for row in rows])
    partner = np.empty(len(rows), int)  # the next person of the same type
    for kind in TYPE_NAMES:
        places = np.flatnonzero(kinds == kind)
        partner[places] = np.roll(places, -1)
    swapped = [in_garment(row, rows[other]) for row, other in zip(rows, partner, strict=True)]
    pairs, masked, mask, area, lies, flats = (
        torch.stack([row[name] for row in rows])
        for name in ("image", "im_mask", "inpaint_mask", "area", "lies", "cloth_pure")
    )
    truth, mask = pairs[..., WIDTH:] / 2 + 0.5, mask[..., WIDTH:]
    lora = read_lora(find_lora(str(args.lora))) if args.lora else None
    recipe = Recipe(
        pipeline=str(args.base), transformer=str(args.base), height=HEIGHT, width=WIDTH, max_sequence_length=8
    )
    prompt = recipe.prompt_of()
    model = FillModel(recipe, [prompt], loras={"lora": lora} if lora else {})

    def results(given: list[dict[str, Any]], name: str | None) -> torch.Tensor:
        parts = []
        for first in range(0, len(given), 16):
            some = given[first : first + 16]
            seeds = list(range(first, first + len(some)))
            made = model.draw(some, seeds, prompts=[prompt] * len(some), steps=1, guidance_scale=1, lora=name)
            parts.append(made[..., WIDTH:])
        return torch.cat(parts)

    vae = AutoencoderKL.from_pretrained(args.base, subfolder="vae")
    coded = torch.cat([vae.decode(vae.encode(some).latent_dist.mean).sample for some in pairs.split(16)])
    made = {
        "grey fill": masked[..., WIDTH:] / 2 + 0.5,
        "photo through the VAE": (coded[..., WIDTH:] / 2 + 0.5).clamp(0, 1),
        "base": results(rows, None),
        "base, wrong garment": results(swapped, None),
    }
    if lora:
        made["LoRA"] = results(rows, "lora")
    worn = mean_colour(made["base, wrong garment"], area)
    colours = mean_colour(flats / 2 + 0.5, lies)
    measured = {
        name: {
            "ciede2000_masked": colours_apart(pictures, truth, mask),
            "ciede2000_garment": colours_apart(pictures, truth, area),
            "dssim_masked": torch.tensor(
                [
                    1 - ssim(channels_last(one), channels_last(other))[1][inside[0].numpy() > 0].mean()
                    for one, other, inside in zip(pictures, truth, mask, strict=True)
                ]
            ),
        }
        for name, pictures in made.items()
    }
    whole = torch.ones(len(worn), 1, 1, 1)
    measured["swap"] = {
        "to the garment given": colours_apart(worn, colours[partner], whole),
        "to their own": colours_apart(worn, colours, whole),
    }
    found: dict[str, Any] = {"n": {TYPE_NAMES[kind]: int((kinds == kind).sum()) for kind in TYPE_NAMES}}
    for name, values in measured.items():
        found[name] = {
            TYPE_NAMES[kind]: {
                figure: round(of_all[kinds == kind].mean().item(), 4) for figure, of_all in values.items()
            }
            for kind in TYPE_NAMES
        }
    return found


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--base", type=Path, default=TINY_FLUX_FILL, help="pipeline folder")
    parser.add_argument("--lora", type=Path, help="folder of a LoRA")
    parser.add_argument("--people", type=int, default=60, help="people of each type")
    parser.add_argument("--num_proc", type=int, default=2, help="processes that draw")
    parser.add_argument("--json", type=Path, help="write the figures here")
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
