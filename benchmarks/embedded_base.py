"""How well the small base dresses drawn people that it never saw, by garment type, with and without a LoRA.

    python benchmarks/embedded_base.py [--lora FOLDER] [--people 60] [--json F]

Mean CIEDE2000 and 1-SSIM over the area to repaint, of people of another seed than any training, and over patterned
garments how much of the pattern is there (see ``pattern_kept``). Beside them are a grey fill, the photo through the
VAE, and results for another person's garment of the same type.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a command, from anywhere

from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.rows import RowSpec, documented_specs, draw_all
from deepfashion_training.evaluation.metrics import ciede2000_masked, ssim
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.layout import pair_tensors
from deepfashion_training.models.fill import FillModel, Recipe
from training_run.cores import usable_cores
from training_run.lora_formats import find_lora, read_lora

HEIGHT, WIDTH = SIZE = (128, 96)
#: No training draws people of this seed.
SEED = 424242
#: The patterns that are measured, by group. The others are rare, or do not repeat.
PATTERNS = {
    **dict.fromkeys(("horizontal", "vertical", "diagonal"), "stripes"),
    **dict.fromkeys(("check", "plaid"), "checks"),
    "dots": "dots",
}
#: Standard deviation in pixels of the blur whose difference to a picture is its high-pass picture, and how far a
#: pattern may lie beside the truth's.
BLUR, REACH = 3.0, 3


@dataclass(frozen=True)
class Drawn:
    """A row to draw: ``sample`` is that of ``pair_tensors``, ``area`` [H,W] is where the garment is to be drawn."""

    kind: int
    pattern: str | None  # of PATTERNS
    sample: dict[str, Any]
    area: np.ndarray


def drawn(spec: RowSpec) -> Drawn | None:
    """What is to be drawn of a row; None where nothing of the garment is to be repainted."""
    drawing = spec.draw(SIZE)
    mask = drawing.agnostic[spec.cloth_type]
    area = np.asarray(drawing.garment_mask(spec.cloth_type) & mask)
    if not area.any():
        return None
    flat, _ = spec.draw_garment(SIZE)
    sample = pair_tensors(drawing.photo, flat, Image.fromarray(mask.astype(np.uint8) * 255), SIZE)
    return Drawn(spec.cloth_type, PATTERNS.get(spec.garment().pattern.kind), sample, area)


def in_garment(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The sample of ``row`` with the garment of ``other``."""
    halves = {
        name: torch.cat([other[name][..., :WIDTH], row[name][..., WIDTH:]], dim=2) for name in ("image", "im_mask")
    }
    return {**row, **halves, "cloth_pure": other["cloth_pure"], "cloth_mask": other["cloth_mask"]}


def errors(picture: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    """CIEDE2000 and 1-SSIM of pictures [3,H,W] in [0,1], means over where ``mask`` [1,H,W] is 1."""
    one, other = (tensor.double().permute(1, 2, 0).numpy() for tensor in (picture, truth))
    inside = mask[0].numpy() > 0
    return ciede2000_masked(one, other, inside), 1 - ssim(one, other)[1][inside].mean()


def pattern_kept(picture: torch.Tensor, truth: torch.Tensor, area: np.ndarray) -> float:
    """How much of the truth's pattern a picture has, at most 1: both [3,H,W] in [0,1], ``area`` bool [H,W].

    The correlation in ``area`` of their high-pass pictures (what a blur of ``BLUR`` takes away), at the best of all
    shifts of up to ``REACH`` pixels to each side. The best of 49 shifts lies above 0 for pictures that have nothing in
    common, so a figure has to be read beside that of another garment. A pattern that is only paler counts as whole.
    """
    one, other = (tensor.double().numpy() for tensor in (picture, truth))
    one, other = (values - ndimage.gaussian_filter(values, (0, BLUR, BLUR)) for values in (one, other))
    wanted, best = other[:, area] - other[:, area].mean(), 0.0
    rows, columns = np.nonzero(area)
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            found = one[:, (rows + down) % area.shape[0], (columns + right) % area.shape[1]]
            found = found - found.mean()
            size = np.sqrt((found**2).sum() * (wanted**2).sum())
            best = max(best, float((found * wanted).sum() / size)) if size else best
    return best


def _by_pattern(rows: Sequence[Drawn], kept: np.ndarray, kind: int) -> dict[str, Any]:
    """The mean of ``kept`` over the patterned garments of a type, all and apart, each with its number."""
    found = {}
    for name in ("patterns", *dict.fromkeys(PATTERNS.values())):
        of_name = [row.kind == kind and row.pattern is not None and name in ("patterns", row.pattern) for row in rows]
        if any(of_name):
            found[name] = {"kept": round(float(kept[of_name].mean()), 4), "n": sum(of_name)}
    return found


@torch.inference_mode()
def judge(lora_folder: Path | None, people: int) -> dict[str, Any]:
    """Draw and measure ``people`` of each type: figures by result and garment type, and ``n`` by garment type.

    Of results in the garment itself, ``patterns``, ``stripes``, ``checks`` and ``dots`` are ``{"kept", "n"}``.
    """
    rows = [row for row in draw_all(drawn, documented_specs(3 * people, SEED), usable_cores()) if row]
    kinds, samples = np.array([row.kind for row in rows]), [row.sample for row in rows]
    partner = np.empty(len(rows), int)  # the next person of the same type
    for kind in TYPE_NAMES:
        places = np.flatnonzero(kinds == kind)
        partner[places] = np.roll(places, -1)
    swapped = [in_garment(sample, samples[other]) for sample, other in zip(samples, partner, strict=True)]
    pairs, masked, masks = (
        torch.stack([sample[name] for sample in samples]) for name in ("image", "im_mask", "inpaint_mask")
    )
    lora = read_lora(find_lora(str(lora_folder))) if lora_folder else None
    base = str(TINY_FLUX_FILL)
    recipe = Recipe(pipeline=base, transformer=base, height=HEIGHT, width=WIDTH, max_sequence_length=8)
    prompt = recipe.prompt_of()
    model = FillModel(recipe, [prompt], loras={"lora": lora} if lora else {})

    def results(given: list[dict[str, Any]], name: str | None) -> torch.Tensor:
        parts = []
        for first in range(0, len(given), 16):
            some = given[first : first + 16]
            seeds = list(range(first, first + len(some)))
            loras = {name: 1.0} if name else None
            parts.append(model.draw(some, seeds, prompts=[prompt] * len(some), steps=1, guidance_scale=1, loras=loras))
        return torch.cat(parts)

    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    coded = torch.cat([vae.decode(vae.encode(some).latent_dist.mean).sample for some in pairs.split(16)])
    made = {
        "grey fill": masked / 2 + 0.5,
        "photo through the VAE": (coded / 2 + 0.5).clamp(0, 1),
        "base": results(samples, None),
        "base, wrong garment": results(swapped, None),
    }
    if lora:
        made["LoRA"] = results(samples, "lora")
    found: dict[str, Any] = {"n": {name: int((kinds == kind).sum()) for kind, name in TYPE_NAMES.items()}}
    persons = (pairs / 2 + 0.5)[..., WIDTH:], masks[..., WIDTH:]
    for result, pictures in made.items():
        halves = pictures[..., WIDTH:]
        measured = np.array([errors(*one) for one in zip(halves, *persons, strict=True)])
        kept = [
            pattern_kept(half, photo, row.area) if row.pattern else math.nan
            for half, photo, row in zip(halves, persons[0], rows, strict=True)
        ]
        found[result] = {
            name: dict(
                zip(("ciede2000_masked", "dssim_masked"), measured[kinds == kind].mean(axis=0).round(4), strict=True)
            )
            | _by_pattern(rows, np.array(kept), kind)
            for kind, name in TYPE_NAMES.items()
        }
    return found


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--lora", type=Path, help="folder of a LoRA")
    parser.add_argument("--people", type=int, default=60, help="people of each type")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    found = judge(args.lora, args.people)
    for name, by_type in found.items():
        sys.stdout.write(f"{name:<20} {json.dumps(by_type)}\n")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
