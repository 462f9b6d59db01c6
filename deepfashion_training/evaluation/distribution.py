"""Figures over two sets of features ``[n, D]``: how near made pictures come to real ones as a whole.

Features are float tensors of any precision and device; everything is computed in float64 on the CPU, on which the same
sets give the same figures, bit for bit. What does not fit is a ``ValueError``: shapes, widths that differ, values that
are not finite, fewer than two rows where a distribution is asked for.
"""

# torchmetrics is imported where it is used: it takes seconds, and loads torchvision where that is installed.
from __future__ import annotations

import warnings

import torch
from torch import Tensor

#: Rows of one estimate of the kernel distance and how many estimates there are: as in Bińkowski et al. 2018 and its
#: followers.
KERNEL_SUBSET = 1000
KERNEL_SUBSETS = 100


def cosine_similarity(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of the angle between each row of ``one`` and the same row of ``other``: float64 ``[n]`` in [-1, 1].

    A row of zeros has similarity 0 to everything.
    """
    one, other = _features("one", one, 0), _features("other", other, 0)
    if one.shape != other.shape:
        raise ValueError(f"features differ in shape: {list(one.shape)} and {list(other.shape)}")
    return torch.nn.functional.cosine_similarity(one, other, dim=1).clamp(-1, 1)


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Fréchet distance between the normal distributions of two sets, ``[n, D]`` and ``[m, D]``: 0 for equal ones.

    ``|mean1 - mean2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` with unbiased covariances (Dowson, Landau 1982; Heusel et
    al. 2017), by torchmetrics. It falls as sets grow: compare sets of one size only. Where ``n`` is below ``D`` the
    covariances have zero eigenvalues, whose roots come out as rounding: 30 features of 768 numbers against themselves
    gave -4e-4, where others gave thousands.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, made = _two_sets(real, made)
    # Features take the place of pictures: the network is one that hands on what it is given. Without sync_on_compute a
    # process that computes alone would wait for the others for ever.
    distance = FrechetInceptionDistance(_passing(real.shape[1]), sync_on_compute=False)
    distance.update(real, real=True)
    distance.update(made, real=False)
    return float(distance.compute())


def kernel_distance(real: Tensor, made: Tensor, seed: int) -> tuple[float, float]:
    """Squared maximum mean discrepancy between two sets, ``[n, D]`` and ``[m, D]``: mean and deviation over subsets.

    The kernel distance of Bińkowski et al. 2018 by torchmetrics: the kernel ``(x y / D + 1)^3``, 100 subsets of 1,000
    rows (of the smaller set, if that has fewer) drawn by ``seed`` without replacement. Where a subset is the whole of
    both sets all would be the same, so that there is one and the deviation is 0, which is no measure of certainty.
    The estimate has no bias, at any size, and so falls below 0 for sets that are near each other: a set compared with
    itself gives a negative number, not 0. Papers mostly give it times 1,000.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    real, made = _two_sets(real, made)
    size = min(len(real), len(made), KERNEL_SUBSET)
    subsets = 1 if size == len(real) == len(made) else KERNEL_SUBSETS
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features: they are here anyway
        torch.default_generator.manual_seed(seed)  # it draws from the CPU's generator; those of GPUs are left alone
        distance = KernelInceptionDistance(
            _passing(real.shape[1]), subsets=subsets, subset_size=size, degree=3, coef=1.0, sync_on_compute=False
        )
        distance.update(real, real=True)
        distance.update(made, real=False)
        mean, deviation = distance.compute()
    return float(mean), float(deviation)


def _passing(width: int) -> torch.nn.Module:
    """A network that gives back its input; torchmetrics asks it for the number of features."""
    module = torch.nn.Identity()
    module.num_features = width  # type: ignore[assignment]
    return module


def _two_sets(real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    real, made = _features("real", real, 2), _features("made", made, 2)
    if real.shape[1] != made.shape[1]:
        raise ValueError(f"features of {real.shape[1]} and {made.shape[1]} numbers: take both from one model")
    return real, made


def _features(name: str, given: Tensor, fewest: int) -> Tensor:
    """Float64 ``[n, D]`` on the CPU, once found to be features of ``fewest`` pictures or more."""
    if given.ndim != 2 or not given.shape[1] or not given.is_floating_point():
        raise ValueError(f"{name}: features are float [n, D], not {given.dtype} {list(given.shape)}")
    if len(given) < fewest:
        raise ValueError(f"{name}: features of {len(given)} pictures: a distribution needs {fewest} or more")
    features = given.detach().to("cpu", torch.float64)
    if not features.isfinite().all():
        row = int((~features.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"{name}: the features of picture {row} are not finite")
    return features
