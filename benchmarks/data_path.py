"""What a sample costs, beside bare decoding and resizing and a reader like upstream's; exit 1 when a bound is missed.

    python benchmarks/data_path.py [--rows 24] [--rounds 7] [--json F]

Rows of 1024x768 pixels (photo and garment JPEG, mask PNG) become samples of 768x576. ``bare`` decodes and resizes the
three pictures by Pillow, with the same filters, and stops there. ``upstream`` works like the public script's reader:
five pictures (the agnostic photo and the garment's mask besides) and float arithmetic on each. Variants take turns, in
one process. ``two workers`` is the rate of the trainer's loader with two processes over that with one.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by path, only this folder is on its path
from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset
from deepfashion_training.embedded.wardrobe import write_wardrobe
from training_run.transfer import collate

STORED, SIZE = (1024, 768), (768, 576)
LANCZOS, NEAREST = Image.Resampling.LANCZOS, Image.Resampling.NEAREST
PICTURES = ("image", "cloth", "mask")
#: What a figure may be at most, and at least.
AT_MOST, AT_LEAST = {"dataset / bare": 1.15, "dataset / upstream": 0.45}, {"two workers": 1.8}


def stored_rows(folder: Path, rows: int) -> list[dict[str, bytes]]:
    """The stored pictures of drawn rows, which are written to ``folder/rows`` as parquet files."""
    write_wardrobe(folder / "drawn", rows=3 * rows, seed=0, size=STORED, num_proc=2)
    drawn = datasets.load_dataset(str(folder / "drawn"), cache_dir=str(folder / "cache"))["train"].select(range(rows))
    rng = np.random.default_rng(0)

    def stored(row: dict[str, Any]) -> dict[str, Any]:
        cells = {}
        for name in PICTURES:
            sink = io.BytesIO()
            if name == "mask":
                row[name].save(sink, "PNG")
            else:  # photos have grain, and JPEG decodes flat areas too quickly without it
                photo = np.asarray(row[name].convert("RGB")) + rng.normal(0, 6, (*STORED, 1))
                Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=92)
            cells[name] = {"bytes": sink.getvalue(), "path": None}
        return {**row, **cells}

    cells = [stored(row) for row in drawn]
    for part in ("train", "validation"):
        path = folder / "rows" / "data" / f"{part}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(cells, features=drawn.features).to_parquet(path)
    return [{name: row[name]["bytes"] for name in PICTURES} for row in cells]


def resized(data: bytes, mode: str, resample: Image.Resampling) -> np.ndarray:
    """A stored picture, decoded and resized."""
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode).resize(SIZE[::-1], resample))


def bare(cells: dict[str, bytes]) -> list[np.ndarray]:
    """The floor: three pictures, decoded and resized."""
    photos = [resized(cells[name], "RGB", LANCZOS) for name in ("image", "cloth")]
    return [*photos, resized(cells["mask"], "L", NEAREST)]


def upstream(cells: dict[str, bytes]) -> dict[str, torch.Tensor]:
    """A sample made as the public script's dataset makes it: five pictures, each to floats by itself."""

    def tensor(name: str) -> torch.Tensor:
        pixels = resized(cells[name], "L" if name == "mask" else "RGB", LANCZOS).astype(np.float32) / 255
        return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()

    person, cloth, agnostic = (tensor(name) * 2 - 1 for name in ("image", "cloth", "image"))
    mask, cloth_mask = ((tensor("mask") > 0.5).float() for _ in range(2))
    return {
        "image": torch.cat([cloth, person], dim=2),
        "im_mask": torch.cat([cloth, agnostic * (1 - mask)], dim=2),
        "inpaint_mask": torch.cat([torch.zeros_like(mask), mask], dim=2),
        "cloth_pure": cloth.clone(),
        "cloth_mask": cloth_mask,
    }


def rate(rows: DeepFashionDataset, workers: int) -> float:
    """Samples per second of a loader over the rows, four times, once its workers have begun."""
    batches = [[row, (row + 1) % len(rows)] for row in range(0, len(rows), 2)] * 4
    loader = iter(DataLoader(rows, batch_sampler=batches, num_workers=workers, collate_fn=collate))
    next(loader)
    began, count = time.perf_counter(), sum(1 for _ in loader)
    return 2 * count / (time.perf_counter() - began)


def measure(row_count: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a row in each variant, and how they compare."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="data_path-") as folder:
        cells = stored_rows(Path(folder), row_count)
        options = DatasetOptions(cache_dir=f"{folder}/cache")
        rows = DeepFashionDataset(f"{folder}/rows", "train", size=SIZE, options=options)
        variants: dict[str, Callable[[int], Any]] = {
            "bare": lambda row: bare(cells[row]),
            "dataset": lambda row: rows[row],
            "upstream": lambda row: upstream(cells[row]),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(-1, rounds):  # the first one warms up
            for row in range(row_count):
                for name in sorted(variants, reverse=bool((row + turn) % 2)):
                    began = time.perf_counter()
                    variants[name](row)
                    if turn >= 0:
                        times[name].append(time.perf_counter() - began)
        rates = {workers: statistics.median(rate(rows, workers) for _ in range(3)) for workers in (1, 2)}
    paired = {name: np.asarray(values) for name, values in times.items()}
    return {
        "rows": row_count,
        "milliseconds": {name: round(1000 * statistics.median(values), 2) for name, values in times.items()},
        "dataset / bare": round(float(np.median(paired["dataset"] / paired["bare"])), 3),
        "dataset / upstream": round(float(np.median(paired["dataset"] / paired["upstream"])), 3),
        "two workers": round(rates[2] / rates[1], 3),
    }


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=24, help="different rows")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is read")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    figures = measure(args.rows, args.rounds)
    missed = {name: bound for name, bound in AT_MOST.items() if figures[name] > bound}
    missed |= {name: bound for name, bound in AT_LEAST.items() if figures[name] < bound}
    text = json.dumps(figures, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", "utf-8")
    for name, bound in missed.items():
        print(f"missed: {name} {figures[name]}, bound {bound}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
