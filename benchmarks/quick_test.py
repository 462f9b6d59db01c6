"""Time and peak memory of the quick test on this machine, as a user starts it; exit 1 when it fails or is over a bound.

    python benchmarks/quick_test.py [--output_dir D] [--json F]

Memory is the proportional set size of the launcher and everything below it, summed and sampled once a second, as a
sample takes 40 ms (resident size where the system does not tell the proportional one), so shared pages count once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

LAUNCHER = Path(__file__).resolve().parents[1] / "deepfashion_training" / "train_deepfashion_lora.sh"
#: What the quick test may take on two cores, set-up apart.
MOST_SECONDS, MOST_GIB = 300.0, 3.0


def memory_gib(root: psutil.Process) -> float:
    """Memory of a process and its descendants in GiB; processes that end meanwhile count nothing."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            full = process.memory_full_info()
            total += getattr(full, "pss", full.rss)
        except psutil.Error:
            continue
    return total / 2**30


def main(argv: list[str] | None = None) -> int:
    """Run the embedded quick test into a temporary folder, print its figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, help="keep the run here (default: it is thrown away)")
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures to F")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        output_dir = str(args.output_dir or f"{folder}/out")
        command = ["bash", str(LAUNCHER), "--quick-test", "--embedded", "--output_dir", output_dir]
        began, peak = time.perf_counter(), 0.0
        running = subprocess.Popen(command)
        while running.poll() is None:
            try:
                peak = max(peak, memory_gib(psutil.Process(running.pid)))
            except psutil.NoSuchProcess:
                break
            time.sleep(1)
        figures = {"exit": running.wait(), "seconds": time.perf_counter() - began, "peak_gib": peak}
    print(f"exit {figures['exit']}, {figures['seconds']:.0f} s of {MOST_SECONDS:.0f}, {peak:.2f} GiB of {MOST_GIB:.0f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    fits = figures["exit"] == 0 and figures["seconds"] <= MOST_SECONDS and peak <= MOST_GIB
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
