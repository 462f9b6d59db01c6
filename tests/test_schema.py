"""Schema: one error that says what was found, what is needed and how to mend it."""

from __future__ import annotations

import pytest

from deepfashion_training.data.schema import (
    DOCUMENTED_COLUMNS,
    INPUT_COLUMNS,
    RAW_COLUMNS,
    check_documented,
    looks_raw,
    map_columns,
    missing_columns,
    parse_column_map,
)


def test_documented_columns_pass_with_whatever_else_there_is():
    check_documented([*DOCUMENTED_COLUMNS, "pid", "unknown"], "D")


def test_missing_columns_in_schema_order():
    assert missing_columns(["mask", "image"]) == ["cloth", "caption", "cloth_type"]


def test_raw_rows_are_recognised_with_and_without_the_overlay():
    assert looks_raw(RAW_COLUMNS)
    assert looks_raw([name for name in RAW_COLUMNS if name != "mask_overlay"])
    assert not looks_raw([*RAW_COLUMNS, "cloth"])
    assert not looks_raw([name for name in RAW_COLUMNS if name != "pose"])


def test_raw_rows_are_sent_to_prepare():
    with pytest.raises(ValueError) as caught:
        check_documented(RAW_COLUMNS, "some folder")
    message = str(caught.value)
    assert "\n" not in message
    assert "lacks the columns image, cloth:" in message
    assert f"found {', '.join(RAW_COLUMNS)};" in message
    assert "needed image, cloth, mask, caption, cloth_type." in message
    assert "python -m deepfashion_training.prepare --dataset_name 'some folder' --output_dir OUT" in message


def test_misnamed_columns_get_their_nearest_name():
    with pytest.raises(ValueError) as caught:
        check_documented(["image", "Cloth", "masks", "caption", "cloth_type", "pid"], "D")
    assert "lacks the columns cloth, mask:" in str(caught.value)
    assert "Perhaps rename 'Cloth' to 'cloth', rename 'masks' to 'mask'." in str(caught.value)
    assert "prepare" not in str(caught.value)


def test_no_nearest_name_is_made_up():
    with pytest.raises(ValueError) as caught:
        check_documented(["image", "mask", "caption", "cloth_type", "weather"], "D")
    assert "lacks the column cloth:" in str(caught.value)
    assert "Perhaps" not in str(caught.value)


# Mapping columns ---------------------------------------------------------------------------------------------------

PROVENANCE = ("category", "pid", "variant", "view", "gender")


def test_column_map_of_a_command_line():
    assert parse_column_map("image=photo, cloth = product") == {"image": "photo", "cloth": "product"}
    assert parse_column_map("mask=a=b") == {"mask": "a=b"}
    assert parse_column_map(None) == parse_column_map("") == parse_column_map("  ") == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("images=photo", "unknown name 'images': did you mean 'image'?"),
        ("weather=w", f"unknown name 'weather': choose from {', '.join(INPUT_COLUMNS)}"),
        ("image=a,image=b", "'image' is given twice"),
        ("image", "'image' is not NAME=COLUMN"),
        ("image=", "'image=' is not NAME=COLUMN"),
        ("image=a,", "'' is not NAME=COLUMN"),
    ],
)
def test_a_wrong_column_map_is_named(text, problem):
    with pytest.raises(ValueError) as caught:
        parse_column_map(text)
    assert problem in str(caught.value)


def test_raw_rows_name_a_category_where_documented_rows_name_a_type():
    assert map_columns(RAW_COLUMNS, {}, "D") == {
        "image": "images", "mask": "mask", "caption": "caption", "category": "cloth_type", "pid": "pid",
        "pose": "pose", "gender": "gender",
    }  # fmt: skip
    found = [*DOCUMENTED_COLUMNS, "pid", "variant", "view", "garment_source", "parse"]
    assert map_columns(found, {}, "D") == {
        "image": "image", "mask": "mask", "cloth": "cloth", "caption": "caption", "cloth_type": "cloth_type",
        "pid": "pid", "variant": "variant", "view": "view",
    }  # fmt: skip
    both = map_columns([*DOCUMENTED_COLUMNS, *PROVENANCE], {}, "D")
    assert (both["category"], both["cloth_type"]) == ("category", "cloth_type")


def test_a_cloth_column_of_raw_rows_is_one():
    mapped = map_columns([*RAW_COLUMNS, "cloth"], {}, "D")
    assert (mapped["cloth"], mapped["category"], "cloth_type" in mapped) == ("cloth", "cloth_type", False)


def test_documented_rows_that_keep_their_pose_still_hold_types():
    mapped = map_columns([*DOCUMENTED_COLUMNS, "pid", "pose"], {}, "D")
    assert (mapped["cloth_type"], mapped["pose"], "category" in mapped) == ("cloth_type", "pose", False)


def test_raw_rows_with_a_renamed_photo_are_still_raw():
    found = ["photo", "gender", "pose", "cloth_type", "pid", "caption", "mask"]
    mapped = map_columns(found, {"image": "photo"}, "D")
    assert (mapped["image"], mapped["category"], "cloth_type" in mapped) == ("photo", "cloth_type", False)
    mapped = map_columns(found, {"image": "photo", "cloth_type": "cloth_type"}, "D")
    assert (mapped["cloth_type"], "category" in mapped) == ("cloth_type", False)


def test_other_columns_by_overrides_and_overrides_win():
    found = ["photo", "product", "area", "kind", "image", "weather"]
    overrides = {"image": "photo", "cloth": "product", "mask": "area", "category": "kind"}
    assert map_columns(found, overrides, "D") == overrides
    # A column that an override claims serves no other name.
    assert map_columns([*DOCUMENTED_COLUMNS], {"category": "cloth_type"}, "D") == {
        "image": "image", "mask": "mask", "cloth": "cloth", "caption": "caption", "category": "cloth_type",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "missing"),
    [
        (["mask", "category", "cloth"], ["image"]),
        (["image", "category", "cloth"], ["mask"]),
        (["image", "mask", "cloth"], ["category or cloth_type"]),
        (["image", "mask", "category", "pid"], ["cloth"]),
        (["image", "mask", "category", "pose"], ["cloth"]),
        (["image", "mask", "category", "pid", "variant"], ["cloth"]),
        ([], ["image", "mask", "category or cloth_type", "cloth"]),
    ],
)
def test_what_does_not_suffice_is_said_in_one_line(found, missing):
    with pytest.raises(ValueError) as caught:
        map_columns(found, {}, "some/data")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        f"some/data cannot be turned into pairs: found {', '.join(found) or 'no columns'}; missing "
    )
    listed = message.partition("missing ")[2].partition(". Name")[0].split("; ")
    assert [words.partition(" (")[0] for words in listed] == missing
    assert "--column" in message


def test_the_mend_names_the_columns_that_are_spelt_nearest():
    with pytest.raises(ValueError, match="--column image=img_image,mask=masks"):
        map_columns(["img_image", "masks", "category", "cloth"], {}, "D")


def test_an_override_of_a_column_that_is_not_there():
    with pytest.raises(ValueError, match="--column image=photos: D has no column 'photos': did you mean 'photo'"):
        map_columns(["photo", "mask", "cloth", "category"], {"image": "photos"}, "D")
