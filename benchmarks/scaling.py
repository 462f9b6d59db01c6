"""How much faster two processes train than one, on CPUs with one thread each, and with the frozen base split over both.

    python benchmarks/scaling.py [--steps 12] [--rounds 3] [--processes 2] [--json F]

Real runs of ``train_flux_inpaint.py`` with cached latents: a transformer of 60M parameters with random weights (``cpu``
of train_step.py), 256x384 pixels a pair, two pairs a step and process. Rates are those of run.json, the first step
left out; runs take turns, and the median of ``--rounds`` counts. Efficiency is the rate over that of one process and
the number of processes. As many free cores are needed as there are processes: exit 2 where the machine has fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for a test that imports this file
from train_step import EMBEDDED, ROOT, device_name, transformer_config

from deepfashion_training.embedded.make.tops_folder import write_tops_folder
from training_run.flags import COUNT

HEIGHT, WIDTH = 256, 192


def rate(folder: Path, processes: int, steps: int, *flags: str) -> float:
    """Pairs a second of a run of ``processes``."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    given: dict[str, Any] = {
        "dataroot": folder / "tops", "output_dir": folder / "run", "latents_dir": folder / "latents",
        "pretrained_model_name_or_path": EMBEDDED, "pretrained_inpaint_model_name_or_path": folder,
        "height": HEIGHT, "width": WIDTH, "max_sequence_length": 64, "train_batch_size": 2, "max_train_steps": steps,
        "validation_steps": 0, "checkpointing_steps": 0, "dataloader_num_workers": 0, "report_to": "none",
    }  # fmt: skip
    line = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    command = [*launch, str(ROOT / "train_flux_inpaint.py"), *line, "--cache_latents", "--overwrite_output_dir", *flags]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a run of {processes} processes failed:\n{done.stderr[-2000:]}")
    return float(json.loads((folder / "run" / "run.json").read_text("utf-8"))["pairs_per_second"])


def main(input_args: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description="Training rate by number of processes.", allow_abbrev=False)
    parser.add_argument("--steps", type=COUNT, default=12, help="optimizer steps of each run")
    parser.add_argument("--rounds", type=COUNT, default=3, help="runs of each kind")
    parser.add_argument("--processes", type=COUNT, default=2, help="how many, beside one")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures to F")
    args = parser.parse_args(input_args)
    if args.processes < 2:
        parser.error("--processes 1 is what the others are compared with: give 2 or more")
    if (cores := len(os.sched_getaffinity(0))) < args.processes:
        parser.error(f"--processes {args.processes} need as many cores, and there are {cores}")
    kinds: dict[str, tuple[int, tuple[str, ...]]] = {"1": (1, ()), str(args.processes): (args.processes, ())}
    kinds[f"{args.processes}, --shard_base"] = (args.processes, ("--shard_base",))
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        folder = Path(name)
        text = {"joint_attention_dim": 32, "pooled_projection_dim": 32}  # of the embedded text encoders
        FluxTransformer2DModel(**{**transformer_config("cpu"), **text}).save_pretrained(folder / "transformer")
        write_tops_folder(folder / "tops", rows=8, test_rows=1, size=(HEIGHT, WIDTH))
        for _ in range(args.rounds):
            for kind, (processes, flags) in kinds.items():
                rates[kind].append(rate(folder, processes, args.steps, *flags))
    one = statistics.median(rates["1"])
    rows = [
        {"processes": kind, "pairs_per_s": statistics.median(found),
         "efficiency": statistics.median(found) / one / kinds[kind][0], "all": found}
        for kind, found in rates.items()
    ]  # fmt: skip
    sys.stdout.write(f"{device_name(torch.device('cpu'))} here; 1 thread a process, {args.rounds} runs of each\n")
    sys.stdout.write(f"{'processes':<18}{'pairs/s':>9}{'efficiency':>12}\n")
    for row in rows:
        sys.stdout.write(f"{row['processes']:<18}{row['pairs_per_s']:>9.3f}{row['efficiency']:>12.2f}\n")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
