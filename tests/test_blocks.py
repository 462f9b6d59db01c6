"""What blocks compute in less time is what they computed before: losses, gradients, files."""

from __future__ import annotations

import contextlib

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch.nn import functional

import train_flux_inpaint as tfi
from training_run import blocks

SHAPE = {
    "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12), "in_channels": 384, "out_channels": 64, "joint_attention_dim": 48,
    "pooled_projection_dim": 24, "guidance_embeds": True,
}  # fmt: skip


@pytest.fixture
def norms_as_on_cuda(monkeypatch):
    """Under autocast norms give fp32, as they do on CUDA and not on a CPU."""
    for name in ("layer_norm", "rms_norm"):
        norm = getattr(functional, name)

        def call(hidden, shape, *more, norm=norm):
            if not torch.is_autocast_enabled("cpu"):
                return norm(hidden, shape, *more)
            with torch.autocast("cpu", enabled=False):
                exact = (value.float() if isinstance(value, torch.Tensor) else value for value in more)
                return norm(hidden.float(), shape, *exact)

        monkeypatch.setattr(functional, name, call)


def transformer(args, dtype: torch.dtype) -> FluxTransformer2DModel:
    """A small FLUX with the run's LoRA, which is not zero."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**SHAPE).to(dtype)
    for parameter in tfi.make_trainable(model, args):
        parameter.data.normal_(std=0.1)
    return model


def step(model: FluxTransformer2DModel, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What it makes of fixed inputs under autocast, and the gradients of what is trained."""
    draw = torch.Generator().manual_seed(1)
    given = {"hidden_states": (2, 12, 384), "encoder_hidden_states": (2, 5, 48), "pooled_projections": (2, 24)}
    inputs = {name: torch.randn(size, generator=draw).to(dtype) for name, size in given.items()}
    more = {"timestep": torch.tensor([0.2, 0.7]), "guidance": torch.ones(2), "return_dict": False}
    ids = {"txt_ids": torch.zeros(5, 3), "img_ids": torch.arange(36.0).reshape(12, 3)}
    with torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext():
        made = model(**inputs, **ids, **more)[0]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return made.float(), list(torch.autograd.grad((made.float() ** 2).mean(), trained))


def apart(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Length of the difference of two lists of tensors, as a share of the second one's."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(found, exact, strict=True)]
    return float(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs)) ** 0.5


def test_norms_leave_bf16_as_it_is_and_are_no_less_exact(tiny_args, norms_as_on_cuda, monkeypatch):
    exact_made, exact = step(transformer(tiny_args(), torch.float32), torch.float32)
    found = {}
    for kept in (True, False):
        with monkeypatch.context() as patch:
            if not kept:
                patch.setattr(blocks, "keep_precision_of_norms", lambda _: None)
            model = transformer(tiny_args("--mixed_precision", "bf16"), torch.bfloat16)
        norms = [module for module in model.modules() if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm))]
        dtypes = set()
        for norm in norms:
            norm.register_forward_hook(lambda _, __, made, dtypes=dtypes: dtypes.add(made.dtype))
        made, gradients = step(model, torch.bfloat16)
        assert dtypes == {torch.bfloat16 if kept else torch.float32}
        found[kept] = (apart([made], [exact_made]), apart(gradients, exact))
    for ours, plain in zip(found[True], found[False], strict=True):
        assert plain / 3 < ours < 1.5 * plain < 0.05


def test_norms_that_are_trained_get_their_gradient(tiny_args, norms_as_on_cuda):
    model = transformer(tiny_args("--mixed_precision", "bf16", "--train_base_model"), torch.bfloat16)
    exact = transformer(tiny_args("--train_base_model"), torch.float32)
    assert model.transformer_blocks[0].attn.norm_q.weight.requires_grad
    exact.load_state_dict(model.state_dict())
    assert apart(step(model, torch.bfloat16)[1], step(exact, torch.float32)[1]) < 0.05
