"""How the frozen base is held in 4 or 8 bits a weight, and with what."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from diffusers import BitsAndBytesConfig, TorchAoConfig

from training_run.flags import QUANTIZED_BY

Quantization = Literal["nf4", "int8", "fp8"]


def check_usable(flag: str, kind: str) -> None:
    """Raise ``ValueError`` when this machine cannot hold a base as ``kind``; ``flag`` is the one that asks for it."""
    package = QUANTIZED_BY[kind]
    if package == "bitsandbytes" and not torch.cuda.is_available():
        raise ValueError(
            f"{flag} {kind} needs a CUDA GPU for {package}, and none is visible: leave it out, or choose int8"
        )
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{flag} {kind} needs the package {package}: pip install {package}")


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


def bytes_of(transformer: Any, dtype: torch.dtype) -> int:
    """Bytes of a transformer's weights in ``dtype``, however they are held."""
    with torch.device("meta"):
        empty = type(transformer).from_config(transformer.config)
    return sum(parameter.numel() for parameter in empty.parameters()) * dtype.itemsize
