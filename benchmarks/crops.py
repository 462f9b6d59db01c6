"""How well a small person in a large photo is dressed beside the same person in a small photo, by garment type.

    python benchmarks/crops.py --lora FOLDER [--people 40] [--seed 991234] [--json F]

Mean SSIM of the garment beside the drawn truth, and the difference to the small photo with 1.96 standard errors. The
photo of 256 x 192 pixels lies at a random place in one of 1024 x 768 whose border goes on, as in a studio.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a command, from anywhere

from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.rows import RowSpec, documented_specs
from deepfashion_training.evaluation.metrics import ssim
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.inference.dress import DrawingSettings, dress
from deepfashion_training.models.fill import FillModel, Recipe
from training_run.lora_formats import find_lora, read_lora

SMALL, LARGE = (256, 192), (1024, 768)


def larger(values: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    """A picture [h, w, 3] or mask [h, w] of ``LARGE`` with ``values`` at ``corner``; a picture's border goes on."""
    around = [(at, whole - at - own) for at, whole, own in zip(corner, LARGE, values.shape, strict=False)]
    return np.pad(values, around) if values.ndim == 2 else np.pad(values, (*around, (0, 0)), mode="edge")


def scores(model: FillModel, spec: RowSpec, whole: DrawingSettings) -> dict[str, float] | None:
    """SSIM of the garment in the small photo, and in the large one with and without a crop; None without a garment."""
    drawing = dataclasses.replace(spec, view="full").draw(SMALL)
    mask, worn = drawing.agnostic[spec.cloth_type].astype(np.uint8), drawing.garment_mask(spec.cloth_type)
    if not mask.any() or not worn.any():
        return None
    photo, garment = np.asarray(drawing.photo), spec.draw_garment(SMALL)[0]
    places = np.random.default_rng([spec.seed, spec.index])
    down, right = (int(places.integers(0, most - own + 1)) for own, most in zip(SMALL, LARGE, strict=True))
    crop = dataclasses.replace(whole, crop=True)
    found = {}
    for name, settings, in_large in (("small", whole, False), ("crop", crop, True), ("no crop", whole, True)):
        person, area = (larger(values, (down, right)) if in_large else values for values in (photo, mask))
        picture, _ = dress(model, Image.fromarray(person), garment, area, settings, Recipe.prompt, spec.index)
        drawn = np.asarray(picture)
        if in_large:
            drawn = drawn[down : down + SMALL[0], right : right + SMALL[1]]
        found[name] = float(ssim(drawn / 255, photo / 255)[1][worn].mean())
    return found


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--lora", required=True, help="a LoRA of the small base, such as the quick test's folder")
    parser.add_argument("--people", type=int, default=40, help="people of each type")
    parser.add_argument("--seed", type=int, default=991234, help="which people")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    base = str(TINY_FLUX_FILL)
    recipe = Recipe(pipeline=base, transformer=base, height=128, width=96, max_sequence_length=8)
    model = FillModel(recipe, [recipe.prompt], loras={"lora": read_lora(find_lora(args.lora))})
    whole = DrawingSettings((recipe.height, recipe.width), 1, 1.0, loras={"lora": 1.0})
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in TYPE_NAMES.values()}
    for spec in documented_specs(3 * args.people, args.seed):
        if found := scores(model, spec, whole):
            rows[TYPE_NAMES[spec.cloth_type]].append(found)
    figures = {}
    for kind, of_kind in rows.items():
        values = {name: np.array([row[name] for row in of_kind]) for name in of_kind[0]}
        change = values["crop"] - values["small"]
        figures[kind] = {name: round(float(each.mean()), 4) for name, each in values.items()}
        figures[kind] |= {"n": len(change), "change": round(float(change.mean()), 4)}
        figures[kind]["error"] = round(1.96 * float(change.std()) / len(change) ** 0.5, 4)
        sys.stdout.write(f"{kind:<6} {json.dumps(figures[kind])}\n")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
