"""Optimizers beside AdamW: which weights go to Muon, what a step does, and that runs go on exactly."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_exact_resume import assert_same, run

from training_run.checkpoints import checkpoints_in
from training_run.optimizers import Muon, check_optimizer_state, make_optimizer
from training_run.state import read_state
from training_run.stopping import StoppedError

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "eps": 1e-8}
FLAGS = (
    "--optimizer muon --max_train_steps 4 --learning_rate 1e-2 --lr_scheduler cosine --checkpointing_steps 2 "
    "--validation_steps 0 --report_to none --train_batch_size 1 --dataloader_num_workers 0"
).split()


class Small(torch.nn.Module):
    """Named as FLUX's layers are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.x_embedder = torch.nn.Linear(3, 4)
        block = torch.nn.Module()
        block.attn = torch.nn.Linear(4, 6)
        block.norm = torch.nn.Linear(6, 6)
        self.transformer_blocks = torch.nn.ModuleList([block])

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        block: Any = self.transformer_blocks[0]
        return block.norm(block.attn(self.x_embedder(given))).square().mean()


def made(model: torch.nn.Module, ns_steps: int = 5) -> torch.optim.Optimizer:
    args = argparse.Namespace(optimizer="muon", learning_rate=0.01, adam_beta1=0.9, adam_beta2=0.99,
                              adam_weight_decay=0.1, adam_epsilon=1e-8, use_8bit_adam=False,
                              muon_ns_steps=ns_steps)  # fmt: skip
    return make_optimizer(model, args)


def test_matrices_of_blocks_go_to_muon_and_everything_else_to_adamw() -> None:
    model = Small()
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = {group["is_muon"]: [names[weight] for weight in group["params"]] for group in made(model).param_groups}
    block = "transformer_blocks.0."
    assert held[True] == [f"{block}attn.weight"]
    others = ["x_embedder.weight", "x_embedder.bias", f"{block}attn.bias", f"{block}norm.weight", f"{block}norm.bias"]
    assert held[False] == others


def test_frozen_weights_are_left_out() -> None:
    model = Small()
    model.x_embedder.requires_grad_(False)
    held = [weight for group in made(model).param_groups for weight in group["params"]]
    assert len(held) == 4 and all(weight.requires_grad for weight in held)


@pytest.mark.parametrize("ns_steps", [5, 3])
def test_steps_are_those_of_torch_at_the_rate_of_the_moment(ns_steps: int) -> None:
    """Beside two optimizers of ``torch.optim`` that share nothing, over three steps with a falling rate."""
    ours, theirs = Small(), Small()
    optimizer = made(ours, ns_steps)
    matrix: Any = theirs.transformer_blocks[0].attn.weight
    rest = [weight for weight in theirs.parameters() if weight is not matrix]
    pair = (
        torch.optim.Muon(
            [matrix], lr=0.01, weight_decay=0.1, eps=1e-8, adjust_lr_fn="match_rms_adamw", ns_steps=ns_steps
        ),
        torch.optim.AdamW(rest, **SETTINGS),
    )
    for step in range(3):
        given = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for model, optimizers in ((ours, (optimizer,)), (theirs, pair)):
            model.zero_grad()
            model(given).backward()
            for each in optimizers:
                for group in each.param_groups:
                    group["lr"] = 0.01 / (step + 1)
                each.step()
    for weight, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(weight, wanted)
    assert set(optimizer.state[ours.transformer_blocks[0].attn.weight]) == {"momentum_buffer"}


def test_matrices_of_one_shape_move_together_as_each_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide and tall ones, more than are taken at once, and one without a gradient."""
    monkeypatch.setattr("training_run.optimizers.AT_ONCE", 100)  # two matrices of 48 elements
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 12), (12, 4), (4, 12), (4, 12), (12, 4), (5, 7), (4, 12)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    settings = {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-8}
    pair = (
        Muon(ours, [], 5, betas=(0.9, 0.99), **settings),
        torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", ns_steps=5, **settings),
    )
    for _ in range(3):
        for one, other in list(zip(ours, theirs, strict=True))[1:]:  # the first has no gradient
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for one, other, begun in zip(ours, theirs, start, strict=True):
        moved = (other - begun).abs().max()
        assert (one - other).abs().max() <= 0.02 * moved  # products of a batch are rounded to bf16 in another order
        assert (moved > 0.01) == (one.grad is not None)


def test_a_gradient_that_is_not_finite_breaks_no_other_matrix() -> None:
    moved = []
    for broken in (False, True):
        weights = [torch.nn.Parameter(torch.ones(4, 12)) for _ in range(3)]
        for number, weight in enumerate(weights):
            weight.grad = torch.randn(4, 12, generator=torch.Generator().manual_seed(number))
        if broken:
            weights[1].grad[0, 0] = torch.nan  # type: ignore[index]
        Muon(weights, [], **SETTINGS).step()
        moved.append(weights)
    assert torch.equal(moved[0][0], moved[1][0]) and torch.equal(moved[0][2], moved[1][2])
    assert moved[1][1].isnan().any()


def ended(folder: Path) -> dict[str, Any]:
    """Losses, the optimizer, and every weight that was written in the end."""
    weights = {path.relative_to(folder): load_file(path) for path in folder.rglob("checkpoint-4/*.safetensors")}
    losses = (folder / "logs" / "losses.jsonl").read_text("utf-8")
    return {"optimizer": read_state(checkpoints_in(folder)[-1])["optimizer"], "losses": losses, **weights}


@pytest.mark.long
@pytest.mark.parametrize("trained", [(), ("--train_base_model", "all")], ids=["LoRA", "base"])
def test_a_stopped_run_goes_on_exactly(tiny_args: Callable[..., argparse.Namespace], trained: tuple[str, ...]) -> None:
    whole = tiny_args(*FLAGS, *trained)
    run(whole)
    wanted = ended(Path(whole.output_dir))
    assert wanted["optimizer"]["state"][0].keys() == {"momentum_buffer"}
    stopped = tiny_args(*FLAGS, *trained)
    with pytest.raises(StoppedError):
        run(stopped, 2)
    folder = Path(stopped.output_dir)
    run(tiny_args(*FLAGS, *trained, "--output_dir", folder, "--resume_from_checkpoint", "latest"))
    assert_same(ended(folder), wanted)


def run_of_3_steps(tiny_args: Callable[..., argparse.Namespace], *flags: object) -> Path:
    args = tiny_args(*FLAGS, "--max_train_steps", 3, "--checkpointing_steps", 1, "--lora_rank", 32, *flags)
    run(args)
    return Path(args.output_dir)


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer adamw --use_8bit_adam --quantize_base nf4",
        "--optimizer adamw --use_8bit_adam --quantize_base nf4 --gradient_checkpointing 1 --mixed_precision bf16 "
        "--validation_steps 1 --num_validation_images 1",
        "--optimizer prodigy --learning_rate 1",
    ],
)
def test_nf4_8_bit_adam_and_prodigy_go_on_exactly(
    tiny_args: Callable[..., argparse.Namespace], flags: str, bitsandbytes_on_cpu: Any
) -> None:
    pytest.importorskip("prodigyopt")
    whole = run_of_3_steps(tiny_args, *flags.split())
    wanted = {step: read_state(whole / f"checkpoint-{step}")["optimizer"] for step in (1, 3)}
    if "8bit" in flags:  # bitsandbytes leaves tensors of less than 4,096 elements in fp32; here all have 6,144 and more
        assert {state["__bnb_optimizer_quant_state__"]["state1"].dtype for state in wanted[3]["state"].values()} == {
            torch.uint8
        }
    else:
        assert [wanted[step]["param_groups"][0]["k"] for step in (1, 3)] == [1, 3]
    weights = [load_file(path / "pytorch_lora_weights.safetensors") for path in (whole / "checkpoint-1", whole)]
    assert all(not torch.equal(weights[1][name], weight) for name, weight in weights[0].items() if "lora_B" in name)
    continued = run_of_3_steps(tiny_args, *flags.split(), "--resume_from_checkpoint", whole / "checkpoint-1")
    assert_same(read_state(continued / "checkpoint-3")["optimizer"], wanted[3])
    assert_same(load_file(continued / "pytorch_lora_weights.safetensors"), weights[1])


def test_a_state_that_does_not_fit_is_refused() -> None:
    model = Small()
    optimizer = made(model)
    model(torch.ones(1, 3)).backward()
    optimizer.step()
    state = optimizer.state_dict()
    check_optimizer_state(optimizer, state, Path("checkpoint-1"))
    fewer = {**state, "param_groups": state["param_groups"][:1]}
    with pytest.raises(ValueError, match="checkpoint-1: its optimizer state"):
        check_optimizer_state(optimizer, fewer, Path("checkpoint-1"))
    state["state"][0]["momentum_buffer"] = torch.zeros(3)
    with pytest.raises(ValueError, match="checkpoint-1: its optimizer state"):
        check_optimizer_state(optimizer, state, Path("checkpoint-1"))


def test_muon_has_no_group_without_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    assert [group["is_muon"] for group in Muon([weight], [], **SETTINGS).param_groups] == [True]
    assert [group["is_muon"] for group in Muon([], [weight], **SETTINGS).param_groups] == [False]
