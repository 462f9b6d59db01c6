"""Distances between sets of features: closed forms, independent computations and sums written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from deepfashion_training.evaluation.distribution import frechet_distance, kernel_distance


def noise(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def with_moments(rows: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> torch.Tensor:
    """Features whose mean and unbiased covariance are the given ones exactly: noise whitened, then coloured."""
    drawn = np.random.default_rng(seed).normal(size=(rows, len(mean)))
    drawn -= drawn.mean(axis=0)
    white = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn, rowvar=False))).T
    return torch.from_numpy(white @ np.linalg.cholesky(covariance).T + mean)


def test_frechet_distance_of_independent_numbers():
    # Variances 1, 4, 9 against 4, 4, 1 and means 3 and 4 apart: (1-2)^2 + (2-2)^2 + (3-1)^2 + 3^2 + 4^2.
    one = with_moments(40, np.array([0.0, 0, 7]), np.diag([1.0, 4, 9]), seed=0)
    other = with_moments(55, np.array([3.0, 4, 7]), np.diag([4.0, 4, 1]), seed=1)
    assert frechet_distance(one, other) == pytest.approx(30, abs=1e-9)
    assert frechet_distance(other, one) == pytest.approx(30, abs=1e-9)


def test_frechet_distance_is_the_formula_of_its_papers():
    width = 12
    real, made = noise(90, width) @ noise(width, width, 1), noise(70, width, 2) @ noise(width, width, 3) + 0.3
    first, second = real.double().numpy(), made.double().numpy()
    c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    apart = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    expected = apart + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [20, 300])  # below and above the number of features
def test_equal_sets_are_no_distance_apart(rows):
    features = noise(rows, 64)
    assert frechet_distance(features, features.clone()) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(features, features + 0.5) == pytest.approx(64 * 0.25, abs=1e-4)


def direct(real: torch.Tensor, made: torch.Tensor) -> float:
    """The unbiased estimate of the squared discrepancy, pair by pair: Gretton et al. 2012, equation 3."""
    first, second = real.double().tolist(), made.double().tolist()
    n, m, width = len(first), len(second), len(first[0])

    def kernel(x: list[float], y: list[float]) -> float:
        return (sum(a * b for a, b in zip(x, y, strict=True)) / width + 1) ** 3

    within_real = sum(kernel(first[i], first[j]) for i in range(n) for j in range(n) if i != j)
    within_made = sum(kernel(second[i], second[j]) for i in range(m) for j in range(m) if i != j)
    across = sum(kernel(x, y) for x in first for y in second)
    return within_real / (n * (n - 1)) + within_made / (m * (m - 1)) - 2 * across / (n * m)


def test_kernel_distance_of_two_rows_each():
    # One number a picture. Real 0 and 1: k(0, 1) = 1. Made 1 and 2: k(1, 2) = 27. Across: 1, 1, 8, 27.
    real, made = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kernel_distance(real, made, seed=0) == pytest.approx(1 + 27 - 2 * 37 / 4)


def test_kernel_distance_of_whole_sets_is_the_double_sum():
    real, made = noise(30, 8), noise(30, 8, 1) * 1.3 + 0.2
    assert kernel_distance(real, made, seed=3) == pytest.approx(direct(real, made), rel=1e-9)


def test_kernel_distance_by_subsets_nears_that_of_the_whole():
    real, made = noise(25, 6), noise(60, 6, 1) + 0.5  # 100 subsets of 25: all of the one, some of the other
    found = kernel_distance(real, made, seed=3)
    assert found == pytest.approx(direct(real, made), rel=0.05)
    assert kernel_distance(real, made, seed=4) != found


def test_a_set_against_itself_may_fall_below_0():
    features = noise(40, 8)
    mean = kernel_distance(features, features.clone(), seed=0)
    assert mean == pytest.approx(direct(features, features), rel=1e-9)
    assert -1 < mean < 0


def test_the_same_sets_have_exactly_the_same_figures():
    real, made = noise(50, 32), noise(70, 32, 1)
    torch.manual_seed(1)
    found = frechet_distance(real, made), kernel_distance(real, made, seed=5)
    torch.manual_seed(2)
    again = frechet_distance(real.clone(), made.clone()), kernel_distance(real.clone(), made.clone(), seed=5)
    assert found == again


def test_drawing_subsets_leaves_the_generator_as_it_was():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    kernel_distance(noise(20, 4), noise(30, 4, 1), seed=5)
    assert torch.equal(torch.rand(3), expected)
