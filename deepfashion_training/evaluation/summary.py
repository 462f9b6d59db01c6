"""Figures of an evaluation by garment type: means with bootstrap intervals, and what the LoRA changed.

A row is one picture: ``{"row", "type", "group", "model", "figures": {name: value}, ...}``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.reports.figures import FEWEST_FOR_VERDICT, figure_of

Row = Mapping[str, Any]

#: Rounds of a bootstrap, and the share of them that an interval holds.
ROUNDS, LEVEL = 1000, 0.95


def bootstrap_interval(
    values: Sequence[float], people: Sequence[str], seed: int, rounds: int = ROUNDS, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bootstrap interval ``(low, high)`` of the mean (Efron 1979): the same for the same arguments.

    Whole people are drawn, as several pictures of one person are not independent.
    """
    number = {person: place for place, person in enumerate(dict.fromkeys(people))}
    places = np.array([number[person] for person in people])
    sums, counts = np.bincount(places, values), np.bincount(places)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (rounds, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(rows: Sequence[Row], seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """``{model: {type or "all": {"n", figure: mean, figure_ci: [low, high], ...}}}``.

    ``n`` counts cases, ``<figure>_n`` those that a mean is over where these are fewer: PSNR of equal pictures is
    infinite and does not count.
    """
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        models[model] = {}
        for kind in (*TYPE_NAMES.values(), "all"):
            chosen = [row for row in rows if row["model"] == model and kind in ("all", row["type"])]
            if chosen:
                count = len({row["row"] for row in chosen})
                models[model][kind] = {"n": count, **_means(chosen, count, seed)}
    return models


def differences(rows: Sequence[Row], seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """What the LoRA changed: ``{type or "all": {figure: {"n", "people", "mean", "ci", "better"}}}``.

    ``mean`` is that of LoRA minus base, case by case, with its interval over ``people``. ``better`` is ``"lora"`` or
    ``"base"`` where the interval lies on one side of 0. It is None where it does not, and for fewer than
    ``FEWEST_FOR_VERDICT`` people. Cases of which one figure is infinite and the other not do not count.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in (*TYPE_NAMES.values(), "all"):
        base, lora = (_values(rows, model, kind) for model in ("base", "lora"))
        for name in base:
            change = _change(name, base[name], lora.get(name, {}), seed)
            if change is not None:
                found.setdefault(kind, {})[name] = change
    return found


def _means(rows: Sequence[Row], count: int, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row["figures"]):
        finite = [row for row in rows if math.isfinite(row["figures"].get(name, math.nan))]
        if len(finite) < count:
            found[f"{name}_n"] = len(finite)
        if not finite:
            found[name] = None
            continue
        values = [row["figures"][name] for row in finite]
        found[name] = float(np.mean(values))
        found[f"{name}_ci"] = _interval(values, [row["group"] for row in finite], seed)
    return found


def _interval(values: Sequence[float], people: Sequence[str], seed: int) -> list[float] | None:
    """The interval of a mean over people; None of one person, who says nothing of others."""
    return list(bootstrap_interval(values, people, seed)) if len(set(people)) > 1 else None


def _values(rows: Sequence[Row], model: str, kind: str) -> dict[str, dict[int, tuple[float, str]]]:
    """``{figure: {row: (value, person)}}`` of a model and a garment type."""
    found: dict[str, dict[int, tuple[float, str]]] = {}
    for row in rows:
        if row["model"] == model and kind in ("all", row["type"]):
            for name, value in row["figures"].items():
                found.setdefault(name, {})[row["row"]] = (value, row["group"])
    return found


def _change(
    name: str, base: Mapping[int, tuple[float, str]], lora: Mapping[int, tuple[float, str]], seed: int
) -> dict[str, Any] | None:
    """The change of one figure; equal values are no change, also where both are infinite."""
    changes, people = [], []
    for row, (before, person) in base.items():
        after = lora[row][0] if row in lora else math.nan
        change = 0.0 if before == after else after - before
        if math.isfinite(change):
            changes.append(change)
            people.append(person)
    if not changes:
        return None
    interval, better = _interval(changes, people, seed), None
    if interval is not None and len(set(people)) >= FEWEST_FOR_VERDICT and (interval[0] > 0 or interval[1] < 0):
        better = "lora" if (interval[0] > 0) == (figure_of(name).better == "higher") else "base"
    mean = float(np.mean(changes))
    return {"n": len(changes), "people": len(set(people)), "mean": mean, "ci": interval, "better": better}
