"""Implementations of attention: measured, compared with PyTorch's own choice, and used by a run."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import forget_accelerator
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

import train_flux_inpaint as tfi
from training_run import attention
from training_run.state import read_state

SHAPE, CPU = (1, 80, 2, 16), torch.device("cpu")
EVERYWHERE = ["native", "_native_flash", "_native_math"]  # PyTorch has these on CPUs, too


@pytest.fixture(autouse=True)
def own_default():
    """diffusers keeps what was chosen last as the default of the whole process."""
    before = _AttentionBackendRegistry.get_active_backend()[0]
    yield
    _AttentionBackendRegistry.set_active_backend(before)


def test_those_that_run_are_timed_and_the_others_say_why_not():
    found = attention.measured([*EVERYWHERE, "_native_cudnn", "flash"], SHAPE, torch.float32, CPU)
    assert all(isinstance(found[name], float) and found[name] > 0 for name in EVERYWHERE)
    assert "No viable backend" in found["_native_cudnn"]
    assert found["flash"] == "--attention_backend flash needs the package flash_attn, which is not installed"


@pytest.mark.parametrize("spoilt", ["result", "gradient", "nan"])
def test_one_that_computes_something_else_is_of_no_use(monkeypatch, spoilt):
    passes = attention.passes

    def wrong(backend: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        found = passes(backend, inputs)
        if backend == "_native_math":
            found[{"result": 0, "gradient": 3, "nan": 1}[spoilt]] *= math.nan if spoilt == "nan" else 1.05
        return found

    monkeypatch.setattr(attention, "passes", wrong)
    found = attention.measured(EVERYWHERE, SHAPE, torch.float32, CPU)
    assert found["_native_math"] == f"its result or gradient is off by {'nan' if spoilt == 'nan' else '0.05'}"
    assert isinstance(found["_native_flash"], float)


def test_the_fastest_on_all_ranks_is_taken(accelerator, monkeypatch):
    """The other rank's are slower where this one is fast, and it lacks the one that is best here."""
    monkeypatch.setattr(attention, "BACKENDS", dict.fromkeys([*EVERYWHERE, "flash"], "torch"))
    here = {"native": 3.0, "_native_flash": 1.0, "_native_math": 2.0, "flash": "not here"}
    other = torch.tensor([[3.0, math.inf, 2.5, 1.0]])
    monkeypatch.setattr(attention, "measured", lambda *_: here)
    ranks = SimpleNamespace(device=torch.device("cuda"), gather=lambda own: torch.cat([own.cpu(), other]))
    monkeypatch.setattr(attention.torch, "tensor", lambda data, device: torch.as_tensor(data))
    set_to: list[str] = []
    transformer = SimpleNamespace(set_attention_backend=set_to.append)
    assert attention.choose_backend(transformer, "auto", SHAPE, torch.float32, ranks) == "_native_math"
    assert set_to == ["_native_math"]


def test_without_a_gpu_auto_is_native(accelerator):
    assert attention.choose_backend(None, "auto", SHAPE, torch.float32, accelerator) == "native"


def test_one_that_cannot_be_used_here_is_refused(accelerator, tiny_args):
    with pytest.raises(ValueError, match="--attention_backend _native_cudnn cannot be used here: No viable backend"):
        attention.choose_backend(None, "_native_cudnn", SHAPE, torch.float32, accelerator)
    with pytest.raises(ValueError, match="--attention_backend flash needs the package flash_attn, which is not inst"):
        tfi.main(tiny_args("--attention_backend", "flash"))


def test_a_run_asks_its_blocks_for_what_was_chosen(tiny_args, accelerator):
    """With the shape that its attention has: what is measured is what is run."""
    args = tiny_args("--report_to", "none", "--max_train_steps", 1, "--attention_backend", "_native_flash")
    run = tfi.Run(args, accelerator, tfi.encode_prompts_once(args, [args.instance_prompt], accelerator))
    assert run.attention == "_native_flash"
    blocks = [*run.model.transformer_blocks, *run.model.single_transformer_blocks]
    assert {block.attn.processor._attention_backend.value for block in blocks} == {"_native_flash"}
    assert _AttentionBackendRegistry.get_active_backend()[0].value == "native"  # other models are not touched


def test_in_mixed_precision_it_is_tried_as_the_run_does(monkeypatch):
    """Norms give queries and keys in float32 there, which what takes no part in autocast refuses."""
    seen = set()

    def strict(*tensors: torch.Tensor) -> torch.Tensor:
        seen.add((tuple(tensor.dtype for tensor in tensors), torch.is_autocast_enabled("cpu")))
        return dispatch(*tensors)

    dispatch = attention.dispatch_attention_fn
    monkeypatch.setattr(attention, "dispatch_attention_fn", strict)
    assert isinstance(attention.measured(["native"], SHAPE, torch.bfloat16, CPU)["native"], float)
    assert seen == {((torch.float32, torch.float32, torch.bfloat16), True)}


def test_a_run_that_is_continued_keeps_what_auto_chose(tiny_args, monkeypatch):
    def run(*flags: object) -> argparse.Namespace:
        forget_accelerator()
        args = tiny_args("--report_to", "none", "--validation_steps", 0, "--checkpointing_steps", 1, *flags)
        tfi.main(args)
        forget_accelerator()
        return args

    steps = ["--lr_scheduler", "constant", "--attention_backend", "auto"]
    monkeypatch.setattr(attention, "choose_backend", lambda _, wanted, *rest: asked.append(wanted) or "_native_flash")
    asked: list[str] = []
    first = run(*steps, "--max_train_steps", 1)
    assert read_state(Path(first.output_dir, "checkpoint-1"))["attention"] == "_native_flash"
    assert json.loads(Path(first.output_dir, "run.json").read_text())["attention"] == "_native_flash"
    run(*steps, "--max_train_steps", 2, "--output_dir", first.output_dir, "--resume_from_checkpoint", "latest")
    assert asked == ["auto", "_native_flash"]


def test_the_shape_is_that_of_the_queries(tiny_args, tiny_flux_fill, monkeypatch):
    from diffusers.models.transformers import transformer_flux

    transformer = FluxTransformer2DModel.from_pretrained(tiny_flux_fill, subfolder="transformer")
    args: argparse.Namespace = tiny_args("--train_batch_size", 3)
    seen, dispatch = set(), transformer_flux.dispatch_attention_fn

    def watched(query: torch.Tensor, *rest: torch.Tensor, **more: object) -> torch.Tensor:
        seen.add(tuple(query.shape))
        return dispatch(query, *rest, **more)

    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", watched)
    config, tokens = transformer.config, args.height // 16 * (args.width // 8)
    with torch.no_grad():
        transformer(
            hidden_states=torch.zeros(3, tokens, config.in_channels),
            encoder_hidden_states=torch.zeros(3, args.max_sequence_length, config.joint_attention_dim),
            pooled_projections=torch.zeros(3, config.pooled_projection_dim),
            timestep=torch.zeros(3),
            guidance=torch.ones(3),
            img_ids=torch.zeros(tokens, 3),
            txt_ids=torch.zeros(args.max_sequence_length, 3),
        )
    assert seen == {attention.shape_of(args, config)}
