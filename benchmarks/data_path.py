"""What a sample costs, beside the least that it can cost and beside a reader as upstream's, in one process.

    python benchmarks/data_path.py [--rows 24] [--rounds 7] [--json F]

Rows of 1024x768 pixels (photo and garment JPEG, mask PNG) become samples of 768x576. ``bare`` decodes and resizes the
three pictures with the same filters and stops there; ``upstream`` is a reader that works like the public script's: five
pictures (the parse map and the garment's mask besides) and float arithmetic on each. Variants take turns. ``workers``
compares a loader of two processes with one of one. Exit 1 when a bound is missed.
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
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by path, only this folder is on its path
from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset
from deepfashion_training.embedded.wardrobe import write_wardrobe

STORED, SIZE = (1024, 768), (768, 576)
LANCZOS, NEAREST = Image.Resampling.LANCZOS, Image.Resampling.NEAREST
#: At most this much of bare, at most this much of upstream, at least this much faster with two workers.
BOUNDS = {"dataset / bare": 1.25, "dataset / upstream": 0.5, "two workers": 1.7}


def stored_rows(folder: Path, rows: int) -> list[dict[str, bytes]]:
    """The pictures of a drawn wardrobe written to ``folder``, as JPEG, JPEG and PNG of 1024x768; also as parquet."""
    write_wardrobe(folder / "drawn", rows=3 * rows, seed=0, size=STORED, num_proc=2)
    split = datasets.load_dataset(str(folder / "drawn"), cache_dir=str(folder / "cache"))["train"].select(range(rows))
    kinds = {"image": "JPEG", "cloth": "JPEG", "mask": "PNG"}
    found = list[dict[str, bytes]]()
    columns: dict[str, list[Any]] = {name: [] for name in (*kinds, "caption", "cloth_type")}
    rng = np.random.default_rng(0)
    for row in split:
        cells: dict[str, bytes] = {}
        for name, form in kinds.items():
            picture = row[name].convert("L" if name == "mask" else "RGB")
            if name != "mask":  # photographs have grain, and JPEG decodes flat areas too quickly without it
                grain = rng.normal(0, 6, (*STORED, 1))
                picture = Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
            sink = io.BytesIO()
            picture.save(sink, form, **({"quality": 92} if form == "JPEG" else {}))
            cells[name] = sink.getvalue()
            columns[name].append({"bytes": cells[name], "path": None})
        columns["caption"].append(row["caption"])
        columns["cloth_type"].append(row["cloth_type"])
        found.append(cells)
    pictures = {name: datasets.Image() for name in kinds}
    features = datasets.Features(
        {**pictures, "caption": datasets.Value("string"), "cloth_type": datasets.Value("int64")}
    )
    (folder / "rows" / "data").mkdir(parents=True)
    for part in ("train", "validation"):
        datasets.Dataset.from_dict(columns, features=features).to_parquet(
            folder / "rows" / "data" / f"{part}-00000-of-00001.parquet"
        )
    return found


def resized(data: bytes, mode: str, resample: Image.Resampling) -> Image.Image:
    """A stored picture, decoded and resized."""
    return Image.open(io.BytesIO(data)).convert(mode).resize(SIZE[::-1], resample)


def bare(cells: dict[str, bytes]) -> list[np.ndarray]:
    """The floor: three pictures, decoded and resized."""
    return [
        np.asarray(resized(cells["image"], "RGB", LANCZOS)),
        np.asarray(resized(cells["cloth"], "RGB", LANCZOS)),
        np.asarray(resized(cells["mask"], "L", NEAREST)),
    ]


def upstream(cells: dict[str, bytes]) -> dict[str, torch.Tensor]:
    """A sample made as the public script's dataset makes it: five pictures, each to floats by itself."""

    def tensor(data: bytes, mode: str) -> torch.Tensor:
        pixels = np.asarray(resized(data, mode, LANCZOS)).astype(np.float32) / 255
        return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()

    person, cloth = tensor(cells["image"], "RGB") * 2 - 1, tensor(cells["cloth"], "RGB") * 2 - 1
    mask, cloth_mask = (tensor(cells["mask"], "L") > 0.5).float(), (tensor(cells["mask"], "L") > 0.5).float()
    agnostic = tensor(cells["image"], "RGB") * 2 - 1
    pair = torch.cat([cloth, person], dim=2)
    masked = torch.cat([cloth, agnostic * (1 - mask)], dim=2)
    return {
        "image": pair, "im_mask": masked, "inpaint_mask": torch.cat([torch.zeros_like(mask), mask], dim=2),
        "cloth_pure": cloth.clone(), "cloth_mask": cloth_mask,
    }  # fmt: skip


class Repeated(Dataset[dict[str, Any]]):
    """``rows`` over and over, so that workers have something to do."""

    def __init__(self, rows: DeepFashionDataset, times: int) -> None:
        self.rows, self.times = rows, times

    def __len__(self) -> int:
        return len(self.rows) * self.times

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.rows[row % len(self.rows)]


def rate(rows: DeepFashionDataset, workers: int, times: int) -> float:
    """Samples per second of a loader, once its workers have begun."""
    loader = iter(DataLoader(Repeated(rows, times), batch_size=2, num_workers=workers))
    next(loader)
    began, count = time.perf_counter(), sum(1 for _ in loader)
    return 2 * count / (time.perf_counter() - began)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a row of each variant, and how they compare."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="data_path-") as folder:
        cells = stored_rows(Path(folder), args.rows)
        options = DatasetOptions(cache_dir=f"{folder}/cache")
        rows = DeepFashionDataset(f"{folder}/rows", "train", size=SIZE, options=options)
        variants: dict[str, Callable[[int], Any]] = {
            "bare": lambda row: bare(cells[row]),
            "dataset": lambda row: rows[row],
            "upstream": lambda row: upstream(cells[row]),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(-1, args.rounds):
            for row in range(len(cells)):
                for name in sorted(variants, reverse=bool((row + turn) % 2)):
                    began = time.perf_counter()
                    variants[name](row)
                    if turn >= 0:
                        times[name].append(time.perf_counter() - began)
        one, two = [], []
        for _ in range(3):
            one.append(rate(rows, 1, 4))
            two.append(rate(rows, 2, 4))
    paired = {name: np.asarray(values) for name, values in times.items()}
    return {
        "rows": args.rows,
        "milliseconds": {name: round(1000 * statistics.median(values), 2) for name, values in times.items()},
        "dataset / bare": round(float(np.median(paired["dataset"] / paired["bare"])), 3),
        "dataset / upstream": round(float(np.median(paired["dataset"] / paired["upstream"])), 3),
        "two workers": round(statistics.median(two) / statistics.median(one), 3),
    }


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=24, help="different rows")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is read")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    found = measure(args)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    missed = [
        name
        for name, bound in BOUNDS.items()
        if (found[name] < bound if name == "two workers" else found[name] > bound)
    ]
    for name in missed:
        print(f"missed: {name} is {found[name]}, the bound {BOUNDS[name]}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
