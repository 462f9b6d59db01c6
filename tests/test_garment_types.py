"""Garment types: what is typed on a command line, what a dataset cell may hold, and what a caption says."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest

from deepfashion_training.embedded.rows import raw_specs
from deepfashion_training.garment_types import (
    CATEGORY_TYPES,
    TYPE_NAMES,
    UnknownCategoryError,
    coded_type,
    one_type,
    parse_cloth_type,
    parse_cloth_types,
    type_list,
    type_of,
)


def test_names_on_a_command_line():
    assert parse_cloth_types("full,lower") == (2, 3)
    assert parse_cloth_types(" Upper ,upper") == (1,)
    assert parse_cloth_types("2,dresses, lower body") == (2, 3)
    assert type_list("3,lower_body,2.0") == "lower,full"
    assert one_type("Skirts") == 2


@pytest.mark.parametrize("names", ["", "upper,", "legwear"])
def test_unknown_or_no_name_is_an_error(names):
    with pytest.raises(ValueError, match=r"garment type .*upper.*lower.*full"):
        parse_cloth_types(names)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1), (2.0, 2), (3, 3), ("upper", 1), ("lower", 2), (" Full ", 3), ("1", 1), (" 2 ", 2), ("3.0", 3),
        (np.int8(2), 2), (np.float32(3), 3), (Decimal("2.00"), 2),
        ("lower_body", 2), ("Lower Body", 2), ("lower-body", 2), ("upper_body", 1), ("full_body", 3), ("fullbody", 3),
        ("dresses", 3), ("dress", 3), ("overall", 3), ("top", 1), ("cloth", 1), ("bottoms", 2), ("one-pieces", 3),
        ("Skirts", 2), ("Tees_Tanks", 1), ("rompers & jumpsuits", 3), ("upper clothes", 1),
        ("skirt", 2), ("trousers", 2), ("Jeans", 2), ("jumpsuit", 3), ("gowns", 3), ("shirt", 1), ("T-shirts", 1),
        ("coat", 1), ("trenches", 1), ("sun_dress", 3), ("outer clothing", 1),
    ],
)  # fmt: skip
def test_cells_of_a_dataset(value, number):
    parsed = parse_cloth_type(value)
    assert parsed == number
    assert type(parsed) is int


@pytest.mark.parametrize(
    "value", [4, -1, 2.5, math.nan, True, None, "-1", "1.5", "12", "1,2", "upper+lower", "ober", "", [1], b"upper"]
)
def test_anything_else_is_named(value):
    with pytest.raises(ValueError) as caught:
        parse_cloth_type(value)
    assert f"unknown garment type {value!r}" in str(caught.value)


@pytest.mark.parametrize("value", [0, 0.0, "0", " 0.0"])
def test_a_code_that_begins_at_0_is_refused_with_the_reason(value):
    with pytest.raises(ValueError, match="DressCode"):
        parse_cloth_type(value)


def test_a_misspelt_type_gets_the_nearest_one():
    with pytest.raises(ValueError, match="nearest is 'lowerbody'"):
        parse_cloth_type("lower_bdy")
    for typo, nearest in {
        "shrit": "shirt",
        "trouzers": "trousers",
        "sweatshorts": "shorts",
        "trenchcoat": "coat",
    }.items():
        with pytest.raises(ValueError, match=f"nearest is '{nearest}'"):
            parse_cloth_type(typo)
    for word in ("scarf", "shoes", "hat", "belt", "legwear", "socks"):
        with pytest.raises(ValueError, match="unknown garment type") as caught:
            parse_cloth_type(word)
        assert "nearest" not in str(caught.value)
    with pytest.raises(ValueError, match=r"\.\.\.: use") as caught:
        parse_cloth_type("x" * 5000)
    assert len(str(caught.value)) < 400


def test_the_caption_decides_for_categories_that_may_be_any():
    assert parse_cloth_type("Denim", "A denim jacket.") == 1
    for word in ("Denim", "suit"):
        with pytest.raises(ValueError, match=f"{word!r} may be any"):
            parse_cloth_type(word)


def test_categories_and_overridden_words_are_no_codes():
    assert coded_type("Dresses") is None
    assert coded_type("top") == 1
    assert coded_type("Top", {"top": 3}) is None


def test_there_are_17_categories_and_each_has_a_type_or_is_left_to_the_caption():
    assert len(CATEGORY_TYPES) == 17
    assert set(CATEGORY_TYPES.values()) == {*TYPE_NAMES, None}


# Types of categories and captions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("category", "number"),
    [
        ("Skirts", 2), ("Dresses", 3), ("Jackets_Vests", 1), ("Blouses Shirts", 1), ("blouses_shirts", 1),
        ("Rompers & Jumpsuits", 3), ("Rompers and Jumpsuits", 3), ("SHORTS", 2), (" Tees-Tanks ", 1),
        ("upper", 1), ("Lower body", 2), ("full_body", 3), ("Skirt", 2), ("jeans", 2),
    ],
)  # fmt: skip
def test_categories_in_any_spelling_whatever_the_caption_says(category, number):
    assert type_of(category, "A dress, trousers and a shirt of denim.") == number


@pytest.mark.parametrize("category", ["Swimwear", "", "Hats", "1", "Pants Shorts"])
def test_an_unknown_category_is_named(category):
    with pytest.raises(UnknownCategoryError) as caught:
        type_of(category, "The woman wears trousers.")
    assert repr(category) in str(caught.value)


def test_overrides_come_first_and_know_new_categories():
    overrides = {"Denim": 2, "Blouses Shirts": 3, "Swimwear": 3}
    assert type_of("Denim", "A denim jacket.", overrides) == 2
    assert type_of("Blouses_Shirts", "", overrides) == 3
    assert type_of("swimwear", "", overrides) == 3
    assert type_of("Suiting", "A suit jacket.", overrides) == 1


# The sentences are those of DeepFashion-MultiModal's captions, whose templates public code quotes.
@pytest.mark.parametrize(
    ("caption", "number"),
    [
        ("The upper clothing has long sleeves, denim fabric and solid color patterns. The neckline of it is lapel. "
         "The lower clothing is of long length. The fabric is cotton and it has plaid patterns.", 1),
        ("The upper clothing has long sleeves, cotton fabric and graphic patterns. The lower clothing is of long "
         "length. The fabric is denim and it has pure color patterns. This lady also wears an outer clothing, with "
         "cotton fabric and striped patterns. There is a ring on her finger.", 2),
        ("The upper clothing has no sleeves, cotton fabric. The lower clothing is long. The fabric is cotton. "
         "The lady also wears an outer clothing, with denim fabric and solid color patterns.", 1),
        ("His tank shirt has short sleeves, cotton fabric and solid color patterns. It has a crew neckline. The man "
         "wears a long pants. The pants are with denim fabric and solid color patterns. He wears a hat.", 2),
        ("This lady wears a tank tank shirt with solid color patterns and a three-point shorts. The tank tank shirt is "
         "with cotton fabric and its neckline is round. The shorts are with denim fabric and striped patterns.", 2),
        ("Her shirt has medium sleeves, denim fabric and solid color patterns. The person wears a three-point skirt. "
         "The skirt is with cotton fabric.", 1),
        ("The dress the lady wears has no sleeves. The texture of it is denim and it has solid color patterns.", 3),
        ("This person is wearing a long-sleeve shirt with solid color patterns and a pair of jeans.", 2),
        ("The woman wears a white T-shirt and a light denim midi a-line skirt.", 2),
        ("The man wears a jean jacket and grey shorts.", 1),
        ("A denim-jacket with grey sweatpants", 1),
        ("She wears denim overalls over a striped tee.", 3),
        ("She is dressed in a denim shirt dress.", 3),
        ("The man wears a denim dress shirt and black dress pants.", 1),
        # Which of the two is for sale, nobody can tell.
        ("The woman wears a dark denim long-sleeve jacket and blue denim ankle-length jeans.", None),
        ("The upper clothing has long sleeves, cotton fabric. The lower clothing is long. The fabric is cotton.", None),
        ("It is of denim.", None),
        ("The person wears jeansish things, undenimed pantsuits and topcoats.", None),
        ("", None),
    ],
)  # fmt: skip
def test_denim_is_the_garment_that_is_called_denim(caption, number):
    assert type_of("Denim", caption) == number


@pytest.mark.parametrize(
    ("caption", "number"),
    [
        ("The man wears a navy long-sleeve suit jacket and grey trousers.", 1),
        ("The woman wears a white blouse and a black knee-length pencil suit skirt.", 2),
        ("The man wears a cardigan and black long suit trousers.", 2),
        ("He wears blazers with jeans.", 1),
        ("The man wears a shirt, a waistcoat and suit trousers.", None),
        ("The man wears a shirt and long trousers.", 2),
        ("His shirt has long sleeves, cotton fabric. He also wears an outer clothing, with cotton fabric.", 1),
        ("The man also wears an outer clothing. The trousers are with cotton fabric.", None),
        ("A sleeveless dress.", 3),
        ("The man wears a suit.", None),
        ("", None),
    ],
)
def test_suiting_is_what_is_called_a_suits_or_may_be_part_of_one(caption, number):
    assert type_of("Suiting", caption) == number


def test_captions_of_the_drawn_wardrobe_are_never_misread_and_rarely_left_open():
    answers = []
    for spec in raw_specs(2500, seed=11):
        if CATEGORY_TYPES[spec.garment().category] is None:
            answers.append((type_of(spec.garment().category, spec.caption()), spec.cloth_type))
    assert len(answers) > 90
    assert all(read in (true, None) for read, true in answers)
    assert sum(read is None for read, _ in answers) < 0.1 * len(answers)
