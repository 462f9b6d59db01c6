"""How the frozen base is held in 4 or 8 bits a weight, and with what."""

from __future__ import annotations

import torch
from diffusers import BitsAndBytesConfig, TorchAoConfig

from training_run.flags import QUANTIZED_BY


def settings(kind: str | None, compute_dtype: torch.dtype) -> BitsAndBytesConfig | TorchAoConfig | None:
    """diffusers' settings to load a transformer as ``kind``; None for None.

    Only weights are quantized, and unpacked to ``compute_dtype`` to be multiplied: 4 bits with a scale for every 64
    weights (nf4, Dettmers et al. 2023), or 8 bits, whole numbers (int8) or floats (fp8, e4m3), with a scale for every
    output of a layer.
    """
    if kind is None:
        return None
    if kind == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig())


def can_be_moved(kind: str | None) -> bool:
    """Whether a transformer loaded as ``kind`` can be moved: bitsandbytes has put it on the GPU, and there it stays."""
    return kind is None or QUANTIZED_BY[kind] != "bitsandbytes"
