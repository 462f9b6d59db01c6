"""The frozen base split over the ranks of a run (FSDP2), for bases that no single GPU holds; the LoRA is whole on each.

So everything that is trained, clipped, saved and continued is what it is without: only the base's weights come from
all ranks, a block at a time.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

#: Arguments that need all of the base on every rank, with the reason.
_APART = {
    "train_base_model": "it splits frozen weights, and these are trained",
    "quantize_base": "quantized weights cannot be split",
    "compile_blocks": "a compiled block does not fetch its weights",
}


def refused_with(args: Any) -> str | None:
    """Why ``args`` that ask for ``--shard_base`` cannot be, or None."""
    for name, reason in _APART.items() if args.shard_base else []:
        if getattr(args, name):
            return f"--shard_base does not go with --{name}: {reason}"
    if args.shard_base and args.gradient_checkpointing == "auto":
        return "--shard_base does not go with --gradient_checkpointing auto: ranks measure apart; give a number"
    return None


def check_processes(args: Any, accelerator: Accelerator) -> None:
    """Raise ``ValueError`` where there is nobody to share the base with."""
    if args.shard_base and accelerator.num_processes == 1:
        raise ValueError(
            "--shard_base splits the base over several processes, and this is the only one: start them with "
            "accelerate launch --num_processes N, or leave it out"
        )


def shard_frozen(transformer: Any, accelerator: Accelerator) -> None:
    """Keep on this rank its share of every frozen weight, on its device, and all of what is trained."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    trained = {parameter for parameter in transformer.parameters() if parameter.requires_grad}
    for part in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, transformer):
        fully_shard(part, mesh=mesh, ignored_params=trained & set(part.parameters()))
    for parameter in trained:
        parameter.data = parameter.data.to(accelerator.device)
