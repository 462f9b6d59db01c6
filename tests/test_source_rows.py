from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

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


# Folders as other programs and other people leave them -------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1460000000\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows in two files of one split."""
    (tmp_path / "rows" / "data").mkdir(parents=True)
    for number in (0, 1):
        dataset([number + 1]).to_parquet(tmp_path / "rows" / "data" / f"train-0000{number}-of-00002.parquet")
    return tmp_path / "rows"


def opened(folder: Path) -> dict[str, datasets.Dataset]:
    return open_splits(str(folder), check_columns=lambda *_: None, cache_dir=str(folder.parent / "cache"))


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("place", ["data", "."])
def test_what_other_programs_leave_beside_rows_is_no_data(folder, place):
    if place == ".":
        for file in (folder / "data").iterdir():
            file.rename(folder / file.name)
        (folder / "data").rmdir()
    before = source_fingerprint(str(folder))
    name = "train-00000-of-00002.parquet"
    shadows = (f"._{name}", f".ipynb_checkpoints/{name}", f"@eaDir/{name}/x", f"@eaDir/1/{name}")
    for left in (*shadows, ".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / place / left).parent.mkdir(parents=True, exist_ok=True)
        (folder / place / left).write_bytes(b"\0\5\x16\7")
    (folder / ".DS_Store").write_bytes(b"Bud1")
    splits = opened(folder)
    assert splits["train"]["pid"] == ["id_1", "id_2"]
    assert source_fingerprint(str(folder)) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "git lfs pull"),
        (b"", "empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"PAR1 and no more", "cut short"),
    ],
)
def test_a_file_that_is_no_parquet_is_named_with_what_it_is(folder, content, said):
    file = folder / "data" / "train-00001-of-00002.parquet"
    file.write_bytes(content)
    assert str(file) in refused(folder) and said in refused(folder)


def test_parquet_that_is_cut_short_damaged_inside_or_a_link_to_nothing_is_named(folder):
    file = folder / "data" / "train-00001-of-00002.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert str(file) in refused(folder)
    file.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    assert str(file) in refused(folder)
    file.unlink()
    file.symlink_to(folder / "gone")
    assert f"{file} is a link to nothing" in refused(folder)


@pytest.mark.parametrize("card", [False, True])
def test_a_file_with_other_columns_is_named_with_the_column(folder, card):
    file = folder / "data" / "train-00001-of-00002.parquet"
    if card:
        (folder / "README.md").write_text(CARD)
    dataset([2]).add_column("rating", [0.5]).to_parquet(file)
    assert str(file) in refused(folder) and "'rating'" in refused(folder)
    dataset([2]).remove_columns("pid").to_parquet(file)
    assert str(file) in refused(folder) and "'pid'" in refused(folder)


def test_a_file_with_a_column_of_another_type_is_named_with_column_and_types(folder, capfd):
    file = folder / "data" / "train-00001-of-00002.parquet"
    numbers = dataset([1]).remove_columns("cloth_type").add_column("cloth_type", [1])
    numbers.to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    dataset([2]).remove_columns("cloth_type").add_column("cloth_type", ["full"]).to_parquet(file)
    capfd.readouterr()
    said = refused(folder)
    assert all(part in said for part in (str(file), "'cloth_type'", "string", "int64"))
    assert "huggingface" not in capfd.readouterr().err  # no schemas on the screen


@pytest.mark.parametrize("other", ["column", "type"])
def test_a_file_of_a_hub_dataset_that_differs_is_named(folder, monkeypatch, capfd, other):
    load, build = datasets.load_dataset, datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, cache_dir, **__: load(str(folder), cache_dir=cache_dir))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, cache_dir, **__: build(str(folder)))
    file = folder / "data" / "train-00001-of-00002.parquet"
    rows = dataset([1]).remove_columns("cloth_type").add_column("cloth_type", [1])
    rows.to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    changed = rows.add_column("rating", [0.5])
    if other == "type":
        changed = rows.remove_columns("cloth_type").add_column("cloth_type", ["full"])
    changed.to_parquet(file)
    capfd.readouterr()
    with pytest.raises(ValueError) as caught:
        open_splits("some/rows", check_columns=lambda *_: None, cache_dir=str(folder.parent / "cache"))
    said = str(caught.value)
    assert str(file) in said and {"column": "'rating'", "type": "'cloth_type'"}[other] in said and "\n" not in said
    assert "huggingface" not in capfd.readouterr().err


def test_types_that_become_one_another_are_no_difference(folder):
    wide = dataset([1]).remove_columns("cloth_type").add_column("cloth_type", [1])
    wide.to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    narrow = dataset([2]).remove_columns("cloth_type").add_column("cloth_type", [2])
    narrow = narrow.cast_column("cloth_type", datasets.Value("int8"))
    narrow.to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    assert opened(folder)["train"]["cloth_type"] == [1, 2]


def test_a_pointer_in_a_saved_dataset_is_named(tmp_path):
    datasets.DatasetDict(train=dataset([1, 2])).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / ".DS_Store").write_bytes(b"Bud1")
    assert len(opened(tmp_path / "saved")["train"]) == 2
    (file,) = (tmp_path / "saved").rglob("*.arrow")
    whole = file.read_bytes()
    file.write_bytes(POINTER)
    assert str(file) in refused(tmp_path / "saved")
    file.write_bytes(whole[:200])
    assert "saved" in refused(tmp_path / "saved")
