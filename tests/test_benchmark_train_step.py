"""The training-step benchmark: its arithmetic against PyTorch's counter, its two variants, and what it writes."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import AutoencoderKL
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

import train_flux_inpaint as trainer
from benchmarks import train_step

COMMAND = [sys.executable, str(Path(train_step.__file__))]
RANK = 16


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps the first Accelerator's settings for the whole process."""
    for when in ("before", "after"):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        if when == "before":
            yield


def count_parameters(size: str) -> int:
    model = train_step.random_transformer(train_step.transformer_config(size), "meta", torch.float32)
    return sum(parameter.numel() for parameter in model.parameters())


def two_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = train_step.NoiseRows((args.height, args.width))
    return [rows[0], rows[1]]


def test_cpu_is_sixty_million_parameters() -> None:
    assert count_parameters("cpu") == pytest.approx(60e6, rel=0.1)


def test_full_is_flux_fill() -> None:
    # FLUX.1-dev has 11,901,408,320 parameters; Fill has 320 more input channels into its width of 3072.
    assert count_parameters("full") == 11_901_408_320 + 320 * 3072
    with torch.device("meta"):
        vae = AutoencoderKL(**train_step.FLUX_FILL_VAE)
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83_819_683


def test_tiny_is_the_embedded_one(tiny_flux_fill: Path) -> None:
    embedded = json.loads((tiny_flux_fill / "transformer" / "config.json").read_text())
    assert train_step.transformer_config("tiny") == {k: v for k, v in embedded.items() if not k.startswith("_")}


@pytest.mark.parametrize(
    ("size", "device", "image_tokens", "text_tokens", "pairs"),
    [("tiny", "cpu", 24, 32, 2), ("cpu", "meta", 384, 64, 1)],
)
def test_flops_are_those_that_pytorch_counts(
    size: str, device: str, image_tokens: int, text_tokens: int, pairs: int
) -> None:
    config = train_step.transformer_config(size)
    model = train_step.random_transformer(config, device, torch.float32)
    with torch.device(device):
        trainer.make_trainable(model, trainer.parse_args(["--dataroot", "none", "--lora_rank", str(RANK)]))
        inputs = {
            "hidden_states": torch.randn(pairs, image_tokens, config["in_channels"]),
            "encoder_hidden_states": torch.randn(pairs, text_tokens, config["joint_attention_dim"]),
            "pooled_projections": torch.randn(pairs, config["pooled_projection_dim"]),
            "timestep": torch.ones(pairs),
            "guidance": torch.ones(pairs),
            "img_ids": torch.zeros(image_tokens, 3),
            "txt_ids": torch.zeros(text_tokens, 3),
        }
    # Plain attention: flash attention computes the scores again in its backward pass, which is not useful work.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            prediction = model(**inputs, return_dict=False)[0]
        with FlopCounterMode(display=False) as backward:
            prediction.sum().backward()
    flops = train_step.useful_flops(config, image_tokens, text_tokens, RANK, pairs)
    assert flops.forward == pytest.approx(forward.get_total_flops(), rel=0.01)
    assert flops.backward == pytest.approx(backward.get_total_flops(), rel=0.01)
    assert flops.step == flops.forward + flops.backward


def test_full_pair_in_round_numbers() -> None:
    # By hand, d = 3072, 3968 tokens: layers 57 x 24 d^2 tokens = 51.2 TFLOP, attention 57 x 4 d tokens^2 = 11.0.
    flops = train_step.useful_flops(train_step.transformer_config("full"), 3456, 512, RANK)
    assert flops.forward / 1e12 == pytest.approx(51.2 + 11.0, rel=0.01)
    assert flops.step / 1e12 == pytest.approx(2 * 51.2 + 3 * 11.0, rel=0.02)


def test_median_ratio() -> None:
    ratio, interval = train_step.median_ratio([2.2] * 9, [2.0] * 9)
    assert (ratio, *interval) == pytest.approx((1.1, 1.1, 1.1))
    ratio, (low, high) = train_step.median_ratio([1.0, 1.1, 1.2, 9.0, 1.1], [1.0] * 5)  # one disturbed step
    assert ratio == pytest.approx(1.1) and low < ratio < high


@pytest.mark.usefixtures("fresh_accelerator")
def test_both_variants_do_the_same_work() -> None:
    args = train_step.parse_args(["--size", "tiny", "--batch_size", "2", "--mixed_precision", "no"])
    with train_step.trainer_run(args) as run:
        batch = run.encode(default_collate(two_rows(args)), 0)
        weights = [parameter.detach().clone() for parameter in run.parameters]

        def moved() -> bool:
            return any(not torch.equal(old, new) for old, new in zip(weights, run.parameters, strict=True))

        run.optimizer.param_groups[0]["lr"] = 0
        bare_loss = train_step.bare_step(run, *train_step.bare_inputs(run, batch))
        trainer_loss = train_step.take_step(run, batch)
        assert bare_loss.item() == pytest.approx(trainer_loss.item(), rel=1e-5)
        assert bare_loss > 0 and not moved()

        run.optimizer.param_groups[0]["lr"] = 1e-3
        train_step.bare_step(run, *train_step.bare_inputs(run, batch))
        assert moved()
        assert all(parameter.grad is None for parameter in run.parameters)


@pytest.mark.usefixtures("fresh_accelerator")
def test_full_hands_its_transformer_over_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    small = train_step.Size(train_step.transformer_config("tiny"), 64, 48, 32, 1)
    monkeypatch.setitem(train_step.SIZES, "full", small)
    monkeypatch.setitem(train_step.FLUX_FILL_VAE, "block_out_channels", (32, 32, 32, 32))
    original = trainer.load_transformer
    args = train_step.parse_args(["--size", "full", "--mixed_precision", "no"])
    with train_step.trainer_run(args) as run:
        folder = Path(run.args.pretrained_model_name_or_path)
        assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size < 100
        assert run.vae.config.block_out_channels == [32, 32, 32, 32]
        assert train_step.take_step(run, run.encode(default_collate(two_rows(args)[:1]), 0)) > 0
        assert trainer.load_transformer is not original
        for device in (None, torch.device("cpu")):  # as --offload loads it, and as a run does
            assert trainer.load_transformer(run.args, torch.float32, device).device.type == "cpu"
    assert trainer.load_transformer is original
    assert not folder.exists()


@pytest.mark.long
def test_figures_of_a_run(tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    done = subprocess.run(
        [*COMMAND, "--size", "tiny", "--steps", "3", "--batch_size", "2", "--json", str(report)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(report.read_text())
    assert list(figures) == ["device", "ceiling_tflops", "rows", "encode_s", "settings", "versions"]
    assert [row["variant"] for row in figures["rows"]] == ["plain", "bare", "trainer", "trainer_cached"]
    for row in figures["rows"]:
        measured = [
            "s_per_step",
            "pairs_per_s",
            "tflops",
            "share_of_ceiling",
            "peak_gib",
            "ratio_to_bare",
            "times_plain",
        ]
        assert list(row) == ["variant", *measured, "compile_s"]
        assert all(row[name] > 0 for name in measured) and row["compile_s"] is None
        assert row["share_of_ceiling"] < 1.2
        assert row["pairs_per_s"] == pytest.approx(2 / row["s_per_step"])
        useful = train_step.useful_flops(train_step.transformer_config("tiny"), 24, 32, RANK, pairs=2).step
        assert row["tflops"] == pytest.approx(useful / row["s_per_step"] / 1e12)
        assert f"\n{row['variant']} " in done.stdout
    assert figures["encode_s"] > 0 and figures["ceiling_tflops"] > 0
    assert figures["settings"]["steps"] == 3 and figures["settings"]["lora_rank"] == RANK
    assert figures["device"] in done.stdout and figures["versions"]["torch"] == torch.__version__
    assert list(tmp_path.iterdir()) == [report]


@pytest.mark.long
def test_a_base_in_8_bits_is_measured_too(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    report = tmp_path / "figures.json"
    flags = ["--size", "tiny", "--steps", "1", "--quantize_base", "int8", "--json", str(report)]
    train_step.main(flags)
    figures = json.loads(report.read_text())
    assert figures["settings"]["quantize_base"] == "int8" and figures["settings"]["parameters"] == 5_269_440
    assert all(row["s_per_step"] > 0 for row in figures["rows"])


def test_full_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--size full needs a CUDA GPU"):
        train_step.main(["--size", "full"])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "--size"),
        (["--size", "huge"], "huge"),
        (["--size", "tiny", "--steps", "0"], "--steps"),
        (["--size", "tiny", "--height", "100"], "multiple of 16"),
        (["--size", "tiny", "--mixed_precision", "fp16"], "fp16"),
        (["--size", "tiny", "--unknown"], "--unknown"),
    ],
)
def test_wrong_use(flags: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_step.main(flags)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err
