from __future__ import annotations

from typing import Any

import datasets
import pyarrow.parquet as pq

from deepfashion_training.data.schema import PAIR_COLUMNS
from deepfashion_training.preparation import output


def pairs(first: int, last: int) -> list[dict[str, Any]]:
    texts = {name: "x" for name, kind in PAIR_COLUMNS.items() if kind == "string"}
    pictures = {name: None for name, kind in PAIR_COLUMNS.items() if kind == "image"}
    return [{**texts, **pictures, "cloth_type": 1, "source_row": row, "other": 1} for row in range(first, last)]


def test_rows_of_a_split_come_in_numbered_files(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "SHARD_ROWS", 10)
    for split, total in (("train", 23), ("test", 0)):
        writer = output._SplitWriter(tmp_path, split, total)
        for first in range(0, total, 4):
            writer.add(pairs(first, min(first + 4, total)))
        writer.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"train-{shard:05d}-of-00003.parquet" for shard in range(3)]
    assert [pq.read_metadata(file).num_rows for file in files] == [10, 10, 3]
    loaded = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["source_row"][:] == list(range(23)) and loaded.column_names == list(PAIR_COLUMNS)
    assert isinstance(loaded.features["image"], datasets.Image)
