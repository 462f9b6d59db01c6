"""Plane geometry for drawing: curves, tubes, discs and hulls as arrays of points.

Every function takes and returns float64 arrays [N, 2] of (x, y) in one unit of the caller's choice, y downward.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Spot = Sequence[float] | npt.NDArray[np.float64]


def vec(x: float, y: float) -> Points:
    """The step (x, y) as an array [2], to add to points."""
    return np.array([x, y], dtype=np.float64)


def points(*pairs: Sequence[float]) -> Points:
    """The given (x, y) pairs as an array [N, 2]."""
    return np.asarray(pairs, dtype=np.float64)


def spline(through: Points, steps: int = 6) -> Points:
    """Catmull-Rom curve through the points [N, 2], ``steps`` samples per span: [(N - 1) * steps + 1, 2]."""
    if len(through) < 3:
        return through
    padded = np.concatenate([2 * through[:1] - through[1:2], through, 2 * through[-1:] - through[-2:-1]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    before, start, end, after = (padded[i : len(through) - 1 + i, None, :] for i in range(4))
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    return np.concatenate([curve.reshape(-1, 2), through[-1:]])


def along(path: Points, share: float) -> Points:
    """The first ``share`` (0 to 1, by length) of a polyline [N, 2], its end cut exactly there."""
    lengths = np.hypot(*np.diff(path, axis=0).T)
    marks = np.concatenate([[0.0], np.cumsum(lengths)])
    goal = share * marks[-1]
    kept = int(np.searchsorted(marks, goal, side="left"))
    end = [np.interp(goal, marks, path[:, axis]) for axis in (0, 1)]
    return np.concatenate([path[: max(kept, 1)], [end]])


def tube(path: Points, half_widths: Spot, other_half: Spot | None = None) -> Points:
    """Outline of a band around a polyline [N, 2] with the half width given at each of its N points.

    Where ``other_half`` is given, ``half_widths`` holds on the side that is left on the picture when the path runs
    downward, and ``other_half`` on the other; a negative half width lies beyond the path.
    """
    steps = np.gradient(path, axis=0)
    normals = np.stack([-steps[:, 1], steps[:, 0]], axis=1)
    normals /= np.maximum(np.hypot(normals[:, 0], normals[:, 1]), 1e-9)[:, None]
    left = np.asarray(half_widths)[:, None]
    right = left if other_half is None else np.asarray(other_half)[:, None]
    return np.concatenate([path + normals * left, (path - normals * right)[::-1]])


def disc(centre: Spot, rx: float, ry: float | None = None, count: int = 20) -> Points:
    """An ellipse with half axes ``rx`` and ``ry`` (a circle where ``ry`` is None) as ``count`` points."""
    return _circle(count) * (rx, rx if ry is None else ry) + (centre[0], centre[1])


@functools.lru_cache(maxsize=32)
def _circle(count: int) -> Points:
    angle = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def hull(cloud: Points, count: int = 72) -> Points:
    """Convex hull of the points [N, 2], as far as ``count`` directions tell its corners apart."""
    outermost = (cloud @ _circle(count).T).argmax(axis=0)
    return cloud[outermost[np.flatnonzero(np.diff(outermost, prepend=outermost[-1:]))]]


def hull_of_discs(centres: Iterable[Spot], radii: Iterable[float], count: int = 28) -> Points:
    """Convex hull of circles, given by their centres and radii, as ``count`` points."""
    middles, reach, ways = np.array(list(centres)), np.array(list(radii)), _circle(count)
    outermost = (middles @ ways.T + reach[:, None]).argmax(axis=0)
    hulled: Points = middles[outermost] + reach[outermost, None] * ways
    return hulled


def star(centre: tuple[float, float], radius: float, tips: int = 5, inner: float = 0.45, turn: float = 0.0) -> Points:
    """A star with ``tips`` tips; ``inner`` is the inner radius over the outer one, ``turn`` is in radians."""
    angle = np.arange(2 * tips) * np.pi / tips - np.pi / 2 + turn
    reach = np.where(np.arange(2 * tips) % 2 == 0, radius, radius * inner)
    return np.stack([centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle)], axis=1)
