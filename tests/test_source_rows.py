from __future__ import annotations

import io
import os
import pickle

import datasets
import pytest
from PIL import Image

from deepfashion_training.data.source_rows import SourceRows
from deepfashion_training.data.sources import open_splits, source_columns, source_fingerprint


def png(level: int) -> bytes:
    sink = io.BytesIO()
    Image.new("L", (4, 4), level).save(sink, "PNG")
    return sink.getvalue()


def dataset(levels: list[int]) -> datasets.Dataset:
    features = datasets.Features(
        {
            "images": datasets.Image(),
            "mask": datasets.Value("binary"),
            "cloth_type": datasets.ClassLabel(names=["Pants", "Skirts"]),
            "pid": datasets.Value("string"),
        }
    )
    rows = [
        {"images": {"bytes": png(n), "path": None}, "mask": png(n), "cloth_type": n % 2, "pid": f"id_{n}"}
        for n in levels
    ]
    return datasets.Dataset.from_list(rows, features=features)


COLUMNS = {"image": "images", "mask": "mask", "category": "cloth_type", "pid": "pid"}


def test_splits_follow_one_another_under_canonical_names():
    rows = SourceRows([dataset([1, 2]), dataset([3])], COLUMNS, "here")
    assert rows.texts() == {"category": ["Skirts", "Pants", "Skirts"], "pid": ["id_1", "id_2", "id_3"]}
    assert rows.pictures([2, 0]) == {"image": [png(3), png(1)], "mask": [png(3), png(1)]}
    assert pickle.loads(pickle.dumps(rows)).pictures([1])["image"] == [png(2)]


def test_a_cell_without_bytes_says_so(tmp_path):
    features = datasets.Features({"images": datasets.Image(), "mask": datasets.Image()})
    cells = [None, {"bytes": None, "path": str(tmp_path / "gone.png")}, {"bytes": b"", "path": None}]
    given = datasets.Dataset.from_dict({"images": cells, "mask": [{"bytes": png(1), "path": None}] * 3}, features)
    rows = SourceRows([given], {"image": "images", "mask": "mask"}, str(tmp_path))
    found = rows.pictures([0, 1, 2])["image"]
    assert found[0] == found[2] == "missing: the row holds no bytes"
    assert "gone.png" in found[1]


def test_a_column_that_holds_no_pictures_is_named():
    given = dataset([1]).add_column("number", [3])
    with pytest.raises(ValueError, match=r"column 'number' of here holds .* pictures are needed"):
        SourceRows([given], {"image": "images", "mask": "number"}, "here")


def test_the_fingerprint_changes_with_the_files(tmp_path):
    folder = tmp_path / "rows"
    (folder / "data").mkdir(parents=True)
    file = folder / "data" / "train-00000-of-00001.parquet"
    dataset([1, 2]).to_parquet(file)
    before = source_fingerprint(str(folder))
    (folder / "notes.txt").write_text("no rows")
    assert source_fingerprint(str(folder)) == before
    os.utime(file, ns=(1, 1))
    assert source_fingerprint(str(folder)) != before


def test_columns_are_known_without_reading_rows(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    dataset([1]).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert source_columns(str(tmp_path)) == ["images", "mask", "cloth_type", "pid"]


CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*.parquet\n---\n"


def test_a_folder_is_not_taken_for_another_of_its_name(tmp_path):
    counts = []
    for parent, levels in (("one", [1, 2]), ("two", [1, 2, 3])):
        folder = tmp_path / parent / "rows"
        (folder / "data").mkdir(parents=True)
        (folder / "README.md").write_text(CARD)
        dataset(levels).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        opened = open_splits(str(folder), check_columns=lambda *_: None, cache_dir=str(tmp_path / "cache"))
        counts.append(len(opened["train"]))
    assert counts == [2, 3]
