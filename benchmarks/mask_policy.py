"""Regions, mask policies and leak score on the drawn wardrobe, beside their bounds; exit 1 when one is missed.

    python benchmarks/mask_policy.py [--rows N] [--seed S] [--json F]

Draws raw rows at 288x192, with and without a parse map (the drawn one). The region's truth is where the garment was
drawn; in half of the people the raw mask covers all clothes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: processes share the cores
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from deepfashion_training.embedded.rows import RowSpec, raw_specs
from deepfashion_training.garment_types import FULL, TYPE_NAMES
from deepfashion_training.images.masks import repaint_mask
from deepfashion_training.images.parts import protected
from deepfashion_training.images.person import find_person
from deepfashion_training.images.regions import UnresolvedRegionError, garment_region
from deepfashion_training.preparation.mask_leak import leak_score, mask_features

SIZE = (288, 192)
#: Face (the neck is part of it) and hair in the parse map.
HEAD = (2, 11)

#: Name, smallest and largest allowed figure.
BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("region: unions detected", 0.95, 1.0),
    ("region: false alarms", 0.0, 0.03),
    ("region: IoU, union masks", 0.90, 1.0),
    ("region: IoU, named masks", 0.90, 1.0),
    ("region: unresolved", 0.0, 0.02),
    ("agnostic: garment covered", 0.99, 1.0),
    ("agnostic: head covered", 0.0, 0.02),
    ("agnostic: IoU with drawn", 0.75, 1.0),
    ("agnostic: background in mask", 0.0, 0.45),
    ("parse: protected pixels", 0.0, 0.0),
    ("parse: hands covered", 0.0, 0.10),
    ("parse: garment covered", 0.99, 1.0),
    ("parse: IoU with drawn", 0.80, 1.0),
    ("relaxed: garment covered", 0.99, 1.0),
    ("leak of as_is: lower", 0.80, 1.0),
)
#: How far above chance a classifier may get on masks that should tell nothing.
MOST_LEAK = 0.10


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def share(part: np.ndarray, whole: np.ndarray) -> float:
    """Share of ``whole`` that ``part`` covers."""
    return float((part & whole).sum() / max(1, whole.sum()))


def measure(spec: RowSpec) -> dict[str, Any]:
    """Figures and mask features of one row."""
    drawing = spec.draw(SIZE)
    cloth_type, category = spec.cloth_type, spec.garment().category
    truth = drawing.garment_mask(cloth_type)
    mask = (drawing.clothes_mask() if spec.whole_mask else truth).view(np.uint8)
    person = find_person(drawing.photo, mask)
    kind = "union" if spec.whole_mask else "named"
    figures: dict[str, float] = {}
    region = truth.view(np.uint8)
    try:
        found = garment_region(mask, cloth_type, category, drawing.photo, person)
        region = found.mask
        figures[f"region: IoU, {kind} masks"] = overlap(region > 0, truth)
        if cloth_type != FULL:
            name = "region: unions detected" if spec.whole_mask else "region: false alarms"
            figures[name] = float(found.how == "restricted")
        figures["region: unresolved"] = 0.0
    except UnresolvedRegionError:
        figures["region: unresolved"] = 1.0
    parse = drawing.parse
    masks = {
        "as_is": truth,
        "agnostic": repaint_mask(region, cloth_type, person) > 0,
        "agnostic, parse": repaint_mask(truth.view(np.uint8), cloth_type, person, parse) > 0,
        "relaxed": repaint_mask(region, cloth_type, person, None, "relaxed", spec.index) > 0,
        "drawn": drawing.agnostic[cloth_type],
    }
    head, hands = np.isin(parse, HEAD), drawing.keep & np.isin(parse, (14, 15))
    bare, parsed, drawn = masks["agnostic"], masks["agnostic, parse"], masks["drawn"]
    figures |= {
        "agnostic: garment covered": share(bare, truth),
        "agnostic: head covered": share(bare, head),
        "agnostic: IoU with drawn": overlap(bare, drawn),
        "agnostic: background in mask": float((bare & (parse == 0)).sum() / bare.sum()),
        "drawn: background in mask": float((drawn & (parse == 0)).sum() / drawn.sum()),
        "agnostic: area": float(bare.mean()),
        "agnostic, parse: area": float(parsed.mean()),
        "drawn: area": float(drawn.mean()),
        "agnostic: hands covered": share(bare, hands),
        "parse: protected pixels": float((parsed & protected(parse)).sum()),
        "parse: hands covered": share(parsed, hands),
        "parse: garment covered": share(parsed, truth),
        "parse: IoU with drawn": overlap(parsed, drawn),
        "relaxed: garment covered": share(masks["relaxed"], region > 0),
    }
    features = {name: mask_features(mask) for name, mask in masks.items()}
    return {
        "cloth_type": cloth_type,
        "gender": spec.person().gender,
        "category": category,
        "pid": spec.pid,
        "figures": figures,
        "features": features,
    }


def main(argv: list[str] | None = None) -> int:
    """Print the figures beside their bounds; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=3000, help="raw rows to draw, flat ones left out (default 3000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures to F")
    args = parser.parse_args(argv)
    specs = [spec for spec in raw_specs(args.rows, args.seed) if spec.view != "flat"]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(measure, specs, chunksize=16))
    names = dict.fromkeys(name for row in rows for name in row["figures"])
    figures = {name: float(np.mean([row["figures"][name] for row in rows if name in row["figures"]])) for name in names}
    scores = {
        policy: leak_score(np.stack([row["features"][policy] for row in rows]), rows) for policy in rows[0]["features"]
    }
    if "lower" in scores["as_is"]:
        figures["leak of as_is: lower"] = scores["as_is"]["lower"].accuracy

    bounds = {name: (low, high) for name, low, high in BOUNDS}
    missed = []
    print(f"{len(rows)} rows of {len({row['pid'] for row in rows})} people, seed {args.seed}")
    for name, value in sorted(figures.items()):
        low, high = bounds.get(name, (-np.inf, np.inf))
        fits = low <= value <= high
        missed += [] if fits else [name]
        print(
            f"{name:32} {value:8.4f}  {f'{low:g} to {high:g}' if name in bounds else '':16}{'' if fits else 'MISSED'}"
        )
    for policy, by_type in scores.items():
        for name in TYPE_NAMES.values():
            if name not in by_type:
                missed.append(f"leak of {policy}: {name} not measured, too few people; use more --rows")
                continue
            leak = by_type[name]
            over = leak.accuracy - leak.chance
            fits = policy == "as_is" or over <= MOST_LEAK
            missed += [] if fits else [f"leak of {policy}: {name}"]
            print(f"leak of {policy:16} {name:8} {leak.accuracy:.3f}, chance {leak.chance:.3f}, {over:+.3f}, "
                  f"{leak.rows} rows{'' if fits else '  MISSED'}")  # fmt: skip
    print(f"missed: {'; '.join(missed)}" if missed else "all bounds hold")
    leaks = {policy: {name: asdict(leak) for name, leak in by_type.items()} for policy, by_type in scores.items()}
    if args.json:
        args.json.write_text(json.dumps({"figures": figures, "leak": leaks}, indent=2) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
