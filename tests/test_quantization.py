"""A base in 8 bits (torchao) and in 4 (bitsandbytes), on the CPU as on a GPU."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import forget_accelerator
from safetensors.torch import load_file

import train_flux_inpaint as tfi
from deepfashion_training.inference import choice
from deepfashion_training.models.fill import FillModel, Recipe
from training_run import guards, memory, quantization
from training_run.flags import QUANTIZED_BY

FLAGS = (
    "--max_train_steps 2 --learning_rate 1e-2 --checkpointing_steps 1 --report_to none --logging_steps 1 "
    "--validation_steps 0 --train_batch_size 3"
).split()


def run(args: argparse.Namespace) -> tuple[dict, Path]:
    forget_accelerator()
    try:
        tfi.main(args)
    finally:
        forget_accelerator()
    return json.loads((Path(args.output_dir) / "run.json").read_text()), Path(args.output_dir)


@pytest.fixture(scope="module")
def plain(tiny_args) -> Path:
    return run(tiny_args(*FLAGS))[1]


@pytest.fixture
def available(request):
    """What the ``kind`` of a test needs."""
    kind = request.node.callspec.params["kind"]
    if QUANTIZED_BY[kind] == "bitsandbytes":
        request.getfixturevalue("bitsandbytes_on_cpu")
    else:
        pytest.importorskip(QUANTIZED_BY[kind])


def loaded(tiny_args, kind, dtype=torch.float32, **more):
    return tfi.load_transformer(tiny_args("--quantize_base", kind), dtype, **more)


# 4 bits change the first loss over the small base by 18%.
@pytest.mark.parametrize(
    ("kind", "allowed"), [("nf4", 0.25), ("int8", 0.01), pytest.param("fp8", 0.03, marks=pytest.mark.long)]
)
def test_a_lora_is_trained_over_it_with_nearly_the_same_first_loss(kind, allowed, available, tiny_args, plain):
    facts, folder = run(tiny_args(*FLAGS, "--quantize_base", kind))
    assert facts["arguments"]["quantize_base"] == kind
    first, exact_first = (json.loads((place / "logs" / "losses.jsonl").read_text().splitlines()[0])["loss"]
                          for place in (folder, plain))  # fmt: skip
    assert 0 < abs(first / exact_first - 1) < allowed
    trained, exact = (load_file(place / tfi.LORA_FILE) for place in (folder, plain))
    assert trained.keys() == exact.keys()
    moved = [name for name in trained if "lora_B" in name and trained[name].abs().max() > 1e-3]
    assert len(moved) == len([name for name in trained if "lora_B" in name])
    assert not all(torch.equal(trained[name], exact[name]) for name in trained)


@pytest.mark.parametrize("kind", list(QUANTIZED_BY))
def test_all_linear_layers_of_blocks_and_no_others_are_packed(kind, available, tiny_args):
    """Single blocks have a ``proj_out`` too, by which lists of names would take or leave both."""
    base, exact = loaded(tiny_args, kind), tfi.load_transformer(tiny_args(), torch.float32)
    packed = {name for name, part in base.named_modules() if type(getattr(part, "weight", None)) not in
              (torch.nn.Parameter, type(None))}  # fmt: skip
    linear = {name for name, part in exact.named_modules() if isinstance(part, torch.nn.Linear)}
    around = {name for name in linear if "transformer_blocks" not in name}
    assert {name.split(".")[0] for name in around} == {
        "x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"
    }  # fmt: skip
    assert packed == linear - around and "single_transformer_blocks.3.proj_out" in packed
    weights = dict(exact.named_parameters())
    for name, weight in base.named_parameters():
        kept = name.removesuffix(".weight") not in packed
        assert not kept or (weight.dtype == torch.float32 and torch.equal(weight, weights[name]))


@pytest.mark.parametrize(("kind", "type_name", "bits"), [("nf4", "Params4bit", 4), ("int8", "Int8Tensor", 8)])
def test_gradients_pass_through_and_weights_are_not_kept_unpacked(kind, type_name, bits, available, tiny_args):
    layer = loaded(tiny_args, kind).transformer_blocks[0].attn.to_q
    assert type(layer.weight).__name__ == type_name
    raw = layer.weight.data if kind == "nf4" else layer.weight.qdata
    assert raw.nbytes == 192 * 192 * bits // 8
    given = torch.randn(3, 192, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        made = layer(given)
    assert sum(kept) <= 3 * 192
    made.sum().backward()
    exact = tfi.load_transformer(tiny_args(), torch.float32).transformer_blocks[0].attn.to_q
    off = exact.weight.abs().max().item()
    torch.testing.assert_close(made, exact(given), atol=2 * off, rtol=0)
    torch.testing.assert_close(given.grad[0], exact.weight.sum(dim=0), atol=2 * off, rtol=0)


@pytest.mark.parametrize("kind", list(QUANTIZED_BY))
def test_it_is_packed_on_the_device_where_it_stays(kind, available, tiny_args, monkeypatch):
    """The device "meta" in place of a GPU: nothing is computed there, and so nothing can have been on the CPU."""
    if kind == "nf4":  # bitsandbytes packs what it moves, but not to "meta"
        moved = set()
        monkeypatch.setattr("bitsandbytes.nn.Linear4bit.to", lambda layer, device: moved.add(device.type) or layer)
        quantization.quantize(tfi.load_transformer(tiny_args(), torch.float32), kind, torch.device("meta"))
        assert moved == {"meta"}
    else:
        weights = loaded(tiny_args, kind, device=torch.device("meta")).parameters()
        assert {weight.device.type for weight in weights} == {"meta"}


@pytest.mark.parametrize("kind", list(QUANTIZED_BY))
def test_blocks_hand_on_bf16(kind, available, tiny_args):
    """Norms in fp32, as autocast has them on CUDA, would make all fp32 that quantized layers add up and keep."""
    args = tiny_args("--quantize_base", kind, "--mixed_precision", "bf16")
    base = loaded(tiny_args, kind, torch.bfloat16)
    tfi.make_trainable(base, args)
    handed_on = set()
    for block in (*base.transformer_blocks, *base.single_transformer_blocks):
        block.register_forward_hook(lambda _, __, made: handed_on.update(part.dtype for part in made))
    given = {"hidden_states": (1, 24, 384), "encoder_hidden_states": (1, 8, 32), "pooled_projections": (1, 32)}
    given = {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in given.items()}
    given |= {"timestep": torch.ones(1), "guidance": torch.ones(1)}
    with torch.autocast("cpu", torch.bfloat16), memory.as_on_cuda():
        base(**given, txt_ids=torch.zeros(8, 3), img_ids=torch.zeros(24, 3))[0].float().sum().backward()
    assert handed_on == {torch.bfloat16}


@pytest.mark.long
def test_two_ranks_train_one_lora_over_8_bits(tiny_flags, tmp_path):
    pytest.importorskip("torchao")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = tiny_flags(*FLAGS, "--quantize_base", "int8", "--output_dir", tmp_path / "run")
    settings = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, tfi.__file__, *map(str, flags)],
        env=settings, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["world_size"] == 2 and facts["arguments"]["quantize_base"] == "int8"


def test_people_are_dressed_with_a_transformer_in_8_bits(tiny_flux_fill):
    pytest.importorskip("torchao")
    recipe = Recipe(pipeline=str(tiny_flux_fill), transformer=str(tiny_flux_fill), height=64, width=48)
    torch.manual_seed(0)
    sample = {"im_mask": torch.rand(3, 64, 96) * 2 - 1, "inpaint_mask": torch.zeros(1, 64, 96)}
    sample["inpaint_mask"][:, 16:48, 60:84] = 1

    def drawn(quantize):
        model = FillModel(recipe, ["a dress"], quantize_base=quantize, device="cpu")
        return model.draw([sample], [0], prompts=["a dress"], steps=2, guidance_scale=1)

    assert 0 < (drawn("int8") - drawn(None)).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("kind", "installed", "message"),
    [
        ("int8", False, "--quantize_base int8 needs the package torchao: pip install torchao"),
        ("fp8", False, "--quantize_base fp8 needs the package torchao: pip install torchao"),
        ("nf4", True, "--quantize_base nf4 needs a CUDA GPU, and none is visible"),
    ],
)
def test_what_this_machine_lacks_is_told_before_anything_is_loaded(kind, installed, message, tiny_args, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(guards.importlib.util, "find_spec", lambda name: name == "torch" or installed or None)
    monkeypatch.setattr(tfi, "start", lambda _: pytest.fail("began"))
    with pytest.raises(ValueError, match=re.escape(message)):
        tfi.main(tiny_args(*FLAGS, "--quantize_base", kind))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_8_bits_are_not_compiled_and_the_mend_is_told(kind, capsys, tiny_flags):
    with pytest.raises(SystemExit) as exit_:
        tfi.parse_args([str(flag) for flag in tiny_flags("--quantize_base", kind, "--compile_blocks")])
    assert exit_.value.code == 2 and f"--quantize_base {kind}: add --no-compile_blocks" in capsys.readouterr().err


def test_all_commands_offer_the_same_kinds():
    parser = argparse.ArgumentParser()
    choice.add_model_flags(parser)
    (flag,) = (action for action in parser._actions if action.dest == "quantize_base")
    assert list(flag.choices) == list(QUANTIZED_BY)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8"])
def test_a_lora_is_trained_over_a_quantized_base_on_a_gpu(kind, tiny_args):
    pytest.importorskip(QUANTIZED_BY[kind])
    facts, _ = run(tiny_args(*FLAGS, "--mixed_precision", "bf16", "--quantize_base", kind))
    assert facts["status"] == "done"
