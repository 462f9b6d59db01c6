"""DeepFashionDataset on real parquet: sources, rows, samples, bad rows in real workers, and errors in one line."""

from __future__ import annotations

import functools
import io
import json
import logging
import multiprocessing
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from deepfashion_training.deepfashion_dataset import (
    BadRowLedger,
    DatasetOptions,
    DeepFashionDataset,
    TooManyBadRowsError,
)

SIZE = (32, 24)  # height, width
TENSORS = {"image": (3, 32, 48), "im_mask": (3, 32, 48), "inpaint_mask": (1, 32, 48), "cloth_pure": (3, 32, 24)}
EMPTY_MASK = "mask is empty: no pixel above half of its scale, so there is nothing to repaint"


@pytest.fixture(autouse=True, scope="session")
def _quiet_datasets(tmp_path_factory):
    """Progress bars off, and a cache of its own so that runs do not see each other's files."""
    datasets.disable_progress_bars()
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def encoded(colour: Any, box: tuple[int, int, int, int], ground: Any, size: tuple[int, int] = (24, 32)) -> bytes:
    picture = Image.new("L" if isinstance(ground, int) else "RGB", size, ground)
    picture.paste(colour, box)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def row(number: int, cloth_type: Any, **changed: Any) -> dict[str, Any]:
    """Row ``number``: its shade of grey tells the pictures of rows apart. Garment 8..16, mask 4..20 of 24x32."""
    shade = (number, number, number)
    cells = {
        "image": encoded(shade, (4, 8, 20, 28), (200, 210, 220)),
        "cloth": encoded(shade, (8, 4, 16, 28), (255, 255, 255)),
        "mask": encoded(255, (4, 8, 20, 28), 0),
        "caption": f"garment {number}",
        "cloth_type": cloth_type,
        "pid": f"id_{number // 2:08d}",
        "variant": "01",
        "view": "1_front",
        "garment_view": "6_flat",
    }
    return {**cells, **changed}


TYPES = (1, 1, 1, 1, 2, 2, 2, 3, 1, 2, 1, 1)  # upper 7, lower 4, full 1


def rows(types: tuple[Any, ...] = TYPES, first: int = 0) -> list[dict[str, Any]]:
    return [row(first + number, cloth_type) for number, cloth_type in enumerate(types)]


def table(cells: list[dict[str, Any]]) -> datasets.Dataset:
    data = datasets.Dataset.from_list(cells)
    for column in {"image", "cloth", "mask", "images", "mask_overlay"} & set(data.column_names):
        data = data.cast_column(column, datasets.Image())
    return data


def write(folder: Path, **splits: list[dict[str, Any]]) -> str:
    for name, cells in splits.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table(cells).to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return str(folder)


def with_bad(*bad: int, count: int = 12) -> list[dict[str, Any]]:
    """``count`` lower-body rows of which ``bad`` have an image that stops half-way."""
    cells = rows((2,) * count)
    for number in bad:
        cells[number]["image"] = cells[number]["image"][:60]
    return cells


def build(source: str, phase: str = "train", order: str = "paired", **options: Any) -> DeepFashionDataset:
    return DeepFashionDataset(source, phase, order, SIZE, options=DatasetOptions(**options))


def numbers(dataset: DeepFashionDataset) -> list[int]:
    """Row numbers that ``dataset`` serves, as its samples' captions tell them."""
    return [int(caption.split()[1]) for caption in dataset.captions()]


def shades(sample: dict[str, Any]) -> tuple[int, int]:
    """The grey levels in the middle of the garment and of the person."""
    levels = (sample["image"][0, 16, [12, 24 + 12]] + 1) * 127.5
    return round(levels[0].item()), round(levels[1].item())


# ---- samples ------------------------------------------------------------------------------------------------------


def test_sample_dict_is_the_documented_one(tmp_path):
    source = write(tmp_path, train=rows(), validation=rows(first=50))
    upstream_call = functools.partial(DeepFashionDataset, options=DatasetOptions())
    dataset = upstream_call(dataroot_path=source, phase="train", order="paired", size=SIZE, data_list="pairs.txt")
    sample = dataset[4]
    assert set(sample) == {*TENSORS, "cloth_mask", "c_name", "im_name", "caption_cloth", "cloth_type"}
    for name, shape in TENSORS.items():
        assert (tuple(sample[name].shape), sample[name].dtype) == (shape, torch.float32)
    assert shades(sample) == (4, 4)
    assert sample["caption_cloth"] == "garment 4"
    assert (sample["cloth_type"], type(sample["cloth_type"])) == (2, int)
    assert sample["im_name"] == "id_00000002/01_1_front/row-4"
    assert sample["c_name"] == "id_00000002/01_6_flat/row-4"
    assert sample["inpaint_mask"].sum() == 16 * 20
    assert sample["cloth_mask"].sum() == 8 * 24
    assert (sample["im_mask"][:, 8:28, 28:44] == 0).all()


def test_default_collate_makes_batches(tmp_path):
    batch = next(iter(DataLoader(build(write(tmp_path, train=rows(), validation=rows())), batch_size=3)))
    assert batch["image"].shape == (3, 3, 32, 48)
    assert batch["cloth_type"].tolist() == [1, 1, 1]
    assert batch["caption_cloth"] == ["garment 0", "garment 1", "garment 2"]


def test_indices_are_those_of_a_list(tmp_path):
    dataset = build(write(tmp_path, train=rows(), validation=rows()))
    assert len(dataset) == 12
    assert dataset[-1]["caption_cloth"] == dataset[np.int64(11)]["caption_cloth"] == "garment 11"
    for index in (12, -13):
        with pytest.raises(IndexError):
            dataset[index]
    assert [sample["caption_cloth"] for sample in dataset] == dataset.captions()


def test_names_with_no_provenance_tell_the_row(tmp_path):
    bare = [{name: cells[name] for name in ("image", "cloth", "mask", "caption", "cloth_type")} for cells in rows()]
    bare[3]["caption"] = None
    dataset = build(write(tmp_path, train=bare, validation=bare), cloth_types=(1,))
    assert [dataset[index]["im_name"] for index in (0, 4)] == ["row-0", "row-8"]
    assert dataset[3]["caption_cloth"] == ""


def test_resize_mode_reaches_the_layout(tmp_path):
    wide = [{**cells, "image": encoded((9, 9, 9), (0, 0, 9, 9), (50, 60, 70), (32, 24))} for cells in rows()]
    wide = [{**cells, "mask": encoded(255, (0, 0, 32, 24), 0, (32, 24))} for cells in wide]
    source = write(tmp_path, train=wide, validation=wide)
    # 32x24 in 24x32: padded to 24x18, 7 rows above and below
    assert build(source)[0]["inpaint_mask"].sum() == 24 * 18
    assert build(source, resize_mode="stretch")[0]["inpaint_mask"].sum() == 24 * 32


def test_unpaired_garments_come_from_other_people_of_the_same_type(tmp_path):
    dataset = build(write(tmp_path, train=rows(), validation=rows()), order="unpaired")
    worn = numbers(dataset)
    assert sorted(worn) == list(range(12))
    assert worn == numbers(build(dataset.source, order="unpaired"))
    for person, garment in enumerate(worn):
        assert TYPES[garment] == TYPES[person]
        assert (garment // 2 != person // 2) or TYPES[person] == 3  # a single full-body row has no other
        assert shades(dataset[person]) == (garment, person)
    assert dataset[0]["c_name"].endswith(f"row-{worn[0]}")
    assert dataset[0]["im_name"].endswith("row-0")


# ---- sources ------------------------------------------------------------------------------------------------------


def as_data_folder(folder: Path) -> None:
    write(folder, train=rows(), validation=rows((2, 3), first=50))
    (folder / "report.json").write_text("{}")
    table(rows((1,), first=99)).to_parquet(folder / "quarantine.parquet")


def as_files_in_the_root(folder: Path) -> None:
    folder.mkdir()
    table(rows()).to_parquet(folder / "train.parquet")
    table(rows((2, 3), first=50)).to_parquet(folder / "validation.parquet")


def as_saved_dict(folder: Path) -> None:
    splits = {"train": table(rows()), "validation": table(rows((2, 3), first=50))}
    datasets.DatasetDict(splits).save_to_disk(folder)


@pytest.mark.parametrize("form", [as_data_folder, as_files_in_the_root, as_saved_dict])
def test_every_form_of_source_holds_the_same_rows(tmp_path, form):
    form(tmp_path / "it's here")
    train, test = (build(str(tmp_path / "it's here"), phase) for phase in ("train", "test"))
    assert numbers(train) == list(range(12))
    assert numbers(test) == [50, 51]
    assert shades(test[1]) == (51, 51)
    reference = build(write(tmp_path / "reference", train=rows(), validation=rows()))
    assert train.summary()["fingerprint"] == reference.summary()["fingerprint"]


def test_a_saved_dataset_is_the_train_split(tmp_path):
    table(rows((2,) * 60)).save_to_disk(tmp_path / "saved")
    train, test = (build(str(tmp_path / "saved"), phase) for phase in ("train", "test"))
    assert len(test) >= 1
    assert sorted(numbers(train) + numbers(test)) == list(range(60))
    assert shades(train[0]) == (numbers(train)[0],) * 2


def test_plain_parquet_with_no_features_of_datasets(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    plain = [{**cells, "image": {"bytes": cells["image"]}, "cloth_type": "lower"} for cells in rows()]
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        pyarrow.parquet.write_table(pa.Table.from_pylist(plain), tmp_path / "data" / f"{split}.parquet")
    dataset = build(str(tmp_path))
    assert dataset.cloth_types() == [2] * 12
    assert shades(dataset[7]) == (7, 7)


def test_class_labels_are_read_by_name(tmp_path):
    labels = datasets.ClassLabel(names=["full", "lower", "upper"])
    data = table(rows((0, 1, 2))).cast_column("cloth_type", labels)
    datasets.DatasetDict(train=data, validation=data).save_to_disk(tmp_path / "saved")
    assert build(str(tmp_path / "saved")).cloth_types() == [3, 2, 1]


def test_labels_in_other_tools_words_and_one_that_has_no_name(tmp_path):
    labels = datasets.ClassLabel(names=["upper_body", "lower_body", "dresses"])
    data = table(rows((0, 1, 2))).cast_column("cloth_type", labels)
    datasets.DatasetDict(train=data, validation=data).save_to_disk(tmp_path / "saved")
    assert build(str(tmp_path / "saved")).cloth_types() == [1, 2, 3]
    data = data.map(lambda cells: {"cloth_type": -1}, features=data.features)
    datasets.DatasetDict(train=data, validation=data).save_to_disk(tmp_path / "unnamed")
    assert "row 0" in error_of(lambda: build(str(tmp_path / "unnamed")))


def test_types_of_mixed_forms_and_categories_that_the_caption_decides(tmp_path):
    mixed = ["1", "Lower Body", "3.0", "dresses", "Skirts", "Denim"]
    cells = [row(number, kind, caption="A denim skirt.") for number, kind in enumerate(mixed)]
    source = write(tmp_path, train=cells, validation=cells)
    assert build(source).cloth_types() == [1, 2, 3, 3, 2, 2]


# ---- which rows ---------------------------------------------------------------------------------------------------


def test_types_are_filtered_and_counted(tmp_path):
    source = write(tmp_path, train=rows(tuple(float(number) for number in TYPES)), validation=rows())
    dataset = build(source, cloth_types=(2, 3))
    assert numbers(dataset) == [4, 5, 6, 7, 9]
    assert dataset.cloth_types() == [2, 2, 2, 3, 2]
    assert shades(dataset[4]) == (9, 9)


def test_maximum_keeps_every_type_of_its_own_split(tmp_path):
    source = write(tmp_path, train=rows(), validation=rows(first=50))
    options = {"max_train_samples": 5, "max_validation_samples": 3}
    train, test = build(source, "train", **options), build(source, "test", **options)
    assert Counter(train.cloth_types()) == {1: 3, 2: 1, 3: 1}
    assert sorted(test.cloth_types()) == [1, 2, 3]
    assert numbers(train) == sorted(numbers(train))
    assert numbers(train) == numbers(build(source, "train", **options))
    assert {tuple(numbers(build(source, "train", split_seed=seed, **options))) for seed in range(5)} != {
        tuple(numbers(train))
    }


def test_balanced_weights_draw_each_type_as_often(tmp_path):
    source = write(tmp_path, train=rows(), validation=rows())
    assert build(source).sampling_weights() is None
    weights = build(source, balance_cloth_types=True).sampling_weights()
    # A third of the mass to each of 7 upper, 4 lower and 1 full-body rows.
    assert weights == pytest.approx([{1: 1 / 21, 2: 1 / 12, 3: 1 / 3}[number] for number in TYPES])


def test_shares_of_types_at_first_and_in_the_end(tmp_path):
    source = write(tmp_path, train=rows(), validation=rows((1, 2)))
    data = build(source, cloth_type_shares=(0, 2, 2), final_cloth_type_shares=(1, 0, 3))
    assert data.sampling_weights() == pytest.approx([{1: 0, 2: 1 / 8, 3: 1 / 2}[number] for number in TYPES])
    assert data.final_sampling_weights() == pytest.approx([{1: 1 / 28, 2: 0, 3: 3 / 4}[number] for number in TYPES])
    assert build(source, balance_cloth_types=True).final_sampling_weights() is None


@pytest.mark.parametrize("flag", ["cloth_type_shares", "final_cloth_type_shares"])
def test_a_share_of_a_type_without_rows_is_refused(flag, tmp_path):
    source = write(tmp_path, train=rows((1, 1, 2)), validation=rows((1, 2)))
    with pytest.raises(ValueError, match=f"--{flag} .*full"):
        build(source, **{flag: (1, 1, 1)})
    assert build(source, **{flag: (1, 1, 0)}).cloth_types() == [1, 1, 2]
    assert build(source, "test", **{flag: (1, 1, 1)}).cloth_types() == [1, 2]  # nothing is drawn from it


def test_derived_split_is_by_person_and_stays_when_rows_are_appended(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source = write(tmp_path / "a", train=rows((1,) * 100))
    options = {"validation_fraction": 0.2}
    train, test = (numbers(build(source, phase, **options)) for phase in ("train", "test"))
    assert sorted(train + test) == list(range(100))
    assert not {number // 2 for number in train} & {number // 2 for number in test}
    assert 4 <= len(test) <= 40
    assert f"has no split 'validation': {len(test)} rows of 'train' are held out" in caplog.text

    longer = write(tmp_path / "b", train=rows((1,) * 130))
    train_longer, test_longer = (numbers(build(longer, phase, **options)) for phase in ("train", "test"))
    assert [number for number in train_longer if number < 100] == train
    assert [number for number in test_longer if number < 100] == test
    assert numbers(build(source, "test", validation_fraction=0.2, split_seed=1)) != test


def test_derived_split_without_people_is_by_row(tmp_path):
    anonymous = [{name: value for name, value in cells.items() if name != "pid"} for cells in rows((1,) * 40)]
    source = write(tmp_path, train=anonymous)
    train, test = (numbers(build(source, phase)) for phase in ("train", "test"))
    assert sorted(train + test) == list(range(40))
    assert min(len(train), len(test)) >= 1


# ---- facts --------------------------------------------------------------------------------------------------------


def test_summary_is_ready_for_json_and_its_fingerprint_follows_the_content(tmp_path):
    one = build(write(tmp_path / "one", train=rows(), validation=rows()))
    summary = json.loads(json.dumps(one.summary()))
    assert summary["rows"] == 12
    assert summary["split"] == "train"
    assert summary["by_type"] == {"upper": 7, "lower": 4, "full": 1}
    assert summary["bad_rows"] == []
    assert summary["options"]["cloth_types"] == [1, 2, 3]
    assert summary["options"]["resize_mode"] == "pad"

    same = build(write(tmp_path / "same", train=rows(), validation=rows(first=9)))
    assert same.summary()["fingerprint"] == summary["fingerprint"]
    for name, value in {"caption": "other", "cloth_type": 3, "mask": encoded(255, (4, 8, 20, 27), 0)}.items():
        changed = rows()
        changed[5] = {**changed[5], name: value}
        other = build(write(tmp_path / name, train=changed, validation=rows()))
        assert other.summary()["fingerprint"] != summary["fingerprint"]


def test_captions_and_types_open_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened a picture"))
    dataset = build(write(tmp_path, train=with_bad(0, 1, 2), validation=rows()))
    assert dataset.captions()[:2] == ["garment 0", "garment 1"]
    assert dataset.cloth_types() == [2] * 12


def test_pickled_copies_read_the_same(tmp_path):
    dataset = build(write(tmp_path, train=rows(), validation=rows()))
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3]["im_mask"], dataset[3]["im_mask"])
    assert copy.summary() == dataset.summary()


# ---- bad rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_skipped_counted_and_named(tmp_path, workers):
    source = write(tmp_path, train=with_bad(3, 4, 11), validation=rows())
    dataset = build(source, max_bad_rows=0.25)
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, multiprocessing_context="fork" if workers else None)
    for _ in range(2):  # a second epoch neither counts twice nor reads otherwise
        read = [caption for batch in loader for caption in batch["caption_cloth"]]
        assert read == [f"garment {number}" for number in (0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10, 0)]
        skipped = dataset.skipped_rows
        assert [entry["row"] for entry in skipped] == [3, 4, 11]
        assert all(entry["reason"].startswith("image: not readable as a picture: ") for entry in skipped)
    assert dataset.summary()["bad_rows"] == skipped


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_rows_stop_the_run(tmp_path, workers):
    source = write(tmp_path, train=with_bad(1, 6, 9), validation=rows())
    dataset = build(source, max_bad_rows=0.2)  # 2 of 12 pass, a third is above 2.4
    loader = DataLoader(dataset, num_workers=workers, multiprocessing_context="fork" if workers else None)
    errors, samples = [], iter(loader)
    while True:  # to the end, since a loader that is left half-way keeps its workers for ten seconds
        try:
            next(samples)
        except TooManyBadRowsError as error:
            errors.append(str(error))
        except StopIteration:
            break
    assert errors
    last_line = errors[-1].strip().splitlines()[-1]
    assert "3 of 12 rows (25.0%)" in last_line
    assert "max_bad_rows 0.2 allows 2.4: row 1: " in last_line
    for number in (1, 6, 9):
        assert f"row {number}: image: not readable as a picture" in last_line
    assert last_line.endswith("raise --max_bad_rows.")
    assert [entry["row"] for entry in dataset.skipped_rows] == [1, 6, 9]


def test_bad_rows_that_two_processes_meet_at_once_stop_the_run(tmp_path, monkeypatch):
    dataset = build(write(tmp_path, train=with_bad(1, 6), validation=rows()), max_bad_rows=0.1)  # 1 of 12 passes
    plain = BadRowLedger.record

    def beside_another(self, row, reason):
        plain(self, 6, "as another process met it")
        plain(self, row, reason)

    monkeypatch.setattr(BadRowLedger, "record", beside_another)
    with pytest.raises(TooManyBadRowsError, match="2 of 12 rows"):
        dataset[1]


def test_no_bad_row_allowed_still_names_it(tmp_path):
    dataset = build(write(tmp_path, train=with_bad(5), validation=rows()), max_bad_rows=0.0)
    assert dataset[4]["caption_cloth"] == "garment 4"
    with pytest.raises(TooManyBadRowsError, match="row 5: image: not readable"):
        dataset[5]


def test_the_substitute_is_of_the_same_type_and_depends_on_the_index_only(tmp_path):
    cells = rows()
    cells[6]["image"] = b"broken"
    dataset = build(write(tmp_path, train=cells, validation=rows()), max_bad_rows=0.5)
    assert [dataset[6]["caption_cloth"] for _ in range(2)] == ["garment 9"] * 2  # the next lower-body row
    cells[7]["mask"] = b""  # the only full-body row
    dataset = build(write(tmp_path / "full", train=cells, validation=rows()), max_bad_rows=0.5)
    with pytest.raises(TooManyBadRowsError, match="no row of that garment type is left to read: row 7: mask: missing"):
        dataset[7]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"image": None}, "image: missing: the row holds no bytes"),
        ({"cloth": b"no picture"}, "cloth: not readable as a picture: none of JPEG, PNG"),
        ({"mask": encoded(255, (0, 0, 0, 0), 0)}, EMPTY_MASK),
        ({"mask": encoded(255, (0, 0, 9, 9), 0, (32, 32))}, "mask of 32x32 on a photo of 24x32: another aspect"),
        ({"image": encoded((0, 0, 0), (0, 0, 0, 0), (0, 0, 0), (48, 64))}, None),  # the same aspect is fine
    ],
)
def test_reasons_for_a_bad_row(tmp_path, changed, reason):
    cells = rows()
    cells[2] = {**cells[2], **changed}
    dataset = build(write(tmp_path, train=cells, validation=rows()), max_bad_rows=0.5)
    assert dataset[2]["caption_cloth"] == ("garment 3" if reason else "garment 2")
    assert [entry["reason"].startswith(reason) for entry in dataset.skipped_rows] == ([True] if reason else [])


def test_a_decompression_bomb_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32)
    cells = rows()
    cells[2]["image"] = encoded((0, 0, 0), (0, 0, 0, 0), (0, 0, 0), (240, 320))
    dataset = build(write(tmp_path, train=cells, validation=rows()), max_bad_rows=0.5)
    assert dataset[2]["caption_cloth"] == "garment 3"
    assert "above the limit of 768" in dataset.skipped_rows[0]["reason"]


def test_unpaired_names_the_row_that_owns_the_broken_garment(tmp_path):
    cells = rows((1,) * 6)
    cells[3]["cloth"] = b"broken"
    dataset = build(write(tmp_path, train=cells, validation=rows()), order="unpaired", max_bad_rows=0.5)
    wearer = numbers(dataset).index(3)
    assert shades(dataset[wearer])[1] == (wearer + 1) % 6
    assert [entry["row"] for entry in dataset.skipped_rows] == [3]


@pytest.mark.long
def test_spawned_workers_read_and_report_too(tmp_path):
    dataset = build(write(tmp_path, train=with_bad(0), validation=rows()), max_bad_rows=0.1)
    context = multiprocessing.get_context("spawn")
    loader = DataLoader(dataset, batch_size=12, num_workers=1, multiprocessing_context=context)
    assert next(iter(loader))["caption_cloth"][:2] == ["garment 1", "garment 1"]
    assert [entry["row"] for entry in dataset.skipped_rows] == [0]


# ---- errors -------------------------------------------------------------------------------------------------------


def error_of(call: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["val", "valid", "dev"])
def test_a_validation_split_of_another_name_is_never_left_unread(tmp_path: Path, name: str) -> None:
    source = write(tmp_path, train=rows(), **{name: rows(first=50)})
    assert f"--validation_split {name}" in error_of(lambda: build(source))
    assert len(build(source, "test", validation_split=name)) == len(rows())


def test_raw_schema_is_sent_to_prepare_before_anything_is_converted(tmp_path, monkeypatch):
    raw = [
        {
            "images": row(0, 1)["image"],
            "gender": "WOMEN",
            "pose": "01_1_front",
            "cloth_type": "Dresses",
            "pid": "id_00000000",
            "caption": "a dress",
            "mask": row(0, 1)["mask"],
            "mask_overlay": row(0, 1)["image"],
        }
    ]
    source = write(tmp_path, train=raw)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("converted"))
    message = error_of(lambda: build(source))
    assert f"python -m deepfashion_training.prepare --dataset_name {source} --output_dir OUT" in message
    assert "lacks the columns image, cloth" in message


def test_misnamed_column_in_saved_data(tmp_path):
    table(rows()).rename_column("caption", "captions").save_to_disk(tmp_path / "saved")
    assert "lacks the columns caption: found" in error_of(lambda: build(str(tmp_path / "saved")))


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    assert error_of(lambda: build(str(tmp_path / "nowhere"))).startswith(f"no such folder: {tmp_path}/nowhere")
    (tmp_path / "notes.txt").write_text("")
    assert f"{tmp_path} holds no dataset" in error_of(lambda: build(str(tmp_path)))
    assert "no such folder" in error_of(lambda: build(str(tmp_path / "notes.txt")))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 is not enough")
    assert "cannot read the dataset in" in error_of(lambda: build(str(tmp_path)))


def test_a_hub_id_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    message = error_of(lambda: build("somebody/something"))
    assert message.startswith("--dataset_name somebody/something: ") and "Hub" in message
    assert f"{tmp_path / 'somebody' / 'something'} is no folder" in message


def test_empty_splits(tmp_path):
    full, empty = table(rows()), table(rows()).select([])
    source = write(tmp_path / "parquet", train=rows())
    file = tmp_path / "parquet" / "data" / "validation-00000-of-00001.parquet"
    empty.to_parquet(file)
    assert f"{tmp_path}/parquet, in which a split may be empty" in error_of(lambda: build(source, "test"))

    datasets.DatasetDict(train=full, validation=empty).save_to_disk(tmp_path / "saved")
    assert f"{tmp_path}/saved, in which a split may be empty" in error_of(
        lambda: build(str(tmp_path / "saved"), "test")
    )


def test_a_split_of_another_name(tmp_path):
    datasets.DatasetDict(fold_1=table(rows())).save_to_disk(tmp_path / "odd")
    assert "has no split 'train', only fold_1" in error_of(lambda: build(str(tmp_path / "odd")))
    assert len(build(str(tmp_path / "odd"), train_split="fold_1")) > 0


def test_no_row_of_the_chosen_types(tmp_path):
    source = write(tmp_path, train=rows((1, 3)), validation=rows((2,)))
    message = error_of(lambda: build(source, cloth_types=(2,)))
    assert "no row of the chosen garment types (lower) for phase 'train' in split 'train'" in message
    assert message.endswith("which has upper, full")


def test_one_person_cannot_be_split(tmp_path):
    source = write(tmp_path, train=rows((1, 1)))
    message = error_of(lambda: build(source))
    assert "2 row(s)" in message and "another person (pid)" in message
    assert message.endswith("--validation_split train")
    assert len(build(source, validation_split="train")) == len(build(source, "test", validation_split="train")) == 2


@pytest.mark.parametrize("saved", [False, True])
def test_a_cache_that_cannot_be_written_to_is_named_as_that(tmp_path, monkeypatch, saved):
    source = write(tmp_path / "rows", train=rows((1, 3)), validation=rows((2,)))
    if saved:  # such a folder is read as it is
        datasets.load_dataset(source, cache_dir=str(tmp_path / "cache")).save_to_disk(tmp_path / "saved")
    (tmp_path / "file").touch()
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "datasets")
    if saved:
        assert len(build(str(tmp_path / "saved"))) == 2
    else:
        message = error_of(lambda: build(source))
        assert message.startswith(f"the cache {tmp_path / 'file' / 'datasets'} ") and message.endswith("HF_HOME")


@pytest.mark.parametrize("value", [4, "Hats", None, 1.5])
def test_an_unknown_type_is_named_with_its_row(tmp_path, value):
    kind = float if isinstance(value, float) else type(value) if value is not None else int
    types = tuple("upper" if kind is str else kind(1) for _ in range(3))
    source = write(tmp_path, train=rows((*types, value)), validation=rows())
    assert error_of(lambda: build(source)).startswith(
        f"cloth_type in row 3 of {source}: unknown garment type {value!r}"
    )


def test_picture_columns_must_hold_pictures(tmp_path):
    data = datasets.Dataset.from_list([{**cells, "mask": 1} for cells in rows()])
    data.save_to_disk(tmp_path / "saved")
    assert "column 'mask' of" in error_of(lambda: build(str(tmp_path / "saved")))


@pytest.mark.parametrize(("name", "value"), [("phase", "val"), ("order", "mixed")])
def test_arguments_out_of_range(tmp_path, name, value):
    source = write(tmp_path, train=rows())
    message = error_of(lambda: DeepFashionDataset(**{"dataroot_path": source, "size": SIZE, name: value}))
    assert message.startswith(f"{name} {value!r}: use ")


def test_a_picture_file_named_by_its_path(tmp_path):
    cells = rows()
    photo = cells[0]["image"]
    for number, cell in enumerate(cells):
        cell["image"] = "photo.png" if number == 0 else str(tmp_path / "saved" / "gone.png")
    data = datasets.Dataset.from_list(cells)
    datasets.DatasetDict(train=data, validation=data).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "photo.png").write_bytes(photo)
    dataset = build(str(tmp_path / "saved"), max_bad_rows=1.0)
    assert shades(dataset[0]) == (0, 0)
    assert dataset[1]["caption_cloth"] == "garment 0"
    assert f"image: the file '{tmp_path / 'saved' / 'gone.png'}'" in dataset.skipped_rows[0]["reason"]
