"""Which rows: properties that hold for any seed, and stability when rows are appended."""

from __future__ import annotations

from collections import Counter

import pytest

from deepfashion_training.data.sampling import held_out, stratified_subset, type_weights, unit_hash, unpaired_partners

PIDS = [f"id_{number // 3:08d}" for number in range(3000)]  # 1000 people, three rows each


def test_hash_is_fixed_for_ever():
    # blake2b-64 of b"0\x00a" is 0x15d8d767d2a6ebd3: a changed hash would silently move people between splits
    assert unit_hash(0, "a") == pytest.approx(0.08533998760926986, abs=1e-15)
    assert unit_hash(1, "a") != unit_hash(0, "a")


def test_held_out_groups_stay_together_and_are_about_the_fraction():
    out = held_out(PIDS, 0.05, seed=0)
    for first in range(0, 3000, 3):
        assert len(set(out[first : first + 3])) == 1
    assert 30 <= sum(out) / 3 <= 70  # 50 of 1000 people; the binomial spread is 7
    assert held_out(PIDS, 0.05, seed=1) != out


def test_appended_rows_move_nobody():
    out = held_out(PIDS, 0.05, seed=0)
    assert held_out([*PIDS, "new", "id_00000000"], 0.05, seed=0)[:3000] == out


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_each_side_gets_at_least_one_group(fraction):
    assert set(held_out(["a", "a", "b", "c"], fraction, seed=0)) == {True, False}


def test_one_group_cannot_be_split():
    with pytest.raises(ValueError, match="1 group"):
        held_out(["a", "a"], 0.5, seed=0)


def test_subset_keeps_the_proportions_and_every_type():
    types = [1] * 69 + [2] * 29 + [3] * 2
    chosen = stratified_subset(types, 10, seed=0)
    assert chosen == sorted(set(chosen))
    # Shares of 6.9, 2.9 and 0.2: one each first, and the one too many for type 3 is missed least by type 1 or 2.
    counts = Counter(types[position] for position in chosen)
    assert counts[3] == 1
    assert (counts[1], counts[2]) in {(6, 3), (7, 2)}
    assert stratified_subset(types, 10, seed=1) != chosen
    assert {types[position] for position in stratified_subset(types, 3, seed=0)} == {1, 2, 3}
    assert len(stratified_subset(types, 2, seed=0)) == 2
    assert stratified_subset(types, 100, seed=0) == list(range(100))


@pytest.mark.parametrize(
    ("count", "quotas"),
    [(9, {1: 3, 2: 3, 3: 3}), (30, {1: 13, 2: 13, 3: 4}), (60, {1: 36, 2: 20, 3: 4}), (2, {2: 1, 3: 1})],
)
def test_equal_subset_takes_more_of_others_where_a_type_has_too_few(count, quotas):
    types = [1] * 76 + [2] * 20 + [3] * 4
    chosen = stratified_subset(types, count, seed=0, equally=True)
    assert chosen == sorted(set(chosen)) and Counter(types[position] for position in chosen) == quotas


def test_weights_give_each_type_its_share():
    types = [1] * 6 + [3] * 2
    assert type_weights(types, {1: 1, 3: 1}) == [1 / 12] * 6 + [1 / 4] * 2
    assert type_weights(types, {1: 3, 2: 0, 3: 0.6}) == pytest.approx([5 / 36] * 6 + [1 / 12] * 2)
    assert type_weights(types, {1: 0, 3: 2}) == [0] * 6 + [0.5] * 2
    within = [1, 0, 1, 0, 2, 0, 3, 1]
    assert type_weights(types, {1: 1, 3: 1}, within) == [0.125, 0, 0.125, 0, 0.25, 0, 0.375, 0.125]


@pytest.mark.parametrize("seed", range(5))
def test_partners_are_other_people_of_the_same_type(seed):
    types = [1, 1, 1, 1, 2, 2, 3] * 4
    groups = [position // 7 for position in range(28)]
    partners = unpaired_partners(types, groups, seed)
    assert sorted(partners) == list(range(28))
    for position, partner in enumerate(partners):
        assert types[partner] == types[position]
        assert groups[partner] != groups[position]


def test_partners_where_little_is_possible():
    assert unpaired_partners([1, 2], ["a", "b"], 0) == [0, 1]  # nobody else of that type
    assert unpaired_partners([1, 1], ["a", "a"], 0) == [1, 0]  # only the same person
    uneven = unpaired_partners([1] * 5, ["a", "a", "a", "a", "b"], 0)
    assert all(partner != position for position, partner in enumerate(uneven))
