"""What blocks compute in less time is what they computed before: losses, gradients, files."""

from __future__ import annotations

import contextlib

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import get_peft_model_state_dict

import train_flux_inpaint as tfi
from benchmarks import step_traffic
from training_run import blocks
from training_run.lora import lora_config
from training_run.memory import FLUX_VAE, as_on_cuda

SHAPE = {
    "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12), "in_channels": 384, "out_channels": 64, "joint_attention_dim": 48,
    "pooled_projection_dim": 24, "guidance_embeds": True,
}  # fmt: skip


@pytest.fixture
def norms_as_on_cuda():
    """Under autocast norms give fp32, as they do on CUDA and not on a CPU."""
    with as_on_cuda():
        yield


def transformer(args, dtype: torch.dtype) -> FluxTransformer2DModel:
    """A small FLUX with the run's LoRA, which is not zero."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**SHAPE).to(dtype)
    for parameter in tfi.make_trainable(model, args):
        parameter.data.normal_(std=0.1)
    return model


def forward(model: FluxTransformer2DModel, dtype: torch.dtype) -> torch.Tensor:
    """What it makes of fixed inputs under autocast."""
    draw = torch.Generator().manual_seed(1)
    given = {"hidden_states": (2, 12, 384), "encoder_hidden_states": (2, 5, 48), "pooled_projections": (2, 24)}
    inputs = {name: torch.randn(size, generator=draw).to(dtype) for name, size in given.items()}
    more = {"timestep": torch.tensor([0.2, 0.7]), "guidance": torch.ones(2), "return_dict": False}
    ids = {"txt_ids": torch.zeros(5, 3), "img_ids": torch.arange(36.0).reshape(12, 3)}
    with torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext():
        return model(**inputs, **ids, **more)[0].float()


def step(model: FluxTransformer2DModel, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What it makes of fixed inputs, and the gradients of what is trained."""
    made = forward(model, dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return made, list(torch.autograd.grad((made**2).mean(), trained))


def apart(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Length of the difference of two lists of tensors, as a share of the second one's."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(found, exact, strict=True)]
    return float(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs)) ** 0.5


@pytest.fixture
def plain(monkeypatch):
    """A context in which models stay as diffusers and peft make them."""

    @contextlib.contextmanager
    def as_they_were():
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "in_one_precision", lambda _: None)
            yield

    return as_they_were


@pytest.mark.parametrize("flags", [[], ["--lora_alpha", "7", "--use_rslora"], ["--lora_target_modules", "to_q,to_k"]])
def test_the_same_up_to_rounding_in_fp32(flags, tiny_args):
    made, gradients = step(transformer(tiny_args(*flags), torch.float32), torch.float32)
    model = transformer(tiny_args(*flags), torch.float32)
    keys = list(get_peft_model_state_dict(model))
    blocks.in_one_precision(model)
    ours_made, ours = step(model, torch.float32)
    assert not torch.equal(ours_made, made), "nothing was changed, so nothing is compared"
    assert apart([ours_made], [made]) < 1e-6 and apart(ours, gradients) < 1e-5
    assert list(get_peft_model_state_dict(model)) == keys


def test_bf16_stays_bf16_and_is_no_less_exact(tiny_args, norms_as_on_cuda, plain):
    exact_made, exact = step(transformer(tiny_args(), torch.float32), torch.float32)
    found = {}
    for kept in (True, False):
        with contextlib.nullcontext() if kept else plain():
            model = transformer(tiny_args("--mixed_precision", "bf16"), torch.bfloat16)
        norms = [module for module in model.modules() if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm))]
        dtypes = set()
        for norm in norms:
            norm.register_forward_hook(lambda _, __, made, dtypes=dtypes: dtypes.add(made.dtype))
        made, gradients = step(model, torch.bfloat16)
        assert dtypes == {torch.bfloat16 if kept else torch.float32}
        found[kept] = (apart([made], [exact_made]), apart(gradients, exact))
    for ours, theirs in zip(found[True], found[False], strict=True):
        assert theirs / 3 < ours < 1.5 * theirs < 0.05


def test_attention_alone_in_fp32_is_no_less_exact(tiny_args, monkeypatch):
    exact_made, exact = step(transformer(tiny_args(), torch.float32), torch.float32)
    kinds, attend = [], blocks.dispatch_attention_fn

    def noted(query, key, value, **more):
        kinds.append((query.dtype, key.dtype, value.dtype, torch.is_autocast_enabled("cpu")))
        return attend(query, key, value, **more)

    monkeypatch.setattr(blocks, "dispatch_attention_fn", noted)
    model = transformer(tiny_args("--mixed_precision", "bf16"), torch.bfloat16)
    made, gradients = step(model, torch.bfloat16)
    assert set(kinds) == {(*[torch.bfloat16] * 3, True)}
    blocks.attend_in_fp32(model)
    kinds.clear()
    kept: list[torch.Tensor] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda _, __, made: kept.extend(made))
    ours_made, ours = step(model, torch.bfloat16)
    assert set(kinds) == {(*[torch.float32] * 3, False)}
    assert {part.dtype for part in kept} == {torch.bfloat16}  # nothing else
    assert apart([ours_made], [exact_made]) < 1.2 * apart([made], [exact_made])
    assert apart(ours, exact) < 1.2 * apart(gradients, exact)


def test_the_trainer_attends_so_on_a_cpu(tiny_args, monkeypatch):
    told = []
    monkeypatch.setattr(blocks, "attend_in_fp32", told.append)
    args = tiny_args("--mixed_precision", "bf16")
    run = tfi.Run(args, tfi.start(args), tfi.PromptTable([""], torch.zeros(1, 1, 1), torch.zeros(1, 1)))
    assert told == [run.model]


def test_norms_that_are_trained_get_their_gradient(tiny_args, norms_as_on_cuda):
    model = transformer(tiny_args("--mixed_precision", "bf16", "--train_base_model"), torch.bfloat16)
    exact = transformer(tiny_args("--train_base_model"), torch.float32)
    assert model.transformer_blocks[0].attn.norm_q.weight.requires_grad
    exact.load_state_dict(model.state_dict())
    assert apart(step(model, torch.bfloat16)[1], step(exact, torch.float32)[1]) < 0.05


def test_compiled_as_it_is(tiny_args):
    model = transformer(tiny_args("--mixed_precision", "bf16"), torch.bfloat16)
    made, gradients = step(model, torch.bfloat16)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    compiled, found = step(model, torch.bfloat16)
    assert apart([compiled], [made]) < 0.01 and apart(found, gradients) < 0.02


def test_fewer_bytes_are_kept_for_the_backward_pass(tiny_args, norms_as_on_cuda, plain):
    def kept(model: FluxTransformer2DModel) -> int:
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            step(model, torch.bfloat16)
        return sum(sizes.values())

    args = tiny_args("--mixed_precision", "bf16")
    with plain():
        before = kept(transformer(args, torch.bfloat16))
    assert kept(transformer(args, torch.bfloat16)) < 0.85 * before


@pytest.mark.parametrize("flags", [["--use_dora"], ["--lora_dropout", "0.3"], ["--use_dora", "--lora_dropout", "0.3"]])
def test_what_is_not_a_plain_lora_stays_with_peft(flags, tiny_args):
    model = transformer(tiny_args(*flags), torch.float32)
    torch.manual_seed(3)
    made, gradients = step(model, torch.float32)
    blocks.in_one_precision(model)
    assert not any(type(module) is blocks._PlainLora for module in model.modules())
    torch.manual_seed(3)
    ours, found = step(model, torch.float32)
    assert apart([ours], [made]) < 1e-6 and apart(found, gradients) < 1e-5


def test_over_a_layer_of_another_kind_inputs_are_not_cast_to_and_fro(tiny_args, monkeypatch):
    class Packed(torch.nn.Linear):
        pass

    def packed(args, model):
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            for layer in block.modules():
                if type(layer) is torch.nn.Linear:
                    layer.__class__ = Packed
        return lora_config(args, model)

    args = tiny_args("--mixed_precision", "bf16")
    made, gradients = step(transformer(args, torch.bfloat16), torch.bfloat16)
    monkeypatch.setattr(tfi, "lora_config", packed)
    model = transformer(args, torch.bfloat16)
    seen = set()
    for module in model.modules():
        if type(module) is blocks._Lora:
            module.lora_A["default"].register_forward_pre_hook(lambda _, given: seen.add(given[0].dtype))
    ours, found = step(model, torch.bfloat16)
    assert seen == {torch.bfloat16}
    assert apart([ours], [made]) < 0.02 and apart(found, gradients) < 0.05
    block, given = model.transformer_blocks[0], torch.randn(3, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        assert block.attn.to_q(given).dtype == torch.bfloat16  # without autocast they are


@pytest.mark.parametrize("change", ["disable_adapters", "fuse_lora", "second_adapter"])
def test_adapters_that_are_switched_off_merged_or_joined_by_another(change, tiny_args):
    args = tiny_args()
    made = []
    for ours in (True, False):
        model = transformer(args, torch.float32)
        if ours:
            blocks.in_one_precision(model)
        if change == "second_adapter":
            model.add_adapter(tfi.lora_config(args, model), "second")
            model.set_adapters(["default", "second"], [1.0, 0.5])
            for name, weight in model.named_parameters():
                if ".second." in name:
                    weight.data.fill_(0.02)
        else:
            getattr(model, change)()
        with torch.no_grad():
            made.append(forward(model, torch.float32))
    assert apart([made[0]], [made[1]]) < 1e-6


@pytest.mark.long
def test_a_compiled_encoder_moves_fewer_bytes_between_convolutions():
    small = {**FLUX_VAE, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    plain, compiled = (step_traffic.count_encoding(how, small).bytes for how in (False, True))
    assert compiled["others"] < 0.8 * plain["others"]
    assert compiled["products"] == pytest.approx(plain["products"], rel=0.05)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_fewer_bytes_are_moved_between_products(compiled):
    moved = [
        [block.bytes for block in step_traffic.count(make_trainable, compiled, SHAPE)]
        for make_trainable in (step_traffic.as_peft_makes_it, tfi.make_trainable)
    ]
    for peft, ours in zip(*moved, strict=True):
        assert ours["others"] < (0.85 if compiled else 0.6) * peft["others"]
        assert ours["products"] < 1.15 * peft["products"]
