"""What a run needs of the machine (GPU, driver, memory, compiler, packages) and of pictures, or one line on the fix."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import parse_flag_from_env
from PIL import Image

from training_run.colour import to_srgb
from training_run.decoding import PictureError, eight_bit, open_picture
from training_run.flags import BACKENDS, QUANTIZED_BY, refuse_other_trainers

#: The oldest driver branch for a major version of CUDA (NVIDIA, "CUDA Compatibility", minor version compatibility).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}

#: For ``check_gpu``.
NO_GPU = "no CUDA GPU is visible, and a 12B model needs one"
#: Where PyTorch's workers hand over what they have loaded.
SHARED_MEMORY = Path("/dev/shm")
#: What errors say when CUDA, cuBLAS, cuDNN or NCCL found no memory. PyTorch raises ``torch.OutOfMemoryError`` for its
#: own allocator alone; those libraries take memory beside it, and fail in a ``RuntimeError`` when that holds all there
#: is. The last three have other causes too, but are most often this: a handle that cannot be made, a convolution whose
#: workspace fits nowhere.
_NO_MEMORY = re.compile(
    r"out of memory|_ALLOC_FAILED|DEVICE_ALLOCATION_FAILED"
    r"|CUBLAS_STATUS_NOT_INITIALIZED.*cublas(Lt)?Create|CUDNN_STATUS_NOT_(INITIALIZED|SUPPORTED)"
    r"|unable to find an engine to execute",
    re.DOTALL,
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether ``error``, or what it was raised from, says that a GPU's memory was too small, in any library's words."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False


def read_picture(path: Path, mode: str) -> Image.Image:
    """The picture at ``path`` in a ``mode`` of Pillow, RGB as sRGB. Raises ``ValueError``, one line, for none.

    More than 64 million pixels are taken for an attack on memory and not decoded.
    """
    try:
        picture = eight_bit(open_picture(path.read_bytes(), 64_000_000))
        return (to_srgb(picture) if mode == "RGB" else picture).convert(mode)
    except (OSError, PictureError) as error:
        raise ValueError(f"{path}: {error}") from error


def out_of_memory(error: BaseException, lowers: str) -> ValueError:
    """What to say when a GPU's memory was too small: the peak, what ``lowers`` it, and what a library said."""
    peak = ""
    if torch.cuda.is_available():
        peak = f" (peak {torch.cuda.max_memory_allocated() / 2**30:.1f} of "
        peak += f"{torch.cuda.mem_get_info()[1] / 2**30:.1f} GiB)"
    said = "" if isinstance(error, torch.OutOfMemoryError) else f". It was told as: {str(error).splitlines()[0]}"
    return ValueError(f"the GPU's memory was too small{peak}. What lowers it: {lowers}{said}")


def training_out_of_memory(args: Any, error: BaseException) -> ValueError:
    """``out_of_memory`` of a training run."""
    return out_of_memory(
        error,
        f"--train_batch_size below {args.train_batch_size}, --gradient_checkpointing, --mixed_precision bf16, "
        f"--quantize_base nf4, --use_8bit_adam, --height and --width below {args.height} and {args.width}, or "
        "--shard_base over several GPUs",
    )


def gpu_fault() -> str | None:
    """What keeps PyTorch from the GPU of this machine: CUDA's own error, the versions, and how to fix it.

    None where nothing does: PyTorch sees a GPU, there is none, or the user hides it.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or parse_flag_from_env("ACCELERATE_USE_CPU")
    if hidden or shutil.which("nvidia-smi") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is said below
        if torch.cuda.is_available():
            return None
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=60)
    driver = (told.stdout.strip().splitlines() or ["that does not answer"])[0]
    if "No devices were found" in told.stdout + told.stderr:
        return None
    try:
        torch.cuda.init()  # it says what ``is_available`` keeps to itself
        error = "no GPU was found"
    except (RuntimeError, AssertionError) as raised:
        error = str(raised).splitlines()[0].rstrip(".")
    cuda, number = torch.version.cuda, re.match(r"\d+", driver)
    built, fix = f"built for CUDA {cuda}", "nvidia-smi should list the GPU, and in a container --gpus all show it"
    if cuda is None:
        built, fix = "built without CUDA", "install a build with it, `pip install --force-reinstall torch`"
    elif number and int(number[0]) < (oldest := OLDEST_DRIVER.get(int(cuda.split(".")[0]), 0)):
        fix = f"update the driver to R{oldest} or newer, or install a PyTorch for the CUDA of this driver"
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "" if shown is None else f", CUDA_VISIBLE_DEVICES={shown}"
    return (
        f"PyTorch {torch.__version__}, {built}, cannot use this machine's GPU (NVIDIA driver {driver}{shown}): "
        f"{error}: {fix}"
    )


def check_gpu(missing: str, instead: str) -> None:
    """Raise ``ValueError`` where PyTorch has no GPU: with what keeps it from one, else ``missing``; or ``instead``."""
    if fault := gpu_fault():
        raise ValueError(f"{fault}, or {instead}")
    if not torch.cuda.is_available():
        raise ValueError(f"{missing}: {instead}")


def available_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of main memory that are free: the machine's, or what its container (a control group) has left.

    Pages of files that were read are free, too.
    """
    free = psutil.virtual_memory().available
    for limit, used, cache in (
        ("memory.max", "memory.current", ("active_file", "inactive_file")),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
    ):
        try:
            most, taken = (int((groups / name).read_text()) for name in (limit, used))
            stats = (groups / limit).with_name("memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
        counts = dict(line.split() for line in stats)
        free = min(free, most - taken + sum(int(counts.get(name, 0)) for name in cache))
    return max(free, 0)


def check_package(flag: str, package: str, instead: str = "") -> None:
    """Raise ``ValueError`` when ``package``, or the GPU that it runs on, is not there; ``instead`` of it helps."""
    if package == "bitsandbytes":
        check_gpu(f"{flag} needs a CUDA GPU, and none is visible", f"leave {flag} out{instead}")
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{flag} needs the package {package}: pip install {package}")


def check_quantization(kind: str) -> None:
    """Raise ``ValueError`` when this machine cannot hold a base as ``kind`` of ``--quantize_base``."""
    check_package(f"--quantize_base {kind}", QUANTIZED_BY[kind], ", or choose int8")


def check_compiler(args: Any) -> str:
    """The compiler of ``--compile_blocks``, in words; raises ``ValueError`` where it or Python.h is not there.

    On a GPU Triton builds a small launcher in C, by $CC, gcc or clang; on a CPU Inductor writes C++, for $CXX or g++.
    """
    if not args.compile_blocks:
        return "not needed: --no-compile_blocks"
    kind, variable, usual = ("C", "CC", ("gcc", "clang")) if torch.cuda.is_available() else ("C++", "CXX", ("g++",))
    named = os.environ.get(variable)
    found = next(filter(None, map(shutil.which, [named.split()[0]] if named else usual)), None)
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme is for what pip installs; its headers are where Python's are, and Triton looks there.
    include = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    header = Path(include) / "Python.h"
    lacking = [f"a {kind} compiler ({named or ' or '.join(usual)})"] if found is None else []
    lacking += [f"{header}"] if not header.is_file() else []
    if lacking or found is None:
        raise ValueError(
            f"--compile_blocks needs {' and '.join(lacking)}, not there: `apt install build-essential python3-dev`, "
            "or add --no-compile_blocks"
        )
    return found


def check_shared_memory(args: Any, pair: int, processes: int | None = None) -> str:
    """How much of the shared memory loading takes, in words; raises ``ValueError`` where it is not there.

    Workers of all ``processes`` of this machine, by default those that were launched, hand batches over in it: those
    that they have ready, and the one that is being read. ``pair`` is the bytes of a pair there. Docker gives 64 MiB.
    """
    folder, workers = SHARED_MEMORY, int(args.dataloader_num_workers)
    if not workers or not folder.is_dir():
        return "not needed: no workers" if not workers else f"no {folder} on this machine"
    prefetch = int(getattr(args, "dataloader_prefetch_factor", None) or 2)  # PyTorch's own
    processes = processes or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    batch = pair * int(args.train_batch_size)
    needed, free = processes * (workers * prefetch + 1) * batch, shutil.disk_usage(folder).free
    if needed > free:
        each = f"{workers} workers x {prefetch} batches of {batch / 2**20:.0f} MiB"
        raise ValueError(
            f"{folder} has {free / 2**20:.0f} MiB free and pictures on their way need {needed / 2**20:.0f} ({each}): "
            f"start the container with --shm-size={math.ceil(1.5 * needed / 2**30)}g, or add --dataloader_num_workers 0"
        )
    return f"{needed / 2**20:.0f} of {free / 2**20:.0f} MiB free in {folder}"


def check_packages(args: Any) -> None:
    """Raise ``ValueError`` for a missing package or device that a flag needs, and for another trainer's settings."""
    refuse_other_trainers()
    needs = {
        "--use_8bit_adam": args.use_8bit_adam and "bitsandbytes",
        "--optimizer prodigy": args.optimizer == "prodigy" and "prodigyopt",
        f"--report_to {args.report_to}": args.report_to != "none" and args.report_to,
        f"--attention_backend {args.attention_backend}": BACKENDS[args.attention_backend],
    }
    for flag, package in needs.items():
        if package:
            check_package(flag, package)
    if args.quantize_base:
        check_quantization(args.quantize_base)
    if args.mixed_precision == "fp16":
        check_gpu("--mixed_precision fp16 needs a CUDA GPU, and none is visible", "use bf16 or no")
