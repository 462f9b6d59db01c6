"""The frozen base split over the ranks of a run (FSDP2), for a base that no single GPU holds.

The LoRA is whole on every rank, so training, clipping, checkpoints and resume work as without it. Only the weights of
the base are gathered from all ranks, a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def check_processes(args: Any, accelerator: Accelerator) -> None:
    """Raise ``ValueError`` when there is only one process to share the base."""
    if args.shard_base and accelerator.num_processes == 1:
        raise ValueError(
            "--shard_base splits the base over several processes, and this is the only one: start them with "
            "accelerate launch --num_processes N, or leave it out"
        )


def place_trained(parameters: Iterable[torch.nn.Parameter], device: torch.device) -> None:
    """Bring what is trained to ``device`` ahead of the base, which goes there in parts."""
    for parameter in parameters:
        parameter.data = parameter.data.to(device)


def shard_frozen(transformer: Any, accelerator: Accelerator) -> None:
    """Keep on this rank its share of every frozen weight, on its device.

    Call it after DDP has wrapped the transformer: accelerate refuses one that is split already.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    trained = {parameter for parameter in transformer.parameters() if parameter.requires_grad}
    for part in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, transformer):
        fully_shard(part, mesh=mesh, ignored_params=trained & set(part.parameters()))
