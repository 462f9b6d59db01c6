"""Speed, memory and rerun of `prepare` on the drawn wardrobe in the raw schema; exit 1 when a bound is missed.

    python benchmarks/preparation_speed.py [--rows 8000] [--few 800] [--work DIR]

It prepares ROWS rows and FEW rows of 768x512, each with an empty cache, with one process per core and without a parser,
and measures the rows a second of one core (of the whole command), the memory of all processes together (proportional
set size, sampled five times a second), and a second run that finds everything done. DIR keeps the drawn wardrobes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from quick_test import measured

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training_run.cores import usable_cores  # noqa: E402


def draw(folder: Path, rows: int) -> Path:
    """A wardrobe of ``rows`` rows in the raw schema in ``folder``, unless it is there."""
    if not folder.exists():
        flags = f"--schema hub --rows {rows} --size 768x512 --seed 0 --num_proc {usable_cores()}".split()
        module = "deepfashion_training.embedded.wardrobe"
        subprocess.run([sys.executable, "-m", module, "--output_dir", folder, *flags], check=True, cwd=ROOT)
    return folder


def prepared(source: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak GiB of the command a user would type, with a cache of its own for each source."""
    command = [sys.executable, "-m", "deepfashion_training.prepare", "--dataset_name", source, "--output_dir", out]
    command += ["--parser", "none", "--num_proc", usable_cores()]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(out.parent / f"cache-{source.name}"), "HF_HUB_OFFLINE": "1"}
    code, seconds, peak = measured(command, every=0.2, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    if code:
        raise SystemExit(f"prepare ended with {code}")
    return seconds, peak


def main() -> int:
    """Run the measurements and print them beside their bounds; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--few", type=int, default=800)
    parser.add_argument("--work", type=Path, help="folder for the wardrobes (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        kept, work = (args.work or Path(temporary)).resolve(), Path(temporary)
        many, few = (draw(kept / f"raw-{rows}", rows) for rows in (args.rows, args.few))
        seconds, peak = prepared(many, work / "many")
        few_peak = prepared(few, work / "few")[1]
        rerun = prepared(many, work / "many")[0]
    rate = args.rows / seconds / usable_cores()
    print(f"{args.rows} rows: {seconds:.0f} s on {usable_cores()} cores, {rate:.1f} rows/s per core (at least 40)")
    print(f"peak {peak:.2f} GiB (at most 1.5), {peak / few_peak:.2f} times that of {args.few} rows (at most 1.2)")
    print(f"rerun with nothing changed: {rerun:.1f} s (below 10)")
    return 0 if rate >= 40 and peak <= 1.5 and peak <= 1.2 * few_peak and rerun < 10 else 1


if __name__ == "__main__":
    sys.exit(main())
