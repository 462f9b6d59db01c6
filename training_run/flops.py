"""What a training step multiplies at least, and what a device multiplies at most."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

#: Shape of FLUX.1-Fill's transformer: its input is 64 noisy channels, 64 of the masked picture and 256 of the mask, its
#: texts are as wide as T5-XXL's and CLIP-L's.
FLUX_FILL: dict[str, Any] = {
    "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56), "in_channels": 384, "out_channels": 64, "joint_attention_dim": 4096,
    "pooled_projection_dim": 768, "guidance_embeds": True,
}  # fmt: skip


@dataclass(frozen=True)
class Flops:
    """Useful floating-point operations; a multiplication and an addition count two."""

    forward: int
    backward: int

    @property
    def step(self) -> int:
        """Both passes. The optimizer, norms and activations are left out."""
        return self.forward + self.backward


def useful_flops(config: dict[str, Any], image_tokens: int, text_tokens: int, rank: int, pairs: int = 1) -> Flops:
    """Useful work of a step with a LoRA of ``rank`` on all attention and feed-forward layers of a frozen base.

    Forward pass, gradients to activations, gradients to the LoRA. Gradients to frozen weights and whatever is
    computed twice (checkpointing, flash attention's backward pass) are not counted. The formulas are derived in
    ``benchmarks/README.md``; the test holds them against PyTorch's own counter.
    """
    double = config["num_layers"]
    single = config["num_single_layers"]
    d = config["num_attention_heads"] * config["attention_head_dim"]
    tokens = image_tokens + text_tokens
    layers = (double + single) * 24 * d * d * tokens
    attention = (double + single) * 4 * d * tokens**2
    lora = (18 * double + 17 * single) * 2 * rank * d * tokens
    output = 2 * d * config["out_channels"] * image_tokens
    # Nothing trainable lies before these, so they have a forward pass only.
    modulation = (12 * double + 3 * single + 2) * 2 * d * d
    embedders = 2 * d * (image_tokens * config["in_channels"] + text_tokens * config["joint_attention_dim"])
    embedders += 2 * d * (config["pooled_projection_dim"] + d) + 2 * d * (256 + d) * (1 + config["guidance_embeds"])
    # The first block's queries, keys and values are made from inputs that need no gradient.
    no_gradient = 6 * d * tokens * (d + rank)
    forward = layers + attention + lora + output + modulation + embedders
    backward = layers + 2 * attention + 2 * lora + output - no_gradient
    return Flops(pairs * forward, pairs * backward)


def recomputed_flops(config: dict[str, Any], tokens: int, rank: int, blocks: int, pairs: int = 1) -> int:
    """Work of so many blocks' second forward pass, over ``tokens`` of picture and text; a mean of both kinds."""
    d = config["num_attention_heads"] * config["attention_head_dim"]
    double, single = config["num_layers"], config["num_single_layers"]
    lora = (18 * double + 17 * single) / (double + single) * 2 * rank * d * tokens
    return int(pairs * blocks * (24 * d * d * tokens + 4 * d * tokens**2 + lora))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of ``work``, from an idle device to an idle device."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of the best of several square matrix products: what this device multiplies at all."""
    sides = (2048, 4096, 8192, 16384) if device.type == "cuda" else (512, 1024, 2048)
    repeats = 10 if device.type == "cuda" else 1
    best = 0.0
    for side in sides:
        left, right = torch.randn(2, side, side, device=device, dtype=dtype)
        multiply = functools.partial(_multiply, left, right, torch.empty_like(left), repeats)
        took = [seconds(multiply, device)]  # the first one also chooses and loads the kernel
        while len(took) < 8 and sum(took) < 2:
            took.append(seconds(multiply, device))
        best = max(best, repeats * 2 * side**3 / min(took) / 1e12)
        del left, right, multiply
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return best


def _multiply(left: torch.Tensor, right: torch.Tensor, product: torch.Tensor, repeats: int) -> None:
    for _ in range(repeats):
        torch.matmul(left, right, out=product)
