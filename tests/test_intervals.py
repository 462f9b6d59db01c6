"""Bootstrap intervals: against what can be worked out, by value and by group."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deepfashion_training.evaluation.intervals import bootstrap_interval


def test_bootstrap_of_two_values_is_the_binomial_one():
    # Means of 0 and 1 drawn twice: 0, 1/2, 1 with the shares 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0], seed=0) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], seed=0, level=0.4) == (0.5, 0.5)


def test_bootstrap_nears_the_normal_interval_and_repeats_itself():
    values = np.random.default_rng(5).normal(3, 1, 400).tolist()
    low, high = bootstrap_interval(values, seed=1, rounds=2000)
    half = 1.96 * np.std(values) / math.sqrt(400)
    assert low == pytest.approx(np.mean(values) - half, abs=0.01)
    assert high == pytest.approx(np.mean(values) + half, abs=0.01)
    assert bootstrap_interval(values, seed=1, rounds=2000) == (low, high)
    assert bootstrap_interval(values, seed=2, rounds=2000) != (low, high)
    narrow = bootstrap_interval(values, seed=1, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_of_one_or_of_equal_values_has_no_width():
    assert bootstrap_interval([0.3], seed=0) == (0.3, 0.3)
    assert bootstrap_interval([2.0] * 9, seed=0) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"values": []}, "at least one value"),
        ({"values": [1.0, math.inf]}, "value 1 is inf"),
        ({"values": [math.nan]}, "value 0 is nan"),
        ({"values": [1.0], "rounds": 0}, "rounds is 0"),
        ({"values": [1.0], "level": 95}, "level is 95"),
        ({"values": [1.0, 2.0], "groups": ["a"]}, "1 groups for 2 values"),
    ],
)
def test_bootstrap_refuses(keywords, said):
    with pytest.raises(ValueError, match=said):
        bootstrap_interval(seed=0, **keywords)


def test_groups_of_one_change_nothing():
    values = [0.2, 0.5, 0.9, 0.4]
    assert bootstrap_interval(values, seed=3, groups="abcd") == bootstrap_interval(values, seed=3)


def test_a_person_with_several_pictures_is_drawn_as_a_whole():
    # Two people, one with a 0, one with three 1s: the means of a draw are 0, 3/4 and 1.
    values, people = [0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"]
    assert bootstrap_interval(values, seed=0, groups=people) == (0.0, 1.0)
    assert bootstrap_interval(values, seed=0, level=0.4, groups=people) == (0.75, 0.75)


def test_copies_of_a_person_do_not_narrow_the_interval():
    values = np.random.default_rng(1).normal(0, 1, 50)
    once = bootstrap_interval(values.tolist(), seed=2)
    copied = np.repeat(values, 4).tolist()
    people = np.repeat(np.arange(50), 4).tolist()
    assert bootstrap_interval(copied, seed=2, groups=people) == pytest.approx(once)
    narrow = bootstrap_interval(copied, seed=2)
    assert narrow[1] - narrow[0] < 0.7 * (once[1] - once[0])
