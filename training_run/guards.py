"""What a run needs of pictures, packages and memory, in one line for the user where it is not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from training_run.colour import to_srgb
from training_run.flags import BACKENDS, QUANTIZED_BY, refuse_other_trainers


def read_picture(path: Path, mode: str) -> Image.Image:
    """The picture at ``path`` in a ``mode`` of Pillow, RGB as sRGB. Raises ``ValueError``, one line, for none.

    JPEG, PNG, WebP and BMP alone: other readers start programs. More than 64 million pixels are taken for an attack on
    memory and not decoded.
    """
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP")) as picture:
            if picture.width * picture.height > 64_000_000:
                raise ValueError(f"{picture.width}x{picture.height} pixels are too many")
            return (to_srgb(picture) if mode == "RGB" else picture).convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def out_of_memory(args: Any) -> ValueError:
    """What to say when a GPU's memory was too small: the peak, and the flags that lower it."""
    peak = ""
    if torch.cuda.is_available():
        peak = f" (peak {torch.cuda.max_memory_allocated() / 2**30:.1f} of "
        peak += f"{torch.cuda.mem_get_info()[1] / 2**30:.1f} GiB)"
    return ValueError(
        f"the GPU's memory was too small{peak}. What lowers it: --train_batch_size below "
        f"{args.train_batch_size}, --gradient_checkpointing, --mixed_precision bf16, --quantize_base nf4, "
        f"--use_8bit_adam, --height and --width below {args.height} and {args.width}, or --shard_base over several GPUs"
    )


def check_package(flag: str, package: str, instead: str = "") -> None:
    """Raise ``ValueError`` when ``package``, or the GPU that it runs on, is not there; ``instead`` of it helps."""
    if package == "bitsandbytes" and not torch.cuda.is_available():
        raise ValueError(f"{flag} needs a CUDA GPU, and none is visible: leave it out{instead}")
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{flag} needs the package {package}: pip install {package}")


def check_quantization(kind: str) -> None:
    """Raise ``ValueError`` when this machine cannot hold a base as ``kind`` of ``--quantize_base``."""
    check_package(f"--quantize_base {kind}", QUANTIZED_BY[kind], ", or choose int8")


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
    if args.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("--mixed_precision fp16 needs a CUDA GPU, and none is visible: use bf16 or no")
