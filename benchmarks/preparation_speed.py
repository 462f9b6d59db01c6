"""Speed, memory, rerun and kills of `prepare` on the drawn wardrobe in the raw schema; exit 1 when a bound is missed.

    python benchmarks/preparation_speed.py [--rows 8000] [--few 800] [--size 768x512] [--kills 10]
                                           [--work DIR] [--json F]

It prepares ROWS rows and FEW rows, each with an empty cache, with one process per core and without a parser, and
measures the rows a second of one core (of the whole command), the memory of all processes together (proportional set
size, sampled five times a second), and a second run that finds everything done. Then it kills runs of FEW rows
(SIGKILL) at random moments, runs them again, and compares the bytes with a run that was left alone. DIR keeps the drawn
wardrobes for the next time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from quick_test import memory_gib

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deepfashion_training.prepare import usable_cores  # noqa: E402

#: Name of a figure -> smallest and largest allowed value.
BOUNDS = {"rows_per_second_per_core": (40.0, None), "peak_gib": (None, 1.5), "growth": (None, 1.2)}
BOUNDS |= {"rerun_seconds": (None, 10.0), "kills_with_other_bytes": (None, 0)}


def draw(folder: Path, rows: int, size: str) -> Path:
    """A wardrobe of ``rows`` rows in the raw schema in ``folder``, unless it is there."""
    if not folder.exists():
        print(f"drawing {rows} rows of {size}", flush=True)
        flags = f"--schema hub --rows {rows} --size {size} --seed 0 --num_proc {usable_cores()}".split()
        module = "deepfashion_training.embedded.wardrobe"
        subprocess.run([sys.executable, "-m", module, "--output_dir", folder, *flags], check=True, cwd=ROOT)
    return folder


def started(source: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command a user would type, with a cache of its own for each source, in a process group of its own."""
    flags = ["--dataset_name", source, "--output_dir", out, "--parser", "none", "--num_proc", usable_cores()]
    return subprocess.Popen(
        [sys.executable, "-m", "deepfashion_training.prepare", *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, "HF_DATASETS_CACHE": str(out.parent / f"cache-{source.name}"), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def measured(source: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak GiB of one run."""
    began, peak = time.perf_counter(), 0.0
    running = started(source, out)
    while running.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            peak = max(peak, memory_gib(psutil.Process(running.pid)))
        time.sleep(0.2)
    if running.returncode:
        raise SystemExit(f"prepare ended with {running.returncode}")
    return time.perf_counter() - began, peak


def digests(out: Path) -> dict[str, str]:
    """The content of the data files."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.rglob("*.parquet"))}


def kills(source: Path, whole: Path, count: int, seconds: float) -> int:
    """Kill ``count`` runs that would take ``seconds`` and run each again; how many differ from the run in ``whole``."""
    chance, wrong = random.Random(0), 0
    for number in range(count):
        out = whole.with_name(f"killed-{number}")
        running = started(source, out)
        time.sleep(chance.uniform(0.2, 1.0) * seconds)
        with contextlib.suppress(ProcessLookupError):
            if number % 2:  # the main process alone, as the kernel does when memory runs out
                running.kill()
            else:
                os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        half = out.exists() and not (out / "report.json").exists()
        same = started(source, out).wait() == 0 and digests(out) == digests(whole)
        left = "half a folder, then " if half else ""
        print(f"kill {number}: {left}{'the same' if same else 'OTHER'} bytes after a rerun")
        wrong += half or not same
        shutil.rmtree(out, ignore_errors=True)
    return wrong


def measure(args: argparse.Namespace, kept: Path, work: Path) -> dict[str, float]:
    """The figures, by name."""
    many, few = (draw(kept / f"raw-{rows}-{args.size}", rows, args.size) for rows in (args.rows, args.few))
    seconds, peak = measured(many, work / "many")
    few_seconds, few_peak = measured(few, work / "few")
    rerun, _ = measured(many, work / "many")
    return {
        "seconds": seconds,
        "cores": usable_cores(),
        "rows_per_second_per_core": args.rows / seconds / usable_cores(),
        "peak_gib": peak,
        "growth": peak / few_peak,
        "rerun_seconds": rerun,
        "kills_with_other_bytes": kills(few, work / "few", args.kills, few_seconds),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the measurements and print them beside their bounds; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--few", type=int, default=800)
    parser.add_argument("--size", default="768x512", help="height x width")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--work", type=Path, help="folder for the wardrobes (default: a temporary one)")
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures to F")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        kept = (args.work or Path(temporary)).resolve()
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as work:
            figures = measure(args, kept, Path(work))
    missed = 0
    for name, value in figures.items():
        low, high = BOUNDS.get(name, (None, None))
        fits = (low is None or value >= low) and (high is None or value <= high)
        missed += not fits
        print(f"{name:26} {value:9.2f}{'' if fits else '  MISSED'}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
