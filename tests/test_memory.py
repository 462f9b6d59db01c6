"""Memory of a step by simulation, held against what is known of the real model and against a real allocator's view."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_flux_inpaint as trainer
from deepfashion_training.cli import PRESETS
from training_run import memory
from training_run.flops import FLUX_FILL
from training_run.memory import StepMemory, predict, trace_step

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
#: A model of FLUX.1-Fill's form that is traced in a moment.
SMALL = {**FLUX_FILL, "num_layers": 2, "num_single_layers": 3, "num_attention_heads": 4, "attention_head_dim": 32,
         "axes_dims_rope": (8, 12, 12)}  # fmt: skip


def asked(*flags: str):
    return trainer.parse_args(
        ["--dataroot", ".", "--mixed_precision", "bf16", "--height", "128", "--width", "96", *flags]
    )


def test_the_least_number_of_recomputed_blocks() -> None:
    step = StepMemory((2, 4), 100, 1, 10, kept=(20, 10), inputs=(2, 1), work=5, work_recomputing=25, encoding=0)
    assert [step.peak(count) for count in (0, 6)] == [100 + 10 + 5 + 80, 100 + 10 + 25 + 8]
    assert step.peak(1) == 100 + 10 + 25 + 80 - 18  # the first block is a double one
    assert step.fewest_recomputed(step.peak(0)) == 0
    assert step.fewest_recomputed(step.peak(6)) == 6
    assert step.fewest_recomputed(step.peak(6) - 1) is None
    assert step.recomputed("auto", step.peak(0)) == 0
    assert step.recomputed(0, step.peak(0)) == 0 and step.recomputed(0, step.peak(0) - 1) is None
    assert step.recomputed(1, step.peak(6)) == 6 and step.recomputed(2, step.peak(3)) == 3
    assert (step.least("auto"), step.least(0)) == (step.peak(6), step.peak(0))


def test_a_step_that_encodes_pictures_needs_room_for_that() -> None:
    step = StepMemory((1, 1), 100, 1, 10, kept=(1, 1), inputs=(0, 0), work=5, work_recomputing=5, encoding=50)
    assert step.peak(0) == 160


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--train_batch_size", "2"], ["--quantize_base", "nf4"]])
def test_a_deep_model_is_predicted_from_shallow_ones(flags: list[str]) -> None:
    """What is added up from a few blocks is what the whole model takes when it is traced."""
    args = asked(*flags)
    step = predict(args, trainer.make_trainable, SMALL)
    for recomputed in (0, 5):
        whole = trace_step(args, trainer.make_trainable, SMALL, recomputed)
        activations = step.peak(recomputed) - step.weights - step.trained
        assert activations == pytest.approx(max(whole.peak, step.encoding), rel=0.02)
    assert step.parameters == whole.trained and step.trained == 16 * whole.trained


def test_weights_are_counted_as_they_are_kept() -> None:
    frozen = {}
    for flags in ([], ["--quantize_base", "nf4"], ["--quantize_base", "int8"], ["--mixed_precision", "no"]):
        args = asked(*flags)
        frozen[" ".join(flags)] = memory.frozen_bytes(memory._on_meta(args, trainer.make_trainable, SMALL), args)
    assert frozen["--mixed_precision no"] == 2 * frozen[""]
    assert 0.5 < frozen["--quantize_base int8"] / frozen[""] < 0.75
    assert 0.28 < frozen["--quantize_base nf4"] / frozen[""] < frozen["--quantize_base int8"] / frozen[""]


def test_a_cpu_step_keeps_what_the_trace_says() -> None:
    """The same count on a step that is really taken, over storages that hold something."""
    args = asked("--mixed_precision", "no")
    config = {**SMALL, "num_layers": 1, "num_single_layers": 1}
    traced = trace_step(args, trainer.make_trainable, config)
    model = trainer.FluxTransformer2DModel(**config)
    parameters = trainer.make_trainable(model, args)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    resident = [tensor for weight in model.parameters() for tensor in (weight, weight.grad) if tensor is not None]
    tokens = 8 * 12
    with memory._LiveStorages(resident) as live:
        prediction = model(
            hidden_states=torch.zeros(1, tokens, 384), timestep=torch.zeros(1), guidance=torch.zeros(1),
            pooled_projections=torch.zeros(1, 768), encoder_hidden_states=torch.zeros(1, 512, 4096),
            txt_ids=torch.zeros(512, 3), img_ids=torch.zeros(tokens, 3), return_dict=False,
        )[0]  # fmt: skip
        loss = (prediction.float() ** 2).mean()
        del prediction
        loss.backward()
    assert live.peak == pytest.approx(traced.peak, rel=0.02)


def test_optimizers_differ_in_what_they_keep() -> None:
    kept = [memory.state_bytes(asked("--optimizer", name)) for name in ("adamw", "muon", "prodigy")]
    assert kept == [8, 4, 16] and memory.state_bytes(asked("--use_8bit_adam")) == 2


def test_an_average_takes_four_bytes_more_that_no_trial_has_to_leave_free() -> None:
    averaged = asked("--use_8bit_adam", "--ema_decay", "0.99")
    assert (memory.state_bytes(averaged), memory.optimizer_bytes(averaged)) == (2 + 4, 2)


@pytest.mark.long
def test_the_command_on_the_real_model(tmp_path: Path) -> None:
    """Against figures that were found apart from this code (GiB), and the figures that presets name."""
    told = tmp_path / "told.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "predict_memory.py"), "--json", str(told)]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = json.loads(told.read_text())
    known = {"eager_double": 0.577, "eager_single": 0.529, "compiled_double": 0.440, "compiled_single": 0.393}
    for name, gib in known.items():
        assert found["block_saved_gib"][name] == pytest.approx(gib, rel=0.03)
        assert found["block_saved_gib"][f"trainer_{name}"] <= 1.01 * gib
    drawn = found["drawing"][
        "768x576"
    ]  # weights of 22.2 or 6.3 GiB, and 1.6 for VAE and activations (benchmarks/README.md)
    assert drawn == {
        "bf16": pytest.approx(23.8, abs=0.2),
        "nf4": pytest.approx(8, abs=0.2),
        "offload": pytest.approx(2.8, abs=0.2),
    }
    assert set(found["presets"]) == {"full", "quick_test", "h100", "low_vram"}
    for name, row in found["presets"].items():
        assert row["peak_gib"] <= 0.95 * row["card_gib"]
        again = 1.4 if name == "low_vram" else 1.05  # on 12 GB 46 of 57 blocks are recomputed
        assert row["executed_tflop_a_pair"] <= again * row["useful_tflop_a_pair"]
        text = (PRESETS / f"{name}.yaml").read_text()
        peaks = [float(peak) for peak in re.findall(r"simulated: ([\d.]+) |Simulated: ([\d.]+) ", text)[0] if peak]
        expected = row["peak_gib"] if name == "h100" else row["all_recomputed_gib"]
        assert peaks == [pytest.approx(expected, abs=0.15)], name
