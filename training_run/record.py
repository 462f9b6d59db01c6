"""``run.json``: what a run was asked, what it ran on, how fast it was and how it ended."""

from __future__ import annotations

import json
import logging
import math
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training_run.atomic import write_file
from training_run.bases import snapshot_of
from training_run.output_dir import data_facts

logger = logging.getLogger(__name__)

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


def checkpoint_facts(run: Any, data: Any, own: frozenset[str]) -> dict[str, Any]:
    """What a checkpoint of ``run`` on ``data`` keeps beside weights and optimizer; ``own`` names its arguments."""
    args, processes = run.args, run.accelerator.num_processes
    return {
        "step": run.step,
        "rows_seen": run.step * args.train_batch_size * args.gradient_accumulation_steps * processes,
        "moved": run.moved,
        "skipped_steps": run.skipped.count,
        "scaler_skips": run.skipped.by_scaler,
        "processes": processes,
        "arguments": {name: value for name, value in vars(args).items() if name in own},
        "data": data_facts(data),
        "base": run.base_facts,
        "attention": run.attention,
        "quantized": run.quantized,
        "versions": package_versions(),
        "git_revision": git_revision(),
    }


def start_curves(run: Any) -> None:
    """Begin ``--report_to``'s curves; those of steps that are taken again are not drawn twice."""
    scalars = {name: value for name, value in vars(run.args).items() if isinstance(value, (bool, int, float, str))}
    afresh = {"tensorboard": {"purge_step": run.step + 1}}
    run.accelerator.init_trackers("catvton-flux-lora", config=scalars, init_kwargs=afresh)


def loss_trend(losses: Sequence[float]) -> dict[str, Any] | None:
    """Means of the first and of the last tenth of a run's logged ``losses``, and whether the run has ``diverged``.

    A tenth is five losses at least; None for fewer than ten. A single step's loss varies with its timestep, so the run
    has diverged when the last tenth is a fifth above the first, and by three standard errors of their difference; or
    is twice as high, and by three standard errors of their logarithms, of which single large losses do not make much.
    A run can also diverge within its first tenth: then nearly all of the last losses are far above the first two,
    which are those of the base, as a LoRA begins at zero.
    """
    count = max(5, len(losses) // 10)
    if len(losses) < 2 * count:
        return None
    first, last = losses[:count], losses[-count:]
    before, after = statistics.fmean(first), statistics.fmean(last)
    logs = [[math.log(max(loss, 1e-12)) for loss in part] for part in (first, last)]
    at_once = after > 3 * statistics.fmean(losses[:2]) and sorted(last)[count // 20] > 1.5 * max(losses[:2])
    rose = (after > 1.2 * before and _is_above(last, first)) or (after > 2 * before and _is_above(logs[1], logs[0]))
    return {"first_tenth": before, "last_tenth": after, "first_losses": losses[:2], "diverged": rose or at_once}


def _is_above(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the mean of ``some`` is above that of as many ``others`` by three standard errors of the difference."""
    error = math.sqrt((statistics.variance(some) + statistics.variance(others)) / len(some))
    return statistics.fmean(some) - statistics.fmean(others) > 3 * error


def commit_of(model: str, revision: str | None, cache_dir: str | None) -> str | None:
    """Commit on the Hub of the files of ``model`` that were loaded; None for a folder on this machine."""
    snapshot = snapshot_of(model, revision, cache_dir)
    return snapshot.name if snapshot else None


class RunRecord:
    """What ``run.json`` says of a run: arguments, versions, data, device, rate and outcome."""

    def __init__(self, run: Any, datasets: dict[str, Any]) -> None:
        self.run, self.datasets, self.seconds = run, datasets, list[float]()
        self._waiting: list[float] = []
        self.facts: dict[str, Any] = {
            "status": "running",
            "started": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
            "arguments": vars(run.args),
            "versions": package_versions(),
            "git_revision": git_revision(),
            "model_commits": {
                "pipeline": commit_of(run.args.pretrained_model_name_or_path, run.args.revision, run.args.cache_dir),
                "transformer": commit_of(
                    run.args.pretrained_inpaint_model_name_or_path, run.args.inpaint_revision, run.args.cache_dir
                ),
            },
            "device": torch.cuda.get_device_name() if run.accelerator.device.type == "cuda" else "cpu",
            # A script that is driven sees to its attention itself.
            **({"attention": run.attention} if hasattr(run, "attention") else {}),
            "world_size": run.accelerator.num_processes,
            "resumed_from_step": run.step or None,
            "trainable_parameters": sum(parameter.numel() for parameter in run.parameters),
        }

    def took(self, seconds: float, known: bool) -> None:
        """Note what the host spent on a step. Only where the outcome is ``known`` has the device come as far.

        Then all steps since the last such one took equally long, as nothing tells them apart.
        """
        self._waiting.append(seconds)
        if known:
            self.settle(0.0)

    def settle(self, seconds: float) -> None:
        """Note that the device has finished all steps, after ``seconds`` of waiting for it."""
        if self._waiting:
            each = (sum(self._waiting) + seconds) / len(self._waiting)
            self.seconds += [each] * len(self._waiting)
            self._waiting = []

    def see_losses(self) -> None:
        """Note where the losses have gone, and say so when they have risen. After the last step."""
        path = self.run.folder / "logs" / "losses.jsonl"
        if not self.run.accelerator.is_main_process or not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        trend = loss_trend([json.loads(line)["loss"] for line in lines])
        if trend is not None:
            self.facts["losses"] = trend
        if trend is not None and trend["diverged"]:
            logger.warning(
                "the run has diverged: its loss began at %.4f, and is %.4f in the mean of its last tenth; train again "
                "with a lower --learning_rate than %g",
                trend["first_losses"][0], trend["last_tenth"], self.run.args.learning_rate,
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
        args, world_size = self.run.args, self.run.accelerator.num_processes
        steady = self.seconds[1:] or ([] if self._waiting else self.seconds)
        if steady:  # the first step also starts workers and warms up kernels
            rows = args.train_batch_size * args.gradient_accumulation_steps * world_size
            self.facts["seconds_per_step"] = sum(steady) / len(steady)
            self.facts["pairs_per_second"] = rows * len(steady) / sum(steady)
            self.facts["last_step_seconds"] = [round(each, 4) for each in self.seconds[-10:]]
        if torch.cuda.is_available():
            self.facts["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if quantized := getattr(self.run, "quantized", None):  # a script that is driven does not look into it
            self.facts["quantization"] = quantized
        self.facts["step"] = self.run.step
        summaries = {name: data.summary() for name, data in self.datasets.items() if hasattr(data, "summary")}
        self.facts["skipped_steps"] = self.run.skipped.count
        facts = json.dumps({**self.facts, "dataset": summaries}, indent=2, default=str)
        write_file(self.run.folder / "run.json", facts)
