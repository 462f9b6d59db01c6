"""Time and memory of `tryon` for each garment type, as a user starts it; exit 1 when one fails or is over the bound.

    python benchmarks/tryon.py [--json F]

Each type is one process that loads the small embedded model, makes the mask with the embedded parser and draws one
picture of a drawn person with the default settings. Beside it stands the floor: a process that only imports what the
command imports. Processor seconds tell a slow machine from one that was busy with something else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deepfashion_training.embedded.figure import draw_flat  # noqa: E402
from deepfashion_training.embedded.rows import documented_specs  # noqa: E402

TYPES = ("upper", "lower", "full")
#: What one picture may take on two cores, start of the process included.
MOST_SECONDS = 30.0
#: Height and width of the person's photo.
SIZE = (768, 576)
_IMPORTS = (
    "import deepfashion_training.models.fill, deepfashion_training.models.human_parser, transformers.models.segformer"
)


def draw_inputs(folder: Path, seed: int) -> None:
    """A person and a garment of each type: ``<type>-person.png`` and ``<type>-garment.png``."""
    for kind, spec in zip(TYPES, documented_specs(3, seed), strict=True):
        drawing = spec.draw(SIZE)
        drawing.photo.save(folder / f"{kind}-person.png")
        flat, _ = draw_flat(spec.garment(), drawing.person.gender, SIZE, drawing.outfit.inner)
        flat.save(folder / f"{kind}-garment.png")


def measured(command: list[str]) -> dict[str, float]:
    """Exit code, seconds, processor seconds and peak memory (GiB, sampled twenty times a second) of one process."""
    began, before, peak = time.perf_counter(), os.times(), 0
    running = subprocess.Popen(command, cwd=ROOT)
    while running.poll() is None:
        try:
            peak = max(peak, psutil.Process(running.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    code, seconds, after = running.wait(), time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"exit": code, "seconds": seconds, "cpu_seconds": cpu, "peak_gib": peak / 2**30}


def main(argv: list[str] | None = None) -> int:
    """Dress one drawn person of each type, print the figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures to F")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawn people (0)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_inputs(folder, args.seed)
        figures = {"imports": measured([sys.executable, "-c", _IMPORTS])}
        for kind in TYPES:
            command = [
                sys.executable,
                "-m",
                "deepfashion_training.tryon",
                "--embedded",
                "--garment_type",
                kind,
                "--num_inference_steps",
                "28",
            ]
            command += ["--person", f"{folder}/{kind}-person.png", "--garment", f"{folder}/{kind}-garment.png"]
            figures[kind] = measured([*command, "--output", f"{folder}/{kind}.png"])
    for kind, found in figures.items():
        bound = "" if kind == "imports" else f" of {MOST_SECONDS:.0f}"
        times = f"{found['seconds']:.1f} s{bound}, {found['cpu_seconds']:.1f} s of the processor"
        print(f"{kind:8} exit {found['exit']}, {times}, {found['peak_gib']:.2f} GiB")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    fits = all(found["exit"] == 0 and found["seconds"] <= MOST_SECONDS for found in figures.values())
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
