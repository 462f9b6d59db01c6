"""The frozen base in 4 or 8 bits a weight: which of its layers, where they are made, and how they multiply."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch


def quantize(transformer: Any, kind: str, device: torch.device | None = None) -> None:
    """Hold the linear layers of a frozen transformer's blocks as ``kind`` of ``--quantize_base``, on ``device``.

    They keep only weights in 4 bits with a scale in fp32 for every 64 (nf4, Dettmers et al. 2023), or in 8, whole
    numbers (int8) or floats (fp8, e4m3), with a scale for every output. Weights are unpacked to the precision that they
    had for each product. Everything around the blocks, which reads, conditions and writes, stays as it is and where it
    is: ``x_embedder``, ``context_embedder``, ``time_text_embed``, ``norm_out`` and ``proj_out``, 0.5% of FLUX.1's
    weights. Each layer is packed on ``device``, where it stays; None leaves all where they are.

    Such layers give what they are given: fp32 for fp32, under autocast too. See ``blocks.in_one_precision``.
    """
    pack = _packed_in_4_bits if kind == "nf4" else functools.partial(_packed_in_8_bits, kind=kind)
    for part, name, layer in layers_of_blocks(transformer):
        setattr(part, name, pack(layer, device or layer.weight.device))
    transformer.is_loaded_in_4bit = kind == "nf4"  # by which peft knows them
    # peft has a way to merge a LoRA into such layers, and a word for those who might want it.
    warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass")


def layers_of_blocks(transformer: Any) -> list[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    """Every plain linear layer in the blocks, with the module that holds it and its name there."""
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    held = ((part, *child) for block in blocks for part in block.modules() for child in part.named_children())
    return [(part, name, layer) for part, name, layer in held if type(layer) is torch.nn.Linear]


def _packed_in_4_bits(layer: torch.nn.Linear, device: torch.device) -> torch.nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    how: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": False}
    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    packed = Linear4bit(*sizes, compute_dtype=layer.weight.dtype, device="meta", **how)
    packed.weight = Params4bit(layer.weight.data, requires_grad=False, module=packed, **how)
    packed.bias = layer.bias
    return packed.to(device)


def _packed_in_8_bits(layer: torch.nn.Linear, device: torch.device, kind: str) -> torch.nn.Module:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    packed = UnpackingLinear(layer.in_features, layer.out_features, bias=False, device="meta")
    packed.weight, packed.bias = layer.weight, layer.bias
    quantize_(packed, Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig(), device=device)
    return packed


class UnpackingLinear(torch.nn.Linear):
    """A linear layer over a frozen weight of torchao, which is unpacked in the backward pass again.

    By itself autograd would keep an unpacked copy of every weight from the forward pass to the backward pass: in
    training 8 bits would take more memory than 16.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        product: Callable[..., torch.Tensor] = _Product.apply
        return product(inputs, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.weight = weight  # a parameter of the frozen base, which is there anyway
        return torch.nn.functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient @ ctx.weight.dequantize().to(gradient.dtype), None, None
