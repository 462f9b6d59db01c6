from __future__ import annotations

from itertools import pairwise

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from deepfashion_training.data.shards import ShardWriter

FEATURES = datasets.Features({"number": datasets.Value("int64"), "text": datasets.Value("string")})
SCHEMA = FEATURES.arrow_schema


def write(folder, cuts):
    folder.mkdir()
    writer = ShardWriter(folder, "train", 23, SCHEMA, shard_rows=10, group_rows=4)
    for start, end in pairwise(cuts):
        rows = [{"text": str(number), "other": 1, "number": number} for number in range(start, end)]
        writer.add(pa.Table.from_pylist(rows))
    writer.close()
    return sorted(folder.iterdir())


def test_rows_come_in_numbered_files_and_row_groups(tmp_path):
    files = write(tmp_path / "out", [0, 23])
    assert [file.name for file in files] == [f"train-{shard:05d}-of-00003.parquet" for shard in range(3)]
    groups = [pq.ParquetFile(file).metadata for file in files]
    assert [[group.row_group(i).num_rows for i in range(group.num_row_groups)] for group in groups] == [
        [4, 4, 2],
        [4, 4, 2],
        [3],
    ]
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert loaded["number"][:] == list(range(23)) and loaded.features == FEATURES


def test_the_bytes_do_not_depend_on_how_rows_arrive(tmp_path):
    one = write(tmp_path / "one", [0, 23])
    for number, cuts in enumerate(([0, 1, 2, 3, 23], [0, 9, 10, 11, 22, 23], list(range(24)))):
        other = write(tmp_path / str(number), cuts)
        assert [file.read_bytes() for file in other] == [file.read_bytes() for file in one]


def test_a_split_without_rows_makes_no_file(tmp_path):
    writer = ShardWriter(tmp_path, "test", 0, SCHEMA, shard_rows=10, group_rows=4)
    writer.close()
    assert list(tmp_path.iterdir()) == []
