"""The figure for patterns of the small base: what a shift, a paler print and another pattern make of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.embedded_base import REACH, pattern_kept

AREA = np.zeros((128, 96), bool)
AREA[30:100, 20:70] = True


def stripes(pitch: int, axis: int = 0) -> torch.Tensor:
    rows_and_columns = np.indices(AREA.shape)[axis]
    return torch.tensor(np.repeat((rows_and_columns // pitch % 2 * 0.6 + 0.2)[None], 3, axis=0), dtype=torch.float32)


def test_a_pattern_is_kept_wherever_it_lies_within_reach() -> None:
    truth = stripes(7)
    assert pattern_kept(truth, truth, AREA) == pytest.approx(1)
    assert pattern_kept(0.5 * truth + 0.1, truth, AREA) == pytest.approx(1)  # paler, and in another colour
    assert pattern_kept(truth.roll(REACH, 1), truth, AREA) == pytest.approx(1, abs=0.01)


def test_a_plain_garment_another_pattern_and_noise_have_none_of_it() -> None:
    truth = stripes(4)
    assert pattern_kept(torch.full_like(truth, 0.5), truth, AREA) == 0
    assert pattern_kept(stripes(4, axis=1), truth, AREA) < 0.2
    noise = torch.tensor(np.random.default_rng(0).normal(0.5, 0.2, truth.shape), dtype=torch.float32)
    assert pattern_kept(noise, truth, AREA) < 0.1


def test_only_the_garment_counts() -> None:
    truth = stripes(7)
    beside = torch.where(torch.tensor(AREA), 0.5, truth)
    assert pattern_kept(beside, truth, AREA) < 0.5 < pattern_kept(beside, truth, np.ones_like(AREA))
