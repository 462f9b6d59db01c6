"""Leak score: how well a mask alone tells which category of garment it was made for.

A mask that follows the garment tells a try-on model what to draw: trousers stay trousers. A small classifier, trained
to name the category from the mask, measures that; a mask that tells nothing leaves it at chance.
"""

# scikit-learn is imported where the score is measured: the processes that only make features do without.
from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepfashion_training.data.sampling import unit_hash
from deepfashion_training.garment_types import CATEGORY_TYPES, TYPE_NAMES
from deepfashion_training.images.person import shrunk

#: Grid of the features: cells of the picture, each with the share of it that the mask covers.
GRID_ROWS, GRID_COLUMNS = 24, 16
#: A category counts from this many people on: about four in each fold.
FEWEST_GROUPS = 15
FOLDS = 4

#: Categories that have one form under two names; the others stand for themselves.
_SAME_FORM = {"Leggings": "Pants"}

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Leak:
    """What the better classifier found: balanced accuracy on people whom it did not see, beside guessing."""

    accuracy: float
    chance: float
    rows: int
    categories: tuple[str, ...]


def mask_features(mask: np.ndarray) -> np.ndarray:
    """Share of each of 24 x 16 cells of the picture that a mask ``[h, w]`` in {0, 1} covers: uint8 ``[384]``."""
    picture = Image.fromarray((mask > 0).view(np.uint8) * np.uint8(255))
    return np.asarray(shrunk(picture, (GRID_COLUMNS, GRID_ROWS))).ravel()


def leak_score(
    features: np.ndarray,
    types: Sequence[int],
    genders: Sequence[str],
    categories: Sequence[str],
    groups: Sequence[str],
    seed: int = 0,
    most_rows: int = 4000,
) -> dict[str, Leak]:
    """Leak by type name, and ``"worst"``: the type whose accuracy is furthest above chance. ``{}`` if unmeasurable.

    ``features`` uint8 ``[N, 384]`` from ``mask_features``; the others have one value a row. Bodies of women and men
    differ, which is no leak of the garment's form: each gender is measured by itself, and a type's accuracy and
    chance (1 / number of categories) are means over the genders, weighted by rows. ``groups`` are people; whoever
    is tested was not trained on. Categories need ``FEWEST_GROUPS`` people; those that name only a fabric or an
    occasion (Denim, Suiting) have no form of their own and stay out, and leggings count as trousers. Of more than
    ``most_rows`` rows whole groups are left out by hash.
    """
    forms = [_SAME_FORM.get(category, category) for category in categories]
    usable = [CATEGORY_TYPES.get(category, 0) is not None for category in categories]
    chosen = _sample(groups, usable, seed, most_rows)
    by_part: dict[tuple[int, str], list[int]] = defaultdict(list)
    for position in chosen:
        by_part[types[position], genders[position]].append(position)
    if not chosen:
        return {}
    described = _described(np.asarray(features)[chosen])
    place = {position: index for index, position in enumerate(chosen)}

    from threadpoolctl import threadpool_limits

    parts: dict[int, list[Leak]] = defaultdict(list)
    with threadpool_limits(1):  # the matrices are small: threads would wait more than they compute
        for (cloth_type, _), positions in sorted(by_part.items()):
            leak = _measure(
                described[[place[position] for position in positions]],
                np.array([forms[position] for position in positions]),
                np.array([groups[position] for position in positions]),
                seed,
            )
            if leak is not None:
                parts[cloth_type].append(leak)
    leaks = {TYPE_NAMES[cloth_type]: _pooled(found) for cloth_type, found in sorted(parts.items())}
    if leaks:
        leaks["worst"] = max(leaks.values(), key=lambda leak: leak.accuracy - leak.chance)
    return leaks


def _sample(groups: Sequence[str], usable: Sequence[bool], seed: int, most_rows: int) -> list[int]:
    """Positions of usable rows, ascending: all of them, or whole groups in the order of their hash."""
    positions = [position for position, use in enumerate(usable) if use]
    if len(positions) <= most_rows:
        return positions
    place = {group: unit_hash(seed, group) for group in {groups[position] for position in positions}}
    positions.sort(key=lambda position: (place[groups[position]], position))
    last = groups[positions[most_rows]]
    return sorted(position for position in positions[:most_rows] if groups[position] != last)


def _pooled(found: list[Leak]) -> Leak:
    rows = sum(leak.rows for leak in found)
    return Leak(
        accuracy=sum(leak.accuracy * leak.rows for leak in found) / rows,
        chance=sum(leak.chance * leak.rows for leak in found) / rows,
        rows=rows,
        categories=tuple(sorted({name for leak in found for name in leak.categories})),
    )


def _measure(described: Values, forms: np.ndarray, groups: np.ndarray, seed: int) -> Leak | None:
    """The leak among rows of one type and gender; ``None`` with fewer than two categories of enough groups."""
    names = [name for name in sorted(set(forms)) if len(set(groups[forms == name])) >= FEWEST_GROUPS]
    if len(names) < 2:
        return None
    kept = np.isin(forms, names)
    described, forms, groups = described[kept], forms[kept], groups[kept]
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold

    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(described, forms, groups))
    accuracy = 0.0
    for classifier in _classifiers(seed):
        predicted = forms.copy()
        for train, test in folds:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                predicted[test] = classifier.fit(described[train], forms[train]).predict(described[test])
        accuracy = max(accuracy, float(balanced_accuracy_score(forms, predicted)))
    return Leak(accuracy, 1 / len(names), len(forms), tuple(names))


def _classifiers(seed: int) -> list:
    """A linear one, for shifts of edges, and a forest, for everything with thresholds."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    linear = LogisticRegression(C=0.1, class_weight="balanced", max_iter=100)
    forest = ExtraTreesClassifier(60, max_depth=10, min_samples_leaf=4, class_weight="balanced", random_state=seed)
    reduced = PCA(48, svd_solver="randomized", random_state=seed)
    return [make_pipeline(StandardScaler(), reduced, StandardScaler(), linear), forest]


def _described(features: np.ndarray) -> Values:
    """Occupancy and geometry ``[N, 384 + 79]``: what the picture's grid holds, and the same relative to the mask.

    The geometry is free of where the person stands: extent and area, and width, gaps and middle of the rows
    between the mask's top and bottom.
    """
    grids = features.reshape(-1, GRID_ROWS, GRID_COLUMNS).astype(np.float32) / 255
    return np.concatenate([grids.reshape(len(grids), -1), np.stack([_geometry(grid) for grid in grids])], axis=1)


def _geometry(grid: Values) -> Values:
    rows, columns = grid.sum(axis=1), grid.sum(axis=0)
    held = np.flatnonzero(rows > 0.02)
    if not len(held):
        return np.zeros(79, np.float32)
    # Ends to a part of a cell: the outermost cell's coverage tells how far the mask reaches into it.
    across = grid.max(axis=1)
    top = held[0] + 1 - across[held[0]]
    bottom = held[-1] + across[held[-1]]
    sides = np.flatnonzero(columns > 0.02)
    middle = (grid * np.arange(GRID_COLUMNS)).sum(axis=1) / np.maximum(rows, 1e-3)
    at = np.linspace(top, bottom, GRID_ROWS, endpoint=False) + (bottom - top) / (2 * GRID_ROWS) - 0.5
    index = np.arange(GRID_ROWS)
    width = np.interp(at, index, rows)
    span = (grid > 0.3).cumsum(axis=1)
    reach = GRID_COLUMNS - (span == 0).sum(axis=1) - (span[:, ::-1] == span[:, -1:]).sum(axis=1) + 1
    gaps = np.interp(at, index, np.maximum(reach - rows, 0))
    ends = [top, bottom, bottom - top, sides[0], sides[-1], rows.sum(), rows.sum() / max(bottom - top, 1e-3)]
    centres = np.interp(at, index, middle) - middle[held].mean()
    return np.concatenate([ends, width, gaps, centres]).astype(np.float32)
