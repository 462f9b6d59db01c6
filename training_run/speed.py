"""Memory of a run: blocks computed again in the backward pass, as few as fit; a base split over ranks; freed memory."""

from __future__ import annotations

import bisect
import gc
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from training_run.guards import is_out_of_memory

logger = get_logger(__name__)

#: Share of ``free_to_use`` that ``choose_recomputed`` lets a step fill; the rest is for fragments and pictures.
FILL = 0.95


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


def compile_blocks(transformer: Any) -> None:
    """Compile the repeated blocks, each kind once.

    Under DDP dynamo would cut a block where a bucket of gradients ends, so that sending overlaps with computing. Blocks
    that are compiled one by one overlap without it, and halves lose what the compiler gains across the cut.
    """
    torch._dynamo.config.optimize_ddp = False
    # All blocks of a kind share one code: trained and drawn with, recomputed and kept, after another block or first in
    # their row they are compiled apart. More than dynamo's 8 variants would end the run, as blocks must be whole.
    torch._dynamo.config.recompile_limit = 64
    transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)


def shard_frozen(transformer: Any, accelerator: Accelerator) -> None:
    """Keep on this rank its share of every frozen weight, on its device (FSDP2), for a base that no GPU holds.

    What is trained is whole on every rank, so training, clipping, checkpoints and resume work as without it. Call it
    after DDP has wrapped the transformer: accelerate refuses one that is split already.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    trained = {parameter for parameter in transformer.parameters() if parameter.requires_grad}
    for part in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, transformer):
        fully_shard(part, mesh=mesh, ignored_params=trained & set(part.parameters()))


def free_to_use(device: torch.device) -> int:
    """Bytes of a GPU's memory that this process may fill: what is free, and what PyTorch holds already."""
    return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))


def place_encoder(encoder: Any, device: torch.device) -> Any:
    """Put a text encoder on ``device``, or leave it in main memory where it would not fit what is free of a GPU."""
    size = sum(weight.nbytes for weight in encoder.parameters())
    if device.type == "cuda" and size > FILL * (free := free_to_use(device)):
        logging.getLogger(__name__).warning(  # accelerate's logger wants a run, and pictures are drawn without one
            f"{type(encoder).__name__} takes {size / 2**30:.1f} GiB, and {free / 2**30:.1f} are free on the GPU: it "
            "runs in main memory, which may take a minute a prompt"
        )
        return encoder
    return encoder.to(device)


def recomputed_by(stride: int, total: int) -> int:
    """How many of ``total`` blocks are recomputed when every ``stride``-th is; none when it is 0."""
    return math.ceil(total / stride) if stride else 0


def spread(total: int, count: int) -> set[int]:
    """Numbers of ``count`` of ``total`` blocks, spread evenly."""
    return {number * total // count for number in range(count)}


def recompute(transformer: Any, count: int) -> None:
    """Let ``count`` blocks, spread evenly, keep no activations but compute them again in the backward pass.

    It is at most the number of blocks. What a dropout layer has drawn is drawn again.
    """
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    chosen = {id(blocks[number]) for number in spread(len(blocks), count)}
    draws = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in transformer.modules())

    def through(block: torch.nn.Module, *inputs: Any) -> Any:
        if id(block) not in chosen:
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=draws)

    if chosen:
        transformer.enable_gradient_checkpointing(through)
    else:
        transformer.disable_gradient_checkpointing()


def choose_recomputed(transformer: Any, step: Callable[[], None], spare: int, accelerator: Any) -> int:
    """Measure how few blocks have to be recomputed for ``step`` to fit into the GPU, set it, and return the number.

    ``step`` is a forward and a backward pass; ``spare`` bytes, of the optimizer's state, are still to come. All ranks
    take the largest number that any of them needs. Without a GPU nothing is recomputed. Raises
    ``torch.OutOfMemoryError`` when all blocks together are too few.
    """
    total = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
    count = 0

    def peak(count: int) -> float:
        """Bytes at the peak of ``step`` with ``count`` recomputed blocks; infinite where it does not fit."""
        recompute(transformer, count)
        free_memory()  # with what the errors of trials before hold
        torch.cuda.reset_peak_memory_stats()
        try:
            step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if not isinstance(error, torch.OutOfMemoryError):
                logger.warning(f"{count} of {total} blocks recomputed is taken for too few: {error}")
            return math.inf
        return torch.cuda.max_memory_allocated()

    if accelerator.device.type == "cuda":
        budget = int(FILL * free_to_use(accelerator.device)) - spare
        count = fewest_recomputed(peak, total, budget)
        count = max(gather_object([count]))
    recompute(transformer, count)
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # what was tried is not what the run needs
    logger.info(f"--gradient_checkpointing auto: {count} of {total} blocks are checkpointed")
    return count


def fewest_recomputed(peak: Callable[[int], float], total: int, budget: int) -> int:
    """The smallest number of recomputed blocks, of ``total``, whose ``peak(number)`` is at most ``budget`` bytes.

    Raises ``torch.OutOfMemoryError`` when all blocks together are too few.
    """
    if peak(total) > budget:
        raise torch.OutOfMemoryError
    if peak(0) <= budget:  # as on the cards that presets are made for
        return 0
    return 1 + bisect.bisect_left(range(1, total), True, key=lambda count: peak(count) <= budget)
