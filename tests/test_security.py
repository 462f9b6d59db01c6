"""Hostile input: bombs, ways out of the data root, formulas and markup in what is written, code in weight files."""

from __future__ import annotations

import ast
import csv
import functools
import json
import os
import pickle
import resource
import struct
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from conftest import pieces

import train_flux_inpaint as trainer
from deepfashion_training import evaluate, export, prepare, tryon
from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.evaluation.results import write_table
from deepfashion_training.reports.model_card import write_model_card
from deepfashion_training.reports.pairs_report import write_pairs_card

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("deepfashion_training", "training_run", "benchmarks")
SOURCES = [ROOT / "train_flux_inpaint.py", *(path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py")))]
SCRIPT = "<script>alert(1)</script>"
FORMULA = '=HYPERLINK("http://evil.example","x")'


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = write_wardrobe(tmp_path_factory.mktemp("sound") / "rows", "documented", 12, size=(256, 192))
    return [row for file in sorted(folder.rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def written(cells: list[dict[str, Any]], folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    made = datasets.Dataset.from_list(cells)
    for column in ("image", "cloth", "mask"):
        if isinstance(cells[0][column], dict):
            made = made.cast_column(column, datasets.Image())
    made.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def failed(command: Any, capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line that a command ends with."""
    assert command.main([str(word) for word in argv]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said and "--debug" not in said, said
    return said


# ---------------------------------------------------------------------------------------------------------------- bombs


def bomb(side: int, colour: int = 2) -> bytes:
    """A PNG that says ``side`` times ``side`` pixels and has all rows of the first ones: black, well compressed."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, 0)
    body = zlib.compress(bytes(50_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """Of 2.7 GB, and of 432 MB: above Pillow's limit, and between the one at which it warns and that."""
    return {"large": bomb(30_000), "small": bomb(12_000)}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What the test does takes less than a tenth of a bomb's pixels."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 250  # MiB


@pytest.mark.parametrize("kind", ["large", "small"])
@pytest.mark.parametrize("column", ["image", "cloth", "mask"])
def test_a_bomb_in_a_dataset_is_a_bad_row(kind, column, bombs, rows, tmp_path, little_memory):
    cells = [{**rows[0], column: {"bytes": bombs[kind], "path": None}}, *rows[1:]]
    source = written(cells, tmp_path)
    (source / "data" / "validation-00000-of-00001.parquet").symlink_to("train-00000-of-00001.parquet")
    data = DeepFashionDataset(str(source), size=(128, 96), options=DatasetOptions(max_bad_rows=1.0))
    assert not [name for name in (data[number]["im_name"] for number in range(len(data))) if name.endswith("/row-0")]
    (entry,) = data.skipped_rows
    assert entry["row"] == 0 and entry["reason"].startswith(f"{column}: ") and "pixels" in entry["reason"]


def test_bombs_are_quarantined_as_such(bombs, rows, tmp_path, capsys, little_memory):
    cells = [dict(row) for row in rows]
    columns = {0: ("image", "large"), 2: ("mask", "large"), 4: ("cloth", "large"), 6: ("image", "small")}
    for number, (column, kind) in columns.items():
        cells[number][column] = {"bytes": bombs[kind], "path": None}
    flags = ["--dataset_name", written(cells, tmp_path / "rows"), "--output_dir", tmp_path / "out", "--num_proc", 1]
    assert prepare.main([str(flag) for flag in [*flags, "--parser", "none", "--min_garment_px", 24]]) == 0
    told = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    reasons = {row["source_row"]: row["reason"] for row in told}
    assert {number: reasons[number] for number in columns} == dict.fromkeys(columns, "decompression_bomb")


@pytest.mark.parametrize("what", ["person", "garment", "mask"])
def test_tryon_refuses_a_bomb(what, bombs, wardrobe, tmp_path, capsys, little_memory):
    flags = pieces(wardrobe)
    flags[flags.index(f"--{what}") + 1] = tmp_path / "bomb.png"
    (tmp_path / "bomb.png").write_bytes(bombs["large"])
    assert tryon.main([str(word) for word in [*flags, "--embedded", "--output", tmp_path / "o.png"]]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"the {what} {tmp_path / 'bomb.png'}" in said and "pixels" in said
    assert not (tmp_path / "o.png").exists()


# ------------------------------------------------------------------------------------------------ out of the data root


@pytest.fixture
def ways_out(rows, tmp_path) -> tuple[Path, dict[int, str]]:
    """Rows that name their photos by path: the first four within the folder, the others out of it or not readable."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(rows[0]["image"]["bytes"])
    folder = tmp_path / "rows"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "own.png").write_bytes(rows[0]["image"]["bytes"])
    (folder / "pictures" / "inner.png").symlink_to("own.png")
    (folder / "pictures" / "link.png").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    sound = [
        "pictures/own.png",
        str(folder / "pictures" / "own.png"),
        "pictures/inner.png",
        "pictures/../pictures/own.png",
    ]
    out = [str(secret), "../secret.png", "pictures/link.png", "up/secret.png", "pictures/../../secret.png", "/dev/zero"]
    out += [
        "/etc/passwd",
        "~/secret.png",
        "file:///etc/passwd",
        "pipe.png",
        "pictures",
        "loop.png",
        "a\0b.png",
        "none.png",
    ]
    cells = [
        {**rows[number % 12], "image": name, "pid": f"id_{number:08d}"} for number, name in enumerate([*sound, *out])
    ]
    return written(cells, folder), dict(enumerate(out, len(sound)))


def test_no_picture_is_read_from_outside_of_the_dataset(ways_out, tmp_path, capsys):
    folder, out = ways_out
    (folder / "data" / "validation-00000-of-00001.parquet").symlink_to("train-00000-of-00001.parquet")
    data = DeepFashionDataset(str(folder), size=(128, 96), options=DatasetOptions(max_bad_rows=1.0))
    read = {int(data[number]["im_name"].rpartition("-")[2]) for number in range(len(data))}
    assert read == set(range(min(out)))
    told = {entry["row"]: entry["reason"] for entry in data.skipped_rows}
    assert set(told) == set(out)
    for row, reason in told.items():
        assert reason.startswith("image: ") and reason.isprintable()
        assert "leaves the data root" in reason or row >= min(out) + 7, reason
    (folder / "data" / "validation-00000-of-00001.parquet").unlink()
    flags = ["--dataset_name", folder, "--output_dir", tmp_path / "out", "--num_proc", 1, "--parser", "none"]
    assert prepare.main([str(flag) for flag in [*flags, "--min_garment_px", 24]]) == 0, capsys.readouterr().err
    quarantined = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert {row["source_row"]: row["reason"] for row in quarantined} == dict.fromkeys(out, "unreadable_photo")


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_a_table_begins_a_formula(begins, tmp_path):
    name = f"{begins}cmd|' /C calc'!A0/row-3"
    row = {"row": 3, "name": name, "garment": name, "type": "lower", "model": "lora", "guidance_scale": 3.5}
    write_table(tmp_path / "metrics.csv", [{**row, "figures": {"ssim": -0.25}}])
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as lines:
        (read,) = csv.DictReader(lines)
    assert read["name"] == read["garment"] == f"'{name}"
    assert (read["row"], read["type"], read["ssim"]) == ("3", "lower", "-0.25")  # numbers stay numbers


@functools.cache
def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a file, by the name of what is called."""
    found = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
    return [(ast.unparse(node.func), node) for node in found]


def test_there_is_one_writer_of_tables_only():
    writers = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        for name, _ in calls(path)
        if name.endswith(("csv.writer", "DictWriter", "to_csv", "write_csv"))
    }
    assert writers == {"deepfashion_training/evaluation/results.py"}


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def assert_inert(page: str) -> None:
    tags = Tags(page).tags
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in tags}
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    for _, attrs in tags:
        for name in ("src", "href", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))


def test_hostile_rows_make_no_markup_in_the_report_of_prepare(rows, tmp_path, capsys):
    hostile = f"{SCRIPT}<img src=x onerror=alert(1)>"
    names = {"caption": hostile, "variant": hostile, "view": hostile, "gender": hostile, "category": hostile}
    cells = [{**row, **names, "pid": f"{hostile}{number}"} for number, row in enumerate(rows)]
    cells[3]["mask"] = {"bytes": b"", "path": None}
    folder = tmp_path / "<img src=x onerror=alert(2)>"
    flags = ["--dataset_name", written(cells, folder), "--output_dir", tmp_path / "out", "--num_proc", 1]
    assert prepare.main([str(flag) for flag in [*flags, "--parser", "none", "--min_garment_px", 24]]) == 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "&lt;script&gt;" in page and "&lt;img src=x onerror=alert(2)&gt;" in page  # shown, as text
    assert_inert(page)


def test_every_page_is_escaped_unless_it_says_so_and_none_does():
    templates = [*ROOT.glob("deepfashion_training/**/*.jinja"), *ROOT.glob("deepfashion_training/**/*.html")]
    assert len(templates) >= 6
    for path in templates:
        text = path.read_text("utf-8")
        assert "safe" not in {word.strip() for part in text.split("|")[1:] for word in part.split()[:1]}, path
        assert "autoescape false" not in text
    environments = [
        (path.name, {word.arg: ast.unparse(word.value) for word in call.keywords}.get("autoescape"))
        for path in SOURCES
        for name, call in calls(path)
        if name in ("Environment", "jinja2.Environment")
    ]
    # Cards are Markdown, whose own ways out are tested below.
    assert environments == [("page.py", "template.endswith('.html.jinja')")]


HOSTILE_NAME = "x` <img src=x onerror=alert(1)> | `y"


def outside_of_code(markdown: str) -> str:
    """Text of a card that is no code: neither fenced nor between backticks."""
    plain = "".join(markdown.split("```")[::2])
    return "".join(plain.split("`")[::2])


def test_names_cannot_leave_the_code_of_cards(tmp_path):
    counts = dict.fromkeys(("upper", "lower", "full"), 1)
    facts = {"pairs": 3, "mined": 0, "rows_in": 3, "source": f"/data/{HOSTILE_NAME}", "mask_policy": "agnostic"}
    facts |= {"by_split": {"train": 3}, "by_split_and_type": {"train": counts}, "key": "5f1d"}
    write_pairs_card(tmp_path / "README.md", facts)
    assert "<img" not in outside_of_code((tmp_path / "README.md").read_text("utf-8"))

    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    arguments = {**vars(trainer.parse_args(["--dataroot", "x"])), "embedded": False, "raw_dataset_name": HOSTILE_NAME}
    arguments |= dict.fromkeys(("pretrained_model_name_or_path", "pretrained_inpaint_model_name_or_path"), HOSTILE_NAME)
    arguments["instance_prompt"] = '"); import os  # ```' + SCRIPT
    data = {"source": HOSTILE_NAME, "split": "train", "rows": 3, "by_type": counts}
    run = {"arguments": arguments, "dataset": {"train": data}, "step": 1, "seconds_per_step": 1.0, "world_size": 1}
    (folder / "run.json").write_text(json.dumps({**run, "device": "cpu"}), "utf-8")
    card = write_model_card(folder).read_text("utf-8")
    assert "<img" not in outside_of_code(card) and "<script" not in card
    assert "# &lt;img src=x onerror=alert(1)&gt;: " in card


# -------------------------------------------------------------------------------------------------------- code in files


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path) -> Iterator[Path]:
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "pytorch_lora_weights.safetensors", "lora.pt"])
@pytest.mark.parametrize("way", ["folder", "file"])
def test_a_lora_that_is_a_pickle_is_never_loaded(name, way, mark, wardrobe, tmp_path, capsys):
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    lora = folder if way == "folder" else folder / name
    assert str(lora) in failed(export, capsys, "--lora", lora, "--format", "peft", "--output", tmp_path / "out")
    assert str(lora) in failed(tryon, capsys, *pieces(wardrobe), "--lora", lora, "--output", tmp_path / "o.png")
    flags = ("--dataset_name", tmp_path, "--lora", lora, "--output_dir", tmp_path / "report", "--parser", "none")
    assert failed(evaluate, capsys, *flags).startswith("evaluate: ")
    assert {path.name for path in tmp_path.iterdir()} == {"lora"}


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_base_whose_weights_are_a_pickle_is_never_loaded(part, mark, tiny_flux_fill, tmp_path, tiny_args):
    import shutil

    from diffusers import FluxFillPipeline

    base = Path(shutil.copytree(tiny_flux_fill, tmp_path / "base"))
    for file in (base / part).glob("*.safetensors*"):
        file.unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        (base / part / name).write_bytes(pickle.dumps(Payload(mark)))
        torch.save(Payload(mark), base / part / f"torch-{name}")
    named = ("--pretrained_model_name_or_path", base, "--pretrained_inpaint_model_name_or_path", base)
    args = tiny_args(*named)
    with pytest.raises((OSError, ValueError)):
        if part == "transformer":
            trainer.load_transformer(args, torch.float32)
        else:
            options = trainer.pipeline_options(args, torch.float32)
            FluxFillPipeline.from_pretrained(base, transformer=None, **options)


#: Where a name that executes what it reads may stand, and why.
ALLOWED = {("deepfashion_training/cli.py", "yaml.load"): "a BaseLoader: it makes texts only"}
UNSAFE = ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "joblib.load", "dill.load", "marshal.loads")
UNSAFE += ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "np.load", "numpy.load")


def test_nothing_that_a_stranger_wrote_is_unpickled_or_executed():
    found = set()
    for path in SOURCES:
        place = path.relative_to(ROOT).as_posix()
        for name, call in calls(path):
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert words.get("trust_remote_code") in (None, "False"), place
            assert words.get("use_safetensors") in (None, "True"), place
            assert words.get("allow_pickle") in (None, "False") and words.get("weights_only") in (None, "True"), place
            if words.get("shell") == "True" or name in UNSAFE:
                found.add((place, name))
    assert found == set(ALLOWED)
