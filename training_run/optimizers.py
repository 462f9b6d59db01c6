"""The optimizers that ``--optimizer`` and ``--use_8bit_adam`` choose from, and their settings."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

#: Matrices that Muon is for: those of a block's layers. What reads or writes pictures, conditions or modulates is not.
IN_BLOCKS = re.compile(r"blocks\.\d+\.(?!norm)")


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for ``matrices``, AdamW for ``others``, at one learning rate.

    Muon's steps are scaled to the size that AdamW's have (Liu et al. 2025), so a rate that suits the one suits the
    other. ``torch.optim`` has both; here they share groups and state, so that a schedule and a checkpoint see one
    optimizer. ``ns_steps`` Newton-Schulz steps make an update orthogonal, 1 or more; fewer take less time and leave its
    smaller directions smaller.
    """

    def __init__(
        self, matrices: list[torch.nn.Parameter], others: list[torch.nn.Parameter], ns_steps: int = 5, **settings: Any
    ) -> None:
        self.ns_steps = ns_steps
        groups = [{"params": some, "is_muon": chosen} for some, chosen in ((matrices, True), (others, False)) if some]
        super().__init__(groups, settings)

    def _part(self, group: dict[str, Any]) -> torch.optim.Optimizer:
        """What moves a group's weights, with the group's present settings."""
        settings = {name: group[name] for name in ("lr", "weight_decay", "eps")}
        if group["is_muon"]:
            part: Any = torch.optim.Muon(
                group["params"], adjust_lr_fn="match_rms_adamw", ns_steps=self.ns_steps, **settings
            )
        else:
            part = torch.optim.AdamW(group["params"], betas=group["betas"], **settings)
        part.state = self.state
        return part

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every weight that has a gradient; takes no ``closure``."""
        for group in self.param_groups:
            self._part(group).step()


def optimizer_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the optimizer's parameter groups are set to."""
    betas = (args.adam_beta1, args.adam_beta2)
    return {"lr": args.learning_rate, "betas": betas, "weight_decay": args.adam_weight_decay, "eps": args.adam_epsilon}


def make_optimizer(model: torch.nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW (fused where the device has it), 8-bit AdamW, Muon or Prodigy for what is trained of ``model``.

    Their packages have been checked by ``check_packages``.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = list(named.values())
    settings = optimizer_settings(args)
    if args.optimizer == "muon":
        chosen = {name for name, weight in named.items() if weight.ndim == 2 and IN_BLOCKS.search(name)}
        matrices = [weight for name, weight in named.items() if name in chosen]
        others = [weight for name, weight in named.items() if name not in chosen]
        return Muon(matrices, others, args.muon_ns_steps, **settings)
    if args.optimizer == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(parameters, decouple=True, use_bias_correction=True, safeguard_warmup=True, **settings)
    if args.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, fused=parameters[0].device.type in ("cuda", "cpu"), **settings)


def check_optimizer_state(optimizer: Any, saved: dict[str, Any], checkpoint: Path) -> None:
    """Raise ``ValueError`` unless the state ``saved`` in ``checkpoint`` has the parameters and shapes of ``optimizer``.

    torch takes a state as it comes, and its kernels read past the end of a tensor that is too small. Prodigy and 8-bit
    AdamW keep tensors of other shapes, which are not looked at.
    """
    groups = optimizer.param_groups
    fits = [len(group["params"]) for group in saved["param_groups"]] == [len(group["params"]) for group in groups]
    if fits and isinstance(getattr(optimizer, "optimizer", optimizer), (torch.optim.AdamW, Muon)):
        shapes = [parameter.shape for group in groups for parameter in group["params"]]
        fits = all(
            tensor.shape == (torch.Size() if name == "step" else shapes[number])
            for number, state in saved["state"].items()
            for name, tensor in state.items()
        )
    if not fits:
        raise ValueError(f"{checkpoint}: its optimizer state is not of the parameters that this run trains")
