"""Schema: one error that says what was found, what is needed and how to mend it."""

from __future__ import annotations

import pytest

from deepfashion_training.pairs.schema import (
    DOCUMENTED_COLUMNS,
    RAW_COLUMNS,
    check_documented,
    looks_raw,
    missing_columns,
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
