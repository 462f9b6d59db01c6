"""How far chance alone may move a mean: bootstrap intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float],
    seed: int,
    rounds: int = 1000,
    level: float = 0.95,
    *,
    groups: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval ``(low, high)`` of the mean (Efron 1979): the same for the same arguments.

    The mean of ``values`` drawn again with replacement, ``rounds`` times; the interval holds the middle ``level`` of
    those means. With ``groups``, one for each value, whole groups are drawn: several pictures of one person are not
    independent, and would make it too narrow. One value or group gives its mean twice.

    ``ValueError`` without values, with NaN or infinity among them (PSNR of equal pictures), with another number of
    groups, with ``rounds`` under 1 or ``level`` outside (0, 1).
    """
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"an interval needs a sequence of at least one value, not one of shape {found.shape}")
    if not np.isfinite(found).all():
        place = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ValueError(f"value {place} is {found[place]}: leave out what is not finite, and say how many")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: give at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a share between 0 and 1, such as 0.95")
    if groups is not None and len(groups) != len(found):
        raise ValueError(f"{len(groups)} groups for {len(found)} values: give each value its own")
    sums: np.ndarray = found
    counts: np.ndarray = np.ones(len(found), np.int64)
    if groups is not None:
        number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        places = np.array([number[group] for group in groups])
        sums, counts = np.bincount(places, found), np.bincount(places)
    rng = np.random.default_rng(seed)
    means = np.empty(rounds)
    for place in range(rounds):
        drawn = rng.integers(0, len(sums), len(sums))
        means[place] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
