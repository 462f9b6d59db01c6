from __future__ import annotations

import pytest

from deepfashion_training.preparation import output


def test_rows_of_a_split_come_in_numbered_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "SHARD_ROWS", 10)
    pair = {"outcome": "pair", "split": "train", "mined": False}
    rejected, unpaired = pair | {"outcome": "quarantined"}, pair | {"outcome": "unpaired"}
    notes = [pair] * 12 + [rejected, unpaired, rejected | {"mined": True}, pair | {"split": "test"}] + [pair] * 11
    shards = [f"data/train-{shard:05d}-of-00003.parquet" for shard in range(3)]
    assert list(output._files_of(notes)) == [
        *[shards[0]] * 10, *[shards[1]] * 2,
        output.QUARANTINE, output.UNPAIRED, "", "data/test-00000-of-00001.parquet",
        *[shards[1]] * 8, *[shards[2]] * 3,
    ]  # fmt: skip
