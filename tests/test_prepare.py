"""The command `prepare`, from raw rows to a folder that loads and trains."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import writing
from huggingface_hub import DatasetCard
from PIL import Image

from deepfashion_training import prepare as command
from deepfashion_training.data.sampling import split_of
from deepfashion_training.data.schema import DOCUMENTED_COLUMNS, PROVENANCE_COLUMNS
from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset
from deepfashion_training.embedded import DRAWN_PARSER
from deepfashion_training.embedded.rows import raw_row, raw_specs
from deepfashion_training.embedded.wardrobe import wardrobe_features, write_wardrobe
from deepfashion_training.images.quality import REASONS, UNPAIRED_REASONS, Gates
from deepfashion_training.preparation import make_pairs, pair_plan, workers
from deepfashion_training.preparation.garment_views import DRESSED_BY
from deepfashion_training.preparation.make_pairs import prepare
from deepfashion_training.preparation.pair_plan import PlannedRow, Settings
from training_run import lock

ROOT = Path(__file__).resolve().parents[1]
ROWS, SIZE = 120, (192, 144)
#: The drawn pictures here are small, so that garments are too.
SMALL = Gates(min_garment_px=18)
SETTINGS = Settings(gates=SMALL, validation_share=0.15, test_share=0.15)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_wardrobe(tmp_path_factory.mktemp("raw") / "rows", "hub", ROWS, seed=3, size=SIZE)


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory) -> Path:
    folder, _, made = prepare(str(raw), tmp_path_factory.mktemp("pairs") / "out", SETTINGS)
    assert made
    return folder


def load(folder: Path) -> datasets.DatasetDict:
    return datasets.load_dataset(str(folder))


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def data_bytes(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "data").iterdir(), folder / "quarantine.parquet", folder / "unpaired.parquet"]
    return {file.name: file.read_bytes() for file in files}


def write_raw(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "data").mkdir(parents=True)
    features = wardrobe_features("hub")
    extra = {name: datasets.Image() for name in rows[0] if name not in features}
    made = datasets.Dataset.from_list(rows, features=datasets.Features({**features, **extra}))
    made.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def encoded(picture: Image.Image, kind: str = "PNG") -> dict[str, Any]:
    sink = io.BytesIO()
    picture.save(sink, kind)
    return {"bytes": sink.getvalue(), "path": f"x.{kind.lower()}"}


def drawn(count: int) -> list[dict[str, Any]]:
    return [dict(row) for row in _sixty_rows()[:count]]


@functools.cache
def _sixty_rows() -> list[dict[str, Any]]:
    return [raw_row(spec, SIZE) for spec in raw_specs(60, 5)]


def test_every_row_is_a_pair_quarantined_or_unpaired(prepared):
    facts = facts_of(prepared)
    assert facts["rows_in"] == ROWS
    assert facts["pairs"] + sum(facts["quarantined"].values()) + facts["unpaired"] == ROWS
    seen = [row for split in load(prepared).values() for row in split["source_row"][:]]
    for name in ("quarantine", "unpaired"):
        seen += pq.read_table(prepared / f"{name}.parquet")["source_row"].to_pylist()
    assert sorted(seen) == list(range(ROWS))
    assert facts["pairs"] > 0.5 * ROWS
    assert set(facts["quarantined"]) <= set(REASONS) and set(facts["unpaired_reasons"]) <= set(UNPAIRED_REASONS)


def test_what_is_written_is_the_documented_schema(prepared):
    for split in load(prepared).values():
        assert split.column_names == [*DOCUMENTED_COLUMNS, *PROVENANCE_COLUMNS]
        assert all(isinstance(split.features[name], datasets.Image) for name in ("image", "cloth", "mask"))


def test_pairs_keep_photo_and_person_of_their_row(raw, prepared):
    source = load(raw)["train"].cast_column("images", datasets.Image(decode=False))
    for row in load(prepared)["train"].cast_column("image", datasets.Image(decode=False)).select(range(20)):
        told = source[row["source_row"]]
        assert row["image"]["bytes"] == told["images"]["bytes"]
        assert (row["pid"], row["category"], row["gender"], row["caption"]) == (
            *(told[name] for name in ("pid", "cloth_type", "gender", "caption")),
        )
        assert told["pose"] == f"{row['variant']}_{told['pose'].split('_')[1]}_{row['view']}"


def test_garments_come_from_the_same_outfit_in_a_fitting_view(raw, prepared):
    source = load(raw)["train"].select_columns(["pid", "pose", "cloth_type", "gender"])[:]
    has_flat = {
        (pid, pose[:2]) for pid, pose in zip(source["pid"], source["pose"], strict=True) if pose.endswith("flat")
    }
    counted: Counter[str] = Counter()
    for split, rows in load(prepared).items():
        rows = rows.remove_columns(["image", "cloth", "mask"])
        for row in rows:
            counted[row["garment_source"]] += 1
            if row["garment_source"] == "flat":
                assert row["garment_view"] == "flat" and (row["pid"], row["variant"]) in has_flat
            else:
                assert (row["pid"], row["variant"]) not in has_flat
            if row["garment_source"] == "cross_view":
                assert row["garment_view"] in DRESSED_BY[row["view"]]
            if row["garment_source"] == "same_photo":
                assert split == "train"
    assert counted["flat"] and counted["cross_view"]
    train = Counter(load(prepared)["train"]["garment_source"][:])
    assert train["same_photo"] <= 0.25 * train.total()


def test_flat_garments_are_the_stored_pictures_and_cut_outs_lie_on_white(raw, prepared):
    source = load(raw)["train"].cast_column("images", datasets.Image(decode=False))
    flats = {(row["pid"], row["pose"][:2]): row["images"]["bytes"] for row in source if row["pose"].endswith("flat")}
    for row in load(prepared)["train"].cast_column("cloth", datasets.Image(decode=False)):
        if row["garment_source"] == "flat":
            assert row["cloth"]["bytes"] == flats[row["pid"], row["variant"]]
        else:
            garment = np.asarray(Image.open(io.BytesIO(row["cloth"]["bytes"])))
            assert garment[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 250


def test_a_person_is_in_the_split_of_its_hash(prepared):
    splits = load(prepared)
    assert set(splits) == {"train", "validation", "test"}
    for split, rows in splits.items():
        assert {split_of(pid, 0.15, 0.15, 0) for pid in rows["pid"][:]} == {split}


def test_masks_cover_more_than_the_garment_and_less_than_the_picture(prepared):
    for row in load(prepared)["train"].select(range(20)):
        mask = np.asarray(row["mask"])
        assert mask.shape == (SIZE[0], SIZE[1]) and set(np.unique(mask)) == {0, 255}
        assert 0.03 < (mask > 0).mean() < 0.7


def test_the_folder_trains(prepared):
    options = DatasetOptions(max_bad_rows=0.0)
    data = DeepFashionDataset(str(prepared), "train", "paired", (128, 96), options=options)
    samples = [data[index] for index in range(0, len(data), 7)]
    assert {sample["cloth_type"] for sample in samples} == {1, 2, 3}
    for sample in samples:
        assert sample["image"].shape == (3, 128, 192) and sample["inpaint_mask"].sum() > 0


def test_report_and_card_lie_beside_the_data(prepared):
    facts, page = facts_of(prepared), (prepared / "report.html").read_text()
    for name in ("by_type", "by_category", "by_source", "by_split"):
        assert sum(facts[name].values()) == facts["pairs"]
    assert set(facts["leak_score"]) <= {"as_is", "agnostic"}
    assert str(facts["pairs"]) in page and "http://" not in page.replace("http://www.w3.org", "")
    card = (prepared / "README.md").read_text()
    assert "non-commercial" in card and f"{facts['pairs']} pairs" in card
    assert str(prepared.parent) not in card
    assert not [file for file in prepared.parent.iterdir() if file != prepared]  # no working folder is left


def test_the_card_has_what_the_hub_reads_and_loads_these_rows_and_no_others(raw, prepared, tmp_path):
    card = DatasetCard.load(prepared / "README.md")
    facts, data = facts_of(prepared), card.data.to_dict()
    splits = [split for split in ("train", "validation", "test") if facts["by_split"].get(split)]
    (config,) = data["configs"]
    assert config["data_files"] == [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    assert (data["task_categories"], data["language"], data["license"]) == (["image-to-image"], ["en"], "other")
    assert data["size_categories"] == ["n<1K"] and "virtual-try-on" in data["tags"] and data["license_name"]
    assert raw.name in card.text and str(raw) not in card.text
    # A folder of the same name with other rows: `datasets` would take the first one's out of its cache.
    for name, limit in (("a", 60), ("b", 90)):
        folder = prepare(str(raw), tmp_path / name / "pairs", replace(SETTINGS, limit=limit))[0]
        loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        assert {split: len(rows) for split, rows in loaded.items()} == facts_of(folder)["by_split"]


def test_a_second_run_finds_it_done(raw, prepared):
    before = {file: file.stat().st_mtime_ns for file in prepared.rglob("*")}
    folder, facts, made = prepare(str(raw), prepared, SETTINGS)
    assert (folder, made, facts["pairs"]) == (prepared, False, facts_of(prepared)["pairs"])
    assert {file: file.stat().st_mtime_ns for file in prepared.rglob("*")} == before


def test_other_settings_need_another_folder_or_overwrite(raw, tmp_path):
    few = Settings(gates=SMALL, limit=20, test_share=0)
    folder, first, _ = prepare(str(raw), tmp_path / "out", few)
    with pytest.raises(ValueError, match="--overwrite"):
        prepare(str(raw), folder, Settings(gates=SMALL, limit=20, test_share=0, mask_policy="as_is", seed=1))
    assert facts_of(folder) == first
    other = Settings(gates=SMALL, limit=30, test_share=0)
    _, second, made = prepare(str(raw), folder, other, overwrite=True)
    assert made and (first["rows_in"], second["rows_in"]) == (20, 30)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]


def test_a_result_with_a_lost_file_is_made_again_when_asked(raw, tmp_path):
    few = Settings(gates=SMALL, limit=20)
    folder, _, _ = prepare(str(raw), tmp_path / "out", few)
    (folder / "unpaired.parquet").unlink()
    with pytest.raises(ValueError, match="--overwrite"):
        prepare(str(raw), folder, few)
    assert prepare(str(raw), folder, few, overwrite=True)[2]
    assert (folder / "unpaired.parquet").is_file()


def test_what_the_user_has_there_is_never_touched(raw, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for target, why in (
        (tmp_path / "mine", "holds other files"),
        (tmp_path / "mine" / "thesis.txt", "holds other files"),
        (tmp_path / "gr\udcfcn", "PYTHONUTF8=1"),
        (raw, "lie in one another"),
        (raw / "data" / "out", "lie in one another"),
        (raw.parent, "lie in one another"),
    ):
        with pytest.raises(ValueError, match=why):
            prepare(str(raw), target, SETTINGS, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


class Stopped(Exception):
    pass


def stopping_after(batches: int) -> Callable[..., Any]:
    done = iter(range(batches))
    whole = workers.do_batch

    def do_batch(*args: Any) -> Any:
        if next(done, None) is None:
            raise Stopped
        return whole(*args)

    return do_batch


def test_a_stopped_run_leaves_nothing_to_load_and_goes_on(raw, prepared, tmp_path, monkeypatch):
    out, said = tmp_path / "out", []
    monkeypatch.setattr(workers, "do_batch", stopping_after(1))
    with pytest.raises(Stopped):
        prepare(str(raw), out, SETTINGS)
    assert not out.exists()
    monkeypatch.undo()
    rest: list[int] = []
    whole = workers.do_batch

    def counted(file: Path, rows: Sequence[PlannedRow], *more: Any) -> int:
        rest.append(len(rows))
        return whole(file, rows, *more)

    monkeypatch.setattr(workers, "do_batch", counted)
    prepare(str(raw), out, SETTINGS, say=said.append)
    assert any("continuing after" in line for line in said) and 0 < sum(rest) < ROWS
    assert data_bytes(out) == data_bytes(prepared)


@pytest.mark.parametrize("other", ["settings", "code"])
def test_batches_of_other_settings_or_code_are_not_mixed_in(raw, tmp_path, monkeypatch, other):
    out, few, said = tmp_path / "out", Settings(gates=SMALL, limit=30), []
    monkeypatch.setattr(pair_plan, "BATCH_ROWS", 16)
    with monkeypatch.context() as patch:
        patch.setattr(workers, "do_batch", stopping_after(1))
        if other == "code":
            patch.setattr(make_pairs, "_code", lambda: "earlier")
        with pytest.raises(Stopped):
            prepare(str(raw), out, replace(few, mask_policy="as_is") if other == "settings" else few)
    prepare(str(raw), out, few, say=said.append)
    assert not any("continuing" in line for line in said)
    prepare(str(raw), tmp_path / "fresh", few)
    assert data_bytes(out) == data_bytes(tmp_path / "fresh")


@pytest.mark.long
def test_two_processes_give_the_same_bytes(raw, prepared, tmp_path):
    prepare(str(raw), tmp_path / "out", SETTINGS, num_proc=2)
    assert data_bytes(tmp_path / "out") == data_bytes(prepared)


def killed(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line_with_the_flag(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "do_batch", killed)
    with pytest.raises(OSError, match="--num_proc"):
        prepare(str(raw), tmp_path / "out", SETTINGS, num_proc=2)


PARSED = replace(SETTINGS, parser=str(DRAWN_PARSER), limit=48)


@pytest.fixture(scope="module")
def parsed(raw, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes of rows with a parser, in batches of 12."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_plan, "BATCH_ROWS", 12)
        return data_bytes(prepare(str(raw), tmp_path_factory.mktemp("parsed") / "out", PARSED)[0])


def fake_gpus(monkeypatch, *devices: str) -> None:
    """Devices in the place of GPUs, and batches small enough for each of them."""
    monkeypatch.setattr(workers, "parser_devices", lambda: list(devices))
    monkeypatch.setattr(pair_plan, "BATCH_ROWS", 12)


def noted_serving(model: str, revision: str | None, device: str, parent: Connection) -> None:
    Path(os.environ["NOTES"], f"gpu-{os.getpid()}").write_text(device)
    workers.serve_parser(model, revision, device, parent)


def noted_batch(*args: Any) -> int:
    rows = workers.do_batch(*args)
    loaded = workers.load_human_parser.cache_info().currsize
    Path(os.environ["NOTES"], f"worker-{os.getpid()}-{args[-1].replace('/', '_')}").write_text(str(loaded))
    return rows


@pytest.mark.long
def test_a_parser_on_each_gpu_serves_all_workers_and_the_rows_are_the_same(raw, parsed, tmp_path, monkeypatch):
    fake_gpus(monkeypatch, "cpu", "cpu:0")
    monkeypatch.setattr(workers, "serve_parser", noted_serving)
    monkeypatch.setattr(workers, "do_batch", noted_batch)
    monkeypatch.setenv("NOTES", str(tmp_path))
    prepare(str(raw), tmp_path / "out", PARSED, num_proc=2)
    assert data_bytes(tmp_path / "out") == parsed
    served = {path.name: path.read_text() for path in tmp_path.glob("gpu-*")}
    assert sorted(served.values()) == ["cpu", "cpu:0"]
    loaded = {path.name: path.read_text() for path in tmp_path.glob("worker-*")}
    assert len({name.split("-", 2)[2] for name in loaded}) == 2 and set(loaded.values()) == {"0"}
    for name in (*served, *loaded):
        assert not psutil.pid_exists(int(name.split("-")[1])), "its memory, and the GPU's, is free before training"


def dying_at_the_first_photo(model: str, revision: str | None, device: str, parent: Connection) -> None:
    listener = Listener(authkey=bytes(multiprocessing.current_process().authkey))
    parent.send(listener.address)
    listener.accept().recv()
    killed()


@pytest.mark.long
@pytest.mark.parametrize("serve", [dying_at_the_first_photo, killed])
def test_a_killed_parser_is_one_line_and_the_next_run_goes_on(raw, parsed, tmp_path, monkeypatch, serve):
    with monkeypatch.context() as patch:
        fake_gpus(patch, "cpu")
        patch.setattr(workers, "serve_parser", serve)
        with pytest.raises(OSError, match="human parser's process"):
            prepare(str(raw), tmp_path / "out", PARSED, num_proc=2)
    fake_gpus(monkeypatch, "cpu")
    prepare(str(raw), tmp_path / "out", PARSED, num_proc=2)
    assert data_bytes(tmp_path / "out") == parsed


@contextlib.contextmanager
def served(device: str) -> Iterator[workers._DistantParser]:
    """A parser that this process serves to itself."""
    ours, theirs = multiprocessing.Pipe()
    serving = threading.Thread(target=workers.serve_parser, args=(str(DRAWN_PARSER), None, device, theirs))
    serving.start()
    yield workers._DistantParser(str(DRAWN_PARSER), None, ours.recv())
    ours.close()
    serving.join(timeout=60)
    assert not serving.is_alive()


def test_a_parser_elsewhere_gives_the_same_labels_and_ends_with_its_parent():
    photos = [Image.effect_noise(size, 90).convert("RGB") for size in [(48, 64)] * 9 + [(30, 50)]]
    with served("cpu") as parser:
        found = parser.parse(photos)
    own = workers.load_human_parser(str(DRAWN_PARSER)).parse(photos)
    assert len(found) == 10 and all(map(np.array_equal, found, own))


def test_what_goes_wrong_on_a_gpu_is_told_with_its_name():
    with served("cuda:99") as parser, pytest.raises(RuntimeError, match=r"--parser .* cuda:99"):
        parser.parse([Image.new("RGB", (48, 64))])


def test_two_runs_at_once(raw, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    with writing(tmp_path / ".out.preparing.lock") as other, pytest.raises(ValueError, match=rf"{out} .* {other} "):
        prepare(str(raw), out, SETTINGS)
    assert not out.exists()


def test_what_has_come_into_the_folder_meanwhile_is_not_replaced(raw, tmp_path, monkeypatch):
    """As when a training was begun there."""
    out, write = tmp_path / "out", make_pairs._write

    def write_slowly(*args: Any) -> None:
        write(*args)
        out.mkdir()
        (out / "run.json").touch()

    monkeypatch.setattr(make_pairs, "_write", write_slowly)
    with pytest.raises(ValueError, match=r"run\.json"):
        prepare(str(raw), out, SETTINGS)
    assert [path.name for path in out.iterdir()] == ["run.json"]


def spoilt() -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Rows of drawn people, some of them spoilt; row number -> the reason that is due."""
    rows = [row for row in drawn(60) if not row["pose"].endswith("flat")]
    photo = Image.open(io.BytesIO(rows[0]["images"]["bytes"]))
    white = Image.new("L", photo.size, 255)
    due = {}

    def spoil(number: int, reason: str, **cells: Any) -> None:
        rows[number].update(cells)
        due[number] = reason

    half = rows[1]["images"]["bytes"]
    spoil(1, "unreadable_photo", images={"bytes": half[: len(half) // 2], "path": "x.jpg"})
    spoil(3, "unreadable_mask", mask={"bytes": b"no picture", "path": "x.png"})
    spoil(5, "mask_empty", mask=encoded(Image.new("L", photo.size, 0)))
    spoil(7, "mask_too_large", mask=encoded(Image.new("L", photo.size, 255)))
    spoil(25, "no_mask", mask=rows[25]["images"])
    worn, area = (Image.open(io.BytesIO(rows[27][name]["bytes"])) for name in ("images", "mask"))
    covered = Image.composite(Image.new("RGB", worn.size, (128,) * 3), worn.convert("RGB"), area.convert("L"))
    spoil(27, "no_mask", mask=encoded(covered))
    spoil(9, "mask_size", mask=encoded(white.resize((100, 100))))
    spoil(11, "unknown_category", cloth_type="Socks")
    spoil(13, "undecided_type", cloth_type="Suiting", caption="A person in the street.")
    spoil(15, "unknown_pose", pose="sitting")
    spoil(17, "no_pid", pid=None)
    dot = Image.new("L", photo.size, 0)
    dot.paste(255, (90, 60, 100, 70))
    spoil(19, "garment_too_small", mask=encoded(dot))
    spoil(21, "decompression_bomb", images=encoded(Image.new("RGB", (1200, 1200))))
    flat = next(row for row in drawn(60) if row["pose"].endswith("flat"))
    spoil(23, "product_shot", images=flat["images"], mask=flat["mask"])
    return rows, due


def test_what_would_poison_training_is_quarantined_with_its_reason(tmp_path):
    rows, due = spoilt()
    settings = Settings(gates=Gates(min_garment_px=18, max_megapixels=1))
    folder, facts, _ = prepare(str(write_raw(tmp_path / "raw", rows)), tmp_path / "out", settings)
    told = datasets.Dataset.from_parquet(str(folder / "quarantine.parquet"))
    reasons = dict(zip(told["source_row"][:], told["reason"][:], strict=True))
    assert {row: reasons.get(row) for row in due} == due
    assert facts["unknown_categories"] == {"Socks": 1}
    assert Counter(reasons.values()) == facts["quarantined"]
    used = {row for split in load(folder).values() for row in split["source_row"][:]}
    assert not used & set(due)
    with_picture = {row["source_row"] for row in told if row["thumbnail"] is not None}
    assert {3, 5, 7, 9, 19, 23} <= with_picture and 1 not in with_picture
    assert REASONS["mask_size"] in (folder / "report.html").read_text()


def test_a_cloth_column_wins(tmp_path):
    rows = drawn(12)
    product = encoded(Image.linear_gradient("L").convert("RGB").resize((60, 80)))
    for row in rows:
        row["product"] = product
    source = write_raw(tmp_path / "raw", rows)
    settings = Settings(columns={"cloth": "product"}, gates=SMALL)
    folder, facts, _ = prepare(str(source), tmp_path / "out", settings)
    assert facts["by_source"] == {"column": facts["pairs"]} and facts["pairs"] > 6
    train = load(folder)["train"].cast_column("cloth", datasets.Image(decode=False))
    assert {row["cloth"]["bytes"] for row in train} == {product["bytes"]}


def test_documented_rows_get_masks_gates_and_splits_too(tmp_path):
    source = write_wardrobe(tmp_path / "raw", "documented", 24, size=SIZE)
    _, facts, _ = prepare(str(source), tmp_path / "out", SETTINGS)
    assert facts["rows_in"] == 24 and facts["by_source"] == {"column": facts["pairs"]}
    assert facts["pairs"] >= 20, facts["quarantined"]


def test_without_a_pair_nothing_is_written(tmp_path):
    rows = [row for row in drawn(30) if not row["pose"].endswith("flat")]
    for row in rows:
        row["mask"] = encoded(Image.new("L", (SIZE[1], SIZE[0]), 0))
    with pytest.raises(ValueError, match=rf"no row of .* became a pair: mask_empty {len(rows)}"):
        prepare(str(write_raw(tmp_path / "raw", rows)), tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def run(*flags: object) -> int:
    return command.main([str(flag) for flag in flags])


def test_the_command_says_what_came_out(raw, tmp_path, capsys):
    flags = ["--dataset_name", raw, "--output_dir", tmp_path / "out", "--num_proc", 1, "--limit", 24]
    flags += ["--parser", "none", "--min_garment_px", 18]
    assert run(*flags) == 0
    facts, said = facts_of(tmp_path / "out"), capsys.readouterr().out
    assert f"rows      24 = {facts['pairs']} pairs" in said
    assert f"look at   {tmp_path / 'out' / 'report.html'}" in said
    assert run(*flags) == 0 and "already prepared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--garment_sources", "flat,sketch"), 2, "'sketch'"),
        (("--max_same_photo_share", 2), 2, "max_same_photo_share 2.0"),
        (("--column", "picture=photo"), 2, "picture"),
        (("--category_type", "Denim=legs"), 2, "legs"),
        (("--mine_lower_body", "--parser", "none"), 2, "mine_lower_body needs"),
        (("--column", "mask=outline"), 1, "outline"),
        (("--colum", "mask=outline"), 2, "--column"),
    ],
)
def test_wrong_use_is_said_in_one_line(raw, tmp_path, flags, code, said, capfd):
    base = ["--dataset_name", str(raw), "--output_dir", str(tmp_path / "out"), "--num_proc", "1"]
    try:
        got = command.main([*base, *map(str, flags)])
    except SystemExit as stop:
        got = stop.code
    error = capfd.readouterr().err
    assert (got, said in error) == (code, True), error
    assert code == 2 or len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_not_there_is_named(tmp_path, capfd):
    assert command.main(["--dataset_name", str(tmp_path / "gone"), "--output_dir", str(tmp_path / "out")]) == 1
    assert f"no such folder: {tmp_path / 'gone'}" in capfd.readouterr().err


@pytest.mark.long
def test_a_real_parser_finds_the_garment_and_mines_trousers(raw, tmp_path, capfd):
    flags = ["--dataset_name", raw, "--output_dir", tmp_path / "out", "--num_proc", 1, "--limit", 40]
    flags += ["--min_garment_px", 18, "--parser", DRAWN_PARSER, "--validation_share", 0, "--test_share", 0]
    assert command.main(list(map(str, flags))) == 0
    facts = facts_of(tmp_path / "out")
    assert facts["parser"] == str(DRAWN_PARSER) and facts["parser_revision"]
    assert facts["by_mask"] == {"parsed": facts["pairs"] + facts["mined"]}
    assert facts["mined"] > 2 and f"{facts['mined']} pairs mined" in capfd.readouterr().out
    assert facts["pairs"] + sum(facts["quarantined"].values()) + facts["unpaired"] == 40
    train = load(tmp_path / "out")["train"].remove_columns(["image", "cloth", "mask"])
    by_row = Counter(row["source_row"] for row in train)
    assert len(train) == facts["pairs"] + facts["mined"] and set(by_row.values()) <= {1, 2}
    assert {row["cloth_type"] for row in train if by_row[row["source_row"]] == 2} == {1, 2}


def test_a_parser_that_is_not_there_is_an_error_before_any_work(raw, tmp_path, capfd):
    flags = ["--dataset_name", raw, "--output_dir", tmp_path / "out", "--parser", tmp_path / "gone"]
    assert command.main(list(map(str, flags))) == 1
    assert str(tmp_path / "gone") in capfd.readouterr().err and not (tmp_path / "out").exists()


#: The command, on a machine with two GPUs.
WITH_GPUS = """
import sys
from deepfashion_training import prepare
from deepfashion_training.preparation import workers
if __name__ == "__main__":
    workers.parser_devices = lambda: ["cpu", "cpu"]
    sys.exit(prepare.main())
"""


@pytest.mark.long
@pytest.mark.parametrize("parser", ["none", DRAWN_PARSER])
def test_ctrl_c_stops_workers_without_their_tracebacks_and_the_next_run_goes_on(raw, prepared, tmp_path, parser):
    flags = ["--dataset_name", raw, "--output_dir", tmp_path / "out", "--num_proc", 2, "--parser", parser]
    flags += ["--min_garment_px", 18, "--validation_share", 0.15, "--test_share", 0.15, "--no-mine_lower_body"]
    (tmp_path / "with_gpus.py").write_text(WITH_GPUS)
    start = ["-m", "deepfashion_training.prepare"] if parser == "none" else [str(tmp_path / "with_gpus.py")]
    running = subprocess.Popen(
        [sys.executable, *start, *map(str, flags)],
        stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT,
        env={**os.environ, "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE), "PYTHONPATH": str(ROOT)},
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler),  # nohup ignores it
    )  # fmt: skip
    while not any((tmp_path / ".out.preparing").glob("*/*.parquet")):
        assert running.poll() is None
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and not (tmp_path / "out").exists()
    assert "the same command continues" in said and "Traceback" not in said
    assert run(*flags) == 0
    whole = prepared
    if parser != "none":
        whole = prepare(str(raw), tmp_path / "whole", replace(SETTINGS, parser=str(parser)))[0]
    assert data_bytes(tmp_path / "out") == data_bytes(whole)


def test_five_bare_columns_are_enough_where_there_is_a_garment_picture(tmp_path):
    whole = load(write_wardrobe(tmp_path / "drawn", "documented", 30, size=SIZE))["train"]
    (tmp_path / "raw" / "data").mkdir(parents=True)
    bare = whole.select_columns(list(DOCUMENTED_COLUMNS))
    bare.to_parquet(tmp_path / "raw" / "data" / "train-00000-of-00001.parquet")
    folder, facts, _ = prepare(str(tmp_path / "raw"), tmp_path / "out", Settings(gates=SMALL))
    assert facts["rows_in"] == len(bare) and facts["pairs"] > 0.8 * len(bare), facts["quarantined"]
    assert min(facts["by_type"].values()) > 5
    assert set(load(folder)["train"]["garment_source"][:]) == {"column"}


def test_files_beside_an_earlier_result_are_never_deleted(raw, tmp_path):
    folder, _, _ = prepare(str(raw), tmp_path / "out", Settings(gates=SMALL, limit=20))
    (folder / "notes.txt").write_text("what I saw")
    other = Settings(gates=SMALL, limit=21)
    with pytest.raises(ValueError, match=r"holds other files \(notes.txt\)"):
        prepare(str(raw), folder, other, overwrite=True)
    for content in ('{"a": 1}', "[1]", "no json"):
        foreign = tmp_path / "foreign"
        foreign.mkdir(exist_ok=True)
        (foreign / "report.json").write_text(content)
        with pytest.raises(ValueError, match="holds other files"):
            prepare(str(raw), foreign, other, overwrite=True)
        assert (foreign / "report.json").read_text() == content
    assert (folder / "notes.txt").read_text() == "what I saw"


def test_why_no_pair_came_of_any_row_is_counted(tmp_path):
    rows = [row for row in drawn(30) if not row["pose"].endswith("flat")]
    source = write_raw(tmp_path / "raw", rows)
    only = Settings(gates=SMALL, garment_sources=("same_photo",), validation_share=0, test_share=0)
    with pytest.raises(ValueError, match=r"same_photo_share \d+"):
        prepare(str(source), tmp_path / "out", only)


def test_a_mount_point_is_refused_before_any_work(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    with pytest.raises(ValueError, match="is a mount point"):
        prepare(str(raw), tmp_path / "out", SETTINGS)


def test_a_run_killed_after_the_result_was_in_place_leaves_nothing_for_long(raw, tmp_path, monkeypatch):
    few = Settings(gates=SMALL, limit=20)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        folder, _, _ = prepare(str(raw), tmp_path / "out", few)
    assert list((tmp_path / ".out.preparing").rglob("*.parquet"))
    assert not prepare(str(raw), folder, few)[2]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
