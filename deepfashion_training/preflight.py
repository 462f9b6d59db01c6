"""What would stop a training run later and can be known before anything is downloaded or prepared.

What fails is said, all of it together; where nothing does, ``--check`` prints a line for every check.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from datasets import config as datasets_config
from diffusers import FluxTransformer2DModel
from huggingface_hub import constants

from deepfashion_training.cli import FaultsError, load_preset
from deepfashion_training.models import access
from deepfashion_training.models.publish import check_push
from deepfashion_training.plan import checkpoints_kept, latents_row_bytes, transformer_shape
from deepfashion_training.plan import size as in_words
from deepfashion_training.upstream import script as upstream
from training_run import guards
from training_run.flops import FLUX_FILL
from training_run.hub import is_hub_id, local_path
from training_run.lock import only_writer
from training_run.memory import T5_BYTES, predict, state_bytes
from training_run.speed import FILL
from training_run.start_lora import read_start
from training_run.transfer import bytes_of_pair

GIB = 2**30
#: Main memory of a process that trains a 12B model on a GPU, beside weights and checkpoints: Python, CUDA's libraries
#: and pictures on their way (estimate). Weights in bf16 take none: they go to the GPU from the mapped file.
PROCESS_BYTES = 3 * GIB
#: A sample dict for each pixel of a half, in fp32: image, im_mask and inpaint_mask are pairs, cloth_pure and cloth_mask
#: are not.
SAMPLE_BYTES = 4 * (2 * (3 + 3 + 1) + 3 + 1)
#: What pairs take on the disk while they are made, for a byte of raw rows: finished batches, and the result that is
#: written from them (1.8 measured, on 120 drawn rows of which 99 became pairs).
PAIRS_FOR_RAW = 2
#: Flags of a base on the Hub that the comparison after the training does not know.
_HUB_FLAGS = ("revision", "inpaint_revision", "cache_dir")


class Preflight:
    """The checks of the run that ``args`` ask of ``script``.

    ``check_data`` looks at the rows and says what they are; ``pairs_dirs`` are where pairs are made of raw rows, none
    where the rows are known not to be raw.
    """

    def __init__(
        self, args: argparse.Namespace, script: Any, check_data: Callable[[], str], pairs_dirs: list[Path]
    ) -> None:
        self.args = args
        self.is_ours = isinstance(script, ModuleType)
        self.script = script
        self.check_data = check_data
        self.pairs_dirs = pairs_dirs
        self.raw_bytes = 0  # of rows that pairs are made of
        known = self.is_ours or script.gets_lora  # of another script nothing is known
        # With --check alone there is one process, and a run has one for each GPU.
        launched = os.environ.get("LOCAL_WORLD_SIZE") or (torch.cuda.device_count() if args.check else 1)
        self.processes = max(1, int(launched))
        self.checks: dict[str, Callable[[], str]] = {
            "GPU": self.gpu,
            **({"packages": self.packages} if known else {}),
            **({"compiler": lambda: guards.check_compiler(args)} if self.is_ours else {}),
            **({"shared memory": self.shared_memory} if known else {}),
            **({"GPU memory": self.gpu_memory} if self.is_ours else {}),
            "main memory": self.main_memory,
            "output": self.output,
            **({"publishing": self.publishing} if args.publish else {}),
            "models": self.models,
            **({"LoRA": self.start} if known and args.lora else {}),
            "data": self.data,
            "disk": self.disk,
        }
        self.failed: set[str] = set()
        self.downloads: dict[str, tuple[Path, int]] = {}

    def run(self) -> list[str]:
        """Make all checks, and say a line of each. Raises ``FaultsError`` with all that fail."""
        lines, faults = [], []
        for name, look in self.checks.items():
            try:
                lines.append(f"ok  {name:15}{look()}")
            except ValueError as error:
                faults.append(str(error))
                self.failed.add(name)
        if faults:
            raise FaultsError(faults)
        return lines

    # ---- the machine

    def gpu(self) -> str:
        """The GPUs that train, with the versions that have to go together."""
        args, pipeline = self.args, getattr(self.args, "pretrained_model_name_or_path", None)
        if not args.embedded and (not Path(pipeline or "").is_dir() or guards.gpu_fault()):
            guards.check_gpu(guards.NO_GPU, "add --embedded to try it on this machine")
        if not torch.cuda.is_available():
            return "none: a local model on the CPU"
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return f"{', '.join(names)}; PyTorch {torch.__version__} for CUDA {torch.version.cuda}"

    def packages(self) -> str:
        """Packages and devices that flags need, and flags that do not go together."""
        args = self.args
        for name in (*_HUB_FLAGS, "variant"):
            if args.evaluate_samples and getattr(args, name, None):
                raise ValueError(
                    f"--{name} and --evaluate_samples do not go together: the comparison would load the base without "
                    "it; add --evaluate_samples 0"
                )
        if "GPU" in self.failed:
            return "not looked at without a GPU"
        guards.check_packages(args)
        return "what the flags need is here"

    def shared_memory(self) -> str:
        """What workers hand over: bytes to our own trainer, the whole sample dict to another script."""
        args = self.args
        pair = bytes_of_pair(args.height, args.width) if self.is_ours else SAMPLE_BYTES * args.height * args.width
        return guards.check_shared_memory(args, pair, self.processes)

    @functools.cached_property
    def shape(self) -> dict[str, Any] | None:
        """The configuration of the transformer where it is of FLUX.1's size, else None; of one on the Hub it is."""
        if not self.is_ours or self.args.embedded:
            return None
        shape = transformer_shape(self.args)
        return shape if shape["num_layers"] >= FLUX_FILL["num_layers"] else None

    def gpu_memory(self) -> str:
        """The least that a step takes beside what is free."""
        args = self.args
        if not torch.cuda.is_available() or self.shape is None or args.shard_base:
            return "not predicted: no GPU, a small model, or a base that is split over several"
        # With every block recomputed what a block keeps counts no more, so nothing is compiled to know it.
        whole = args.gradient_checkpointing in ("auto", 1)
        traced = argparse.Namespace(**vars(args) | ({"compile_blocks": False} if whole else {}))
        least = predict(traced, self.script.make_trainable, self.shape).least(args.gradient_checkpointing)
        free, total = torch.cuda.mem_get_info()
        beside = f"{least / GIB:.1f} GiB at least, by a simulated step; {free / GIB:.1f} of {total / GIB:.1f} are free"
        if least > free * (FILL if args.gradient_checkpointing == "auto" else 1):  # as ``auto`` will see it
            missing = (least / (FILL if args.gradient_checkpointing == "auto" else 1) - free) / GIB
            raise ValueError(
                f"GPU memory: {beside}, {missing:.1f} GiB are missing for {args.height}x{args.width}: end other "
                "programs on it, or see with --plan which flags fit"
            )
        return beside

    def main_memory(self) -> str:
        """What processes take beside weights, in the memory that the machine or its container has left."""
        args, free = self.args, guards.available_memory()
        needed = 0
        if not args.embedded and torch.cuda.is_available():
            needed = self.processes * PROCESS_BYTES
            needed += 2 * self.checkpoint_bytes  # tensors that leave the GPU, and the file that is made of them
            if self.shape and FILL * torch.cuda.mem_get_info()[0] < T5_BYTES:
                needed += self.processes * T5_BYTES
        beside = (
            f"{needed / GIB:.1f} GiB (estimate); {free / GIB:.1f} are free" if needed else f"{free / GIB:.1f} GiB free"
        )
        if needed > free:
            raise ValueError(f"main memory: the run takes {beside}: end other programs, or take a larger machine")
        return beside

    @functools.cached_property
    def trained(self) -> int:
        """How many weights of the 12B model are trained; 0 for a smaller one. No memory is taken for any."""
        if self.shape is None:
            return 0
        with torch.device("meta"):
            transformer = FluxTransformer2DModel(**self.shape)
        plain = argparse.Namespace(**vars(self.args) | {"compile_blocks": False})
        return sum(parameter.numel() for parameter in self.script.make_trainable(transformer, plain))

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint of the 12B model: trained weights in fp32 with the optimizer's state."""
        return self.trained * (4 + state_bytes(self.args)) if self.trained else 0

    # ---- places and names

    def output(self) -> str:
        """Where results go: nothing is in the way there, and it can be written to."""
        folder = Path(self.args.output_dir)
        access.check_writable(folder)
        with only_writer(folder, patience=0):  # of a run that is to begin, this process is that already
            upstream.check_before(self.script, self.args)
        if (folder / "README.md").exists() and not (folder / "run.json").exists():
            raise ValueError(f"--output_dir {folder} has a README.md that the model card would replace: choose another")
        return str(folder)

    def publishing(self) -> str:
        """Where the LoRA is uploaded to, with a token that may."""
        args = self.args
        args.publish_as = check_push(args.publish_as, Path(args.output_dir).resolve().name)
        return str(args.publish_as)

    def models(self) -> str:
        """Licence, token, names and files of the models."""
        args = self.args
        pipeline = getattr(args, "pretrained_model_name_or_path", None)
        transformer = getattr(args, "pretrained_inpaint_model_name_or_path", None)
        if not (pipeline and transformer):
            return "named by the script"
        hub: dict[str, Any] = {name: getattr(args, name, None) for name in _HUB_FLAGS}
        missing = access.bytes_to_download(pipeline, transformer, **hub)
        self.downloads["models"] = (Path(hub["cache_dir"] or constants.HF_HUB_CACHE), missing)
        return f"{pipeline} and {transformer}: " + (f"{in_words(missing)} to download" if missing else "all here")

    def start(self) -> str:
        """The LoRA to start from: that it is there, and one of this transformer."""
        if "models" in self.failed:
            return "not looked at without the models"
        lora = read_start(self.args)
        return f"{lora.path}: rank {lora.ranks}, {len(lora.layers)} layers"

    def data(self) -> str:
        """What the rows are; of those on the Hub, whether they may be read."""
        args, found = self.args, self.check_data()
        names = args.dataset_name if isinstance(args.dataset_name, list) else [args.dataset_name]
        here = [local_path(name) for name in names if not is_hub_id(name)]
        self.raw_bytes = sum(file.stat().st_size for source in here for file in source.rglob("[!.]*.parquet"))
        if len(here) == len(names):
            return found
        self.raw_bytes += sum(access.dataset_bytes(name, args.dataset_revision) for name in names if is_hub_id(name))
        self.downloads["data"] = (Path(constants.HF_HUB_CACHE), self.raw_bytes)
        self.downloads["data, unpacked"] = (Path(datasets_config.HF_DATASETS_CACHE), self.raw_bytes)
        return f"{found}: {in_words(self.raw_bytes)} to download"

    # ---- disks

    def disk(self) -> str:
        """What will be written, file system by file system."""
        args, needs = self.args, [(what, *need) for what, need in self.downloads.items()]
        if missing := [folder for folder in self.pairs_dirs if not (folder / "report.json").exists()]:
            needs.append(("pairs", missing[0], PAIRS_FOR_RAW * self.raw_bytes))
        output = Path(args.output_dir)
        if self.trained and args.max_train_steps:
            kept = checkpoints_kept(args, 0.0) * self.checkpoint_bytes + 4 * self.trained
            needs.append(("checkpoints", output, kept))
        elif args.embedded:
            needs.append(("run", output, int((load_preset("embedded").disk_gib or 0) * GIB)))
        if self.is_ours and args.cache_latents and args.max_train_samples:
            latents = Path(args.latents_dir or output)
            needs.append(("encoded rows", latents, args.max_train_samples * latents_row_bytes(args)))
        return check_disks(needs)


def check_disks(needs: list[tuple[str, Path, int]]) -> str:
    """What is needed and free on each file system of ``needs``: what for, a folder, and bytes.

    Raises ``ValueError`` naming the file systems on which it does not fit.
    """
    places: dict[int, list[tuple[str, Path, int]]] = {}
    for need in needs:
        if need[2]:
            places.setdefault(access.existing(need[1]).stat().st_dev, []).append(need)
    lines, fits = [], True
    for on_one in places.values():
        total, free = sum(need[2] for need in on_one), shutil.disk_usage(access.existing(on_one[0][1])).free
        parts = ", ".join(f"{what} {in_words(count)} in {folder}" for what, folder, count in on_one)
        lines.append(f"{in_words(total)} needed and {in_words(free)} free for {parts}")
        fits = fits and total <= free
    if not fits:
        raise ValueError(
            f"disk: {'; '.join(lines)}: make room, or name a larger disk with HF_HOME, --pairs_dir and --output_dir"
        )
    return "; ".join(lines) or "nothing of note"
