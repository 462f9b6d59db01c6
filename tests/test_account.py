from __future__ import annotations

from typing import Any

import pytest
from test_selection import pair

from deepfashion_training.images.quality import FIXES, REASONS, UNPAIRED_REASONS
from deepfashion_training.preparation.account import summary, warnings, why_none
from deepfashion_training.prepare import build_parser


def row(number: int, split: str = "train", cloth_type: int = 2, **other: Any) -> dict[str, Any]:
    known = {"cloth_type": cloth_type, "category": "Pants", "view": "front", "mask_how": "named"}
    known |= {"mask_inverted": False}
    return pair(number, split=split, **{**known, **other})


def test_the_account_adds_up():
    rows = [
        row(0),
        row(1, "test", garment_source="flat", mask_inverted=True),
        row(0, mined=True, cloth_type=1),
        row(2, outcome="quarantined", reason="mask_empty"),
        row(3, outcome="unpaired", reason="garment_picture"),
        row(4, outcome="unpaired", reason="garment_picture"),
        row(4, outcome="quarantined", reason="near_duplicate", mined=True),
    ]
    facts = summary(rows, 5)
    assert (facts["rows_in"], facts["pairs"], facts["mined"], facts["unpaired"]) == (5, 2, 1, 2)
    assert facts["quarantined"] == {"mask_empty": 1} and facts["unpaired_reasons"] == {"garment_picture": 2}
    assert facts["by_source"] == {"cross_view": 2, "flat": 1} and facts["by_split"] == {"train": 2, "test": 1}
    assert facts["by_type"] == {"upper": 1, "lower": 2, "full": 0}
    assert facts["by_split_and_type"]["train"] == {"upper": 1, "lower": 1, "full": 0}
    assert (facts["pids"], facts["inverted_masks"]) == ({"train": 1, "test": 1}, 1)


def test_a_lost_row_and_a_person_in_two_splits_are_found():
    with pytest.raises(AssertionError):
        summary([row(0)], 2)
    with pytest.raises(AssertionError, match="two splits"):
        summary([row(0), row(1, "test", pid="id_0")], 2)


def test_warnings_name_what_is_missing_or_suspicious():
    rows = [row(0), row(1, "test", cloth_type=1)]
    rows += [row(2, outcome="quarantined", reason="unknown_category", category="Socks")]
    leak = {"agnostic": {"type": "lower", "accuracy": 0.9, "chance": 0.5}}
    shares = {"validation_share": 0, "test_share": 0.1}
    facts = {**summary(rows, 3), "settings": shares, "leak_score": leak, "mask_policy": "agnostic"}
    lines = warnings(facts)
    assert [line.split(":")[0] for line in lines[:2]] == [
        "no upper pairs in the train split",
        "no lower pairs in the test split",
    ]
    for text in ("Socks 1", "no full-body", "33% of the rows", "90%, chance 50%"):
        assert any(text in line for line in lines), text
    assert len(lines) == 6


def test_why_no_row_became_a_pair_counts_reasons_with_an_example():
    rows = [row(0, reason="mask_empty", detail="no pixel"), row(1, reason="mask_empty", detail="other")]
    assert why_none(rows) == "mask_empty 2 (no pixel)"


def test_why_there_is_no_pair_names_the_flag_that_lets_rows_pass():
    flags = {flag for flag in build_parser().format_help().split() if flag.startswith("--")}
    assert {flag.split()[0] for flag in FIXES.values()} <= flags
    assert FIXES.keys() <= (REASONS | UNPAIRED_REASONS).keys()
    small = row(0, outcome="quarantined", reason="garment_too_small", detail="66x36 pixels")
    assert "--min_garment_px" in why_none([small])
    assert "--max_same_photo_share" in why_none([row(0, outcome="unpaired", reason="same_photo_share", detail="")])
