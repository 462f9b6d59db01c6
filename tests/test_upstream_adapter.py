"""The transformer whose parameters are its LoRA, and the accelerator that refuses to train anything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import forget_accelerator

import train_flux_inpaint as trainer
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.upstream.accelerator import DrivenAccelerator
from deepfashion_training.upstream.adapter import AdapterTransformer
from deepfashion_training.upstream.driven_run import DrivenRun


def run_of(folder: Path, precision: str = "no", **settings: Any) -> DrivenRun:
    flags = ["--dataroot", "nowhere", "--output_dir", str(folder), "--lora_rank", "2"]
    args = trainer.parse_args(flags)
    args.pretrained_model_name_or_path = args.pretrained_inpaint_model_name_or_path = str(TINY_FLUX_FILL)
    vars(args).update(settings)
    run = DrivenRun(args, lambda *_: [], {"script": "some.py"})
    run.accelerator = SimpleNamespace(mixed_precision=precision)
    return run


def load(run: DrivenRun) -> AdapterTransformer:
    adapter = type("Adapter", (AdapterTransformer,), {"run": run})
    return adapter.from_pretrained(str(TINY_FLUX_FILL), subfolder="transformer", revision=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AdapterTransformer:
    """For reading only."""
    return load(run_of(tmp_path_factory.mktemp("model")))


def test_only_the_adapter_is_shown_and_all_of_it_is_trainable(model: AdapterTransformer) -> None:
    every = dict(torch.nn.Module.named_parameters(model))
    adapter = {name for name in every if ".lora_" in name}
    model.requires_grad_(False)
    assert {name for name, _ in model.named_parameters()} == adapter == set(model.state_dict()) == model.adapter_names
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(every[name].requires_grad for name in set(every) - adapter)
    assert {id(one) for one in model.parameters()} == {id(every[name]) for name in adapter}
    assert {name.split(".lora_")[0] for name, _ in model.named_parameters(prefix="module")} == {
        f"module.{name.split('.lora_')[0]}" for name in adapter
    }


def test_the_base_is_what_our_own_trainer_starts_from(model: AdapterTransformer) -> None:
    args = model.run.settings
    torch.manual_seed(args.seed)
    ours = trainer.load_transformer(args, torch.float32)
    torch.manual_seed(args.seed)
    trainer.make_trainable(ours, args)
    theirs = dict(torch.nn.Module.named_parameters(model))
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    load(run_of(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)


def test_casting_spares_the_adapter(tmp_path: Path) -> None:
    model = load(run_of(tmp_path, "bf16"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert model.to("cpu", dtype=torch.bfloat16) is model
    dtypes = {name: parameter.dtype for name, parameter in torch.nn.Module.named_parameters(model)}
    assert {dtypes[name] for name in model.adapter_names} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if name not in model.adapter_names} == {torch.bfloat16}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.dtype == torch.bfloat16


def test_a_quantized_base_is_moved_and_not_cast(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    run = run_of(tmp_path, "bf16", quantize_base="int8")
    run.accelerator.device = torch.device("cpu")
    model: Any = load(run)
    packed = model.transformer_blocks[0].attn.to_q.base_layer
    assert type(packed.weight).__name__ == "Int8Tensor"
    assert model.to("cpu", dtype=torch.float32) is model
    assert model.x_embedder.weight.dtype == packed.bias.dtype == torch.bfloat16


def test_another_state_dict_is_refused_and_its_own_is_loaded(tmp_path: Path) -> None:
    model = load(run_of(tmp_path))
    changed = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(changed)
    assert all(torch.equal(value, changed[name]) for name, value in model.state_dict().items())
    name = next(iter(changed))
    for wrong in ({**changed, "other": changed[name]}, {key: changed[key] for key in changed if key != name}, {}):
        with pytest.raises(RuntimeError, match="weights are not those of the LoRA in training"):
            model.load_state_dict(wrong)


def test_a_saved_adapter_is_loaded_into_the_model_in_training(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    model = load(run)
    saved = {name: value.clone().fill_(0.5) for name, value in model.state_dict().items()}
    model.load_state_dict(saved)
    model.save_pretrained(tmp_path / "checkpoint-1" / "transformer")
    assert [path.name for path in (tmp_path / "checkpoint-1").iterdir()] == [trainer.LORA_FILE]
    for parameter in model.parameters():
        parameter.data.zero_()
    assert type(model).from_pretrained(str(tmp_path / "checkpoint-1"), subfolder="transformer") is model
    assert all((value == 0.5).all() for value in model.state_dict().values())
    run.settings.lora_rank = 3
    with pytest.raises(ValueError, match="holds another LoRA than these flags make"):
        type(load(run)).from_pretrained(str(tmp_path / "checkpoint-1"))


# ---- the accelerator


@pytest.fixture
def driven(tmp_path: Path) -> Iterator[tuple[Any, AdapterTransformer]]:
    forget_accelerator()
    run = run_of(tmp_path / "out")
    accelerator = type("Accelerator", (DrivenAccelerator,), {"run": run})(cpu=True, log_with="none")
    yield accelerator, load(run)
    forget_accelerator()


def test_an_optimizer_of_anything_but_the_lora_is_refused(driven: tuple[Any, AdapterTransformer]) -> None:
    accelerator, model = driven
    weights = list(model.parameters())
    other = torch.nn.Parameter(torch.zeros(1))
    for held in (weights[1:], [*weights, other]):
        with pytest.raises(ValueError, match="optimizer holds other weights"):
            accelerator.prepare(model, torch.optim.SGD(held, lr=1.0))
    prepared, _ = accelerator.prepare(model, torch.optim.SGD(weights, lr=1.0))
    assert prepared is model


def test_nothing_reports_to_none(driven: tuple[Any, AdapterTransformer]) -> None:
    assert driven[0].log_with == []


def test_trackers_get_plain_values(driven: tuple[Any, AdapterTransformer], monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    given = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, name, config, init_kwargs: given.append(config))
    config = {"lr": 0.5, "steps": 3, "name": "x", "flag": True, "none": None, "list": [1]}
    driven[0].init_trackers("project", config=config)
    assert given == [{"lr": 0.5, "steps": 3, "name": "x", "flag": True}]


def test_a_loss_that_is_not_finite_moves_no_weight(driven: tuple[Any, AdapterTransformer]) -> None:
    accelerator, model = driven
    weight = next(iter(model.parameters()))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="the loss is not finite at step 1: lower --learning_rate"):
            accelerator.backward(weight.sum() * bad)
    assert weight.grad is None
