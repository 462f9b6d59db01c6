"""Speed, memory, rerun and kills of `prepare` on the drawn wardrobe in the raw schema; exit 1 when a bound is missed.

    python benchmarks/prepare.py [--rows 8000] [--few 800] [--size 768x512] [--kills 10] [--work DIR] [--json F]

It prepares ROWS rows and FEW rows, each with an empty cache, with one process per core and without a parser, and says
how many rows a second one core does (of the whole command: starting, opening the dataset, writing, report), how much
memory all processes take together (proportional set size, sampled five times a second), how long a second run takes
that finds everything done, and whether runs of FEW rows killed (SIGKILL) at random moments, then run again, leave
the same bytes as a run that was left alone. DIR keeps the drawn wardrobes for the next time.
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

LEAST_ROWS_PER_CORE, MOST_GIB, MOST_GROWTH, MOST_RERUN_SECONDS = 40.0, 1.5, 1.2, 10.0


def command(source: Path, out: Path) -> list[str]:
    """The command a user would type."""
    return [
        *(sys.executable, "-m", "deepfashion_training.prepare", "--dataset_name", str(source)),
        *("--output_dir", str(out), "--parser", "none", "--num_proc", str(usable_cores())),
    ]


def environment(cache: Path) -> dict[str, str]:
    """The environment of a run, with ``cache`` for what `datasets` keeps."""
    return {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def draw(folder: Path, rows: int, size: str) -> None:
    """A wardrobe of ``rows`` rows in the raw schema in ``folder``, unless it is there."""
    if not folder.exists():
        print(f"drawing {rows} rows of {size}", flush=True)
        module = "deepfashion_training.embedded.wardrobe"
        flags = f"--schema hub --rows {rows} --size {size} --seed 0 --num_proc {usable_cores()}".split()
        subprocess.run([sys.executable, "-m", module, "--output_dir", folder, *flags], check=True, cwd=ROOT)


def measured(source: Path, out: Path, cache: Path) -> tuple[float, float]:
    """Seconds and peak GiB of one run."""
    began, peak = time.perf_counter(), 0.0
    running = subprocess.Popen(command(source, out), cwd=ROOT, env=environment(cache), stdout=subprocess.DEVNULL)
    while running.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            peak = max(peak, memory_gib(psutil.Process(running.pid)))
        time.sleep(0.2)
    if running.returncode:
        raise SystemExit(f"prepare ended with {running.returncode}")
    return time.perf_counter() - began, peak


def digests(out: Path) -> dict[str, str]:
    """What is in the data files."""
    files = [*sorted((out / "data").iterdir()), out / "quarantine.parquet", out / "unpaired.parquet"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def kills(source: Path, work: Path, count: int, seconds: float) -> list[str]:
    """Kill ``count`` runs that would take ``seconds``, run each again; what differs from an undisturbed run."""
    expected = digests(work / "few")
    chance, wrong = random.Random(0), []
    for number in range(count):
        out, cache = work / f"killed-{number}", work / "cache-few"
        running = subprocess.Popen(
            command(source, out), cwd=ROOT, env=environment(cache), start_new_session=True, stderr=subprocess.DEVNULL
        )
        moment = chance.uniform(0.2, 1.0) * seconds
        time.sleep(moment)
        whole_group = number % 2 == 0  # else the main process alone, as the kernel does when memory runs out
        done = running.poll() is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL) if whole_group else running.kill()
        running.wait()
        left = "complete" if out.exists() else "nothing to load"
        if out.exists() and not (out / "report.json").exists():
            wrong.append(f"kill {number} at {moment:.1f} s left a folder without its report")
        subprocess.run(
            command(source, out), cwd=ROOT, env=environment(cache), check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        same = digests(out) == expected
        what = "had ended" if done else "group killed" if whole_group else "main process killed"
        print(f"kill {number}: {what} at {moment:.1f} s, left {left}; rerun: {'the same' if same else 'OTHER'} bytes")
        if not same:
            wrong.append(f"kill {number} at {moment:.1f} s gave other bytes")
        shutil.rmtree(out)
    return wrong


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
        kept = args.work or Path(temporary)
        kept.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=kept))
        try:
            figures, wrong = measure(args, kept.resolve(), work.resolve())
        finally:
            shutil.rmtree(work)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for line in wrong:
        print(f"MISSED: {line}")
    return 1 if wrong else 0


def measure(args: argparse.Namespace, kept: Path, work: Path) -> tuple[dict[str, float], list[str]]:
    """The figures, and the bounds that they miss."""
    cores, wrong = usable_cores(), []
    sources = {name: kept / f"raw-{rows}-{args.size}" for name, rows in (("many", args.rows), ("few", args.few))}
    for source, rows in zip(sources.values(), (args.rows, args.few), strict=True):
        draw(source, rows, args.size)
    seconds, peaks = {}, {}
    for name, source in sources.items():
        seconds[name], peaks[name] = measured(source, work / name, work / f"cache-{name}")
    rerun, _ = measured(sources["many"], work / "many", work / "cache-many")
    rate = args.rows / seconds["many"] / cores
    growth = peaks["many"] / peaks["few"]
    print(f"{args.rows} rows of {args.size} in {seconds['many']:.0f} s on {cores} cores: {rate:.1f} rows/s per core")
    print(
        f"peak memory {peaks['many']:.2f} GiB at {args.rows} rows, {peaks['few']:.2f} at {args.few}: {growth:.2f} times"
    )
    print(f"a rerun with nothing changed: {rerun:.1f} s")
    if rate < LEAST_ROWS_PER_CORE:
        wrong.append(f"{rate:.1f} rows/s per core, at least {LEAST_ROWS_PER_CORE:.0f}")
    if peaks["many"] > MOST_GIB or growth > MOST_GROWTH:
        wrong.append(
            f"memory {peaks['many']:.2f} GiB (at most {MOST_GIB}), growth {growth:.2f} (at most {MOST_GROWTH})"
        )
    if rerun > MOST_RERUN_SECONDS:
        wrong.append(f"rerun {rerun:.1f} s, at most {MOST_RERUN_SECONDS:.0f}")
    if args.kills:
        wrong += kills(sources["few"], work, args.kills, seconds["few"])
    figures = {"rows_per_second_per_core": rate, "cores": cores, "peak_gib": peaks["many"], "growth": growth}
    return figures | {"rerun_seconds": rerun, "kills": args.kills, "missed": len(wrong)}, wrong


if __name__ == "__main__":
    sys.exit(main())
