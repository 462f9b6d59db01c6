"""The small FLUX-Fill: of the form of the real one, and made by one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxFillPipeline
from safetensors.torch import load_file

from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.make import make_base, top_rows
from deepfashion_training.embedded.make.make_base import processes_for


@pytest.fixture(scope="module")
def start() -> Any:
    return make_base.untrained_transformer()


def test_weights_follow_from_the_seed(start: Any) -> None:
    name = "transformer_blocks.0.attn.to_q.weight"
    again, other = (make_base.untrained_transformer(seed).state_dict()[name] for seed in (0, 1))
    assert torch.equal(start.state_dict()[name], again)
    assert (start.state_dict()[name] - other).abs().max() > 0.01


def test_it_begins_without_modulation(start: Any) -> None:
    """Shift 0, scale 0, gate 1, whatever the timestep: 2 x (3 of attention, 3 of feed-forward) in a double block."""
    for norm, parts in ((start.transformer_blocks[1].norm1_context, 6),
                        (start.single_transformer_blocks[3].norm, 3)):  # fmt: skip
        modulation = norm.linear(torch.randn(2, 192))
        assert modulation.unflatten(1, (parts, 192)).mean(dim=2).tolist() == [[0.0, 0.0, 1.0] * (parts // 3)] * 2


def test_it_begins_with_noise_minus_masked_picture(start: Any) -> None:
    """To about 2% whatever the mask, the place, the prompt and the timestep are."""
    draw = torch.Generator().manual_seed(0)
    noise, picture = torch.randn(2, 2, 96, 64, generator=draw)
    mask = (torch.rand(2, 96, 256, generator=draw) > 0.5).float()
    with torch.no_grad():
        velocity = start(
            hidden_states=torch.cat([noise, picture, mask], dim=2),
            timestep=torch.tensor([1.0, 0.3]),
            guidance=torch.ones(2),
            pooled_projections=torch.randn(2, 32, generator=draw),
            encoder_hidden_states=torch.randn(2, 8, 32, generator=draw),
            txt_ids=torch.zeros(8, 3),
            img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(12.0)),
        ).sample
    assert (velocity - (noise - picture)).std() < 0.03 * (noise - picture).std()


def test_the_base_that_ships_has_the_form_of_flux_fill_and_is_small() -> None:
    base = FluxFillPipeline.from_pretrained(TINY_FLUX_FILL)
    assert (base.transformer.config.in_channels, base.transformer.config.out_channels) == (384, 64)
    assert (base.vae.config.latent_channels, base.vae_scale_factor) == (16, 8)
    for part, weights in (("transformer", 5_269_440), ("vae", 220_259)):
        stored = load_file(TINY_FLUX_FILL / part / "diffusion_pytorch_model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
        assert sum(tensor.numel() for tensor in stored.values()) == weights
    assert sum(path.stat().st_size for path in TINY_FLUX_FILL.rglob("*") if path.is_file()) < 20e6


def test_pairs_of_a_step_are_shared_evenly_by_as_many_processes_as_cores_allow() -> None:
    assert [processes_for(cores) for cores in (1, 2, 5, 7, 16, 64)] == [1, 2, 4, 6, 16, 48]


SMALL = {
    "VAE_ROWS": 6,
    "VAE_STEPS": (1, 1),
    "ROWS": 2,
    "STEPS": 1,
    "PAINTED_ROWS": 2,
    "PAINTED_STEPS": 2,
}  # the first step of a schedule is warm-up


@pytest.mark.slow
@pytest.mark.long
def test_the_command_makes_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in SMALL.items():
        monkeypatch.setattr(make_base, name, number)
    monkeypatch.setattr(top_rows, "TEST_ROWS", 2)
    monkeypatch.setattr(make_base, "TRAINING", [word for word in make_base.TRAINING if word != "--compile_blocks"])
    monkeypatch.setattr(make_base, "usable_cores", lambda: 2)
    work, out = tmp_path / "work", tmp_path / "out"
    flags = f"--output_dir {out} --work_dir {work}".split()
    assert make_base.main(flags) == 0
    facts = json.loads((work / "train" / "run.json").read_text("utf-8"))
    assert (facts["arguments"]["train_base_model"], facts["trainable_parameters"]) == ("all", 5_269_440)
    assert (facts["arguments"]["optimizer"], facts["step"]) == ("muon", 1)
    assert (facts["world_size"], facts["arguments"]["train_batch_size"]) == (2, make_base.PAIRS // 2)
    made = FluxFillPipeline.from_pretrained(out)
    assert made.transformer.dtype == made.text_encoder.dtype == torch.float32
    ours = AutoencoderKL.from_pretrained(work / "start" / "vae")
    assert made.vae.config.scaling_factor == ours.config.scaling_factor
    assert abs(ours.config.scaling_factor - AutoencoderKL.load_config(TINY_FLUX_FILL / "vae")["scaling_factor"]) > 1e-3
    for name, same in (("encoder.conv_out.weight", True), ("decoder.conv_in.weight", False)):  # it learned once more
        assert torch.equal(made.vae.state_dict()[name], ours.state_dict()[name].half().float()) is same
    assert not [path for path in out.rglob("*.json") if str(tmp_path) in path.read_text("utf-8")]
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 20e6
    with pytest.raises(FileExistsError, match="work"):
        make_base.main(flags)
    on_from = f"--start {out} --output_dir {tmp_path / 'on'} --work_dir {tmp_path / 'w'}".split()
    assert make_base.main(on_from) == 0
    facts = json.loads((tmp_path / "w" / "train" / "run.json").read_text("utf-8"))
    assert facts["arguments"]["pretrained_inpaint_model_name_or_path"] == str(out)
    assert not (tmp_path / "w" / "start").exists()
    on = FluxFillPipeline.from_pretrained(tmp_path / "on")
    for name, same in (("encoder.conv_out.weight", True), ("decoder.conv_in.weight", False)):
        assert torch.equal(on.vae.state_dict()[name], made.vae.state_dict()[name]) is same
