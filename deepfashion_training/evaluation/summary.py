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


def bootstrap_interval(values: Sequence[float], people: Sequence[str], seed: int) -> list[float] | None:
    """Percentile bootstrap interval ``[low, high]`` of the mean (Efron 1979): the same for the same arguments.

    Whole people are drawn, as several pictures of one person are not independent. None of one person, who says nothing
    of others.
    """
    number = {person: place for place, person in enumerate(dict.fromkeys(people))}
    if len(number) == 1:
        return None
    places = np.array([number[person] for person in people])
    sums, counts = np.bincount(places, values), np.bincount(places)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (ROUNDS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return [float(end) for end in np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


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
        found[f"{name}_ci"] = bootstrap_interval(values, [row["group"] for row in finite], seed)
    return found


def differences(rows: Sequence[Row], seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """What the LoRA changed: ``{type or "all": {figure: {"n", "people", "mean", "ci", "better"}}}``.

    ``mean`` is that of LoRA minus base, case by case, with its interval over ``people``. ``better`` is what
    ``Figure.side`` makes of the interval, and None for fewer than ``FEWEST_FOR_VERDICT`` people. Cases of which one
    figure is infinite and the other not do not count.
    """
    figures = [(row, name, value) for row in rows for name, value in row["figures"].items()]
    after = {(row["row"], name): value for row, name, value in figures if row["model"] == "lora"}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in (*TYPE_NAMES.values(), "all"):
        changes: dict[str, list[tuple[float, str]]] = {}
        for row, name, before in figures:
            if row["model"] == "base" and kind in ("all", row["type"]):
                value = after[row["row"], name]
                change = 0.0 if value == before else value - before  # also where both are infinite
                if math.isfinite(change):
                    changes.setdefault(name, []).append((change, row["group"]))
        if changes:
            found[kind] = {name: _change(name, of_cases, seed) for name, of_cases in changes.items()}
    return found


def _change(name: str, of_cases: Sequence[tuple[float, str]], seed: int) -> dict[str, Any]:
    changes, people = zip(*of_cases, strict=True)
    interval, count = bootstrap_interval(changes, people, seed), len(set(people))
    better = figure_of(name).side(*interval) if interval is not None and count >= FEWEST_FOR_VERDICT else None
    return {"n": len(changes), "people": count, "mean": float(np.mean(changes)), "ci": interval, "better": better}
