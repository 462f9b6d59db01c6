"""Garment types: what is typed on a command line and what a dataset cell may hold."""

from __future__ import annotations

import math

import pytest

from deepfashion_training.pairs.garment_types import CATEGORY_TYPES, TYPE_NAMES, parse_cloth_type, parse_cloth_types


def test_names_on_a_command_line():
    assert parse_cloth_types("full,lower") == (2, 3)
    assert parse_cloth_types([" Upper ", "upper"]) == (1,)


@pytest.mark.parametrize("names", ["", "upper,", "skirt", []])
def test_unknown_or_no_name_is_an_error(names):
    with pytest.raises(ValueError, match="choose from upper, lower, full"):
        parse_cloth_types(names)


@pytest.mark.parametrize(("value", "number"), [(1, 1), (2.0, 2), (3, 3), ("upper", 1), ("lower", 2), (" Full ", 3)])
def test_cells_of_a_dataset(value, number):
    parsed = parse_cloth_type(value)
    assert parsed == number
    assert type(parsed) is int


@pytest.mark.parametrize("value", [0, 4, 2.5, math.nan, True, None, "1", "Skirts", "", [1], b"upper"])
def test_anything_else_is_named(value):
    with pytest.raises(ValueError) as caught:
        parse_cloth_type(value)
    assert f"unknown garment type {value!r}: use 1 (upper), 2 (lower), 3 (full)" in str(caught.value)


def test_there_are_17_categories_and_each_has_a_type_or_is_left_to_the_caption():
    assert len(CATEGORY_TYPES) == 17
    assert set(CATEGORY_TYPES.values()) == {*TYPE_NAMES, None}
