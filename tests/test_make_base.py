"""The small FLUX-Fill: of the form of the real one, and made by one command that goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxFillPipeline
from safetensors.torch import load_file

from deepfashion_training.embedded.make import make_base, small_vae


@pytest.fixture(scope="module")
def start() -> FluxFillPipeline:
    return make_base.random_fill_pipeline(seed=0)


def test_weights_follow_from_the_seed(start: FluxFillPipeline) -> None:
    name = "transformer_blocks.0.attn.to_q.weight"
    again, other = (make_base.random_fill_pipeline(seed).transformer.state_dict()[name] for seed in (0, 1))
    assert torch.equal(start.transformer.state_dict()[name], again)
    assert (start.transformer.state_dict()[name] - other).abs().max() > 0.01


def test_it_has_the_form_of_flux_fill(start: FluxFillPipeline) -> None:
    assert (start.transformer.config.in_channels, start.transformer.config.out_channels) == (384, 64)
    assert (start.vae.config.latent_channels, start.vae_scale_factor) == (16, 8)
    weights = {
        part: sum(weight.numel() for weight in getattr(start, part).parameters()) for part in ("transformer", "vae")
    }
    assert weights == {"transformer": 5_269_440, "vae": 220_259}


def test_it_begins_without_modulation(start: FluxFillPipeline) -> None:
    """Shift 0, scale 0, gate 1, whatever the timestep: 2 x (3 of attention, 3 of feed-forward) in a double block."""
    for norm, parts in ((start.transformer.transformer_blocks[1].norm1_context, 6),
                        (start.transformer.single_transformer_blocks[3].norm, 3)):  # fmt: skip
        modulation = norm.linear(torch.randn(2, 192))
        assert modulation.unflatten(1, (parts, 192)).mean(dim=2).tolist() == [[0.0, 0.0, 1.0] * (parts // 3)] * 2


def test_it_begins_with_noise_minus_masked_picture(start: FluxFillPipeline) -> None:
    """To about 2% whatever the mask, the place, the prompt and the timestep are."""
    draw = torch.Generator().manual_seed(0)
    noise, picture = torch.randn(2, 2, 96, 64, generator=draw)
    mask = (torch.rand(2, 96, 256, generator=draw) > 0.5).float()
    with torch.no_grad():
        velocity = start.transformer(
            hidden_states=torch.cat([noise, picture, mask], dim=2),
            timestep=torch.tensor([1.0, 0.3]),
            guidance=torch.ones(2),
            pooled_projections=torch.randn(2, 32, generator=draw),
            encoder_hidden_states=torch.randn(2, 8, 32, generator=draw),
            txt_ids=torch.zeros(8, 3),
            img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(12.0)),
        ).sample
    assert (velocity - (noise - picture)).std() < 0.03 * (noise - picture).std()


def test_the_base_that_ships_is_of_that_form_and_small() -> None:
    folder = make_base.TINY_FLUX_FILL
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 20e6
    for part, wanted in (("transformer", make_base.TRANSFORMER_CONFIG), ("vae", small_vae.VAE_CONFIG)):
        config = json.loads((folder / part / "config.json").read_text("utf-8"))
        learned = ("shift_factor", "scaling_factor")
        told = {name: list(value) if isinstance(value, tuple) else value for name, value in wanted.items()}
        assert {name: config[name] for name in wanted if name not in learned} == {
            name: value for name, value in told.items() if name not in learned
        }
        weights = load_file(folder / part / "diffusion_pytorch_model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
        assert sum(tensor.numel() for tensor in weights.values()) < 8e6


@pytest.mark.slow
@pytest.mark.long
def test_the_command_makes_a_pipeline_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_base, "VAE_ROWS", 6)
    monkeypatch.setattr(make_base, "VAE_STEPS", (1, 1))
    for name, number in {"POLISH_STEPS": 2, "POLISH_ROWS": 3, "ROWS": 2, "STEPS": 1}.items():
        monkeypatch.setattr(make_base, name, number)
    monkeypatch.setattr(make_base, "TRAINING", [word for word in make_base.TRAINING if word != "--compile_blocks"])
    work, out = tmp_path / "work", tmp_path / "out"
    flags = f"--output_dir {out} --work_dir {work} --num_proc 1".split()
    assert make_base.main(flags) == 0
    facts = json.loads((work / "train" / "run.json").read_text("utf-8"))
    assert (facts["arguments"]["train_base_model"], facts["trainable_parameters"]) == ("all", 5_269_440)
    assert (facts["arguments"]["optimizer"], facts["step"]) == ("muon", 1)
    made = FluxFillPipeline.from_pretrained(out)
    assert abs(made.vae.config.scaling_factor - 1) > 1e-3
    first, last = (
        AutoencoderKL.from_pretrained(folder).state_dict() for folder in (work / "start" / "vae", work / "vae")
    )
    changed_parts = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert changed_parts == {"decoder"}
    assert torch.equal(made.vae.state_dict()["decoder.conv_in.weight"], last["decoder.conv_in.weight"].half().float())
    assert not [path for path in out.rglob("*.json") if str(tmp_path) in path.read_text("utf-8")]
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 20e6
    # After one step the transformer still paints the masked picture itself.
    painted = make_base.painted_tops(work / "start", work / "train" / "transformer", work / "tops")
    shown = torch.from_numpy(painted.pairs.pictures).permute(0, 3, 1, 2) / 127.5 - 1
    shown[..., 96:][torch.from_numpy(painted.pairs.masks)[:, None].expand(-1, 3, -1, -1)] = 0
    with torch.no_grad():
        wanted = AutoencoderKL.from_pretrained(work / "start" / "vae").encode(shown).latent_dist.mean
    assert (painted.latents - wanted).std() < 0.2 * wanted.std()
    changed = [path.stat().st_mtime_ns for path in sorted(work.rglob("*.safetensors"))]
    assert make_base.main(flags) == 0
    assert [path.stat().st_mtime_ns for path in sorted(work.rglob("*.safetensors"))] == changed
