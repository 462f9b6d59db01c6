"""Input that is broken or hostile, by the commands that read it: one line and exit 1 or 2, or the row is left out."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import pieces
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import train_flux_inpaint as trainer
from deepfashion_training import export, prepare, tryon
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.cli import describe
from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset
from deepfashion_training.embedded.wardrobe import write_wardrobe
from training_run import checkpoints
from training_run.output_dir import find_checkpoint
from training_run.state import read_state, write_state

SIZE = (256, 192)  # height, width of the drawn rows
#: The same examples every time, and none of them has to be quick on a machine that is busy.
REPEATABLE = settings(
    derandomize=True, deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


def one_line(said: str, command: str) -> str:
    """The only line of ``said``: it begins with the command, is short enough to read and no surprise to the code."""
    assert said.startswith(f"{command}: ") and said.count("\n") == 1 and said.endswith("\n"), said[-2000:]
    assert "Traceback" not in said and "--debug shows the traceback" not in said, said
    assert len(said) < 1500 and said.rstrip("\n").isprintable(), said[:2000]
    return said


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command, which ends with exit code 1 or 2 and one line on stderr that it returns."""

    def run(command: Any, *argv: object) -> str:
        capsys.readouterr()
        try:
            code = command.main([str(word) for word in argv])
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        assert code in (1, 2) and said.out == "", (code, said)
        name = command.__name__.rpartition(".")[2]
        # The trainer's own parser calls itself by the file that was started.
        return one_line(re.sub(r"\A[\w.-]+: error: ", f"{name}: ", said.err), name)

    return run


# ------------------------------------------------------------------------------------------------------------- pictures


def stored(picture: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **how)
    return sink.getvalue()


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG that says these sizes and holds ``rows``, with sums that are right."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def flipped(content: bytes, start: int = 200) -> bytes:
    """``content`` with a third of its bytes turned over from ``start`` on."""
    return content[:start] + bytes(255 - byte if at % 3 else byte for at, byte in enumerate(content[start:]))


def vary(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8))


#: Cells that no column of pictures may hold, by what is wrong with them.
PICTURES: dict[str, bytes | None] = {
    "none": None,
    "no bytes": b"",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "pickle": pickle.dumps({"a": 1}),
    "half a jpeg": (jpeg := stored(vary(1), "JPEG"))[: len(jpeg) // 2],
    "half a png": (whole := stored(vary(2)))[: len(whole) // 2],
    "png of other bytes": flipped(whole),
    "png of no size": png(0, 0),
    "bomb of colours": png(30_000, 30_000),
    "bomb in one row": png(2_000_000_000, 1),
    "half a gif": (gif := stored(vary(3), "GIF", save_all=True, append_images=[vary(4)]))[: len(gif) // 4],
    "half a tiff": (tiff := stored(vary(5), "TIFF"))[:3000],
    "tiff whose directory lies beyond": tiff[:4] + struct.pack("<I", 2**31) + tiff[8:],
    "half a webp": (webp := stored(vary(6), "WEBP"))[: len(webp) // 2],
    "floats": stored(Image.fromarray(np.ones(SIZE, np.float32)), "TIFF"),
}
#: Masks that are pictures and still no use, by what is wrong with them.
MASKS: dict[str, bytes] = {
    "all black": stored(Image.new("L", SIZE[::-1], 0)),
    "grey below half": stored(Image.new("L", SIZE[::-1], 100)),
    "transparent all over": stored(Image.new("RGBA", SIZE[::-1], (255, 255, 255, 0))),
    "another aspect": stored(Image.new("L", (200, 100), 255)),
    "a line": stored(Image.new("L", (4000, 1), 255)),
}
#: The same for prepared rows, where a mask has to leave something of the person.
WHITE = {"all white": stored(Image.new("L", SIZE[::-1], 255)), "white in colour": stored(Image.new("1", (96, 128), 1))}
#: Photos and garments of a form that is unusual and sound.
SOUND: dict[str, bytes] = {
    "animated gif": gif,
    "tiff of pages": stored(vary(8), "TIFF", save_all=True, append_images=[vary(9)]),
    "16 bits": stored(Image.fromarray(np.random.default_rng(1).integers(0, 65536, SIZE).astype(np.uint16))),
    "cmyk": stored(vary(10).convert("CMYK"), "JPEG"),
    "rgba": stored(vary(11).convert("RGBA")),
    "grey and alpha": stored(vary(12).convert("LA")),
    "palette": stored(vary(13).convert("P")),
    "bits": stored(vary(14).convert("1")),
}


def written(rows: list[dict[str, Any]], folder: Path, split: str = "train") -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_list(rows)
    for column in {"image", "cloth", "mask"} & set(made.column_names):
        made = made.cast_column(column, datasets.Image())
    made.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def sound_rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Documented rows of drawn people, undecoded."""
    folder = write_wardrobe(tmp_path_factory.mktemp("sound") / "rows", "documented", 12, size=SIZE)
    files = sorted(folder.rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def spoilt_rows(sound_rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Sound rows, then one for each spoilt cell; what is wrong by row number."""
    rows, wrong = list(sound_rows), {}
    cells = [(column, name, cell) for column in ("image", "cloth", "mask") for name, cell in PICTURES.items()]
    cells.remove(("mask", "floats", PICTURES["floats"]))  # of 0 and 1, which a mask may be of
    for column, name, cell in [*cells, *(("mask", name, cell) for name, cell in MASKS.items())]:
        wrong[len(rows)] = f"{column}: {name}"
        pid = f"id_9{len(rows):07d}"
        rows.append({**sound_rows[len(rows) % 12], "pid": pid, column: {"bytes": cell, "path": None}})
    return rows, wrong


def test_rows_with_spoilt_pictures_are_in_the_ledger_and_never_in_a_sample(spoilt_rows, sound_rows, tmp_path):
    rows, wrong = spoilt_rows
    written(rows, tmp_path)
    written(sound_rows, tmp_path, "validation")
    data = DeepFashionDataset(str(tmp_path), size=(128, 96), options=DatasetOptions(max_bad_rows=1.0))
    for number in range(len(data)):
        sample = data[number]
        assert all(torch.isfinite(value).all() for value in sample.values() if isinstance(value, torch.Tensor))
        served = int(sample["im_name"].rpartition("-")[2])
        assert served not in wrong, wrong[served]
    assert [entry["row"] for entry in data.skipped_rows] == list(wrong)
    for entry in data.skipped_rows:
        column, _, what = wrong[entry["row"]].partition(": ")
        assert entry["reason"].startswith("floating" if what == "floats" else column), entry
        assert entry["reason"].isprintable()


def test_rows_with_spoilt_pictures_are_quarantined_and_make_no_pair(spoilt_rows, tmp_path, capsys):
    rows, wrong = spoilt_rows
    rows, wrong = list(rows), dict(wrong)
    for name, cell in WHITE.items():
        wrong[len(rows)] = f"mask: {name}"
        rows.append({**rows[len(rows) % 12], "pid": f"id_8{len(rows):07d}", "mask": {"bytes": cell, "path": None}})
    flags = ["--dataset_name", written(rows, tmp_path / "rows"), "--output_dir", tmp_path / "out"]
    flags += ["--parser", "none", "--num_proc", 1, "--min_garment_px", 24, "--garment_sources", "flat,cross_view"]
    assert prepare.main([str(flag) for flag in flags]) == 0, capsys.readouterr().err
    told = {row["source_row"]: row for row in pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()}
    assert {number: name for number, name in wrong.items() if number not in told} == {}
    for number, name in wrong.items():
        column, _, what = name.partition(": ")
        due = {"image": "unreadable_photo", "cloth": "unreadable_garment"}.get(column)
        if "bomb" in what:
            due = "decompression_bomb"
        assert told[number]["reason"] == due or column == "mask", (name, told[number]["reason"])
        assert told[number]["detail"].isprintable() and " at 0x" not in told[number]["detail"], told[number]["detail"]
    pairs = pq.ParquetDataset(tmp_path / "out" / "data").read(columns=["source_row"])["source_row"].to_pylist()
    assert pairs and not set(pairs) & set(wrong)


@pytest.mark.parametrize("column", ["image", "cloth"])
def test_unusual_pictures_that_are_sound_are_read(column, sound_rows, tmp_path):
    cells = [{"bytes": cell, "path": None} for cell in SOUND.values()]
    rows = [{**row, column: cell} for row, cell in zip(sound_rows, cells, strict=False)]
    data = DeepFashionDataset(
        str(written(rows * 2, tmp_path)), size=(128, 96), options=DatasetOptions(validation_fraction=0.1)
    )
    for number in range(len(data)):
        assert torch.isfinite(data[number]["image"]).all()
    assert data.skipped_rows == []


@REPEATABLE
@given(st.data())
def test_pictures_spoilt_at_random_never_do_worse_than_an_error_of_one_line(data):
    from deepfashion_training.images.pictures import PictureError, open_picture, to_rgb

    content = bytearray(data.draw(st.sampled_from([jpeg, whole, gif, tiff, webp])))
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    try:
        picture = to_rgb(open_picture(bytes(content), 200_000, 8))
    except PictureError as error:
        assert "\n" not in str(error) and " at 0x" not in str(error)
    else:
        assert picture.mode == "RGB" and 64 <= picture.width * picture.height <= 200_000


# --------------------------------------------------------------------------------------------- texts and whole datasets

TYPES_OF_ONE_ROW: dict[str, Any] = {
    "0": 0, "none": None, "nan": float("nan"), "half": 1.5, "true": True, "word": "socks", "megabyte": "x" * 1_000_000,
    "struct": {"a": 1},
}  # fmt: skip
CAPTIONS_OF_ONE_ROW: dict[str, Any] = {"number": 3, "struct": {"a": "b"}}


@pytest.fixture
def check_refused(refused: Refused, tmp_path: Path) -> Callable[[object], str]:
    """``train_deepfashion_lora --check`` on rows, which it refuses without leaving anything."""

    def check(source: object, *more: object) -> str:
        out = tmp_path / "never"
        flags = ["--preset", "quick_test", "--embedded", "--check", "--dataset_name", source, "--output_dir", out]
        said = refused(wrapper, *flags, *more)
        assert not out.exists()
        return said

    return check


@pytest.mark.parametrize("name", TYPES_OF_ONE_ROW)
def test_a_garment_type_that_is_none_stops_before_training(name, sound_rows, check_refused, tmp_path):
    rows = [{**row, "cloth_type": TYPES_OF_ONE_ROW[name]} for row in sound_rows[:3]]
    said = check_refused(written(rows, tmp_path / "rows"))
    assert "cloth_type in row 0 of" in said and "use 1 (upper), 2 (lower), 3 (full)" in said


@pytest.mark.parametrize("name", CAPTIONS_OF_ONE_ROW)
def test_a_caption_that_is_no_text_stops_before_training(name, sound_rows, check_refused, tmp_path):
    rows = [{**row, "caption": CAPTIONS_OF_ONE_ROW[name]} for row in sound_rows[:3]]
    assert "caption in row 0 of" in check_refused(written(rows, tmp_path / "rows"))


def without(column: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda rows: [{name: cell for name, cell in row.items() if name != column} for row in rows]


def with_cell(column: str, cell: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda rows: [{**row, column: cell} for row in rows]


def table_of(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Callable[[Path, Any], None]:
    def write(folder: Path, rows: list[dict[str, Any]]) -> None:
        folder.mkdir()
        pq.write_table(pa.Table.from_pylist(change(rows)), folder / "train-00000-of-00001.parquet")

    return write


def file_of(content: bytes) -> Callable[[Path, Any], None]:
    def write(folder: Path, _: Any) -> None:
        folder.mkdir()
        (folder / "train.parquet").write_bytes(content)

    return write


def spoil_parquet(change: Callable[[bytes], bytes]) -> Callable[[Path, Any], None]:
    def write(folder: Path, rows: list[dict[str, Any]]) -> None:
        table_of(lambda same: same)(folder, rows)
        file = next(folder.glob("*.parquet"))
        file.write_bytes(change(file.read_bytes()))

    return write


def saved_with(name: str, content: str, split: str | None = None) -> Callable[[Path, Any], None]:
    def write(folder: Path, rows: list[dict[str, Any]]) -> None:
        made = datasets.Dataset.from_list(rows)
        (datasets.DatasetDict({split: made}) if split else made).save_to_disk(folder)
        (folder / name).write_text(content)

    return write


def two_forms(folder: Path, rows: list[dict[str, Any]]) -> None:
    table_of(lambda same: same)(folder, rows)
    pq.write_table(pa.table({"other": [1]}), folder / "train-00001-of-00002.parquet")


def second_is_broken(folder: Path, rows: list[dict[str, Any]]) -> None:
    table_of(lambda same: same)(folder, rows)
    (folder / "validation-00000-of-00001.parquet").write_bytes(b"PAR1 no PAR1")


DATASETS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "no such folder": lambda folder, rows: None,
    "empty folder": lambda folder, rows: folder.mkdir(),
    "a file": lambda folder, rows: folder.write_bytes(b""),
    "csv": lambda folder, rows: (folder.mkdir(), (folder / "train.csv").write_text("image,cloth\n=1,2\n")),
    "garbage parquet": file_of(bytes(range(256)) * 20),
    "half a parquet": spoil_parquet(lambda content: content[: len(content) // 2]),
    "pages of other bytes": spoil_parquet(lambda content: flipped(content[:-9000], 4) + content[-9000:]),
    "no rows": table_of(lambda rows: []),
    "no image": table_of(without("image")),
    "no type": table_of(without("cloth_type")),
    "no caption": table_of(without("caption")),
    "image of numbers": table_of(with_cell("image", 3)),
    "cloth of other structs": table_of(with_cell("cloth", {"a": 1})),
    "image of nothing": table_of(with_cell("image", None)),
    "two forms": two_forms,
    "second is broken": second_is_broken,
    "state of nonsense": saved_with("state.json", "no json"),
    "state names files elsewhere": saved_with("state.json", '{"_data_files": [{"filename": "../../x.arrow"}]}'),
    "info of unknown features": saved_with("dataset_info.json", '{"features": {"image": {"_type": "Evil"}}}'),
    "dictionary of a split elsewhere": saved_with("dataset_dict.json", '{"splits": ["../../etc"]}', split="train"),
}
#: Without these, rows cannot be trained on, and ``prepare`` can do: the category says the type.
FOR_TRAINING = {"no type", "no caption"}


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_that_cannot_be_read_stops_training_and_prepare(name, sound_rows, check_refused, refused, tmp_path):
    source = tmp_path / "rows"
    DATASETS[name](source, sound_rows)
    said = check_refused(source)
    assert str(source) in said, said
    if name in FOR_TRAINING:
        return
    flags = ["--output_dir", tmp_path / "pairs", "--parser", "none", "--num_proc", 1]
    refused(prepare, "--dataset_name", source, *flags)
    assert not (tmp_path / "pairs").exists()


CAPTIONS = [
    "a\0b",
    "x" * 1_000_000,
    "\u202e\u0633\u0631\u0648\u0627\u0644",
    "=1+1",
    "<script>alert(1)</script>",
    "\x1b[2J",
    "😀",
]


def test_captions_of_any_kind_train_and_prepare(sound_rows, tmp_path, capsys):
    rows = [
        {**row, "caption": caption, "pid": caption[:99]} for row, caption in zip(sound_rows, CAPTIONS, strict=False)
    ]
    source = written(rows, tmp_path / "rows")
    data = DeepFashionDataset(str(source), size=(128, 96))
    assert {data[number]["caption_cloth"] for number in range(len(data))} <= set(CAPTIONS)
    flags = ["--output_dir", tmp_path / "out", "--parser", "none", "--num_proc", 1, "--min_garment_px", 24]
    assert prepare.main([str(flag) for flag in ["--dataset_name", source, *flags]]) == 0, capsys.readouterr().err
    made = pq.ParquetDataset(tmp_path / "out" / "data").read(columns=["caption", "pid"]).to_pylist()
    assert {row["caption"] for row in made} <= set(CAPTIONS) and len(made) >= 5


# -------------------------------------------------------------------------------------------------------------- presets

DEEP = "flags: " + "[" * 4000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
PRESETS: dict[str, bytes] = {
    "empty": b"",
    "number": b"3",
    "flags are a list": b"flags: [seed, 4]",
    "a value in a value": b"flags: {seed: {a: 1}}",
    "words for a number": b"flags: {seed: many}",
    "minus 1": b"flags: {seed: -1}",
    "a seed of 5000 digits": b"flags: {seed: 0x" + b"f" * 5000 + b"}",
    "not a number": b"flags: {max_grad_norm: .nan}",
    "a number for a switch": b"flags: {balance_cloth_types: 7}",
    "an unknown choice": b"flags: {resize_mode: magic}",
    "unknown flag": b"flags: {lerning_rate: 1}",
    "flag with a value in its name": b'flags: {"output_dir=/tmp/x": ""}',
    "empty flag": b'flags: {"": 4}',
    "typed only": b"flags: {output_dir: /tmp/x}",
    "python object": b"flags: !!python/object/apply:os.system ['touch executed']",
    "refers to itself": b"flags: &f {seed: *f}",
    "bomb of aliases": f"{BOMB}flags: {{seed: *i}}".encode(),
    "very deep": DEEP.encode(),
    "tab": b"flags:\n\tseed: 4",
    "zero byte": b"flags: {seed: \x00}",
    "latin-1": "flags: {seed: größe}".encode("latin-1"),
    "picture": jpeg,
    "a megabyte for a number": b"flags: {seed: " + b"9" * 1_000_000 + b"x}",
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_that_is_none_stops_before_training(name, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, out = tmp_path / "mine.yaml", tmp_path / "never"
    file.write_bytes(PRESETS[name])
    said = refused(wrapper, "--preset", file, "--embedded", "--check", "--output_dir", out)
    assert not out.exists() and not (tmp_path / "executed").exists()
    assert str(file) in said or "--" in said, said


# --------------------------------------------------------------------------------------------------- tables of `tryon`


@pytest.fixture
def shop(wardrobe: Path, tmp_path: Path) -> Path:
    """A folder with a person, a garment and a mask, in which tables name them."""
    folder = tmp_path / "shop"
    folder.mkdir()
    for name in ("person", "garment", "mask"):
        shutil.copy(wardrobe / f"lower-{name}.png", folder / f"{name[0]}.png")
    (folder / "link.png").symlink_to("/etc/passwd")
    return folder


HEAD = b"person,garment,mask,garment_type,caption,output\n"
GOOD = b"p.png,g.png,m.png,,,\n"
TABLES: dict[str, bytes] = {
    "empty": b"",
    "head alone": HEAD,
    "other head": b"a,b\n1,2\n",
    "no head": GOOD,
    "a column twice": b"person,person,garment\np.png,p.png,g.png\n",
    "an unknown column": b"person,garment,evil\np.png,g.png,1\n",
    "a head of a megabyte": b"x" * 1_000_000 + b"\n1\n",
    "too few cells": HEAD + b"p.png,g.png\n",
    "open quotes": HEAD + b'"p.png,g.png,m.png,,,\n' + GOOD,
    "no person": HEAD + b",g.png,m.png,,,\n",
    "a person that is not there": HEAD + b"none.png,g.png,m.png,,,\n",
    "a device": HEAD + b"/dev/zero,g.png,m.png,,,\n",
    "an address": HEAD + b"https://example.org/p.png,g.png,m.png,,,\n",
    "a formula for a person": HEAD + b'"=HYPERLINK(""http://x"")",g.png,m.png,,,\n',
    "colours in the output": HEAD + b"p.png,g.png,m.png,,,\x1b[2J.txt\n",
    "output above": HEAD + b"p.png,g.png,m.png,,,../a.png\n",
    "output of another form": HEAD + b"p.png,g.png,m.png,,,a.exe\n",
    "output of two lines": HEAD + b'p.png,g.png,m.png,,,"a\nb.txt"\n',
    "neither mask nor type": HEAD + b"p.png,g.png,,,,\n",
    "an unknown type": HEAD + b"p.png,g.png,,socks,,\n",
    "utf-16": (HEAD + GOOD).decode().encode("utf-16"),
    "a picture": jpeg,
    "a cell of a megabyte": HEAD + b"p.png,g.png,m.png,," + b"x" * 1_000_000 + b",\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_cannot_be_drawn_stops_before_the_first_picture(name, shop, refused, tmp_path):
    (shop / "t.csv").write_bytes(TABLES[name])
    out = tmp_path / "drawn"
    said = refused(tryon, "--batch", shop / "t.csv", "--output", out, "--embedded")
    assert "t.csv" in said and "root:" not in said
    assert not out.exists() and len(list(shop.iterdir())) == 5


@pytest.mark.parametrize("person", ["../" * 20 + "etc/passwd", "link.png", "t.csv"])
def test_a_row_whose_file_is_no_picture_fails(person, shop, tmp_path, capsys):
    (shop / "t.csv").write_bytes(HEAD + f"{person},g.png,m.png,,,a.png\n".encode())
    out = tmp_path / "drawn"
    assert tryon.main(["--batch", str(shop / "t.csv"), "--output", str(out), "--embedded"]) == 1
    said = capsys.readouterr().err
    assert f"a.png: the person {shop / person}: not readable as a picture" in said and "root:" not in said
    assert not out.exists()


@REPEATABLE
@given(st.binary(max_size=200))
def test_tables_of_any_bytes_are_refused_in_one_line(content):
    from deepfashion_training.inference.requests import read_requests

    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "t.csv").write_bytes(HEAD + content)
        with pytest.raises(ValueError, match=r"--batch .*t\.csv"):
            read_requests(folder / "t.csv", folder / "out", 1)
    finally:
        shutil.rmtree(folder)


# ---------------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(folder: Path) -> Path:
    """A checkpoint as training writes one, of a small state."""
    with checkpoints.staged(folder) as draft:
        write_state(draft, {"step": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}}})
        save_file({"a": torch.ones(3)}, draft / trainer.LORA_FILE)
    return folder


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        listed = json.loads((folder / checkpoints.MANIFEST).read_text())
        change(listed["files"])
        (folder / checkpoints.MANIFEST).write_text(json.dumps(listed))

    return spoil


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def link_outside(folder: Path) -> None:
    (folder / trainer.LORA_FILE).unlink()
    (folder / trainer.LORA_FILE).symlink_to("/etc/passwd")


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "manifest that is deep": text(checkpoints.MANIFEST, "[" * 100_000),
    "not there": shutil.rmtree,
    "no manifest": lambda folder: (folder / checkpoints.MANIFEST).unlink(),
    "manifest of nonsense": text(checkpoints.MANIFEST, "\0"),
    "manifest without files": text(checkpoints.MANIFEST, "{}"),
    "manifest names a file elsewhere": manifest(
        lambda files: files.update({"../../etc/passwd": next(iter(files.values()))})
    ),
    "manifest says nothing": manifest(dict.clear),
    "manifest says another size": manifest(lambda files: next(iter(files.values())).update(bytes=1)),
    "manifest says another hash": manifest(lambda files: next(iter(files.values())).update(sha256="0" * 64)),
    "a file is gone": lambda folder: (folder / trainer.LORA_FILE).unlink(),
    "a file is another": lambda folder: (folder / trainer.LORA_FILE).write_bytes(pickle.dumps([1])),
    "a link out of it": link_outside,
    "a pickle beside it": lambda folder: (folder / "optimizer.bin").write_bytes(pickle.dumps([1])),
}


@pytest.mark.parametrize("asked", ["latest", "by name"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_is_not_whole_is_never_continued(name, asked, tiny_args, accelerator, tmp_path):
    folder = checkpoint(tmp_path / "checkpoint-3")
    CHECKPOINTS[name](folder)
    args = tiny_args("--output_dir", tmp_path, "--resume_from_checkpoint", "latest" if asked == "latest" else folder)
    if asked == "latest" and not folder.is_dir():
        assert find_checkpoint(args) is None  # an empty directory: a fresh start
        return
    with pytest.raises(ValueError, match="checkpoint-3") as told:
        find_checkpoint(args)
    one_line(f"train: {describe(told.value)}\n", "train")


STATES = {
    "no json": "nonsense",
    "a list": "[]",
    "a tensor that is not there": '{"step": {"$tensor": "none"}}',
    "a tensor of no name": '{"step": {"$tensor": []}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_nonsense_is_refused_though_its_manifest_is_right(name, tmp_path):
    folder = checkpoint(tmp_path / "checkpoint-3")
    (folder / "training_state.json").write_text(STATES[name])
    with pytest.raises(ValueError, match="training state") as told:
        read_state(folder)
    one_line(f"train: {describe(told.value)}\n", "train")


# ---------------------------------------------------------------------------------------------------------------- LoRAs


@pytest.fixture(scope="module")
def lora_file(save_random_lora: Callable[..., Path]) -> Path:
    return save_random_lora()


def lora_with(
    weights: Callable[[dict[str, torch.Tensor]], object] = lambda weights: None,
    metadata: Callable[[dict[str, Any]], object] = lambda settings: None,
    text: str | None = None,
) -> Callable[[Path, Path], None]:
    """Writes a LoRA with changed weights, changed adapter settings, or ``text`` in place of these."""

    def write(sound: Path, file: Path) -> None:
        tensors = load_file(sound)
        with safe_open(sound, "pt") as opened:
            told = dict(opened.metadata())
        adapter = json.loads(told[LORA_ADAPTER_METADATA_KEY])
        weights(tensors)
        metadata(adapter)
        told[LORA_ADAPTER_METADATA_KEY] = json.dumps(adapter) if text is None else text
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, told)

    return write


def each(change: Callable[[torch.Tensor], torch.Tensor], part: str = "lora_") -> Callable[[dict[str, Any]], None]:
    def changed(weights: dict[str, torch.Tensor]) -> None:
        weights.update({name: change(tensor) for name, tensor in weights.items() if part in name})

    return changed


def of_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], object]:
    return lambda sound, file: file.write_bytes(change(sound.read_bytes()))


def named(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda settings: settings.update({f"transformer.{key}": value})


def first(weights: dict[str, torch.Tensor]) -> str:
    return min(weights)


LORAS: dict[str, Callable[[Path, Path], object]] = {
    "empty": of_bytes(lambda whole: b""),
    "half": of_bytes(lambda whole: whole[: len(whole) // 2]),
    "header that is too long": of_bytes(lambda whole: struct.pack("<Q", 2**62) + whole[8:]),
    "header of nonsense": of_bytes(lambda whole: whole[:8] + flipped(whole[8:500], 0) + whole[500:]),
    "pickle": of_bytes(lambda whole: pickle.dumps({"a": [1]})),
    "torch file": lambda sound, file: torch.save({"a": torch.ones(2)}, file),
    "text": of_bytes(lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "no weights": lora_with(dict.clear),
    "other names": lora_with(lambda weights: weights.update(evil=torch.ones(2))),
    "an A without its B": lora_with(lambda weights: weights.pop(first(weights))),
    "three axes": lora_with(each(lambda tensor: tensor[None], "lora_A")),
    "rank of rows that is not said": lora_with(each(lambda tensor: tensor[:2], "lora_A")),
    "not a number": lora_with(lambda weights: weights[first(weights)].view(-1)[:1].fill_(float("nan"))),
    "metadata of nonsense": lora_with(text="nonsense"),
    "no rank": lora_with(metadata=lambda settings: settings.pop("transformer.r")),
    "a rank above memory": lora_with(metadata=named("r", 10**9)),
    "alpha that is not finite": lora_with(text='{"transformer.r": 4, "transformer.lora_alpha": 1e999}'),
    "another kind of adapter": lora_with(metadata=named("peft_type", "IA3")),
    "ranks by layer": lora_with(metadata=named("rank_pattern", {"to_q": 8})),
}


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_that_is_none_is_neither_exported_nor_drawn_with(name, lora_file, wardrobe, refused, tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    LORAS[name](lora_file, folder / trainer.LORA_FILE)
    for kind, out in (("kohya", "k.safetensors"), ("fused", "fused")):
        said = refused(export, "--lora", folder, "--format", kind, "--output", tmp_path / "out" / out)
        assert str(folder) in said
    flags = [*pieces(wardrobe), "--output", tmp_path / "out" / "o.png", "--lora", folder, "--num_inference_steps", 1]
    assert str(folder) in refused(tryon, *flags)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


BASES: dict[str, Callable[[Path], object]] = {
    "no configuration": lambda folder: (folder / "config.json").unlink(),
    "configuration of nonsense": text("config.json", "nonsense"),
    "configuration of another model": text(
        "config.json", '{"_class_name": "Evil", "auto_map": {"AutoModel": "x.Evil"}}'
    ),
    "no weights": lambda folder: next(folder.glob("*.safetensors")).unlink(),
    "a pickle for weights": lambda folder: next(folder.glob("*.safetensors")).rename(
        folder / "diffusion_pytorch_model.bin"
    ),
    "half of the weights": lambda folder: shorten(next(folder.glob("*.safetensors"))),
    "empty weights": lambda folder: next(folder.glob("*.safetensors")).write_bytes(b""),
}


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("name", BASES)
def test_a_base_that_is_none_is_refused(name, lora_file, tiny_flux_fill, refused, tmp_path):
    base = Path(shutil.copytree(tiny_flux_fill / "transformer", tmp_path / "base"))
    BASES[name](base)
    flags = ["--lora", lora_file, "--format", "fused", "--output", tmp_path / "fused", "--base", base]
    assert str(base) in refused(export, *flags)
    assert not (tmp_path / "fused").exists()
