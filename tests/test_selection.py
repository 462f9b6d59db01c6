from __future__ import annotations

from collections import Counter

import pytest

from deepfashion_training.preparation.selection import Record, account, select
from deepfashion_training.preparation.settings import Settings

FAR = [bytes([value] * 32) for value in (0x00, 0xFF, 0x0F, 0xF0, 0x33, 0xCC, 0x55, 0xAA)]  # 128 bits apart and more


def pair(row: int, split: str = "train", source: str = "cross_view", garment_row: int = -1, **other: object) -> Record:
    known = {"reason": "", "detail": "", "mined": False, "pid": f"id_{row}", "outcome": "pair", **other}
    return Record(source_row=row, split=split, garment_source=source, garment_row=garment_row, **known)


def near(known: bytes) -> bytes:
    return bytes([known[0] ^ 0b111]) + known[1:]  # three bits of 256


def test_a_training_photo_that_is_nearly_a_test_photo_is_quarantined():
    records = [pair(0), pair(1), pair(2, "test")]
    out = select(records, [FAR[0], near(FAR[1]), FAR[1]], Settings())
    assert [record.outcome for record in out] == ["pair", "quarantined", "pair"]
    assert out[1].reason == "near_duplicate"
    assert out[1].detail == "the photo is nearly that of row 2, id_2, which is in the test split"


def test_validation_gives_way_to_test_and_alike_within_a_split_may_stay():
    records = [pair(0, "validation"), pair(1, "test"), pair(2), pair(3)]
    out = select(records, [FAR[0], near(FAR[0]), FAR[2], FAR[2]], Settings())
    assert [record.outcome for record in out] == ["quarantined", "pair", "pair", "pair"]


def test_a_garment_cut_from_such_a_photo_goes_too_and_so_does_what_was_mined():
    records = [pair(0), pair(1, garment_row=0), pair(0, mined=True), pair(2, "test")]
    out = select(records, [FAR[0], FAR[2], FAR[0], FAR[0]], Settings())
    assert [record.outcome for record in out] == ["quarantined"] * 3 + ["pair"]
    assert "the garment's photo (row 0)" in out[1].detail


def test_row_zero_can_be_the_twin():
    out = select([pair(0, "test"), pair(1)], [FAR[0], FAR[0]], Settings())
    assert [record.outcome for record in out] == ["pair", "quarantined"]


@pytest.mark.parametrize(("share", "kept"), [(0.25, 2), (0.0, 0), (0.5, 6), (1.0, 10)])
def test_the_share_of_same_photo_pairs_is_capped_in_each_split(share, kept):
    records = [pair(row, source="same_photo") for row in range(10)] + [pair(row) for row in range(10, 16)]
    records += [pair(20, "test", source="same_photo"), pair(21, "test")]
    out = select(records, [None] * len(records), Settings(max_same_photo_share=share))
    train = Counter(record.garment_source for record in out if record.outcome == "pair" and record.split == "train")
    assert (train["same_photo"], train["cross_view"]) == (kept, 6)
    left = [record for record in out if record.reason == "same_photo_share"]
    assert all(record.outcome == "unpaired" for record in left)
    assert sum(record.split == "train" for record in left) == 10 - kept


def test_the_account_adds_up():
    records = [
        pair(0),
        pair(1, "test", source="flat"),
        pair(0, mined=True),
        pair(2, outcome="quarantined", reason="mask_empty"),
        pair(3, outcome="unpaired", reason="garment_picture"),
        pair(4, outcome="unpaired", reason="garment_picture"),
    ]
    facts = account(records, 5)
    assert (facts["rows_in"], facts["pairs"], facts["mined"], facts["unpaired"]) == (5, 2, 1, 2)
    assert facts["quarantined"] == {"mask_empty": 1} and facts["unpaired_reasons"] == {"garment_picture": 2}
    assert facts["by_source"] == {"cross_view": 2, "flat": 1} and facts["by_split"] == {"train": 2, "test": 1}


def test_a_lost_row_and_a_person_in_two_splits_are_found():
    with pytest.raises(AssertionError):
        account([pair(0)], 2)
    with pytest.raises(AssertionError, match="in two splits"):
        account([pair(0), pair(1, "test", pid="id_0")], 2)
