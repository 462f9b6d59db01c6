from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from deepfashion_training.data.sampling import split_of
from deepfashion_training.preparation.pair_plan import BATCH_ROWS, Settings, batches_of, make_plan, named_values


def texts(rows: list[dict[str, object]]) -> dict[str, list[object]]:
    names = ("gender", "pose", "category", "pid", "caption")
    start = {"gender": "WOMEN", "pose": "01_1_front", "category": "Pants", "pid": "id_00000001", "caption": ""}
    return {name: [{**start, **row}[name] for row in rows] for name in names}


def test_a_raw_row_is_planned_from_its_texts():
    row = make_plan(texts([{"pose": "03_2_side", "category": "Skirts", "pid": "id_00000007"}]), Settings())[0]
    assert (row.source_row, row.pid, row.variant, row.view) == (0, "id_00000007", "03", "side")
    assert (row.gender, row.category, row.cloth_type, row.reason) == ("WOMEN", "Skirts", 2, "")
    assert row.split == split_of("id_00000007", 0.05, 0.05, 0)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"pose": "nonsense"}, "unknown_pose"),
        ({"pose": "01_5_top"}, "unknown_pose"),
        ({"pid": None}, "no_pid"),
        ({"category": "Socks"}, "unknown_category"),
        ({"category": "Denim", "caption": "A person in the street."}, "undecided_type"),
    ],
)
def test_what_the_texts_already_rule_out_has_its_reason(cells, reason):
    plan = make_plan(texts([{}, cells]), Settings())
    assert [row.reason for row in plan] == ["", reason]


def test_an_override_takes_an_unknown_category():
    plan = make_plan(texts([{"category": "Socks"}, {"category": "Socks"}, {}]), Settings(category_types={"Socks": 2}))
    assert [row.cloth_type for row in plan] == [2, 2, 2]


def test_a_cloth_type_is_a_type_or_as_on_the_hub_a_category():
    cells = {"pid": ["a"] * 4, "view": ["front"] * 4, "cloth_type": [2, "full", "Skirts", None]}
    plan = make_plan(cells, Settings())
    assert [(row.cloth_type, row.category) for row in plan] == [(2, ""), (3, ""), (2, "Skirts"), (0, "")]
    plan = make_plan({**cells, "category": ["Socks"] * 3 + ["Pants"]}, Settings())
    assert [(row.cloth_type, row.category) for row in plan[1:]] == [(3, "Socks"), (0, "Socks"), (2, "Pants")]


def test_types_in_other_tools_forms_and_an_override_of_a_word():
    words = ["2", "3.0", "lower_body", "dresses", "top"]
    cells = {"pid": ["a"] * 5, "view": ["front"] * 5, "cloth_type": words}
    plan = make_plan(cells, Settings(category_types={"top": 3}))
    assert [(row.cloth_type, row.category) for row in plan] == [
        (2, ""), (3, ""), (2, ""), (3, "dresses"), (3, "top"),
    ]  # fmt: skip


@pytest.mark.parametrize("zero", [0, "0"])
def test_a_code_that_begins_at_0_stops_all_since_1_and_2_would_be_other_types(zero):
    with pytest.raises(ValueError, match=r"row 1\b.*DressCode"):
        make_plan({"pid": ["a"] * 2, "view": ["front"] * 2, "cloth_type": [1, zero]}, Settings())


def test_named_values():
    assert named_values("image=photo, cloth = product") == {"image": "photo", "cloth": "product"}
    assert named_values("mask=a=b") == {"mask": "a=b"}
    assert named_values(None) == named_values("") == {}
    for text in ("image", "image=", "=photo"):
        with pytest.raises(ValueError, match="is not NAME=VALUE"):
            named_values(text)


def test_only_unknown_categories_are_an_error_that_lists_them():
    with pytest.raises(ValueError, match=r"found Hats \(2\), Socks \(1\): name their types with --category_type"):
        make_plan(texts([{"category": "Hats"}, {"category": "Hats"}, {"category": "Socks"}]), Settings())


def test_an_outfit_lies_in_one_batch_wherever_its_rows_are():
    rows = [{"pid": f"id_{index % 50:08d}", "pose": f"01_{1 + index // 50}_front"} for index in range(200)]
    batches = batches_of(make_plan(texts(rows), Settings()))
    assert len(batches) == 4 and max(map(len, batches)) <= BATCH_ROWS
    assert sorted(row.source_row for batch in batches for row in batch) == list(range(200))
    where = {(row.outfit, number) for number, batch in enumerate(batches) for row in batch}
    assert len(where) == 50
    for batch in batches:  # and next to each other there
        assert len(list(groupby(batch, key=lambda row: row.outfit))) == len({row.outfit for row in batch})


def test_colours_of_one_product_are_not_one_outfit():
    plan = make_plan(texts([{"pose": "01_1_front"}, {"pose": "02_1_front"}, {"gender": "MEN"}]), Settings())
    assert len({row.outfit for row in plan}) == 3


def test_more_photos_of_one_outfit_than_a_batch_holds_are_cut():
    plan = make_plan(texts([{"pose": f"01_{index}_front"} for index in range(2 * BATCH_ROWS + 1)]), Settings())
    assert [len(batch) for batch in batches_of(plan)] == [BATCH_ROWS, BATCH_ROWS, 1]


def test_a_limit_takes_whole_people_and_all_types_in_turn():
    categories = ["Tees_Tanks"] * 80 + ["Pants"] * 10 + ["Dresses"] * 10
    people = [{"pid": f"id_{index:08d}", "category": name} for index, name in enumerate(categories)]
    rows = [{**person, "pose": f"01_{number}_front"} for person in people for number in (1, 2)]
    plan = make_plan(texts(rows), Settings(limit=12))
    assert len(plan) == 12
    assert set(Counter(row.pid for row in plan).values()) == {2}
    assert Counter(row.cloth_type for row in plan) == {1: 4, 2: 4, 3: 4}
    assert [row.source_row for row in plan] == sorted(row.source_row for row in plan)
    assert len(make_plan(texts(rows), Settings(limit=5))) == 5
    assert len(make_plan(texts(rows), Settings(limit=10_000))) == 200


def test_documented_rows_need_no_person_and_keep_their_type():
    given = {"caption": [None, "a"], "cloth_type": [2, "full"]}
    assert [row.reason for row in make_plan(given, Settings())] == ["no_pid", "no_pid"]
    plan = make_plan(given, Settings(), has_cloth=True)
    assert [(row.cloth_type, row.pid, row.caption, row.reason) for row in plan] == [
        (2, "row 0", "", ""),
        (3, "row 1", "a", ""),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_same_photo_share": 1.5},
        {"validation_share": -0.1},
        {"validation_share": 0.6, "test_share": 0.4},
        {"limit": 0},
        {"mine_lower_body": True},
        {"columns": {"picture": "photo"}},
        {"garment_sources": ("flat", "sketch")},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("s")):
        Settings(**wrong)


def test_the_key_depends_on_settings_source_and_content():
    keys = {
        Settings().key("a", "1"),
        Settings(seed=1).key("a", "1"),
        Settings().key("b", "1"),
        Settings().key("a", "2"),
    }
    assert len(keys) == 4 and Settings().key("a", "1") in keys
