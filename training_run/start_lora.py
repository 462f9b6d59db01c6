"""A run that starts from a LoRA: what its file says of the adapter, and its update as the adapter of the run holds it.

A, B and scaling are as in ``lora_formats``. The update is scaling x B A, and a share of it is one of its squared
Frobenius norm, summed over layers.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight

from training_run.hub import local_path
from training_run.lora import LORA_TARGETS, wanted_layers
from training_run.lora_formats import LoraFile, find_lora, fitted, read_lora
from training_run.output_dir import continues

#: Singular values below this share of a layer's largest are rounding of fp32.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class Start:
    """The LoRA that a run starts from, by name, file and hash, and how much of its update the run's adapter holds."""

    name: str
    """The Hub's name, or that of the file with its folder."""
    sha256: str
    rank: str
    """The file's: one number, or the lowest and the highest."""
    kept: float
    least: tuple[str, float]
    """The layer of which least is kept, and its share."""
    fresh: int
    """Layers of the adapter that the file has not: they begin as without it."""
    left_out: list[str]
    """Layers of the file that the adapter has not."""

    def line(self, args: argparse.Namespace) -> str:
        """What is said when the run begins."""
        parts = [f"rank {self.rank} in rank {args.lora_rank}: {self.kept:.2%} of its update is kept"]
        if self.kept < 1 - _ROUNDING:
            parts[0] += f", least in {self.least[0]} ({self.least[1]:.2%})"
        if self.fresh:
            parts.append(f"{self.fresh} layers begin fresh")
        if self.left_out:
            parts.append(f"{len(self.left_out)} layers are left out, such as {self.left_out[0]}")
        return f"Starting from the LoRA {self.name}, {'; '.join(parts)}"


def settings_of_start(name: str, typed: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the LoRA ``name`` for the trainer's arguments, where they are not ``typed``.

    The rank is the file's highest; alpha keeps the factor before B A, whatever rank and ``use_rslora`` are typed; the
    targets are the names of all its layers inside blocks. Raises ``ValueError`` as ``find_lora`` and ``read_lora`` do.
    """
    lora = read_lora(find_lora(name))
    rank = typed.get("lora_rank", max(len(lora.weights[f"{layer}.lora_A.weight"]) for layer in lora.layers))
    rslora = typed.get("use_rslora", lora.config.use_rslora)
    scaling = Counter(map(lora.scaling, lora.layers)).most_common(1)[0][0]
    inside = {match[1] for layer in lora.layers if (match := re.match(r"\w*transformer_blocks\.\d+\.(.+)", layer))}
    named = (targets for targets, layers in LORA_TARGETS.items() if set(layers) == inside)
    return {
        "lora_rank": rank,
        "lora_alpha": float(f"{scaling * (math.sqrt(rank) if rslora else rank):.9g}"),
        "lora_target_modules": next(named, ",".join(sorted(inside)) or "all"),
        "use_dora": lora.config.use_dora,
        "use_rslora": rslora,
    }


def read_start(args: argparse.Namespace) -> LoraFile:
    """The LoRA of ``--lora`` for the run that ``args`` ask for; of its transformer the configuration alone is read.

    Raises ``ValueError`` for one that is of another model, that the run would delete, or of which the run's adapter can
    hold nothing.
    """
    lora = read_lora(find_lora(args.lora))
    if lora.config.use_dora and not args.use_dora:
        raise ValueError(
            f"--lora {args.lora} is a DoRA, whose magnitudes no other LoRA can hold: leave out --no-use_dora, or write "
            "it into the base with export --format fused and train on that"
        )
    clears = args.overwrite_output_dir and not continues(args)
    if clears and lora.path.resolve().is_relative_to(Path(args.output_dir).resolve()):
        raise ValueError(
            f"--lora {args.lora} lies in --output_dir {args.output_dir}, which --overwrite_output_dir clears: name "
            "another --output_dir"
        )
    targets = tuple(f".{ending}" for ending in wanted_layers(args.lora_target_modules))
    if not any(layer.endswith(targets) for layer in lora.layers if "transformer_blocks." in layer):
        raise ValueError(f"--lora {args.lora} has no layer of --lora_target_modules {args.lora_target_modules}")
    hub = {"revision": args.inpaint_revision, "cache_dir": args.cache_dir}
    flag = "--pretrained_inpaint_model_name_or_path"
    return fitted(lora, args.pretrained_inpaint_model_name_or_path, flag, **hub)


def start_from(transformer: Any, args: argparse.Namespace) -> Start:
    """Put the update of ``--lora`` into the adapter of ``transformer``, which is as peft has begun it.

    A lower rank of the file is filled up with peft's random rows of A and zeros of B, which changes no update; of a
    higher one the largest singular values of the update are kept. Raises ``ValueError`` as ``read_start`` does.
    """
    lora, config = read_start(args), transformer.peft_config["default"]
    scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    weights = {name: tensor.to("cpu", copy=True) for name, tensor in get_peft_model_state_dict(transformer).items()}
    sizes, shares = dict[str, float](), dict[str, float]()
    for layer in lora.layers:
        names = [f"{layer}.lora_{part}.weight" for part in "AB"]
        down, up = (lora.weights[name].double() for name in names)
        up = up * (lora.scaling(layer) / scaling)
        sizes[layer], shares[layer] = float(((up.T @ up) * (down @ down.T)).sum()), 0.0
        if names[0] not in weights:
            continue
        down, up, shares[layer] = (down, up, 1.0) if len(down) <= config.r else _cut(down, up, config.r)
        weights[names[0]][: len(down)] = down
        weights[names[1]][:, : len(down)] = up
        if lora.config.use_dora:
            weights[f"{layer}.lora_magnitude_vector"] = lora.weights[f"{layer}.lora_magnitude_vector"].float()
    layers = {name.rsplit(".lora_", 1)[0] for name in weights}
    set_peft_model_state_dict(transformer, weights)
    if config.use_dora and not lora.config.use_dora:
        _set_magnitudes(transformer)
    whole = sum(sizes.values())
    least = min(shares, key=lambda layer: shares[layer])
    return Start(
        name="/".join(lora.path.parts[-2:]) if local_path(args.lora).exists() else args.lora,
        sha256=lora.sha256,
        rank=lora.ranks,
        kept=sum(sizes[layer] * shares[layer] for layer in sizes) / whole if whole else 1.0,
        least=(least, shares[least]),
        fresh=len(layers.difference(lora.layers)),
        left_out=[layer for layer in lora.layers if layer not in layers],
    )


def _set_magnitudes(transformer: torch.nn.Module) -> None:
    """Let every DoRA layer keep the rows of weights as long as B A has made them, which is what a plain LoRA does."""
    for module in transformer.modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_magnitude_vector:
            weight = dequantize_module_weight(module.get_base_layer()).float() + module.get_delta_weight("default")
            module.lora_magnitude_vector["default"].weight.data.copy_(weight.norm(dim=1))


def _cut(down: torch.Tensor, up: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A [k, in] and B [out, k] with k at most ``rank`` of the largest singular values of B A, and the share kept.

    k is smaller where B A has fewer: rows of zeros in A and B would never learn.
    """
    left, up_triangle = torch.linalg.qr(up)
    right, down_triangle = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(up_triangle @ down_triangle.T)
    k = min(rank, int((values > _ROUNDING * values[0]).sum()))
    root, squares = values[:k].sqrt(), values.square()
    share = float(squares[:k].sum() / squares.sum()) if k else 1.0
    return root[:, None] * (v[:k] @ right.T), left @ u[:, :k] * root, share
