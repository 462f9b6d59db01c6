"""Paths are never patterns, variables or addresses, whatever stands in them, and no terminal fails a finished job."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import pytest

from deepfashion_training import run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.cli import load_preset
from deepfashion_training.data.sources import open_splits, source_columns
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.inference.requests import read_requests
from deepfashion_training.preparation.account import closing_lines
from training_run.hub import local_path

ROOT = Path(__file__).resolve().parents[1]
#: Names of folders that a shell, `datasets`, fsspec, pyarrow or argparse would read something into.
NAMES = [
    "[2024] shoot", "a*b?", "{a,b} %s %(x)s", "it's \"so\"", "$HOME $(id) `id`", "#1;&|<>!", "~", "~nobody", "-y",
    "a::b", "http:", "\\back", "new\nline", "u\u0308 and \u00fc", "\u00e9", " blank",
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documented rows of 64x64 pixels: 5 to train on, 1 to validate on."""
    folder = write_wardrobe(tmp_path_factory.mktemp("rows") / "rows", rows=6, seed=1, size=(64, 64), num_proc=1)
    table = datasets.load_dataset(str(folder), cache_dir=str(folder.parent / "cache"))["train"]
    (file,) = folder.glob("data/*.parquet")
    table.select([5]).to_parquet(str(file.with_name("validation-00000-of-00001.parquet")))
    table.select(range(5)).to_parquet(str(file))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_opened_from_anywhere(
    name: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    (folder / "data").mkdir(parents=True)
    for file in rows.glob("data/*.parquet"):
        (folder / "data" / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    for given, cache in ((str(folder), tmp_path / "cache"), (name, tmp_path / f"{name}.cache")):
        assert "cloth_type" in source_columns(given)
        for _ in range(2):  # the second time from the cache
            splits = open_splits(given, check_columns=lambda *_: None, cache_dir=str(cache))
            assert {split: len(data) for split, data in splits.items()} == {"train": 5, "validation": 1}
            assert splits["train"][0]["image"].size == (64, 64)
    saved = tmp_path / f"saved {name}"
    splits["validation"].save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved").rename(saved)
    assert len(open_splits(str(saved), check_columns=lambda *_: None)["train"]) == 1


def test_files_of_any_name_are_opened_and_name_their_split(rows: Path, tmp_path: Path) -> None:
    for file in rows.glob("data/*.parquet"):
        (tmp_path / f"{file.stem.partition('-')[0]} [1] $x *{file.suffix}").symlink_to(file)
    splits = open_splits(str(tmp_path), check_columns=lambda *_: None, cache_dir=str(tmp_path / "cache"))
    assert {split: len(data) for split, data in splits.items()} == {"train": 5, "validation": 1}


@pytest.mark.parametrize("name", ["[x] two", "plain"])
@pytest.mark.parametrize("files", [("train.parquet", "Thumbs.db"), ("rows [1].parquet",), ("data/train-0.parquet",)])
def test_rows_are_the_same_however_often_a_folder_is_opened(
    name: str, files: tuple[str, ...], rows: Path, tmp_path: Path
) -> None:
    (stored,) = rows.glob("data/train*.parquet")
    for file in files:
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored.read_bytes() if file.endswith("parquet") else b"")
    for _ in range(4):
        splits = open_splits(str(tmp_path / name), check_columns=lambda *_: None, cache_dir=str(tmp_path / "cache"))
        assert {split: len(data) for split, data in splits.items()} == {"train": 5}


@pytest.mark.parametrize("name", ["[x] y", "plain"])
def test_a_card_is_followed_while_it_is_there(name: str, rows: Path, tmp_path: Path) -> None:
    file = tmp_path / name / "data" / "pairs (1) & more.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(next(iter(rows.glob("data/validation*.parquet"))).read_bytes())
    card = tmp_path / name / "README.md"
    files = f"[{{split: test, path: {file.relative_to(tmp_path / name)}}}]"
    card.write_text(f"---\nconfigs: [{{config_name: default, data_files: {files}}}]\n---\n", "utf-8")
    for split in ("test", "train"):
        splits = open_splits(str(tmp_path / name), check_columns=lambda *_: None, cache_dir=str(tmp_path / "cache"))
        assert {split: len(data) for split, data in splits.items()} == {split: 1}
        card.unlink(missing_ok=True)


def test_no_plain_folder_for_links_is_told(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "[a]").symlink_to(rows)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "t [m]"))
    with pytest.raises(ValueError, match="HF_DATASETS_CACHE"):
        open_splits(str(tmp_path / "[a]"), check_columns=lambda *_: None, cache_dir=str(tmp_path / "c*"))


def test_two_folders_of_other_rows_are_told_apart(rows: Path, tmp_path: Path) -> None:
    for count, name in ((2, "[a]"), (3, "[b]")):
        (tmp_path / name).mkdir()
        file = next(iter(rows.glob("data/train*.parquet")))
        datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "c")).select(range(count)).to_parquet(
            str(tmp_path / name / "x.parquet")
        )
        splits = open_splits(str(tmp_path / name), check_columns=lambda *_: None, cache_dir=str(tmp_path / "cache"))
        assert len(splits["train"]) == count


def test_a_tilde_is_a_home_only_where_nothing_has_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/pairs") == Path("/home/me/pairs") and local_path("~nobody-here/x") == Path("~nobody-here/x")
    (tmp_path / "~" / "pairs").mkdir(parents=True)
    assert local_path("~/pairs") == Path("~/pairs")


def test_what_is_printed_to_be_typed_is_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "[2024] it's $HOME"
    facts = {"rows_in": 1, "pairs": 1, "unpaired": 0, "mined": 0, "warnings": [], "leak_score": {}}
    facts |= {name: {} for name in ("quarantined", "unpaired_reasons", "by_type", "by_source", "by_split")}
    line = closing_lines(folder, facts).splitlines()[-1]
    assert shlex.split(line) == ["train", "--dataset_name", str(folder)]
    folder.mkdir()
    (folder / "x.py").touch()
    script = ["--upstream", str(folder / "x.py"), "--upstream_dataset", "Shop", "--dataset_name", str(folder)]
    args, _ = run_arguments.parse(["--embedded", "--output_dir", str(folder), *script], load=False)
    assert shlex.split(wrapper.larger_run(args), comments=True)[2:8] == script
    command = shlex.split(wrapper.evaluate_command(args, folder, "test"))
    assert command[command.index("--lora") + 1] == str(folder)


def test_tables_and_presets_of_other_systems_are_read(tmp_path: Path) -> None:
    for name in ("p [1]?.png", "$HOME ~.png"):
        (tmp_path / name).touch()
    table = tmp_path / "t [2].csv"
    table.write_bytes(b"\xef\xbb\xbfperson,garment,garment_type\r\np [1]?.png,$HOME ~.png,lower\r\n")
    (request,) = read_requests(table, tmp_path / "out", None)
    assert (request.person.name, request.garment.name, request.cloth_type) == ("p [1]?.png", "$HOME ~.png", 2)
    preset = tmp_path / "my [3].yaml"
    preset.write_bytes(b"\xef\xbb\xbfabout: mine\r\nflags:\r\n  seed: 7\r\n")
    assert load_preset(str(preset)).flags == {"seed": "7"}


# ---- terminals and shells


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1:strict"])
def test_a_terminal_that_cannot_show_a_name_fails_no_finished_job(encoding: str, tmp_path: Path) -> None:
    name = "\u00fc \u6771"
    words = ["--output_dir", str(tmp_path / name), "--rows", "3", "--size", "64x64"]
    done = subprocess.run(
        [sys.executable, "-m", "deepfashion_training.embedded.wardrobe", *words],
        env={**os.environ, "PYTHONIOENCODING": encoding}, cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and b"wrote 3 rows" in done.stdout and b"Traceback" not in done.stderr, done.stderr
    assert list((tmp_path / name / "data").iterdir())


@pytest.mark.parametrize("shell", [["dash"], ["dash", "-x"], ["sh"], ["bash", "--posix"], ["zsh"]])
def test_the_launcher_finds_bash_from_any_shell(shell: list[str], tmp_path: Path) -> None:
    if subprocess.run(["/bin/sh", "-c", f"command -v {shell[0]}"], capture_output=True, check=False).returncode:
        pytest.skip(f"{shell[0]} is not installed")
    folder = tmp_path / "[2024] it's $HOME"
    folder.mkdir()
    (folder / "python").symlink_to("/bin/echo")
    done = subprocess.run(
        [*shell, str(ROOT / "deepfashion_training" / "train_deepfashion_lora.sh"), "--output_dir", "a *  b", "-y"],
        env={**os.environ, "PYTHON": str(folder / "python")}, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    launch = ROOT / "deepfashion_training" / "launch.py"
    assert (done.returncode, done.stdout) == (0, f"{launch} --output_dir a *  b -y\n"), done.stderr


def test_a_clone_has_the_line_ends_that_bash_needs() -> None:
    files = "deepfashion_training/train_deepfashion_lora.sh docs/pairs.png x/model.safetensors".split()
    done = subprocess.run(
        ["git", "check-attr", "eol", "binary", "--", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("no clone")
    assert f"{files[0]}: eol: lf" in done.stdout
    assert all(f"{name}: binary: set" in done.stdout for name in files[1:])
