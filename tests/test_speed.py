"""Recomputed and compiled blocks: the same losses and gradients; as few recomputed blocks as fit."""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch.utils.data import default_collate

import train_flux_inpaint as tfi
from training_run import speed


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ([], 0),
        (["--gradient_checkpointing"], 1),
        (["--no-gradient_checkpointing"], 0),
        (["--gradient_checkpointing", "none"], 0),
        (["--gradient_checkpointing=3"], 3),
        (["--gradient_checkpointing", "auto"], "auto"),
        (["--gradient_checkpointing", "--no-gradient_checkpointing"], 0),
    ],
)
def test_what_is_typed(typed, stored):
    assert tfi.parse_args(["--dataroot", "x", *typed]).gradient_checkpointing == stored


@pytest.mark.parametrize("value", ["0", "-1", "often", "1.5"])
def test_what_is_no_stride(value, capsys):
    with pytest.raises(SystemExit) as ended:
        tfi.parse_args(["--dataroot", "x", f"--gradient_checkpointing={value}"])
    assert ended.value.code == 2
    assert f"'{value}' is not auto, none or a number from 1" in capsys.readouterr().err


def test_every_so_many_blocks():
    assert [speed.recomputed_by(stride, 57) for stride in (0, 1, 2, 3)] == [0, 57, 29, 19]


def gradients(run: tfi.Run, batch: tfi.FillBatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss, _ = run.loss_of(batch)
    loss.backward()
    found = [parameter.grad.clone() for parameter in run.parameters]
    for parameter in run.parameters:
        parameter.grad = None
    return loss.detach(), found


@pytest.fixture
def run(tiny_args, accelerator):
    args = tiny_args("--report_to", "none", "--max_train_steps", 1)
    prompts = tfi.prompts_of_run(args, [args.instance_prompt], accelerator)
    made = tfi.Run(args, accelerator, prompts)
    (made.folder / "logs").mkdir(parents=True)
    for parameter in made.parameters:  # B is zero at the start, and then half of the gradients are
        torch.nn.init.normal_(parameter, std=0.05)
    return made


@pytest.fixture
def batch(run):
    data, _ = tfi.build_datasets(run.args)
    return run.encode(default_collate([data[0], data[1]]), 0)


@pytest.mark.parametrize(("count", "chosen"), [(1, [0]), (3, [0, 2, 4]), (6, [0, 1, 2, 3, 4, 5])])
def test_recomputed_blocks_change_no_bit_and_run_twice(run, batch, count, chosen):
    plain = gradients(run, batch)
    calls = []
    blocks = [*run.model.transformer_blocks, *run.model.single_transformer_blocks]
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    speed.recompute(run.model, count)
    again = gradients(run, batch)
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(one, other) for one, other in zip(plain[1], again[1], strict=True))
    assert sorted(number for number in set(calls) if calls.count(number) == 2) == chosen
    speed.recompute(run.model, 0)
    calls.clear()
    gradients(run, batch)
    assert len(calls) == len(blocks)


@pytest.mark.long
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="compiling for a CPU needs g++ or clang++"
)
def test_compiled_blocks_give_the_same_up_to_rounding(run, batch):
    run.args.prior_loss_weight = 3.0
    known = replace(batch, known=torch.tensor([1]))
    plain, kept = gradients(run, batch), gradients(run, known)
    assert kept[0] > plain[0]
    pair = torch.rand(1, 3, 64, 96) * 2 - 1
    encoded = tfi.encode_posterior(tfi.load_vae(run.args, run.model.device, compiled=True), pair)
    torch.testing.assert_close(encoded, tfi.encode_posterior(run.vae, pair), rtol=1e-4, atol=1e-4)
    speed.compile_blocks(run.model)
    speed.recompute(run.model, 2)
    run.args.compile_blocks = True
    for given, wanted in ((batch, plain), (known, kept)):
        compiled = gradients(run, given)
        torch.testing.assert_close(compiled[0], wanted[0], rtol=1e-5, atol=1e-6)
        for one, other in zip(compiled[1], wanted[1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6 + 1e-4 * float(other.abs().max()))
    assert set(run.model.state_dict()) == set(copy.deepcopy(run.model).state_dict())
    assert not any("_orig_mod" in name for name in run.model.state_dict())


@pytest.fixture
def one_rank(monkeypatch):
    """A process group of this process alone; DDP's gradients of a small block already fill a bucket."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 1000)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(optimize_ddp=True):  # PyTorch's default, set back at the end
        yield
    torch.distributed.destroy_process_group()
    torch._dynamo.reset()


def test_a_compiled_block_stays_whole_under_ddp(run, batch, one_rank, monkeypatch):
    """Every graph that dynamo has made of a block is handed to the compiler in one piece."""
    graphs = []

    def compiler(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compile_repeated = run.model.compile_repeated_blocks
    monkeypatch.setattr(
        run.model, "compile_repeated_blocks", lambda **settings: compile_repeated(backend=compiler, **settings)
    )
    speed.leave_frozen_out_of_broadcast(run.model)
    wrapped = torch.nn.parallel.DistributedDataParallel(run.model)
    speed.compile_blocks(run.model)
    tfi.predict_velocity(wrapped, batch, 1.0, True).sum().backward()
    assert len(graphs) == torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # two kinds of blocks


def test_dropout_draws_the_same_again_and_rests_while_pictures_are_drawn(run, batch):
    for name, _ in list(run.model.named_modules()):
        if name.endswith("lora_dropout.default"):
            run.model.set_submodule(name, torch.nn.Dropout(0.5))
    found = []
    for count in (0, 6):
        speed.recompute(run.model, count)
        torch.manual_seed(1)
        found.append(gradients(run, batch))
    torch.manual_seed(2)
    assert not torch.equal(gradients(run, batch)[0], found[0][0])  # it does draw
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))
    modes: list[bool] = []
    run.pictures = [{}]
    run.draw_results = lambda: modes.append(any(module.training for module in run.model.modules())) or []
    run.validate()
    assert modes == [False] and all(module.training for module in run.model.modules())


def test_blocks_use_the_attention_that_is_asked_for_and_other_models_do_not(tiny_args, accelerator):
    args = tiny_args("--report_to", "none", "--max_train_steps", 1, "--attention_backend", "_native_flash")
    run = tfi.Run(args, accelerator, tfi.prompts_of_run(args, [args.instance_prompt], accelerator))
    blocks = [*run.model.transformer_blocks, *run.model.single_transformer_blocks]
    assert {block.attn.processor._attention_backend.value for block in blocks} == {"_native_flash"}
    assert _AttentionBackendRegistry.get_active_backend()[0].value == "native"


# ---- steps that are not finite


def step_on(run: tfi.Run, batch: tfi.FillBatch) -> bool:
    """A step as the loop of ``train`` takes it."""
    loss, regions = run.loss_of(batch)
    run.accelerator.backward(loss)
    norm = run.accelerator.clip_grad_norm_(run.parameters, run.args.max_grad_norm)
    return run.optimizer_step([*regions.tolist(), [loss.item(), 1.0]], float(norm), batch.names)


def test_a_step_that_is_not_finite_changes_nothing_and_is_noted(run, batch):
    run.args.max_skipped_steps = 1
    assert step_on(run, batch) and run.moved
    weights = [parameter.detach().clone() for parameter in run.parameters]
    states = copy.deepcopy(run.optimizer.optimizer.state_dict()["state"])
    broken = replace(batch, latents=batch.latents * math.inf, names=["a.jpg"])
    assert not step_on(run, broken)
    assert all(torch.equal(one, other) for one, other in zip(weights, run.parameters, strict=True))
    again = run.optimizer.optimizer.state_dict()["state"]
    for number, state in states.items():
        assert all(torch.equal(state[name], again[number][name]) for name in state)
    assert run.skipped_steps == 1
    assert json.loads((run.folder / "logs" / "skipped.jsonl").read_text())["rows"] == ["a.jpg"]
    with pytest.raises(ValueError, match=r"not finite at step 3: .* rows a\.jpg; 2 steps were skipped"):
        step_on(run, broken)


# ---- auto


@pytest.mark.parametrize(("base", "block", "fewest"), [(10, 1, 0), (30, 2, 32), (0, 5, 41), (75, 0.1, 7), (78, 1, 55)])
def test_as_few_blocks_as_fit_are_recomputed(base, block, fewest):
    """With a budget of 80; above 82 the GPU gives up."""
    asked = []

    def peak(count):
        asked.append(count)
        used = base + block * (57 - count)
        return used if used <= 82 else math.inf

    assert speed.fewest_recomputed(peak, 57, 80) == fewest
    assert len(asked) <= (2 if fewest == 0 else 8)


def test_a_card_that_is_too_small_for_all_blocks_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        speed.fewest_recomputed(lambda count: math.inf, 57, 80)
    with pytest.raises(torch.OutOfMemoryError):
        speed.fewest_recomputed(lambda count: 81, 57, 80)


def test_room_is_kept_for_the_optimizers_state_until_it_is_there(run, monkeypatch):
    """AdamW's two moments in fp32 come with the first step, and are there in a run that is continued."""
    kept = []
    monkeypatch.setattr(speed, "choose_recomputed", lambda model, step, spare, accelerator: kept.append(spare))
    monkeypatch.setattr(run, "rows", tfi.build_datasets(run.args)[0])
    run.fit_memory()
    run.step = 5
    run.fit_memory()
    assert kept == [8 * sum(parameter.numel() for parameter in run.parameters), 0]


@pytest.fixture
def card(monkeypatch):
    """A pretended GPU of 80 GiB, of which another process holds 30 and PyTorch has reserved 10."""
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (40 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 10 * gib)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(speed, "free_memory", lambda: None)  # takes seconds among a test run's objects
    peak = SimpleNamespace(gib=0.0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: int(peak.gib * gib))
    monkeypatch.setattr(speed, "recompute", lambda transformer, count: setattr(peak, "count", count))
    return peak


@pytest.mark.usefixtures("accelerator")  # whose logger wants a state
@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")])
def test_what_others_hold_and_errors_of_libraries_count(card, error):
    """A step takes 20 GiB and one for each kept block; from 44 on, a library finds no memory. 0.95 of 50 are 47."""
    transformer = SimpleNamespace(transformer_blocks=range(19), single_transformer_blocks=range(38))

    def step() -> None:
        card.gib = 20 + 57 - card.count
        if card.gib >= 44:
            raise error

    accelerator = SimpleNamespace(device=torch.device("cuda"))
    assert speed.choose_recomputed(transformer, step, 0, accelerator) == 34  # 43 GiB
    assert speed.choose_recomputed(transformer, step, 6 * 2**30, accelerator) == 36  # at most 41, as 6 are spare
    assert card.count == 36

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        speed.choose_recomputed(transformer, broken, 0, accelerator)


@pytest.mark.long
def test_auto_recomputes_nothing_on_the_cpu_and_trains(tiny_args, tmp_path):
    from conftest import forget_accelerator

    def losses(*flags: object) -> str:
        args: argparse.Namespace = tiny_args("--max_train_steps", 2, "--validation_steps", 0, "--report_to", "none",
                                             "--checkpointing_steps", 0, *flags)  # fmt: skip
        forget_accelerator()
        tfi.main(args)
        forget_accelerator()
        return Path(args.output_dir, "logs", "losses.jsonl").read_text("utf-8")

    assert losses("--gradient_checkpointing", "auto") == losses()
