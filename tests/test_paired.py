"""Paired figures: values of the papers and of cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from deepfashion_training.evaluation.paired import SSIM_WINDOW, ciede2000_masked, drift, paired_figures, ssim

HEIGHT, WIDTH = 48, 36


def pair(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures ``[48, 36, 3]`` that have something in common."""
    noise = np.random.default_rng(0).random((2, HEIGHT, WIDTH, 3))
    if kind == "noise":
        return noise[0], 0.7 * noise[0] + 0.3 * noise[1]
    if kind == "flat":  # and bright, as a shop's background
        one = np.full((HEIGHT, WIDTH, 3), 0.97)
        return one, one - 1 / 255
    pictures = []
    for shift, colour in ((0, "navy"), (1, "crimson")):
        picture = Image.new("RGB", (WIDTH, HEIGHT), (246, 245, 243))
        pen = ImageDraw.Draw(picture)
        pen.rectangle((9 + shift, 13, 27 + shift, HEIGHT - 1), fill=colour)
        pictures.append(np.asarray(picture) / 255)
    return pictures[0], pictures[1]


def block() -> np.ndarray:
    """A mask from row 15 to the lower border: what a pair of trousers would have."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[15:, 8:29] = True
    return mask


def window_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """SSIM of the middle pixel of pictures ``[11, 11]``, by the formula of Wang et al. 2004."""
    steps = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(steps**2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    m1, m2 = (window * one).sum(), (window * other).sum()
    v1, v2 = (window * one**2).sum() - m1**2, (window * other**2).sum() - m2**2
    between = (window * one * other).sum() - m1 * m2
    return (2 * m1 * m2 + 0.01**2) * (2 * between + 0.03**2) / ((m1**2 + m2**2 + 0.01**2) * (v1 + v2 + 0.03**2))


@pytest.mark.parametrize("kind", ["noise", "flat", "drawn"])
def test_ssim_is_the_formula_of_its_paper(kind: str) -> None:
    one, other = pair(kind)
    mean, similarity = ssim(one, other)
    row, column, reach = 20, 12, SSIM_WINDOW // 2
    rows, columns = slice(row - reach, row + reach + 1), slice(column - reach, column + reach + 1)
    for channel in range(3):
        expected = window_ssim(one[rows, columns, channel], other[rows, columns, channel])
        assert similarity[row, column, channel] == pytest.approx(expected, abs=1e-9)
    assert mean == pytest.approx(similarity[reach:-reach, reach:-reach].mean(), abs=1e-12)
    figures = paired_figures(one, other, block(), block())
    assert figures["ssim_masked"] == pytest.approx(similarity[block()].mean(), abs=1e-12)


def test_ciede2000_of_known_colours() -> None:
    white, black = np.ones((1, 1, 3)), np.zeros((1, 1, 3))
    whole = np.ones((1, 1), bool)
    assert ciede2000_masked(white, black, whole) == pytest.approx(100, abs=1e-3)
    # L, a, b of sRGB red and green by Lindbloom's tables, and their difference by Sharma's spreadsheet: 86.6.
    red, green = np.array([[[1.0, 0, 0]]]), np.array([[[0, 1.0, 0]]])
    assert ciede2000_masked(red, green, whole) == pytest.approx(86.61, abs=0.02)


@pytest.mark.parametrize("kind", ["noise", "flat", "drawn"])
def test_equal_pictures(kind: str) -> None:
    picture, _ = pair(kind)
    found = paired_figures(picture, picture.copy(), block(), block())
    assert found.pop("ssim") == pytest.approx(1, abs=1e-12)
    assert found.pop("ssim_masked") == pytest.approx(1, abs=1e-12)
    assert found == {"psnr": math.inf, "psnr_masked": math.inf, "ciede2000_masked": 0, "drift": 0}


def test_an_offset_gives_its_own_drift_and_psnr() -> None:
    one, mask = np.full((20, 20, 3), 0.25), np.zeros((20, 20), bool)
    mask[:10] = True
    found = paired_figures(one + 2 / 255, one, mask, mask)
    assert found["drift"] == pytest.approx(2, abs=1e-9)
    assert found["psnr"] == found["psnr_masked"] == pytest.approx(20 * math.log10(255 / 2), abs=1e-9)
    # One channel of three by 30 levels, in 1 of the 10 rows outside: 30 / 3 / 10.
    other = one.copy()
    other[12, :, 1] += 30 / 255
    found = paired_figures(other, one, mask, mask)
    assert found["drift"] == pytest.approx(1, abs=1e-9) and found["psnr_masked"] == math.inf
    # Over the whole picture a third of a twentieth of the values is off by 30 / 255.
    assert found["psnr"] == pytest.approx(-10 * math.log10((30 / 255) ** 2 / 3 / 20), abs=1e-9)


def test_drift_sees_only_the_outside_and_colour_only_the_garment() -> None:
    one, _ = pair("noise")
    mask = block()
    inside, outside = np.where(mask[..., None], 1 - one, one), np.where(mask[..., None], one, 1 - one)
    assert drift(one, inside, mask) == 0 and drift(one, outside, mask) > 50
    assert ciede2000_masked(one, outside, mask) == 0 and ciede2000_masked(one, inside, mask) > 5
    garment = mask.copy()
    garment[:30] = False
    changed = one.copy()
    changed[15:30] = 0.5  # in the mask, and not on the garment
    assert paired_figures(changed, one, mask, garment)["ciede2000_masked"] == 0
    assert paired_figures(changed, one, mask, mask)["ciede2000_masked"] > 5
