"""The optimizers that ``--optimizer`` and ``--use_8bit_adam`` choose from, and their settings."""

from __future__ import annotations

import argparse
from typing import Any

import torch


def optimizer_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the optimizer's parameter groups are set to."""
    betas = (args.adam_beta1, args.adam_beta2)
    return {"lr": args.learning_rate, "betas": betas, "weight_decay": args.adam_weight_decay, "eps": args.adam_epsilon}


def make_optimizer(parameters: list[torch.nn.Parameter], args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW (fused where the device has it), 8-bit AdamW or Prodigy. ``check_packages`` has seen to their packages."""
    settings = optimizer_settings(args)
    if args.optimizer == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(parameters, decouple=True, use_bias_correction=True, safeguard_warmup=True, **settings)
    if args.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, fused=parameters[0].device.type in ("cuda", "cpu"), **settings)
