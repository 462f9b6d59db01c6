"""A base in 8 bits (torchao), on the CPU as on a GPU, and one in 4 (bitsandbytes) as far as it goes without a GPU."""

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
from training_run import guards, quantization

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


@pytest.mark.parametrize(("kind", "allowed"), [("int8", 0.01), pytest.param("fp8", 0.03, marks=pytest.mark.long)])
def test_a_lora_is_trained_over_8_bits_with_nearly_the_same_first_loss(kind, allowed, tiny_args, plain):
    pytest.importorskip("torchao")
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


def test_the_base_takes_half_the_memory_and_gradients_pass_through_it(tiny_args):
    pytest.importorskip("torchao")
    base = tfi.load_transformer(tiny_args("--quantize_base", "int8"), torch.float32)
    held = base.transformer_blocks[0].attn.to_q.weight
    assert type(held).__name__ == "Int8Tensor" and held.qdata.dtype == torch.int8
    given = torch.randn(3, held.shape[1], requires_grad=True)
    base.transformer_blocks[0].attn.to_q(given).sum().backward()
    exact = tfi.load_transformer(tiny_args(), torch.float32).transformer_blocks[0].attn.to_q.weight
    torch.testing.assert_close(given.grad[0], exact.sum(dim=0), atol=exact.abs().max().item() / 5, rtol=0)


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


def test_nf4_is_bitsandbytes_own_and_stays_where_it_is(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.50.0")
    asked = quantization.settings("nf4", torch.bfloat16).to_dict()
    assert (asked["load_in_4bit"], asked["bnb_4bit_quant_type"], asked["bnb_4bit_compute_dtype"]) == (
        True, "nf4", "bfloat16",
    )  # fmt: skip
    assert not quantization.can_be_moved("nf4") and quantization.can_be_moved("int8")
    assert quantization.settings(None, torch.bfloat16) is None


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_8_bits_are_not_compiled_and_the_mend_is_told(kind, capsys, tiny_flags):
    with pytest.raises(SystemExit) as exit_:
        tfi.parse_args([str(flag) for flag in tiny_flags("--quantize_base", kind, "--compile_blocks")])
    assert exit_.value.code == 2 and f"--quantize_base {kind}: add --no-compile_blocks" in capsys.readouterr().err


def test_all_commands_offer_the_same_kinds():
    parser = argparse.ArgumentParser()
    choice.add_model_flags(parser)
    (flag,) = (action for action in parser._actions if action.dest == "quantize_base")
    assert list(flag.choices) == list(quantization.QUANTIZED_BY)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="bitsandbytes needs a CUDA GPU")
@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8"])
def test_a_lora_is_trained_over_a_quantized_base_on_a_gpu(kind, tiny_args):
    pytest.importorskip(quantization.QUANTIZED_BY[kind])
    facts, _ = run(tiny_args(*FLAGS, "--mixed_precision", "bf16", "--quantize_base", kind))
    assert facts["status"] == "done"
