"""Means, bootstrap intervals and differences by garment type, on rows made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from deepfashion_training.evaluation import summary
from deepfashion_training.evaluation.summary import bootstrap_interval, differences, summarise
from deepfashion_training.reports.figures import FEWEST_FOR_VERDICT

#: As many people as a verdict needs, in pictures 0, 1, 2...
PEOPLE = [f"pid {number}" for number in range(FEWEST_FOR_VERDICT)]


def measured(
    values: dict[str, Sequence[dict[str, float]]], groups: Sequence[str] = PEOPLE, types: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of pictures whose figures are given by model."""
    return [
        {"row": n, "type": types[n] if types else "lower", "group": groups[n], "model": model, "figures": figures}
        for model, pictures in values.items()
        for n, figures in enumerate(pictures)
    ]


def of(name: str, *values: float) -> list[dict[str, float]]:
    return [{name: value} for value in values]


# ---- intervals


def test_interval_of_two_people_is_the_binomial_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Means of 0 and 1 drawn twice: 0, 1/2, 1 with the shares 1/4, 1/2, 1/4. With three 1s of one person: 0, 3/4, 1.
    assert bootstrap_interval([0.0, 1.0], "ab", seed=0) == [0.0, 1.0]
    assert bootstrap_interval([0.0, 1.0, 1.0, 1.0], "abbb", seed=0) == [0.0, 1.0]
    assert bootstrap_interval([0.0, 1.0], "aa", seed=0) is None
    monkeypatch.setattr(summary, "LEVEL", 0.4)
    assert bootstrap_interval([0.0, 1.0], "ab", seed=0) == [0.5, 0.5]
    assert bootstrap_interval([0.0, 1.0, 1.0, 1.0], "abbb", seed=0) == [0.75, 0.75]


def test_interval_nears_the_normal_one_and_repeats_itself() -> None:
    values = np.random.default_rng(5).normal(3, 1, 400).tolist()
    people = [str(number) for number in range(400)]
    half = 1.96 * np.std(values) / math.sqrt(400)
    found = bootstrap_interval(values, people, seed=1)
    assert found == pytest.approx([np.mean(values) - half, np.mean(values) + half], abs=0.015)
    assert bootstrap_interval(values, people, seed=1) == found != bootstrap_interval(values, people, seed=2)


# ---- means


def test_means_and_counts_are_by_type_and_in_all() -> None:
    rows = measured({"base": of("ssim", 0.2, 0.4, 0.9)}, types=["upper", "upper", "full"])
    found = summarise(rows, seed=0)["base"]
    assert set(found) == {"upper", "full", "all"}
    assert found["upper"]["n"] == 2 and found["upper"]["ssim"] == pytest.approx(0.3)
    assert found["full"] == {"n": 1, "ssim": 0.9, "ssim_ci": None}  # one person
    assert found["all"]["n"] == 3 and found["all"]["ssim"] == pytest.approx(0.5)
    low, high = found["all"]["ssim_ci"]
    assert 0.2 <= low < 0.5 < high <= 0.9


def test_infinite_figures_are_counted_out() -> None:
    found = summarise(measured({"base": of("psnr", math.inf, 20, 30), "lora": of("psnr", *[math.inf] * 3)}), 0)
    base, lora = found["base"]["lower"], found["lora"]["lower"]
    assert (base["n"], base["psnr_n"], base["psnr"]) == (3, 2, 25)
    assert (lora["n"], lora["psnr_n"], lora["psnr"]) == (3, 0, None) and "psnr_ci" not in lora


def test_intervals_are_over_people_not_pictures() -> None:
    pictures = of("ssim", *[0.0] * 5, *[1.0] * 5)
    people = measured({"base": pictures}, groups=["one"] * 5 + ["two"] * 5)
    alone = measured({"base": pictures})
    by_people, by_picture = (summarise(rows, 0)["base"]["all"]["ssim_ci"] for rows in (people, alone))
    assert by_people == [0.0, 1.0]  # each of the two may be drawn twice
    assert 0.1 < by_picture[0] < by_picture[1] < 0.9


def test_unpaired_pictures_that_are_fewer_are_counted() -> None:
    rows = measured({"base": of("drift", 1, 2, 3)}) + measured({"base": of("drift_unpaired", 5, 7)})
    found = summarise(rows, 0)["base"]["all"]
    assert (found["n"], found["drift"], found["drift_unpaired"], found["drift_unpaired_n"]) == (3, 2, 6, 2)
    assert "drift_n" not in found


# ---- differences


def change(base: Sequence[float], lora: Sequence[float], name: str = "ssim", groups: Sequence[str] = PEOPLE) -> Any:
    both = measured({"base": of(name, *base), "lora": of(name, *lora)}, groups=groups)
    return differences(both, 0).get("all", {}).get(name)


@pytest.mark.parametrize(("name", "better"), [("ssim", "lora"), ("ciede2000_masked", "base"), ("drift", "base")])
def test_a_difference_on_one_side_of_0_has_a_better_side(name: str, better: str) -> None:
    count = len(PEOPLE)
    base, lora = [0.1] * count, [2.1 + number / 100 for number in range(count)]
    up, down = change(base, lora, name), change(lora, base, name)
    assert up["mean"] == pytest.approx(2 + (count - 1) / 200) and up["mean"] == -down["mean"]
    assert 2 < up["ci"][0] < up["mean"] < up["ci"][1]
    assert up["better"] == better and {up["better"], down["better"]} == {"base", "lora"}
    assert up["n"] == up["people"] == count


def test_a_difference_that_chance_makes_has_none() -> None:
    found = change([0.5] * len(PEOPLE), [0.4, 0.6] * (len(PEOPLE) // 2))
    assert found["ci"][0] < 0 < found["ci"][1] and found["better"] is None


def test_a_loss_of_0005_ssim_is_none_that_matters() -> None:
    base = [0.7 + number / 100 for number in range(len(PEOPLE))]
    found = change(base, [value - 0.005 for value in base])
    assert found["ci"][1] < 0 and found["better"] == "neither"


def test_few_people_have_no_verdict_however_many_pictures_of_them() -> None:
    count = 3 * FEWEST_FOR_VERDICT
    few = [f"pid {number % (FEWEST_FOR_VERDICT - 1)}" for number in range(count)]
    enough = [f"pid {number % FEWEST_FOR_VERDICT}" for number in range(count)]
    assert change([0.0] * count, [1.0] * count, groups=few)["better"] is None
    found = change([0.0] * count, [1.0] * count, groups=enough)
    assert found["better"] == "lora" and (found["n"], found["people"]) == (count, FEWEST_FOR_VERDICT)


def test_infinite_figures_of_both_are_no_difference_and_of_one_do_not_count() -> None:
    found = change([math.inf, 20, math.inf], [math.inf, 26, 30], "psnr")
    assert (found["n"], found["mean"]) == (2, 3)  # 0 and 6
    assert change([math.inf], [30], "psnr") is None
