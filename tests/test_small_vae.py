"""The small VAE: where it starts, and that training leaves the constant channel and, if told to, the latents alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.make import small_vae
from deepfashion_training.embedded.make.make_base import drawn_pairs


@pytest.fixture(scope="module")
def pairs() -> small_vae.Pairs:
    return drawn_pairs(12, seed=3, num_proc=1, size=(64, 64))


@pytest.fixture
def started(pairs: small_vae.Pairs) -> Any:
    torch.manual_seed(0)
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(TINY_FLUX_FILL / "vae"))
    small_vae.linear_start(vae, pairs.batch(np.random.default_rng(0), 12, None))
    return vae


def test_half_of_a_batch_is_masked_with_grey(pairs: small_vae.Pairs) -> None:
    batch = pairs.batch(np.random.default_rng(1), 4, None)
    assert batch.shape == (4, 3, 64, 128)
    grey = (batch == 0).all(dim=1).flatten(1).sum(dim=1)  # 0 is no level of 8 bits: only masks give it
    assert (grey > 0).tolist() == [True, False, True, False]
    assert pairs.batch(np.random.default_rng(1), 4, 32).shape == (4, 3, 32, 32)


def test_it_starts_as_a_linear_codec_that_knows_colours(started: Any, pairs: small_vae.Pairs) -> None:
    flat = torch.tensor([[0.8, -0.6, 0.1], [-0.7, 0.4, 0.9]])[:, :, None, None].expand(2, 3, 64, 128)
    with torch.no_grad():
        made = started.decode(started.encode(flat).latent_dist.mean).sample
    # Away from the border, where convolutions see the zeros beyond it.
    assert (made - flat)[..., 16:-16, 16:-16].abs().max() < 0.15


def test_what_a_crop_shows_does_not_depend_on_the_rest(started: Any, pairs: small_vae.Pairs) -> None:
    pictures = pairs.batch(np.random.default_rng(2), 4, None)
    with torch.no_grad():
        whole = started.encode(pictures).latent_dist.mean[..., :8]
        half = started.encode(pictures[..., :64]).latent_dist.mean
    assert (whole - half)[..., :6].abs().mean() < 0.05 * whole.std()


@pytest.mark.parametrize("decoder_only", [False, True])
def test_training_holds_the_constant_and_repeats_itself(
    pairs: small_vae.Pairs, started: Any, decoder_only: bool
) -> None:
    before = {name: weight.clone() for name, weight in started.state_dict().items()}
    settings: dict[str, Any] = {"steps": 3, "seed": 5, "batch_size": 2, "crop": 32, "decoder_only": decoder_only}
    small_vae.train_vae(started, pairs, **settings)
    changed = held(before, started)
    assert any(name.startswith("decoder.") for name in changed)
    assert any(name.startswith("decoder.up_blocks.3") for name in changed) is decoder_only
    assert any(name.startswith("encoder.mid_block") for name in changed) is not decoder_only
    assert not any(name.startswith("encoder.") and "mid_block" not in name for name in changed)
    after = {name: weight.clone() for name, weight in started.state_dict().items()}
    started.load_state_dict(before)
    small_vae.train_vae(started, pairs, **settings)
    assert all(torch.equal(after[name], weight) for name, weight in started.state_dict().items())


def held(before: dict[str, torch.Tensor], vae: Any) -> set[str]:
    """Names of what training changed, once it is sure that the constant channel is not among them."""
    after = vae.state_dict()
    assert set(after) == set(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    for name in changed - {"decoder.conv_out.weight", "decoder.conv_out.bias"}:
        assert torch.equal(before[name][-1], after[name][-1]), name
    return changed


def test_latents_become_standard(started: Any, pairs: small_vae.Pairs) -> None:
    pictures = pairs.batch(np.random.default_rng(4), 12, None)
    small_vae.standardize_latents(started, pictures)
    with torch.no_grad():
        latents = started.encode(pictures).latent_dist.mean
    latents = (latents - started.config.shift_factor) * started.config.scaling_factor
    assert latents.mean().item() == pytest.approx(0, abs=1e-4)
    assert latents.std().item() == pytest.approx(1, abs=1e-4)
