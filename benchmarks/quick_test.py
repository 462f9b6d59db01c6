"""Time and peak memory of the quick test on this machine, as a user starts it; exit 1 when it fails or is over a bound.

    python benchmarks/quick_test.py [--output_dir D]

Memory is the proportional set size of the launcher and everything below it, summed and sampled once a second, so shared
pages count once (resident size where the system does not tell the proportional one).
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

LAUNCHER = Path(__file__).resolve().parents[1] / "deepfashion_training" / "train_deepfashion_lora.sh"
#: What the quick test may take on two cores, set-up apart.
MOST_SECONDS, MOST_GIB = 300.0, 3.0


def memory_gib(root: psutil.Process) -> float:
    """Memory of a process and its descendants in GiB; processes that end meanwhile count nothing."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            full = process.memory_full_info()
            total += getattr(full, "pss", full.rss)
    return total / 2**30


def measured(command: list[Any], every: float, **options: Any) -> tuple[int, float, float]:
    """Exit code, seconds and peak GiB of a command, whose memory is looked at ``every`` so many seconds."""
    began, peak = time.perf_counter(), 0.0
    running = subprocess.Popen(list(map(str, command)), **options)
    while running.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            peak = max(peak, memory_gib(psutil.Process(running.pid)))
        time.sleep(every)
    return running.returncode, time.perf_counter() - began, peak


def main() -> int:
    """Run the embedded quick test, print its figures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--output_dir", help="keep the run here (default: it is thrown away)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output_dir = args.output_dir or f"{folder}/out"
        command = ["bash", LAUNCHER, "--quick-test", "--embedded", "--output_dir", output_dir]
        code, seconds, peak = measured(command, every=1)
    print(f"exit {code}, {seconds:.0f} s of {MOST_SECONDS:.0f}, {peak:.2f} GiB of {MOST_GIB:.0f}")
    return 0 if code == 0 and seconds <= MOST_SECONDS and peak <= MOST_GIB else 1


if __name__ == "__main__":
    sys.exit(main())
