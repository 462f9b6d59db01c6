"""The small VAE: where it starts, and that training leaves the constant channel and, if told to, the latents alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from deepfashion_training.embedded.make import small_vae
from deepfashion_training.embedded.make.make_base import drawn_pairs


@pytest.fixture(scope="module")
def pairs() -> small_vae.Pairs:
    return drawn_pairs(12, seed=3, num_proc=1, size=(64, 64))


@pytest.fixture
def started(pairs: small_vae.Pairs) -> Any:
    torch.manual_seed(0)
    vae = AutoencoderKL(**small_vae.VAE_CONFIG)
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


@pytest.fixture
def painted(pairs: small_vae.Pairs) -> small_vae.Painted:
    """Each latent tells its place: a thousand for its pair, sixteen for its row, one for its column."""
    place = torch.arange(8.0)[:, None] * 16 + torch.arange(16.0)
    latents = torch.arange(12.0)[:, None, None, None] * 1000 + place.expand(12, 16, 8, 16)
    return small_vae.Painted(latents, pairs)


def test_painted_crops_show_what_their_latents_stand_for(pairs: small_vae.Pairs, painted: small_vae.Painted) -> None:
    latents, pictures = painted.batch(np.random.default_rng(3), 20, 32)
    assert latents.shape == (20, 16, 4, 4) and pictures.shape == (20, 3, 32, 32)
    for latent, picture in zip(latents, pictures, strict=True):
        row, (top, left) = int(latent[0, 0, 0] // 1000), divmod(int(latent[0, 0, 0] % 1000), 16)
        pair = torch.from_numpy(pairs.pictures[row]).permute(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(picture, pair[:, 8 * top : 8 * top + 32, 8 * left : 8 * left + 32])
        assert left >= 4, "of the person, not of the garment"
        ys, xs = (pairs.masks[row].any(axis=axis).nonzero()[0] for axis in (1, 0))
        assert ys[0] - 32 <= 8 * top + 16 <= ys[-1] + 32 and 64 + xs[0] - 32 <= 8 * left + 16 <= 64 + xs[-1] + 32


def test_polishing_changes_the_decoder_alone_and_makes_painted_latents_look_like_their_pictures(
    pairs: small_vae.Pairs, started: Any
) -> None:
    with torch.no_grad():
        whole = torch.from_numpy(pairs.pictures).permute(0, 3, 1, 2) / 127.5 - 1
        latents = started.encode(whole).latent_dist.mean
    painted = small_vae.Painted(latents + torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)), pairs)

    def error() -> float:
        with torch.no_grad():
            return (started.decode(painted.latents).sample - whole).abs().mean().item()

    weights, before = {name: weight.clone() for name, weight in started.state_dict().items()}, error()
    small_vae.polish_decoder(started, pairs, painted, steps=60, seed=5, batch_size=4, crop=32)
    assert error() < 0.85 * before
    assert all(name.startswith("decoder.") for name in held(weights, started))
    assert all(weight.requires_grad for weight in started.parameters())


def test_latents_become_standard(started: Any, pairs: small_vae.Pairs) -> None:
    pictures = pairs.batch(np.random.default_rng(4), 12, None)
    small_vae.standardize_latents(started, pictures)
    with torch.no_grad():
        latents = started.encode(pictures).latent_dist.mean
    latents = (latents - started.config.shift_factor) * started.config.scaling_factor
    assert latents.mean().item() == pytest.approx(0, abs=1e-4)
    assert latents.std().item() == pytest.approx(1, abs=1e-4)
