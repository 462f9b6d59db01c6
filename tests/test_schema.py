"""Schema: one error that says what was found, what is needed and how to fix it."""

from __future__ import annotations

import pytest

from deepfashion_training.data.schema import DOCUMENTED_COLUMNS, RAW_COLUMNS, check_documented, looks_raw, map_columns


def test_documented_columns_pass_with_whatever_else_there_is():
    check_documented([*DOCUMENTED_COLUMNS, "pid", "unknown"], "D")


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


# Mapping columns ---------------------------------------------------------------------------------------------------

PROVENANCE = ("category", "pid", "variant", "view", "gender")


def test_columns_of_raw_and_documented_rows():
    assert map_columns(RAW_COLUMNS, "D", {}) == {
        "image": "images", "mask": "mask", "caption": "caption", "cloth_type": "cloth_type", "pid": "pid",
        "pose": "pose", "gender": "gender",
    }  # fmt: skip
    found = [*DOCUMENTED_COLUMNS, "pid", "variant", "view", "garment_source", "parse"]
    assert map_columns(found, "D", {}) == {
        "image": "image", "mask": "mask", "cloth": "cloth", "caption": "caption", "cloth_type": "cloth_type",
        "pid": "pid", "variant": "variant", "view": "view",
    }  # fmt: skip
    both = map_columns([*DOCUMENTED_COLUMNS, *PROVENANCE], "D", {})
    assert (both["category"], both["cloth_type"]) == ("category", "cloth_type")


def test_other_columns_by_overrides_and_overrides_win():
    found = ["photo", "product", "area", "kind", "image", "weather"]
    overrides = {"image": "photo", "cloth": "product", "mask": "area", "category": "kind"}
    assert map_columns(found, "D", overrides) == overrides
    # A column that an override claims serves no other name.
    assert map_columns([*DOCUMENTED_COLUMNS], "D", {"category": "cloth_type"}) == {
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
        map_columns(found, "some/data", {})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        f"some/data cannot be turned into pairs: found {', '.join(found) or 'no columns'}; missing "
    )
    listed = message.partition("missing ")[2].partition(". Name")[0].split("; ")
    assert [words.partition(" (")[0] for words in listed] == missing
    assert "--column" in message


def test_an_override_of_a_column_that_is_not_there():
    with pytest.raises(ValueError, match="--column image=photos: D"):
        map_columns(["photo", "mask", "cloth", "category"], "D", {"image": "photos"})
