"""The frozen base split over the ranks of a run (FSDP2), for bases that no single GPU holds; the LoRA is whole on each.

So everything that is trained, clipped, saved and continued is what it is without: only the base's weights come from
all ranks, a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def check_processes(args: Any, accelerator: Accelerator) -> None:
    """Raise ``ValueError`` where there is nobody to share the base with."""
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

    To be called once DDP has wrapped the transformer: accelerate refuses one that is split already.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    trained = {parameter for parameter in transformer.parameters() if parameter.requires_grad}
    for part in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, transformer):
        fully_shard(part, mesh=mesh, ignored_params=trained & set(part.parameters()))
