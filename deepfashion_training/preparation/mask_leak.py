"""Leak score: how well a mask alone tells which category of garment it was made for.

A mask that follows the garment tells a try-on model what to draw: trousers stay trousers. A small classifier, trained
to name the category from the mask, measures that; a mask that tells nothing leaves it at chance.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from deepfashion_training.data.sampling import unit_hash
from deepfashion_training.garment_types import CATEGORY_TYPES, TYPE_NAMES
from deepfashion_training.images.masks import FEATURE_COLUMNS, FEATURE_ROWS

#: A category counts from this many people on: about four in each fold.
FEWEST_PEOPLE = 15
FOLDS = 4
#: Rows that are measured at most: a standard error of 2 to 3 points for each garment type, in seconds.
LEAK_ROWS = 2500

#: Categories that have one form under two names; the others stand for themselves.
_SAME_FORM = {"Leggings": "Pants"}

Values = npt.NDArray[np.float32]


def measure_leak(rows: Sequence[Mapping[str, Any]], policy: str, seed: int) -> dict[str, Any]:
    """``leak_score`` of ``report.json``: for masks that follow the garment and for ``policy``, on ``LEAK_ROWS`` pairs.

    Rows that are no pairs are left out. Empty where too few are alike.
    """
    places = [place for place, row in enumerate(rows) if row["outcome"] == "pair"]
    places.sort(key=lambda place: unit_hash(seed, (rows[place]["source_row"], place)))
    pairs = [rows[place] for place in sorted(places[:LEAK_ROWS])]
    facts = {}
    for name, column in {"as_is": "features_as_is", policy: "features"}.items():
        features = np.array([np.frombuffer(row[column], np.uint8) for row in pairs])
        leaks = leak_score(features, pairs, seed)
        if leaks:
            worst = max(leaks, key=lambda kind: leaks[kind]["accuracy"] - leaks[kind]["chance"])
            accuracy, chance = leaks[worst]["accuracy"], leaks[worst]["chance"]
            facts[name] = {"accuracy": accuracy, "chance": chance, "type": worst, "by_type": leaks}
    return facts


def leak_score(features: np.ndarray, rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """By type name, without those that cannot be measured: ``accuracy`` of the better classifier, ``chance``, ``rows``
    and ``categories``.

    ``features`` uint8 ``[N, 384]`` from ``masks.mask_features``; ``rows`` have ``cloth_type``, ``gender``, ``category``
    and ``pid``. Women's and men's bodies differ, which is no leak of the garment's form: each gender is measured by
    itself, and a type's accuracy and chance (1 / number of categories) are means over the genders, weighted by rows.
    Whoever is tested was not trained on. Categories need ``FEWEST_PEOPLE``. Those that name only a fabric or an
    occasion (Denim, Suiting) have no form of their own and stay out, and leggings count as trousers.
    """
    parts: dict[tuple[int, str], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if CATEGORY_TYPES.get(row["category"], 0) is not None:
            parts[row["cloth_type"], row["gender"]].append(place)
    described = _described(features) if parts else np.empty((0, 0), np.float32)

    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with threadpool_limits(1):  # the matrices are small: threads would wait more than they compute
        for (cloth_type, _), places in sorted(parts.items()):
            forms = [_SAME_FORM.get(rows[place]["category"], rows[place]["category"]) for place in places]
            people = [rows[place]["pid"] for place in places]
            leak = _measure(described[places], np.array(forms), np.array(people), seed)
            if leak is not None:
                by_type[TYPE_NAMES[cloth_type]].append(leak)
    pooled = {}
    for name, found in by_type.items():
        count = sum(leak["rows"] for leak in found)
        means = {mean: sum(leak[mean] * leak["rows"] for leak in found) / count for mean in ("accuracy", "chance")}
        categories = sorted({category for leak in found for category in leak["categories"]})
        pooled[name] = {**means, "rows": count, "categories": categories}
    return pooled


def _measure(described: Values, forms: np.ndarray, people: np.ndarray, seed: int) -> dict[str, Any] | None:
    """The leak among rows of one type and gender; ``None`` with fewer than two categories of enough people."""
    names = [name for name in sorted(set(forms)) if len(set(people[forms == name])) >= FEWEST_PEOPLE]
    if len(names) < 2:
        return None
    kept = np.isin(forms, names)
    described, forms, people = described[kept], forms[kept], people[kept]
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(described, forms, people))
    logistic = LogisticRegression(C=0.1, class_weight="balanced", max_iter=100)
    reduced = PCA(48, svd_solver="randomized", random_state=seed)
    linear = make_pipeline(StandardScaler(), reduced, StandardScaler(), logistic)  # for shifts of edges
    forest = ExtraTreesClassifier(60, max_depth=10, min_samples_leaf=4, class_weight="balanced", random_state=seed)
    accuracy = 0.0
    for classifier in (linear, forest):
        predicted = forms.copy()
        for train, test in folds:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                predicted[test] = classifier.fit(described[train], forms[train]).predict(described[test])
        accuracy = max(accuracy, float(balanced_accuracy_score(forms, predicted)))
    return {"accuracy": accuracy, "chance": 1 / len(names), "rows": len(forms), "categories": names}


def _described(features: np.ndarray) -> Values:
    """Occupancy ``[N, 384]``, and geometry ``[N, 79]`` that is free of where the person stands."""
    grids = features.reshape(-1, FEATURE_ROWS, FEATURE_COLUMNS).astype(np.float32) / 255
    return np.concatenate([grids.reshape(len(grids), -1), np.stack([_geometry(grid) for grid in grids])], axis=1)


def _geometry(grid: Values) -> Values:
    """Extent and area, and width, gaps and middle of the rows between the mask's top and bottom."""
    rows, columns = grid.sum(axis=1), grid.sum(axis=0)
    held = np.flatnonzero(rows > 0.02)
    if not len(held):
        return np.zeros(79, np.float32)
    # Ends to a part of a cell: the outermost cell's coverage tells how far the mask reaches into it.
    across = grid.max(axis=1)
    top = held[0] + 1 - across[held[0]]
    bottom = held[-1] + across[held[-1]]
    sides = np.flatnonzero(columns > 0.02)
    middle = (grid * np.arange(FEATURE_COLUMNS)).sum(axis=1) / np.maximum(rows, 1e-3)
    at = np.linspace(top, bottom, FEATURE_ROWS, endpoint=False) + (bottom - top) / (2 * FEATURE_ROWS) - 0.5
    index = np.arange(FEATURE_ROWS)
    width = np.interp(at, index, rows)
    span = (grid > 0.3).cumsum(axis=1)
    reach = FEATURE_COLUMNS - (span == 0).sum(axis=1) - (span[:, ::-1] == span[:, -1:]).sum(axis=1) + 1
    gaps = np.interp(at, index, np.maximum(reach - rows, 0))
    ends = [top, bottom, bottom - top, sides[0], sides[-1], rows.sum(), rows.sum() / max(bottom - top, 1e-3)]
    centres = np.interp(at, index, middle) - middle[held].mean()
    return np.concatenate([ends, width, gaps, centres]).astype(np.float32)
