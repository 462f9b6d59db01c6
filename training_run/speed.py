"""How a step is made faster without another result: which blocks are computed twice, which are compiled."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.logging import get_logger
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

logger = get_logger(__name__)

#: Share of a GPU's memory that ``choose_recomputed`` lets a step fill; the rest is for fragments and pictures.
FILL = 0.92


def free_memory() -> None:
    """Give back what models that are gone have held."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing happens without CUDA


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of ``tensor`` on ``device`` that the host does not wait for."""
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)


def leave_frozen_out_of_broadcast(transformer: torch.nn.Module) -> None:
    """Let DDP send no frozen weights to the other ranks when a run starts: all have read them from the same files.

    They are nearly all of a model, and those of torchao cannot be sent.
    """
    frozen = [name for name, parameter in transformer.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(transformer, frozen)


def spread(total: int, count: int) -> list[int]:
    """``count`` of the numbers from 0 to ``total`` - 1, as even as can be."""
    return [number * total // count for number in range(count)]


def recomputed_by(stride: int, total: int) -> int:
    """How many of ``total`` blocks are recomputed when every ``stride``-th is; none when it is 0."""
    return math.ceil(total / stride) if stride else 0


def recompute(transformer: Any, count: int) -> None:
    """Let ``count`` blocks, spread evenly, keep no activations but compute them again in the backward pass."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    chosen = {id(blocks[number]) for number in spread(len(blocks), min(count, len(blocks)))}

    def through(block: torch.nn.Module, *inputs: Any) -> Any:
        if id(block) not in chosen:
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # a block draws nothing

    if chosen:
        transformer.enable_gradient_checkpointing(through)
    else:
        transformer.disable_gradient_checkpointing()


def fewest_recomputed(peak: Callable[[int], int | None], total: int, budget: int) -> int:
    """The smallest number of recomputed blocks, of ``total``, whose ``peak(number)`` is within ``budget`` bytes.

    ``peak`` measures a step; None says that it did not even run. It is asked as few times as possible: what a block
    keeps is about the same for all. Raises ``torch.OutOfMemoryError`` when all blocks together are too few.
    """
    least = peak(total)
    if least is None or least > budget:
        raise torch.OutOfMemoryError
    probe = max(1, total // 8)
    more = peak(total - probe)
    if more is None or more > budget:
        fits, fails = total, total - probe
    else:
        each = max(1.0, (more - least) / probe)
        fits, fails = total - probe, -1
        guess = max(0, math.ceil(total - (budget - least) / each))
        while guess < fits:
            found = peak(guess)
            if found is not None and found <= budget:
                fits = guess
                break
            fails = guess
            guess += max(1, total // 16)
    while fails >= 0 and fits - fails > max(1, total // 16):
        middle = (fits + fails) // 2
        found = peak(middle)
        fits, fails = (middle, fails) if found is not None and found <= budget else (fits, middle)
    return fits


def choose_recomputed(transformer: Any, step: Callable[[], None], spare: int, accelerator: Any) -> int:
    """Measure how few blocks have to be recomputed for ``step`` to fit into the GPU, set it, and return the number.

    ``step`` is a forward and a backward pass; ``spare`` bytes, of the optimizer's state, are still to come. All ranks
    take the largest number that any of them needs. Without a GPU nothing is recomputed.
    """
    total = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
    if accelerator.device.type != "cuda":
        recompute(transformer, 0)
        logger.info("--gradient_checkpointing auto: no GPU, so nothing is recomputed")
        return 0

    def peak(count: int) -> int | None:
        recompute(transformer, count)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            step()
        except torch.OutOfMemoryError:
            return None
        return torch.cuda.max_memory_allocated()

    memory = torch.cuda.get_device_properties(accelerator.device).total_memory
    count = fewest_recomputed(peak, total, int(FILL * memory) - spare)
    count = int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())
    recompute(transformer, count)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()  # what was tried is not what the run needs
    logger.info(f"--gradient_checkpointing auto: {count} of {total} blocks are recomputed")
    return count
