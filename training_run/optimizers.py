"""The optimizers that ``--optimizer`` and ``--use_8bit_adam`` choose from, and their settings."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

#: Matrices that Muon is for: those of a block's layers. What reads or writes pictures, conditions or modulates is not.
IN_BLOCKS = re.compile(r"blocks\.\d+\.(?!norm)")

#: A Newton-Schulz step turns a singular value s into a s + b s^3 + c s^5: these grow small ones quickest (Jordan et al.
#: 2024), and end between about 0.7 and 1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
#: Share of the momentum that a step keeps.
MOMENTUM = 0.95
#: Most elements of matrices that are made orthogonal at once, 16 MiB in bf16, so that what a step needs meanwhile stays
#: small. A larger matrix goes alone.
AT_ONCE = 2**23


def orthogonalized(matrices: torch.Tensor, steps: int, eps: float) -> torch.Tensor:
    """``matrices`` ``[n, rows, columns]``, each with its directions and singular values that ``steps`` bring near 1.

    ``steps`` are those of Newton-Schulz. A matrix is divided by its Frobenius norm first, or by a larger ``eps``.
    """
    linear, cubic, quintic = NEWTON_SCHULZ
    upright = matrices.shape[1] > matrices.shape[2]
    found = matrices.mT if upright else matrices
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), found, beta=linear)
    return found.mT if upright else found


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for ``matrices``, AdamW for ``others``, at one learning rate.

    Muon's steps are those of ``torch.optim.Muon``, scaled to the size that AdamW's have (Liu et al. 2025), so a rate
    that suits the one suits the other. Matrices of one shape are made orthogonal together: a LoRA has hundreds of small
    ones, and one after the other they wait for the start of every operation. ``ns_steps`` Newton-Schulz steps, 1 or
    more, make an update orthogonal; fewer take less time and leave its smaller directions smaller.
    """

    def __init__(
        self, matrices: list[torch.nn.Parameter], others: list[torch.nn.Parameter], ns_steps: int = 5, **settings: Any
    ) -> None:
        self.ns_steps = ns_steps
        groups = [{"params": some, "is_muon": chosen} for some, chosen in ((matrices, True), (others, False)) if some]
        super().__init__(groups, settings)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every weight that has a gradient; takes no ``closure``."""
        for group in self.param_groups:
            if group["is_muon"]:
                for some in _of_one_shape([weight for weight in group["params"] if weight.grad is not None]):
                    self._move(some, group)
            else:
                settings = {name: group[name] for name in ("lr", "weight_decay", "eps", "betas")}
                others = torch.optim.AdamW(group["params"], **settings)
                others.state = self.state
                others.step()

    def _move(self, weights: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        """A step of Muon for weights of one shape."""
        ahead = []
        for weight in weights:
            gradient: Any = weight.grad
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            momentum = self.state[weight]["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
            ahead.append(gradient.lerp(momentum, MOMENTUM).bfloat16())  # Nesterov's
        updates = orthogonalized(torch.stack(ahead), self.ns_steps, group["eps"])
        step = group["lr"] * 0.2 * math.sqrt(max(weights[0].shape))
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-step)


def _of_one_shape(weights: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """``weights`` by shape, type and device, no more than ``AT_ONCE`` elements at a time, or a single one."""
    alike: dict[Any, list[torch.nn.Parameter]] = {}
    for weight in weights:
        alike.setdefault((weight.shape, weight.dtype, weight.device), []).append(weight)
    for some in alike.values():
        count = max(1, AT_ONCE // some[0].numel())
        yield from (some[first : first + count] for first in range(0, len(some), count))


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
