"""One writer for an output directory: who is refused, who waits, and what is left behind."""

from __future__ import annotations

import errno
import fcntl
import importlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import writing

from deepfashion_training.embedded.wardrobe import write_wardrobe
from training_run import lock
from training_run.lock import LOCK, only_writer

ROOT = Path(__file__).resolve().parents[1]
#: Takes the lock of the folder ``out``, says so, and keeps it; a process that it has forked lives on without it.
HOLDER = """
import os, sys, time
from pathlib import Path
from training_run.lock import only_writer
with only_writer(Path("out"), patience=float(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print(os.getpid(), flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float = 60, patience: float = 0) -> subprocess.Popen[str]:
    """Another process that writes ``out`` in ``folder`` for so many seconds, from now on."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(patience), str(seconds)], cwd=folder, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == f"{process.pid}\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_the_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    first = holder(tmp_path)
    try:
        with pytest.raises(ValueError, match="--to") as refused, only_writer(tmp_path / "out", "--to", patience=0.3):
            pytest.fail("there are two writers")
        said = str(refused.value)
        assert str(tmp_path / "out") in said and str(first.pid) in said and os.uname().nodename in said
        assert " -c 0 60" in said.replace("'", "") and "\n" not in said  # its command
    finally:
        end(first)


def test_a_lock_ends_with_its_process_and_not_with_those_that_it_has_forked(tmp_path: Path) -> None:
    first = holder(tmp_path)
    try:
        first.kill()
        first.wait()
        assert (tmp_path / "out" / LOCK).exists()
        with only_writer(tmp_path / "out", patience=0):
            assert f'"pid": {os.getpid()}' in (tmp_path / "out" / LOCK).read_text()
        assert not (tmp_path / "out" / LOCK).exists() and (tmp_path / "out").exists()
    finally:
        end(first)


def test_a_lock_that_was_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """Of a run that was killed; what another user wrote into it is shown as it can be printed."""
    (tmp_path / LOCK).touch()
    assert write_wardrobe(tmp_path, rows=3, size=(64, 64)) == tmp_path
    file = tmp_path / "other" / LOCK
    file.parent.mkdir()
    file.write_text('{"pid": 7, "host": "a", "since": "b", "command": "x\\u001b[2J\\ny"}')
    with file.open("rb") as opened:
        assert lock._holder(opened.fileno()) == r"process 7 on a (since b: x\x1b[2J\ny)"


def test_a_process_that_is_ending_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = holder(tmp_path, seconds=1)
    began = time.monotonic()
    with only_writer(tmp_path / "out"):
        assert first.wait(1) == 0 and 0.3 < time.monotonic() - began < 5
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and str(first.pid) in note
    end(first)
    first = holder(tmp_path, seconds=0.5)
    with only_writer(tmp_path / "out", patience=math.inf):  # as ranks wait for the one that prepares
        assert capsys.readouterr().err == ""
    end(first)


def test_what_was_made_for_the_lock_goes_unless_something_was_written(tmp_path: Path) -> None:
    with only_writer(tmp_path / "a" / "b"):
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []
    with only_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "c").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["c"]


def test_a_part_of_a_command_takes_the_lock_of_the_whole_again(tmp_path: Path) -> None:
    with only_writer(tmp_path / "out"):
        with only_writer(tmp_path / "out", patience=0):
            pass
        with pytest.raises(AssertionError), writing(tmp_path / "out" / LOCK):
            pytest.fail("there are two writers")


def test_a_folder_that_takes_no_lock_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with only_writer(tmp_path):
        assert str(tmp_path) in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--output_dir .*file/out"), only_writer(tmp_path / "file" / "out"):
        pass


def test_of_many_at_once_one_writes_at_a_time(tmp_path: Path) -> None:
    """Each removes the file when it is done, which nobody else may take for the lock then."""
    script = (
        "import sys, time; from pathlib import Path; from training_run.lock import only_writer\n"
        "for _ in range(20):\n"
        "    with only_writer(Path('out'), patience=60):\n"
        "        Path('inside').touch(exist_ok=False); time.sleep(0.002); Path('inside').unlink()\n"
    )
    command, env = [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": str(ROOT)}
    others = [subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(other.communicate()[1].count("Error"), other.returncode) for other in others] == [(0, 0)] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("prepare", "--dataset_name no/such --output_dir {}"), ("evaluate", "--embedded --output_dir {}"),
        ("tryon", "--embedded --batch no.csv --output {}"),
        ("train_deepfashion_lora", "--quick-test --embedded --output_dir {}"),
        ("train_deepfashion_lora", "--quick-test --embedded --resume_from_checkpoint latest --output_dir {}"),
        ("train_deepfashion_lora", "--quick-test --embedded --check --output_dir {}"),
    ],
)  # fmt: skip
def test_every_command_refuses_a_folder_that_another_process_writes(
    name: str, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything else that would be said of the folder, which is in the middle of something."""
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    command = importlib.import_module(f"deepfashion_training.{name}")
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text("{}")
    file = tmp_path / ".out.preparing.lock" if name == "prepare" else out / LOCK
    if name == "prepare":
        (out / "run.json").unlink()
    with writing(file) as other:
        assert command.main(flags.format(out).split()) == 1
        said = capsys.readouterr().err.splitlines()
        assert str(other) in said[-1] and str(out) in said[-1] and said[-1].startswith(f"{name}: ")
        assert [line for line in said[:-1] if not line.startswith("note: ")] == []
    assert not list(tmp_path.glob(".out*")) or name == "prepare"


@pytest.mark.slow
def test_the_trainer_alone_refuses_it_too(tiny_args: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import train_flux_inpaint

    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    args = tiny_args("--max_train_steps", 1)
    with writing(Path(args.output_dir, LOCK)) as other, pytest.raises(ValueError, match=rf" {other} "):
        train_flux_inpaint.main(args)
