"""Paired figures: the values of scikit-image, of the papers and of cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from deepfashion_training.evaluation.paired import (
    ciede2000,
    ciede2000_masked,
    drift,
    lab,
    lab_difference,
    paired_figures,
    psnr,
    psnr_masked,
    ssim,
    ssim_masked,
)

HEIGHT, WIDTH = 48, 36
KINDS = ("random", "smooth", "drawn", "background", "dark")

# L, a, b of two colours and their difference: Sharma, Wu, Dalal 2005, table 1, all but some of its near repeats.
SHARMA = [
    (50.0000, 2.6772, -79.7751, 50.0000, 0.0000, -82.7485, 2.0425),
    (50.0000, 3.1571, -77.2803, 50.0000, 0.0000, -82.7485, 2.8615),
    (50.0000, 2.8361, -74.0200, 50.0000, 0.0000, -82.7485, 3.4412),
    (50.0000, -1.3802, -84.2814, 50.0000, 0.0000, -82.7485, 1.0000),
    (50.0000, -0.9009, -85.5211, 50.0000, 0.0000, -82.7485, 1.0000),
    (50.0000, 0.0000, 0.0000, 50.0000, -1.0000, 2.0000, 2.3669),  # no hue on one side
    (50.0000, -1.0000, 2.0000, 50.0000, 0.0000, 0.0000, 2.3669),
    (50.0000, 2.4900, -0.0010, 50.0000, -2.4900, 0.0009, 7.1792),  # hues just under and over 180 degrees apart
    (50.0000, 2.4900, -0.0010, 50.0000, -2.4900, 0.0011, 7.2195),
    (50.0000, 2.4900, -0.0010, 50.0000, -2.4900, 0.0012, 7.2195),
    (50.0000, -0.0010, 2.4900, 50.0000, 0.0009, -2.4900, 4.8045),
    (50.0000, -0.0010, 2.4900, 50.0000, 0.0011, -2.4900, 4.7461),
    (50.0000, 2.5000, 0.0000, 50.0000, 0.0000, -2.5000, 4.3065),
    (50.0000, 2.5000, 0.0000, 73.0000, 25.0000, -18.0000, 27.1492),
    (50.0000, 2.5000, 0.0000, 61.0000, -5.0000, 29.0000, 22.8977),
    (50.0000, 2.5000, 0.0000, 56.0000, -27.0000, -3.0000, 31.9030),
    (50.0000, 2.5000, 0.0000, 58.0000, 24.0000, 15.0000, 19.4535),
    (50.0000, 2.5000, 0.0000, 50.0000, 3.1736, 0.5854, 1.0000),
    (60.2574, -34.0099, 36.2677, 60.4626, -34.1751, 39.4387, 1.2644),
    (22.7233, 20.0904, -46.6940, 23.0331, 14.9730, -42.5619, 2.0373),
    (36.4612, 47.8580, 18.3852, 36.2715, 50.5065, 21.2231, 1.4146),
    (90.9257, -0.5406, -0.9208, 88.6381, -0.8985, -0.7239, 1.5381),
    (6.7747, -0.2908, -2.4247, 5.8714, -0.0985, -2.2286, 0.6377),
    (2.0776, 0.0795, -1.1350, 0.9033, -0.0636, -0.5514, 0.9082),
]


def drawn(shift: int, colour: str) -> torch.Tensor:
    """A figure in a coloured garment before a flat, light background, as in a shop's photograph."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), (246, 245, 243))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((14 + shift, 2, 22 + shift, 12), fill=(224, 172, 140))
    pen.rectangle((9 + shift, 13, 27 + shift, HEIGHT - 1), fill=colour)
    pen.line((9 + shift, 20, 27 + shift, 30), fill="black", width=2)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


def pair(kind: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two float32 pictures ``[3, 48, 36]`` that have something in common."""
    noise = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))
    if kind == "random":
        return noise[0], (0.7 * noise[0] + 0.3 * noise[1])
    if kind == "smooth":
        y, x = torch.meshgrid(torch.linspace(0, 1, HEIGHT), torch.linspace(0, 1, WIDTH), indexing="ij")
        one = torch.stack([x, y, (x + y) / 2])
        return one, one.flip(0) * 0.9 + 0.05
    if kind == "drawn":
        return drawn(0, "navy"), drawn(1 + seed, "crimson")
    if kind == "background":  # flat and bright: where variances drown in the rounding of float32
        one = torch.full((3, HEIGHT, WIDTH), 0.97)
        return one, one - 1 / 255
    return noise[0] * 0.02, noise[1] * 0.02  # dark: the straight part of sRGB's curve and of CIELAB's


def block() -> torch.Tensor:
    """A mask ``[1, 48, 36]`` from row 15 to the lower border: what a pair of trousers would have."""
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 15:, 8:29] = 1
    return mask


def channels_last(picture: torch.Tensor) -> np.ndarray:
    return picture.double().permute(1, 2, 0).numpy()


def reference_ssim(one: torch.Tensor, other: torch.Tensor) -> tuple[float, np.ndarray]:
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    mean, found = structural_similarity(channels_last(one), channels_last(other), channel_axis=-1, full=True, **wang)
    return float(mean), found.mean(axis=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_figures_equal_those_of_scikit_image(kind):
    one, other = pair(kind)
    mask = block()
    inside = mask[0].numpy() == 1
    mean, similarity = reference_ssim(one, other)
    colours = deltaE_ciede2000(rgb2lab(channels_last(one)), rgb2lab(channels_last(other)))
    assert ssim(one, other).item() == pytest.approx(mean, abs=1e-6)
    assert ssim_masked(one, other, mask).item() == pytest.approx(similarity[inside].mean(), abs=1e-6)
    noise = peak_signal_noise_ratio(channels_last(one), channels_last(other), data_range=1)
    assert psnr(one, other).item() == pytest.approx(noise, abs=1e-6)
    noise = peak_signal_noise_ratio(channels_last(one)[inside], channels_last(other)[inside], data_range=1)
    assert psnr_masked(one, other, mask).item() == pytest.approx(noise, abs=1e-6)
    assert np.abs(ciede2000(one, other)[0].numpy() - colours).max() < 1e-4
    assert ciede2000_masked(one, other, mask).item() == pytest.approx(colours[inside].mean(), abs=1e-4)


def test_ssim_leaves_the_border_out_and_the_masked_one_counts_it():
    one, other = torch.full((2, 3, HEIGHT, WIDTH), 0.5)
    other = other.clone()
    other[:, -1] = 0
    frame = torch.zeros(1, HEIGHT, WIDTH)
    frame[:, -1] = 1
    # The inner 38 x 26 pixels see the last row, 5 pixels on, from their last row only.
    assert 0.99 < ssim(one, other).item() < 1
    _, similarity = reference_ssim(one, other)
    assert ssim_masked(one, other, frame).item() == pytest.approx(similarity[-1].mean(), abs=1e-6)
    assert similarity[-1].mean() < 0.5


@pytest.mark.parametrize("side", [(0, slice(None)), (-1, slice(None)), (slice(None), 0), (slice(None), -1)], ids=str)
def test_each_border_is_mirrored_as_by_scikit_image(side):
    one, other = pair("random")
    edge = torch.zeros(1, HEIGHT, WIDTH)
    edge[(0, *side)] = 1
    assert ssim_masked(one, other, edge).item() == pytest.approx(reference_ssim(one, other)[1][side].mean(), abs=1e-6)


@pytest.mark.parametrize("colours", SHARMA, ids=lambda row: f"{row[1]:g}_{row[2]:g}_to_{row[4]:g}_{row[5]:g}")
def test_ciede2000_gives_the_published_differences_both_ways(colours):
    one, other = torch.tensor([colours[:3], colours[3:6]], dtype=torch.float64).view(2, 1, 3)
    assert lab_difference(one, other).item() == pytest.approx(colours[6], abs=5.1e-5)
    assert lab_difference(other, one).item() == pytest.approx(colours[6], abs=5.1e-5)


def test_lab_of_known_colours():
    # As published for sRGB and D65: white, black, red, and the grey of level 119. Sources round their matrices: 0.02.
    rgb = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [119 / 255] * 3], dtype=torch.float64)
    known = torch.tensor([[100, 0, 0], [0, 0, 0], [53.2408, 80.0925, 67.2032], [50.0344, 0, 0]], dtype=torch.float64)
    assert (lab(rgb[:, :, None, None])[:, :, 0, 0] - known).abs().max() < 0.02
    white, black = torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
    assert ciede2000(white, black).item() == pytest.approx(100, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_pictures(kind):
    picture, _ = pair(kind)
    (found,) = paired_figures(picture, picture.clone(), block())
    assert found.pop("ssim") == pytest.approx(1, abs=1e-12)
    assert found.pop("ssim_masked") == pytest.approx(1, abs=1e-12)
    assert found == {"psnr": math.inf, "psnr_masked": math.inf, "ciede2000_masked": 0, "drift": 0}


def test_an_offset_gives_its_own_drift_and_psnr():
    one = torch.full((3, 20, 20), 0.25)
    mask = torch.zeros(1, 20, 20)
    mask[:, :10] = 1
    other = one + 2 / 255
    assert drift(one, other, mask).item() == pytest.approx(2, abs=1e-4)
    assert psnr(one, other).item() == pytest.approx(20 * math.log10(255 / 2), abs=1e-4)
    assert psnr_masked(one, other, mask).item() == pytest.approx(20 * math.log10(255 / 2), abs=1e-4)
    # One channel of three by 30 levels, in 1 of the 10 rows outside: 30 / 3 / 10.
    other = one.clone()
    other[1, 12] += 30 / 255
    assert drift(one, other, mask).item() == pytest.approx(1, abs=1e-5)
    # Nothing of it lies inside; outside, a third of a tenth of the values is off by 30 / 255.
    assert psnr_masked(one, other, mask).item() == math.inf
    squared = (30 / 255) ** 2 / 3 / 10
    assert psnr_masked(one, other, 1 - mask).item() == pytest.approx(-10 * math.log10(squared), abs=1e-4)


def test_drift_sees_only_the_outside_and_colour_only_the_inside():
    one, _ = pair("smooth")
    mask = block()
    inside = torch.where(mask == 1, 1 - one, one)
    outside = torch.where(mask == 1, one, 1 - one)
    assert drift(one, inside, mask).item() == 0 and drift(one, outside, mask).item() > 50
    assert ciede2000_masked(one, outside, mask).item() == 0 and ciede2000_masked(one, inside, mask).item() > 5
    full = torch.ones_like(mask)
    assert ciede2000_masked(one, inside, full).item() == pytest.approx(ciede2000(one, inside).mean().item())


def test_a_mask_of_one_pixel_reads_that_pixel():
    one, other = pair("random")
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[0, 7, 9] = True
    assert ciede2000_masked(one, other, mask).item() == pytest.approx(ciede2000(one, other)[0, 7, 9].item())
    assert ssim_masked(one, other, mask).item() == pytest.approx(reference_ssim(one, other)[1][7, 9], abs=1e-6)
    assert drift(one, other, ~mask).item() == pytest.approx(255 * (one - other)[:, 7, 9].abs().mean().item(), rel=1e-5)


def test_a_batch_gives_each_picture_its_own_figures():
    pairs = [pair("random"), pair("drawn"), pair("smooth")]
    one, other = (torch.stack(side) for side in zip(*pairs, strict=True))
    masks = torch.stack([block(), 1 - block(), block().flip(2)])
    together = paired_figures(one, other, masks)
    for found, (first, second), mask in zip(together, pairs, masks, strict=True):
        assert list(found) == ["ssim", "ssim_masked", "psnr", "psnr_masked", "ciede2000_masked", "drift"]
        assert found == pytest.approx(paired_figures(first, second, mask)[0], rel=1e-12)
        assert found["ssim"] == pytest.approx(ssim(first, second).item(), rel=1e-12)
        assert found["ssim_masked"] == pytest.approx(ssim_masked(first, second, mask).item(), rel=1e-12)
        assert found["psnr"] == pytest.approx(psnr(first, second).item(), rel=1e-12)
        assert found["psnr_masked"] == pytest.approx(psnr_masked(first, second, mask).item(), rel=1e-12)
        assert found["drift"] == pytest.approx(drift(first, second, mask).item(), rel=1e-12)
        assert found["ciede2000_masked"] == pytest.approx(ciede2000_masked(first, second, mask).item(), rel=1e-12)


def test_colours_are_compared_over_the_garment_where_one_is_given():
    one, other = pair("drawn")
    garment = block()
    garment[:, :30] = 0
    (by_mask,), (by_garment,) = paired_figures(one, other, block()), paired_figures(one, other, block(), garment)
    assert by_garment["ciede2000_masked"] == ciede2000_masked(one, other, garment).item()
    assert by_garment["ciede2000_masked"] != by_mask["ciede2000_masked"]
    assert {**by_garment, "ciede2000_masked": 0} == {**by_mask, "ciede2000_masked": 0}


def test_half_precision_and_rounding_beyond_the_range_are_taken():
    one, other = pair("drawn")
    assert ssim(one.bfloat16(), other.bfloat16()).dtype == torch.float64
    white = torch.ones(3, 12, 12, dtype=torch.float64)
    assert psnr(white, white + 9e-7).item() == math.inf and ciede2000(white, white + 9e-7).max() == 0


def test_what_does_not_fit_is_named():
    one, other = pair("random")
    mask = block()
    with pytest.raises(ValueError, match=r"differ in shape: \[3, 48, 36\] and \[3, 48, 35\]"):
        ssim(one, other[..., :-1])
    with pytest.raises(ValueError, match=r"not \[1, 48, 36\]"):
        psnr(mask, mask)
    with pytest.raises(ValueError, match=r"torch\.uint8: divide 8-bit levels by 255"):
        psnr((one * 255).byte(), (other * 255).byte())
    with pytest.raises(ValueError, match=r"to 1\.00001: bring them"):
        psnr(one, torch.full_like(one, 1.00001))
    with pytest.raises(ValueError, match="from -1 to"):
        drift(torch.full_like(one, -1), other, mask)
    with pytest.raises(ValueError, match="nan"):
        ciede2000(one, torch.where(one > 0.5, one, math.nan))
    with pytest.raises(ValueError, match=r"8 x 36 pixels: SSIM needs 11 x 11"):
        ssim(one[:, :8], other[:, :8])
    with pytest.raises(ValueError, match=r"a mask is \[1, 48, 35\] for pictures"):
        drift(one, other, mask[..., :-1])
    with pytest.raises(ValueError, match=r"a mask is \[1, 48, 36\] for pictures \[2, 3, 48, 36\]"):
        ssim_masked(torch.stack([one, one]), torch.stack([other, other]), mask)
    with pytest.raises(ValueError, match="from 0 to 255: only 0 and 1"):
        ciede2000_masked(one, other, mask * 255)
    masks = torch.stack([mask, mask * 0])
    for figure in (ssim_masked, psnr_masked, ciede2000_masked, paired_figures):
        with pytest.raises(ValueError, match="mask 1 of 2 is empty"):
            figure(torch.stack([one, one]), torch.stack([other, other]), masks)
    with pytest.raises(ValueError, match="mask 0 of 1 covers everything"):
        drift(one, other, torch.ones_like(mask))


def test_an_empty_mask_has_all_of_the_picture_outside():
    one, other = pair("random")
    everywhere = 255 * (one - other).abs().mean().item()
    assert drift(one, other, torch.zeros(1, HEIGHT, WIDTH)).item() == pytest.approx(everywhere, rel=1e-5)
