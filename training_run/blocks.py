"""How FLUX's blocks compute what they compute, in less time: the same weights, names and files."""

from __future__ import annotations

import torch
from torch.nn import functional


class _LayerNorm(torch.nn.LayerNorm):
    """As its parent, in the precision of its input: autocast would make it fp32, and all that is made of it."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            weight, bias = _as(hidden, self.weight), _as(hidden, self.bias)
            return functional.layer_norm(hidden, self.normalized_shape, weight, bias, self.eps)


class _RMSNorm(torch.nn.RMSNorm):
    """As ``_LayerNorm``."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.rms_norm(hidden, self.normalized_shape, _as(hidden, self.weight), self.eps)


def _as(hidden: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor | None:
    return None if weight is None else weight.to(hidden.dtype)


def keep_precision_of_norms(transformer: torch.nn.Module) -> None:
    """Let norms give what they are given, bf16 or fp16, under autocast too.

    The kernels compute in fp32 whatever they read. Under autocast on CUDA they give fp32 as well: then modulation and
    rotation take twice the bytes, every layer casts back, and one that keeps its input's precision, such as that of
    bitsandbytes, turns the residual stream to fp32. The base was made in bf16 and draws so, without autocast.
    """
    for module in transformer.modules():
        for kind in (_LayerNorm, _RMSNorm):
            if type(module) is kind.__base__:
                module.__class__ = kind
