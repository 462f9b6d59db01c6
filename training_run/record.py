"""``run.json``: what a run was asked, what it ran on, how fast it was and how it ended."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from training_run.atomic import write_file
from training_run.bases import base_facts
from training_run.output_dir import read_record
from training_run.start_lora import Start
from training_run.stopping import StoppedError

logger = logging.getLogger(__name__)

#: What a run has measured of its own steps.
RATES = "seconds_per_step pairs_per_second last_step_seconds peak_gpu_memory_gib".split()
#: Packages that decide what a run computes; their versions go on record.
PACKAGES = "torch diffusers transformers accelerate peft safetensors numpy Pillow"


def git_revision() -> str | None:
    """Commit of this file's repository, with '-dirty' when it has uncommitted changes; None outside of one."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--abbrev=40", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    return found or None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    return {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES.split()}


def loss_trend(losses: Sequence[float]) -> dict[str, Any] | None:
    """Means of the first and of the last tenth of a run's logged ``losses``, and whether the run has ``diverged``.

    A tenth is five losses at least; None for fewer than ten. Single losses vary with their timesteps, so a last tenth
    counts that is a fifth above the first, and by three standard errors of the difference; or twice as high.
    """
    count = max(5, len(losses) // 10)
    if len(losses) < 2 * count:
        return None
    first, last = losses[:count], losses[-count:]
    before, after = statistics.fmean(first), statistics.fmean(last)
    error = math.sqrt((statistics.variance(first) + statistics.variance(last)) / count)
    diverged = after > 2 * before or after > max(1.2 * before, before + 3 * error)
    return {"first_tenth": before, "last_tenth": after, "diverged": diverged}


class RecordedRun(Protocol):
    """What ``RunRecord`` reads of a run."""

    args: argparse.Namespace
    accelerator: Accelerator
    folder: Path
    parameters: list[torch.nn.Parameter]
    start: Start | None
    step: int
    skipped_steps: int


class RunRecord:
    """What ``run.json`` says of a run: arguments, versions, data, device, rate and outcome.

    ``seconds`` gets the time of every step, ``facts`` whatever else is to be recorded.
    """

    def __init__(self, run: RecordedRun, datasets: dict[str, Any]) -> None:
        self.run = run
        self.datasets = datasets
        self.seconds: list[float] = []
        self.facts: dict[str, Any] = {
            "status": "running",
            "started": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
            "arguments": vars(run.args),
            "versions": package_versions(),
            "git_revision": git_revision(),
            "base": base_facts(run.args),
            **({"started_from": dataclasses.asdict(run.start)} if run.start else {}),
            "device": torch.cuda.get_device_name() if run.accelerator.device.type == "cuda" else "cpu",
            "world_size": run.accelerator.num_processes,
            "resumed_from_step": run.step or None,
            "trainable_parameters": sum(parameter.numel() for parameter in run.parameters),
        }
        self.facts |= self._rates_before()

    def _rates_before(self) -> dict[str, Any]:
        """What the run that is continued has measured on the same devices: all there is where no step is left."""
        before = read_record(self.run.folder) if self.run.step else {}
        same = all(before.get(name) == self.facts[name] for name in ("device", "world_size"))
        return {name: before[name] for name in RATES if same and name in before}

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Write at the end of the block how the run has ended: done, stopped or failed."""
        try:
            yield
        except BaseException as error:
            self.end(f"stopped by {error}" if isinstance(error, StoppedError) else "failed")
            raise
        self.see_losses()
        self.facts["status"] = "done"
        self.write()

    def see_losses(self) -> None:
        """Note where the losses have gone, and warn when they have risen. After the last step."""
        path = self.run.folder / "logs" / "losses.jsonl"
        if not self.run.accelerator.is_main_process or not path.is_file():
            return
        trend = loss_trend([json.loads(line)["loss"] for line in path.read_text(encoding="utf-8").splitlines()])
        if trend is None:
            return
        self.facts["losses"] = trend
        if trend["diverged"]:
            logger.warning(
                "the run has diverged: the mean loss of its first tenth was %.4f, that of its last is %.4f; lower "
                "--learning_rate %g",
                trend["first_tenth"], trend["last_tenth"], self.run.args.learning_rate,
            )  # fmt: skip

    def end(self, status: str) -> None:
        """Write how a run ended that did not come to its end; a full disk must not hide why."""
        self.facts["status"] = status
        try:
            self.write()
        except OSError as error:
            logger.warning("%s", error)

    def write(self) -> None:
        """Write ``run.json`` as things stand now; only the main process does."""
        if not self.run.accelerator.is_main_process:
            return
        args = self.run.args
        steady = self.seconds[1:] or self.seconds  # the first step also starts workers and warms up kernels
        if steady:
            rows = args.train_batch_size * args.gradient_accumulation_steps * self.run.accelerator.num_processes
            self.facts["seconds_per_step"] = sum(steady) / len(steady)
            self.facts["pairs_per_second"] = rows * len(steady) / sum(steady)
            self.facts["last_step_seconds"] = [round(each, 4) for each in self.seconds[-10:]]
        if torch.cuda.is_available() and (steady or self.run.step < args.max_train_steps):
            self.facts["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.facts["step"] = self.run.step
        self.facts["skipped_steps"] = self.run.skipped_steps
        summaries = {name: data.summary() for name, data in self.datasets.items() if hasattr(data, "summary")}
        facts = json.dumps({**self.facts, "dataset": summaries}, indent=2, default=str)
        write_file(self.run.folder / "run.json", facts)
