"""Leak score: finds what it must in masks that tell the category, and nothing in masks that do not."""

from __future__ import annotations

import numpy as np
import pytest

from deepfashion_training.images.masks import mask_features
from deepfashion_training.preparation.mask_leak import FEWEST_PEOPLE, leak_score, measure_leak

HEMS = {"Shorts": 60, "Pants": 90}


def masks(people: int, told: bool, seed: int = 0) -> tuple[np.ndarray, list[str], list[str]]:
    """Two masks each of ``people`` people, half in shorts; their lower ends tell which, or are drawn by lot."""
    rng = np.random.default_rng(seed)
    features, categories, groups = [], [], []
    for person in range(people):
        category = ("Shorts", "Pants")[person % 2]
        for _ in range(2):
            mask = np.zeros((96, 64), np.uint8)
            left = rng.integers(10, 20)
            hem = HEMS[category] if told else rng.choice(list(HEMS.values()))
            mask[40 : hem + rng.integers(-3, 4), left : left + 30] = 1
            features.append(mask_features(mask))
            categories.append(category)
            groups.append(f"id_{person}")
    return np.stack(features), categories, groups


def rows_of(categories, pids, genders=None, types=None):
    cells = zip(types or [2] * len(pids), genders or ["WOMEN"] * len(pids), categories, pids, strict=True)
    return [dict(zip(("cloth_type", "gender", "category", "pid"), row, strict=True)) for row in cells]


def score(features, categories, pids, genders=None, types=None):
    return leak_score(features, rows_of(categories, pids, genders, types))


def test_features_are_the_coverage_of_a_24_by_16_grid():
    mask = np.zeros((48, 32), np.uint8)
    mask[:2, :2] = 1
    mask[2:4, 0] = 1
    features = mask_features(mask)
    assert features.dtype == np.uint8 and features.shape == (384,)
    assert features[0] == 255 and features[16] == pytest.approx(128, abs=1)
    assert features.sum() == pytest.approx(383, abs=1)
    assert mask_features(np.ones((300, 200), np.uint8)).min() == 255


def test_lengths_that_tell_are_found_and_lengths_by_lot_are_not():
    told = score(*masks(80, True))["lower"]
    assert told["accuracy"] > 0.97 and told["chance"] == 0.5 and told["rows"] == 160
    assert told["categories"] == ["Pants", "Shorts"]
    assert score(*masks(160, False))["lower"]["accuracy"] < 0.62


def test_the_report_names_the_type_furthest_above_chance_and_measures_pairs_only():
    told, lot = masks(60, True), masks(60, False, seed=1)
    features = np.concatenate([told[0], lot[0]])
    rows = rows_of(told[1] + lot[1], told[2] + lot[2], types=[2] * 120 + [3] * 120)
    for number, row in enumerate(rows):
        known = features[number].tobytes()
        row |= {"outcome": "pair", "source_row": number, "features_as_is": known, "features": known}
    rows += [{"outcome": "unpaired"}, {"outcome": "quarantined"}]
    facts = measure_leak(rows, "agnostic", seed=0)
    assert set(facts) == {"as_is", "agnostic"} and facts["as_is"] == facts["agnostic"]
    assert facts["agnostic"]["type"] == "lower" and set(facts["agnostic"]["by_type"]) == {"lower", "full"}
    assert facts["agnostic"]["accuracy"] == facts["agnostic"]["by_type"]["lower"]["accuracy"] > 0.97


def test_a_person_is_never_in_training_and_test():
    # Every person has a place of their own and a category by lot: only knowing the person helps.
    features, categories, groups = [], [], []
    for person in range(64):
        mask = np.zeros((96, 64), np.uint8)
        mask[10 + person : 24 + person, 20:40] = 1
        features += [mask_features(mask)] * 4
        categories += [("Shorts", "Pants")[int(np.random.default_rng(person).integers(2))]] * 4
        groups += [f"id_{person}"] * 4
    assert score(np.stack(features), categories, groups)["lower"]["accuracy"] < 0.7


def test_bodies_of_women_and_men_are_no_leak():
    # Women's masks differ from men's in the upper half; within a gender, the category is by lot.
    features, _, groups = masks(120, False, seed=2)
    by_lot = [("Pants", "Shorts")[int(np.random.default_rng([3, i // 2]).integers(2))] for i in range(240)]
    women = [i < 120 for i in range(240)]
    features = features.copy()
    features[np.array(women), :100] = 255
    genders = ["WOMEN" if woman else "MEN" for woman in women]
    mixed = [name if woman else {"Pants": "Pants", "Shorts": "Leggings"}[name] for name, woman in zip(by_lot, women)]  # noqa: B905
    leaks = score(features, mixed, groups, genders)
    # The men have leggings and pants, which are one form: nothing to tell among them.
    assert leaks["lower"]["rows"] == 120 and leaks["lower"]["accuracy"] < 0.65


def test_too_few_people_or_one_category_is_not_measured():
    assert score(*masks(2 * FEWEST_PEOPLE - 2, True)) == {}
    features, categories, groups = masks(60, True)
    assert score(features, ["Pants"] * len(categories), groups) == {}
    assert score(features, ["Denim" if name == "Pants" else name for name in categories], groups) == {}
    assert leak_score(np.zeros((0, 384), np.uint8), []) == {}
