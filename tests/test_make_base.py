"""The small FLUX-Fill: shipped as it is made, and of the form of the real one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from diffusers import FluxFillPipeline

from deepfashion_training.embedded import make_base


def tensors(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.json")
    }


@pytest.fixture(scope="module")
def shipped() -> FluxFillPipeline:
    return FluxFillPipeline.from_pretrained(make_base.TINY_FLUX_FILL)


def test_the_shipped_folder_is_what_the_command_makes(tmp_path: Path, shipped: FluxFillPipeline) -> None:
    assert make_base.main(["--output_dir", str(tmp_path / "made")]) == 0
    made = FluxFillPipeline.from_pretrained(tmp_path / "made")
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = getattr(made, part).state_dict(), getattr(shipped, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[name], theirs[name], atol=2e-3) for name in ours), part
    assert tensors(tmp_path / "made") == tensors(make_base.TINY_FLUX_FILL)


def test_another_seed_gives_other_weights(shipped: FluxFillPipeline) -> None:
    other = make_base.random_fill_pipeline(seed=1).transformer.proj_out.weight
    assert (other - shipped.transformer.proj_out.weight).abs().max() > 0.1


def test_it_has_the_form_of_flux_fill(shipped: FluxFillPipeline) -> None:
    assert (shipped.transformer.config.in_channels, shipped.transformer.config.out_channels) == (384, 64)
    assert (shipped.vae.config.latent_channels, shipped.vae_scale_factor) == (16, 8)
    size = sum(path.stat().st_size for path in make_base.TINY_FLUX_FILL.rglob("*") if path.is_file())
    assert size < 5 * 2**20


def test_latents_of_smooth_pictures_are_standard(shipped: FluxFillPipeline) -> None:
    coarse = torch.rand(8, 3, 8, 12, generator=torch.Generator().manual_seed(5)) * 2 - 1
    pictures = torch.nn.functional.interpolate(coarse, size=(128, 192), mode="bicubic").clamp(-1, 1)
    with torch.no_grad():
        latents = shipped.vae.encode(pictures).latent_dist.sample()
    latents = (latents - shipped.vae.config.shift_factor) * shipped.vae.config.scaling_factor
    assert abs(latents.mean().item()) < 0.1
    assert 0.8 < latents.std().item() < 1.25
