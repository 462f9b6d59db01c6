from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from deepfashion_training.preparation.pair_plan import Settings
from deepfashion_training.preparation.selection import select

FAR = [bytes([value] * 32) for value in (0x00, 0xFF, 0x0F, 0xF0)]  # 128 bits apart and more


def pair(row: int, fingerprint: bytes | None = None, split: str = "train", **other: Any) -> dict[str, Any]:
    known = {"outcome": "pair", "reason": "", "detail": "", "mined": False, "pid": f"id_{row}"}
    known |= {"garment_source": "cross_view", "garment_row": None}
    return {**known, "source_row": row, "split": split, "fingerprint": fingerprint, **other}


def outcomes(*rows: dict[str, Any]) -> list[str]:
    select(list(rows), Settings())
    return [row["outcome"] for row in rows]


def near(known: bytes) -> bytes:
    return bytes([known[0] ^ 0b111]) + known[1:]  # three bits of 256


def test_a_training_photo_that_is_nearly_a_test_photo_is_quarantined():
    twin = pair(1, near(FAR[1]))
    assert outcomes(pair(0, FAR[0]), twin, pair(2, FAR[1], "test")) == ["pair", "quarantined", "pair"]
    assert twin["reason"] == "near_duplicate"
    assert twin["detail"] == "the photo is nearly that of row 2, id_2, which is in the test split"


def test_validation_gives_way_to_test_and_alike_within_a_split_may_stay():
    rows = [pair(0, FAR[0], "validation"), pair(1, near(FAR[0]), "test"), pair(2, FAR[2]), pair(3, FAR[2])]
    assert outcomes(*rows) == ["quarantined", "pair", "pair", "pair"]


def test_a_garment_cut_from_such_a_photo_goes_too_and_so_does_what_was_mined():
    other = pair(1, FAR[2], garment_row=0)
    rows = [pair(0, FAR[0]), other, pair(0, mined=True), pair(2, FAR[0], "test")]
    assert outcomes(*rows) == ["quarantined"] * 3 + ["pair"]
    assert "the garment's photo (row 0)" in other["detail"]


def test_row_zero_can_be_the_twin():
    assert outcomes(pair(0, FAR[0], "test"), pair(1, FAR[0])) == ["pair", "quarantined"]


@pytest.mark.parametrize(("share", "kept"), [(0.25, 2), (0.0, 0), (0.5, 6), (1.0, 10)])
def test_the_share_of_same_photo_pairs_is_capped_in_each_split(share, kept):
    rows = [pair(row, garment_source="same_photo") for row in range(10)] + [pair(row) for row in range(10, 16)]
    rows += [pair(20, split="test", garment_source="same_photo"), pair(21, split="test")]
    select(rows, Settings(max_same_photo_share=share))
    train = Counter(row["garment_source"] for row in rows if row["outcome"] == "pair" and row["split"] == "train")
    assert (train["same_photo"], train["cross_view"]) == (kept, 6)
    left = [row for row in rows if row["reason"] == "same_photo_share"]
    assert all(row["outcome"] == "unpaired" for row in left)
    assert sum(row["split"] == "train" for row in left) == 10 - kept
