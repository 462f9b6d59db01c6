"""Distances between two sets of image features, real ``[n, D]`` and made ``[m, D]``, each of two rows or more.

Computed by torchmetrics in float64 on the CPU: the same sets always give the same figures.
"""

# torchmetrics is imported where it is used: it takes seconds, and loads torchvision where that is installed.
from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

#: Rows of one estimate of the kernel distance, and the number of estimates, as in Bińkowski et al. 2018.
KERNEL_SUBSET = 1000
KERNEL_SUBSETS = 100


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Fréchet distance between normal distributions fitted to the two sets, 0 for equal ones (Heusel et al. 2017).

    It falls as sets grow: compare sets of one size only. With fewer rows than features, equal sets come out as
    rounding: 30 features of 768 numbers against themselves gave -4e-4, where others gave thousands.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    return float(_compared(FrechetInceptionDistance, real, made))


def kernel_distance(real: Tensor, made: Tensor, seed: int) -> float:
    """Kernel distance between the two sets (Bińkowski et al. 2018): the squared maximum mean discrepancy.

    The mean over 100 subsets of up to 1,000 rows, drawn by ``seed``. The estimate has no bias at any size, so it falls
    below 0 for sets that are near each other. Papers mostly give it times 1,000.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(real), len(made), KERNEL_SUBSET)
    # Subsets that are the whole of both sets would all be the same.
    subsets = 1 if size == len(real) == len(made) else KERNEL_SUBSETS
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features in memory
        torch.default_generator.manual_seed(seed)  # it draws from the CPU's generator
        mean, _ = _compared(KernelInceptionDistance, real, made, subsets=subsets, subset_size=size)
    return float(mean)


def _compared(metric: Any, real: Tensor, made: Tensor, **options: Any) -> Any:
    """The value of a torchmetrics distance over features, which take the place of pictures."""
    network: Any = torch.nn.Identity()
    network.num_features = real.shape[1]
    # With sync_on_compute, a process that computes alone would wait for the others for ever.
    distance = metric(network, sync_on_compute=False, **options)
    distance.update(real.to("cpu", torch.float64), real=True)
    distance.update(made.to("cpu", torch.float64), real=False)
    return distance.compute()
