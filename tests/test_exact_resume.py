"""A run stopped anywhere and continued ends as one that never was: losses, adapter, optimizer, random states."""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT, forget_accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import train_flux_inpaint as tfi
from training_run import bases, stopping
from training_run.checkpoints import checkpoints_in, seal, step_of, verify
from training_run.lora import load_transformer_weights
from training_run.output_dir import forget_future
from training_run.sheets import sheets_in
from training_run.state import read_state, write_state
from training_run.stopping import StoppedError

#: Eight rows: an epoch of one process is 8 forward passes of 1, so that stops fall into epochs and on their edges.
FLAGS = (
    "--max_train_steps 6 --lr_scheduler cosine --learning_rate 1e-2 --checkpointing_steps 4 --validation_steps 0 "
    "--report_to none --logging_steps 4 --train_batch_size 1"
).split()


def ended(folder: Path) -> dict:
    """What has to be the same in the end."""
    state = read_state(checkpoints_in(folder)[-1])
    names = ("step", "optimizer", "lr_scheduler", "ranks", "moved", "data")
    files = {
        "lora": load_file(next(folder.glob("*.safetensors"))),
        "losses": (folder / "logs/losses.jsonl").read_text(),
    }
    return {name: state[name] for name in names} | files


def same(ours: object, theirs: object) -> bool:
    """Equal bit for bit, tensors too."""
    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return isinstance(theirs, list) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def run(args: argparse.Namespace, stop_at_pass: int | None = None) -> None:
    """Drive ``main``; a SIGTERM arrives while forward pass ``stop_at_pass`` is being encoded."""
    encode = tfi.Run.encode

    def signalled(self: tfi.Run, samples: dict, forward_pass: int) -> tfi.FillBatch:
        if forward_pass == stop_at_pass:
            os.kill(os.getpid(), signal.SIGTERM)
        drawn = torch.rand(1) + np.random.rand() + random.random()  # as data that is augmented does
        return encode(self, samples | {"image": samples["image"] * (1 - 0.1 * drawn)}, forward_pass)

    forget_accelerator()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tfi.Run, "encode", signalled)
            tfi.main(args)
    finally:
        forget_accelerator()


def assert_same(ours: dict, theirs: dict) -> None:
    assert [name for name in theirs if not same(ours[name], theirs[name])] == []


@pytest.fixture(scope="module")
def undisturbed(tiny_args: Callable[..., argparse.Namespace]) -> Callable[[int], dict]:
    """Trace of the run with this many forward passes a step that nothing has stopped."""

    @functools.cache
    def traced(passes: int) -> dict:
        args = tiny_args(*FLAGS, "--gradient_accumulation_steps", passes, "--dataloader_num_workers", 0)
        run(args)
        return ended(Path(args.output_dir))

    return traced


@pytest.mark.parametrize(
    ("passes", "stop_at_pass", "workers"),
    [
        (2, 4, 0),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [
                (1, 1, 0),  # in the second step, before its pass is added
                (1, 4, 0),  # just after the checkpoint of step 4
                (1, 3, 2),
                (2, 1, 0),  # in the middle of the first step's second pass: step 1 is completed first
                (2, 7, 2),  # the last pass of an epoch
                (2, 8, 0),  # the first pass of the second epoch
                (3, 8, 2),  # in the middle of a step that lies across the epoch's edge
                (3, 16, 0),
            ]
        ),
    ],
)
def test_a_stopped_run_continued_equals_the_undisturbed_one(tiny_args, undisturbed, passes, stop_at_pass, workers):
    flags = [*FLAGS, "--gradient_accumulation_steps", passes]
    args = tiny_args(*flags, "--dataloader_num_workers", workers)
    with pytest.raises(StoppedError) as stopped:
        run(args, stop_at_pass)
    folder = Path(args.output_dir)
    # The pass in which the signal came is done; a step that is not whole then is taken again.
    step = (stop_at_pass + 1) // passes
    assert stopped.value.code == 143
    assert [path.name for path in checkpoints_in(folder)][-1:] == ([f"checkpoint-{step}"] if step else [])
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["status"], facts["step"]) == ("stopped by SIGTERM", step)
    assert not (folder / tfi.LORA_FILE).exists()  # what is not done does not look done
    again = tiny_args(*flags, "--output_dir", folder, "--resume_from_checkpoint", "latest",
                      "--dataloader_num_workers", 2 - workers)  # fmt: skip
    run(again)
    assert_same(ended(folder), undisturbed(passes))
    assert json.loads((folder / "run.json").read_text())["status"] == "done"


def test_a_run_with_dropout_goes_on_bit_for_bit(tiny_args, undisturbed):
    flags = [*FLAGS, "--gradient_accumulation_steps", 2, "--dataloader_num_workers", 0, "--lora_dropout", 0.3]
    whole, stopped = tiny_args(*flags), tiny_args(*flags)
    run(whole)
    with pytest.raises(StoppedError):
        run(stopped, 4)
    run(tiny_args(*flags, "--output_dir", stopped.output_dir, "--resume_from_checkpoint", "latest"))
    wanted, plain = ended(Path(whole.output_dir)), undisturbed(2)
    assert_same(ended(Path(stopped.output_dir)), wanted)
    assert not same(wanted["lora"], plain["lora"]) and wanted["lora"].keys() == plain["lora"].keys()


class Moving(tfi.VitonHDTestDataset):
    """From even rows to odd ones."""

    def sampling_weights(self) -> list[float]:
        return [1 - row % 2 for row in range(len(self))]

    def final_sampling_weights(self) -> list[float]:
        return [row % 2 for row in range(len(self))]


def test_a_moving_mixture_goes_on_bit_for_bit_and_not_over_other_steps(tiny_args, monkeypatch):
    monkeypatch.setattr(tfi, "VitonHDTestDataset", Moving)
    flags = [*FLAGS, "--lr_scheduler", "constant", "--dataloader_num_workers", 0]
    whole, stopped = tiny_args(*flags), tiny_args(*flags)
    run(whole)
    with pytest.raises(StoppedError):
        run(stopped, 2)
    again = [*flags, "--output_dir", stopped.output_dir, "--resume_from_checkpoint", "latest"]
    with pytest.raises(ValueError, match="max_train_steps"):
        run(tiny_args(*again, "--max_train_steps", 7))
    run(tiny_args(*again))
    assert_same(ended(Path(stopped.output_dir)), ended(Path(whole.output_dir)))


@pytest.mark.long
@pytest.mark.parametrize("place", ["validation", "save"])
def test_a_signal_while_pictures_are_drawn_or_a_checkpoint_is_written(tiny_args, undisturbed, monkeypatch, place):
    where, name = {"validation": (tfi, "to_picture"), "save": (tfi, "write_state")}[place]
    plain, calls = getattr(where, name), []

    def signalled(*given: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*given)

    flags = [*FLAGS, "--gradient_accumulation_steps", 2]
    args = tiny_args(*flags, *(["--validation_steps", 4] if place == "validation" else []))
    monkeypatch.setattr(where, name, signalled)
    # At step 0 nothing is drawn here, so that the signal comes in step 4's pictures, after step 4's checkpoint.
    monkeypatch.setattr(tfi.Run, "validate", lambda run, draw=tfi.Run.validate: run.step and draw(run))
    with pytest.raises(StoppedError) as stopped:
        run(args)
    folder = Path(args.output_dir)
    assert stopped.value.code == 143
    assert [path.name for path in checkpoints_in(folder)] == ["checkpoint-4"]  # whole, and not written twice
    assert not (folder / "validation").exists()  # half a sheet is none
    assert len(calls) == 1  # of the first of two rows
    run(tiny_args(*flags, "--output_dir", folder, "--resume_from_checkpoint", "latest"))
    assert_same(ended(folder), undisturbed(2))


@pytest.mark.long
def test_who_keeps_the_error_of_a_stopped_run_keeps_no_workers(tiny_args):
    with pytest.raises(StoppedError) as kept:
        run(tiny_args(*FLAGS, "--dataloader_num_workers", 2), stop_at_pass=2)
    assert kept.value.code == 143
    assert multiprocessing.active_children() == []


def test_a_worker_goes_some_time_after_it_was_told_to(monkeypatch):
    """Later than the last step of a run that was stopped, but it goes: multiprocessing waits for it."""
    monkeypatch.setattr(stopping, "WORKERS_STAY", 2)
    worker = multiprocessing.get_context("fork").Process(target=_works_on, daemon=True)
    worker.start()
    time.sleep(0.5)
    os.kill(worker.pid, signal.SIGINT)
    worker.terminate()
    worker.join(timeout=1)
    assert worker.is_alive()
    worker.join(timeout=20)
    assert worker.exitcode == -signal.SIGALRM


def _works_on() -> None:
    stopping.worker_ignores_signals(0)
    while True:
        time.sleep(0.1)


def test_ctrl_c_is_130_and_a_second_one_does_not_wait(tiny_args, monkeypatch):
    encode, passes, handler = tfi.Run.encode, [], signal.getsignal(signal.SIGINT)

    def interrupted(self: tfi.Run, samples: dict, forward_pass: int) -> tfi.FillBatch:
        passes.append(forward_pass)
        for _ in range(1 if forward_pass < 2 else 2):
            os.kill(os.getpid(), signal.SIGINT)
        return encode(self, samples, forward_pass)

    args = tiny_args(*FLAGS, "--gradient_accumulation_steps", 2)
    forget_accelerator()
    monkeypatch.setattr(tfi.Run, "encode", interrupted)
    with pytest.raises(StoppedError) as stopped:
        tfi.main(args)
    assert stopped.value.code == 130 and passes == [0] and checkpoints_in(Path(args.output_dir)) == []
    forget_accelerator()
    passes.clear()
    monkeypatch.setattr(tfi.Run, "encode", lambda self, samples, number: interrupted(self, samples, number + 2))
    with pytest.raises(StoppedError) as stopped:
        tfi.main(tiny_args(*FLAGS))
    forget_accelerator()
    assert stopped.value.code == 130
    assert signal.getsignal(signal.SIGINT) is handler  # as it was before


def test_changed_arguments_are_named_and_refused(tiny_args):
    args = tiny_args(*FLAGS, "--max_train_steps", 1, "--checkpointing_steps", 1)
    run(args)
    folder = Path(args.output_dir)
    changes = [
        "--output_dir",
        folder,
        "--max_train_steps",
        2,
        "--learning_rate",
        3e-3,
        "--seed",
        7,
        "--resume_from_checkpoint",
    ]
    with pytest.raises(
        ValueError, match=r"learning_rate was 0\.01 and is 0\.003; max_train_steps was 1 and is 2; seed was"
    ):
        run(tiny_args(*FLAGS, *changes, "latest"))
    run(tiny_args(*FLAGS, *changes, folder / "checkpoint-1", "--allow_changed_arguments"))
    assert json.loads((folder / "run.json").read_text())["step"] == 2


@pytest.mark.long
def test_a_constant_schedule_may_go_on_longer_and_what_only_shows_may_change(tiny_args):
    constant = [*FLAGS, "--lr_scheduler", "constant"]
    args = tiny_args(*constant, "--max_train_steps", 1, "--checkpointing_steps", 1)
    run(args)
    shown = "--max_train_steps 2 --checkpointing_steps 2 --logging_steps 1 --max_skipped_steps 3".split()
    run(tiny_args(*constant, *shown, "--output_dir", args.output_dir, "--resume_from_checkpoint", "latest"))
    assert json.loads((Path(args.output_dir) / "run.json").read_text())["step"] == 2


def test_checkpoints_by_the_clock(tiny_args):
    args = tiny_args(*FLAGS, "--max_train_steps", 3, "--checkpointing_steps", 0, "--save_every_minutes", 1e-6)
    run(args)
    assert [path.name for path in checkpoints_in(Path(args.output_dir))] == [f"checkpoint-{step}" for step in (1, 2, 3)]


def test_a_run_that_lost_only_its_last_file_is_finished_and_not_refused(tiny_args, undisturbed):
    args = tiny_args(*FLAGS, "--gradient_accumulation_steps", 2)
    with pytest.MonkeyPatch.context() as patch:  # killed between the last checkpoint and the LoRA beside it
        patch.setattr(tfi.Run, "save_weights", dies_outside(".saving"))
        with pytest.raises(KeyboardInterrupt):
            run(args)
    folder = Path(args.output_dir)
    assert checkpoints_in(folder)[-1].name == "checkpoint-6" and not (folder / tfi.LORA_FILE).exists()
    again = ["--gradient_accumulation_steps", 2, "--output_dir", folder, "--resume_from_checkpoint", "latest"]
    run(tiny_args(*FLAGS, *again))
    assert_same(ended(folder), undisturbed(2))
    with pytest.raises(ValueError, match="at step 6 of 6: raise --max_train_steps"):
        run(tiny_args(*FLAGS, *again))


@pytest.mark.parametrize("every", [1, 0])  # with a checkpoint of the last step, and without
def test_a_signal_in_the_last_validation_leaves_a_run_that_is_not_done(tiny_args, monkeypatch, every):
    shown = [*FLAGS, "--max_train_steps", 2, "--validation_steps", 2, "--num_validation_images", 1]
    shown += ["--checkpointing_steps", every]
    whole = tiny_args(*shown)
    run(whole)
    args, draw = tiny_args(*shown), tfi.Run.draw_results

    def signalled(self: tfi.Run) -> list:
        if self.step:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self)

    with monkeypatch.context() as patch:
        patch.setattr(tfi.Run, "draw_results", signalled)
        with pytest.raises(StoppedError):
            run(args)
    folder = Path(args.output_dir)
    assert (folder / tfi.LORA_FILE).exists()  # what is made is not lost
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped by SIGTERM"
    assert [path.name for path in sheets_in(folder)] == ["step-0.png"]
    drawn: list[int] = []
    monkeypatch.setattr(tfi.Run, "draw_results", lambda self: drawn.append(self.step) or draw(self))
    again = [*shown, "--output_dir", folder, "--resume_from_checkpoint", "latest"]
    run(tiny_args(*again))
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "done" and drawn == [2]
    assert [(folder / "validation" / "step-2.png").read_bytes()] == [
        (Path(whole.output_dir) / "validation" / "step-2.png").read_bytes()
    ]
    (folder / "run.json").write_text(json.dumps(facts | {"status": "running"}))
    run(tiny_args(*again))
    assert drawn == [2]  # a picture that is there is not drawn again


def test_what_lies_after_the_step_that_a_run_goes_on_from_is_set_aside(tmp_path, accelerator):
    """Pictures of another branch, or of a run killed before its first checkpoint, are not taken for its own."""
    (tmp_path / "validation").mkdir()
    (tmp_path / "logs").mkdir()
    for step in (0, 2, 4, 10):
        (tmp_path / "validation" / f"step-{step}.png").write_text(f"picture of {step}")
    (tmp_path / "validation" / "step-mine.png").write_text("the user's own")
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "logs" / "losses.jsonl").write_text("".join(lines) + '{"step": 4')
    forget_future(tmp_path, 2)
    assert [path.name for path in sheets_in(tmp_path)] == ["step-0.png", "step-2.png"]
    assert (tmp_path / "before-2" / "validation" / "step-10.png").read_text() == "picture of 10"
    assert (tmp_path / "logs" / "losses.jsonl").read_text() == "".join(lines[:2])
    forget_future(tmp_path, 0)  # a fresh start
    assert sheets_in(tmp_path) == [] and list((tmp_path / "logs").iterdir()) == []
    assert (tmp_path / "before-0" / "logs" / "losses.jsonl").read_text() == "".join(lines[:2])
    assert (tmp_path / "validation" / "step-mine.png").exists()


def test_what_was_set_aside_is_never_written_over(tmp_path, accelerator):
    for number in ("", "-2", "-3"):
        (tmp_path / f"before-2{number}").mkdir()
    (tmp_path / "before-2").rmdir()
    (tmp_path / "before-2-2").rmdir()
    (tmp_path / "before-2-3" / tfi.LORA_FILE).write_text("of a third branch")
    for content in ("of a fourth", "of a fifth", "of a sixth"):
        (tmp_path / tfi.LORA_FILE).write_text(content)
        forget_future(tmp_path, 2)
    kept = {path.parent.name: path.read_text() for path in tmp_path.glob(f"*/{tfi.LORA_FILE}")}
    branches = {"before-2": "of a fourth", "before-2-2": "of a fifth", "before-2-3": "of a third branch"}
    assert kept == branches | {"before-2-4": "of a sixth"}


def test_a_record_that_cannot_be_read_is_named(tiny_args):
    args = tiny_args(*FLAGS, "--max_train_steps", 1, "--checkpointing_steps", 1)
    run(args)
    (Path(args.output_dir) / "run.json").write_text("{")
    again = [*FLAGS, "--max_train_steps", 1, "--output_dir", args.output_dir, "--resume_from_checkpoint", "latest"]
    with pytest.raises(ValueError, match=r"run\.json is not readable .*: move it away"):
        run(tiny_args(*again))


def test_what_was_made_of_weights_goes_before_them(tmp_path, monkeypatch, accelerator):
    """A kill in between leaves no figures beside weights that they are not of."""
    for name in ("README.md", "evaluation.json", tfi.LORA_FILE):
        (tmp_path / name).write_text(name)
    rename, moved = Path.rename, []

    def dies(self: Path, target: Path) -> Path:
        if moved:
            raise KeyboardInterrupt
        moved.append(self.name)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            forget_future(tmp_path, 0)
    forget_future(tmp_path, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"before-0", "before-0-2"}


def test_a_run_that_was_killed_before_its_first_checkpoint_leaves_nothing_in_the_next_one(tiny_args, tmp_path):
    (tmp_path / "validation").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "validation" / "step-200.png").write_text("of the run before")
    (tmp_path / "validation" / ".saving-999999999-step-400.png").write_text("half")
    (tmp_path / "logs" / "losses.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"step": 2, "lo')
    run(tiny_args(*FLAGS, "--max_train_steps", 1, "--logging_steps", 1, "--output_dir", tmp_path))
    (line,) = (tmp_path / "logs" / "losses.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 1 and json.loads(line)["loss"] != 9.0
    assert not list((tmp_path / "validation").iterdir())
    assert (tmp_path / "before-0" / "validation" / "step-200.png").exists()


def dies_outside(part: str) -> Callable[[tfi.Run, Path], Path]:
    """``save_weights`` that raises where it is to write into another folder than one whose name has ``part``."""
    plain = tfi.Run.save_weights

    def save(run: tfi.Run, folder: Path) -> Path:
        if part not in folder.name:
            raise KeyboardInterrupt
        return plain(run, folder)

    return save


def test_a_signal_in_the_last_step_ends_the_run_done_and_lets_nothing_else_begin(tiny_args, undisturbed):
    args = tiny_args(*FLAGS, "--gradient_accumulation_steps", 2)
    with pytest.raises(StoppedError) as stopped:
        run(args, 11)
    folder = Path(args.output_dir)
    assert stopped.value.code == 143 and json.loads((folder / "run.json").read_text())["status"] == "done"
    assert_same(ended(folder), undisturbed(2))


def test_an_earlier_checkpoint_continued_sets_the_other_future_aside(tiny_args):
    short = [*FLAGS, "--checkpointing_steps", 1, "--lr_scheduler", "constant", "--max_train_steps", 4]
    args = tiny_args(*short)
    run(args)
    folder = Path(args.output_dir)
    with pytest.raises(StoppedError):
        run(tiny_args(*short, "--output_dir", folder, "--resume_from_checkpoint", folder / "checkpoint-1"), 2)
    assert [path.name for path in checkpoints_in(folder)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert [json.loads(line)["step"] for line in (folder / "logs" / "losses.jsonl").read_text().splitlines()] == []
    aside = {path.name for path in (folder / "before-1").iterdir()}
    assert aside == {"checkpoint-2", "checkpoint-3", "checkpoint-4", tfi.LORA_FILE}
    assert list(folder.glob("*.safetensors")) == []  # diffusers takes any that it finds for the LoRA


SHORT = [*FLAGS, "--lr_scheduler", "constant", "--max_train_steps", 3, "--checkpointing_steps", 2]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_latest_does_not_begin_anew_over_what_was_trained(tiny_args):
    flags = [*SHORT, "--checkpointing_steps", 0]
    args = tiny_args(*flags)
    run(args)
    before = content(Path(args.output_dir))
    with pytest.raises(ValueError, match=r"holds an earlier run \(pytorch_lora_weights"):
        run(tiny_args(*flags, "--output_dir", args.output_dir, "--resume_from_checkpoint", "latest"))
    assert content(Path(args.output_dir)) == before


@pytest.mark.long
@pytest.mark.parametrize(
    "flags", [["--lora_target_modules", "atention"], ["--resume_from_checkpoint", "OTHER", "--seed", 9]]
)
def test_a_run_that_is_refused_overwrites_nothing(tiny_args, flags):
    args, other = tiny_args(*SHORT), tiny_args(*SHORT)
    run(args)
    run(other)
    folder = Path(args.output_dir)
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "report.html").write_text("figures")
    before = content(folder)
    flags = [Path(other.output_dir, "checkpoint-2") if flag == "OTHER" else flag for flag in flags]
    with pytest.raises(ValueError):
        run(tiny_args(*SHORT, "--output_dir", folder, "--overwrite_output_dir", *flags))
    assert content(folder) == before
    with pytest.raises(ValueError):
        run(tiny_args(*SHORT, "--output_dir", folder, "--resume_from_checkpoint", "latest", "--seed", 9))
    assert content(folder) == before
    run(tiny_args(*SHORT, "--output_dir", folder, "--overwrite_output_dir"))
    assert not (folder / "evaluation").exists() and not (folder / ".replaced").exists()


@pytest.mark.long
def test_spoilt_lines_of_curves_are_left_out_and_a_fresh_start_draws_no_curve_twice(tiny_args, caplog):
    flags = [*SHORT, "--logging_steps", 1]
    args = tiny_args(*flags)
    run(args)
    folder = Path(args.output_dir)
    with (folder / "logs" / "losses.jsonl").open("a") as lines:
        lines.write("\0\0\0\n")
    for path in (*checkpoints_in(folder), folder / tfi.LORA_FILE):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(tiny_args(*flags, "--output_dir", folder, "--resume_from_checkpoint", "latest"))
    assert [json.loads(line)["step"] for line in (folder / "logs" / "losses.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
    ]


def test_an_empty_name_of_a_checkpoint_is_wrong_use(tiny_args, capsys):
    with pytest.raises(SystemExit) as ended:
        tiny_args("--resume_from_checkpoint", "")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "--resume_from_checkpoint" in said and "empty" in said


@pytest.mark.long
def test_a_checkpoint_of_elsewhere_is_saved_here_before_the_first_step_ends(tiny_args):
    args = tiny_args(*FLAGS, "--max_train_steps", 4, "--lr_scheduler", "constant")
    run(args)
    again = tiny_args(*FLAGS, "--lr_scheduler", "constant", "--gradient_accumulation_steps", 1,
                      "--resume_from_checkpoint", Path(args.output_dir) / "checkpoint-4")  # fmt: skip
    with pytest.raises(StoppedError), pytest.MonkeyPatch.context() as patch:
        plain = tfi.train
        patch.setattr(tfi, "train", lambda *given: (setattr(given[0].stopping, "asked", 15), plain(*given)))
        run(again)
    assert [path.name for path in checkpoints_in(Path(again.output_dir))] == ["checkpoint-4"]


@pytest.mark.long
def test_a_changed_rate_that_is_allowed_takes_effect(tiny_args):
    flags = [*FLAGS, "--logging_steps", 1, "--checkpointing_steps", 1]
    args = tiny_args(*flags, "--max_train_steps", 2)
    run(args)
    changed = ["--learning_rate", 3e-4, "--adam_weight_decay", 0.5, "--max_train_steps", 4, "--allow_changed_arguments"]
    run(tiny_args(*flags, *changed, "--output_dir", args.output_dir, "--resume_from_checkpoint", "latest"))
    losses = (Path(args.output_dir) / "logs" / "losses.jsonl").read_text().splitlines()
    assert json.loads(losses[2])["lr"] == pytest.approx(3e-4 * (1 + math.cos(math.pi * 3 / 4)) / 2)
    group = read_state(checkpoints_in(Path(args.output_dir))[-1])["optimizer"]["param_groups"][0]
    assert (group["weight_decay"], group["initial_lr"]) == (0.5, 3e-4)


def of_state(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Changes the state in a checkpoint."""

    def spoil(checkpoint: Path) -> None:
        state = read_state(checkpoint)
        change(state)
        write_state(checkpoint, state)

    return spoil


def of_moment(checkpoint: Path) -> None:
    def spoil(state: dict) -> None:
        state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)  # SIGSEGV in fused AdamW

    of_state(spoil)(checkpoint)


def garbage(name: str) -> Callable[[Path], object]:
    return lambda checkpoint: (checkpoint / name).write_bytes(b"garbage")


def fewer_layers(checkpoint: Path) -> None:
    with safe_open(checkpoint / tfi.LORA_FILE, "pt") as file:
        facts = file.metadata()
    weights = load_file(checkpoint / tfi.LORA_FILE)
    save_file(dict(sorted(weights.items())[4:]), checkpoint / tfi.LORA_FILE, facts)


#: What does not fit in a checkpoint that is whole, and what the message has to say.
MISFITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "garbage for tensors": (garbage("training_state.safetensors"), "no readable training state"),
    "fewer layers": (fewer_layers, "another LoRA"),
    "small moment": (of_moment, "optimizer state"),
    "no groups": (of_state(lambda state: state["optimizer"].update(param_groups=[])), "optimizer state"),
}


@pytest.fixture(scope="module")
def one_step(tiny_args: Callable[..., argparse.Namespace]) -> Path:
    """Output directory of a run of one step, for reading only."""
    args = tiny_args(*FLAGS, "--max_train_steps", 1, "--checkpointing_steps", 1, "--lr_scheduler", "constant")
    run(args)
    return Path(args.output_dir)


@pytest.mark.parametrize(
    ("lines", "told"), [(slice(4), "rows was 8 and is 4"), (slice(None, None, -1), "fingerprint was")]
)
def test_other_pairs_are_refused(tiny_args, one_step, tmp_path, viton_root, lines, told):
    pairs = viton_root / f"{tmp_path.name}.txt"
    pairs.write_text("".join((viton_root / "train_pairs.txt").read_text().splitlines(keepends=True)[lines]))
    with pytest.raises(ValueError, match=told):
        run(tiny_args(*FLAGS, "--max_train_steps", 2, "--lr_scheduler", "constant", "--train_data_list", pairs.name,
                      "--resume_from_checkpoint", one_step / "checkpoint-1"))  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tiny_args, one_step, tmp_path, name):
    folder = Path(shutil.copytree(one_step, tmp_path / "out"))
    (checkpoint,) = checkpoints_in(folder)
    change, said = MISFITS[name]
    change(checkpoint)
    (checkpoint / "manifest.json").unlink()
    seal(checkpoint)
    before = content(folder)
    with pytest.raises(ValueError, match=said) as told:
        run(tiny_args(*FLAGS, "--max_train_steps", 2, "--lr_scheduler", "constant", "--output_dir", folder,
                      "--resume_from_checkpoint", "latest"))  # fmt: skip
    assert "\n" not in str(told.value) and ("checkpoint-1" in str(told.value) or "latest" in str(told.value))
    assert content(folder) == before


@pytest.mark.long
@pytest.mark.parametrize("more", [[], ["--train_base_model", "attention"]], ids=["LoRA", "base"])
def test_what_a_run_has_written_itself_is_trusted(tiny_args, more):
    """After a step at a rate of 0, which has given the LoRA's B matrices nothing yet, and over a fully saved base."""
    warm = "--lr_scheduler constant_with_warmup --lr_warmup_steps 1 --checkpointing_steps 1".split()
    flags = [*FLAGS, *warm, *more]
    args = tiny_args(*flags, "--max_train_steps", 1)
    run(args)
    again = ["--output_dir", args.output_dir, "--resume_from_checkpoint", "latest", "--max_train_steps", 3]
    run(tiny_args(*flags, *again))
    assert json.loads((Path(args.output_dir) / "run.json").read_text())["step"] == 3


def test_another_transformer_in_a_checkpoint_is_refused(tmp_path):
    model = torch.nn.Linear(3, 2)
    (tmp_path / "transformer").mkdir()
    save_file({"weight": torch.zeros(2, 4), "bias": torch.ones(2)}, tmp_path / "transformer" / "a.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        load_transformer_weights(model, tmp_path / "transformer")
    save_file({"weight": torch.zeros(2, 3), "bias": torch.ones(2)}, tmp_path / "transformer" / "a.safetensors")
    load_transformer_weights(model, tmp_path / "transformer")
    assert model.bias.tolist() == [1, 1]


# ------------------------------------------------------------------------------------------------------ the same base


@pytest.mark.parametrize(
    "part", ["vae", *(pytest.param(part, marks=pytest.mark.long) for part in ("transformer", "tokenizer"))]
)
def test_another_base_at_the_same_place_is_refused(tiny_args, tiny_flux_fill, tmp_path, caplog, part):
    base = Path(shutil.copytree(tiny_flux_fill, tmp_path / "base"))
    flags = [*FLAGS, "--lr_scheduler", "constant", "--checkpointing_steps", 1, "--pretrained_model_name_or_path", base]
    flags += ["--pretrained_inpaint_model_name_or_path", base, "--output_dir", tmp_path / "out"]
    run(tiny_args(*flags, "--max_train_steps", 1))
    (file,) = (each for each in (base / part).iterdir() if each.suffix == ".safetensors" or each.stem == "tokenizer")
    if part == "tokenizer":
        file.write_text(file.read_text() + "\n")
    else:  # of one size, and with the same header
        file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    before, again = content(tmp_path / "out"), ["--max_train_steps", 2, "--resume_from_checkpoint", "latest"]
    which = "transformer" if part == "transformer" else "pipeline"
    with pytest.raises(ValueError, match=f"{part}/{file.name} of the {which} was"):
        run(tiny_args(*flags, *again))
    assert content(tmp_path / "out") == before
    run(tiny_args(*flags, *again, "--allow_changed_arguments"))
    assert f"Continuing with changes: {part}/{file.name} of the {which}" in caplog.text


def test_a_large_file_is_told_apart_by_pieces_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "PIECE", 16)
    file, told = tmp_path / "model.safetensors", set()
    for place in (None, 0, 31 * (4000 // 64), 63 * (4000 // 64)):  # the first piece, one in the middle, the last
        written = bytearray(4000)
        if place is not None:
            written[place] = 1
        file.write_bytes(written)
        told.add(bases._digest(file))
    assert len(told) == 4
    file.write_bytes(bytes(4001))
    assert bases._digest(file) not in told


def test_a_base_on_the_hub_is_told_apart_by_its_commit(tmp_path):
    args = argparse.Namespace(
        pretrained_model_name_or_path="acme/fill", pretrained_inpaint_model_name_or_path=str(tmp_path / "none"),
        revision=None, inpaint_revision=None, cache_dir=tmp_path, lora=None,
    )  # fmt: skip
    assert bases.base_facts(args) == {}
    cached = tmp_path / "models--acme--fill"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("c0ffee")
    (cached / "snapshots" / "c0ffee").mkdir(parents=True)
    (cached / "snapshots" / "c0ffee" / "model_index.json").write_text("{}")
    assert bases.base_facts(args) == {"commit of the pipeline": "c0ffee"}


# -------------------------------------------------------------------------------------------------- two processes

STOPPED = """
import os, signal, sys
import train_flux_inpaint as tfi

at, encode = int(sys.argv[1]), tfi.Run.encode

def signalled(run, samples, forward_pass):
    assert run.accelerator.num_processes == 2
    if forward_pass == at and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    with open(os.path.join(run.args.output_dir, "rows-" + os.environ["RANK"]), "a") as lines:
        lines.write(f"{forward_pass} {' '.join(samples['im_name'])}\\n")
    return encode(run, samples, forward_pass)

tfi.Run.encode = signalled
tfi.main(tfi.parse_args(sys.argv[2:]))
"""


def two_ranks(script: Path, stop_at_pass: int, flags: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, str(stop_at_pass), *flags], env=environment, capture_output=True, text=True, timeout=200
    )


@pytest.mark.long
def test_two_ranks_of_which_one_is_stopped(tiny_flags, tmp_path):
    """Four stops over two numbers of passes: one rank gets the signal, both save the same step."""
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED, encoding="utf-8")
    for passes, stops in ((1, (1, 3)), (2, (2, 7))):
        flags = [*FLAGS, "--gradient_accumulation_steps", passes, "--dataloader_num_workers", 0]
        straight = tmp_path / f"straight-{passes}"
        done = two_ranks(script, -1, tiny_flags(*flags, "--output_dir", straight))
        assert done.returncode == 0, done.stderr[-3000:]
        for stop in stops:
            folder = tmp_path / f"stopped-{passes}-{stop}"
            stopped = two_ranks(script, stop, tiny_flags(*flags, "--output_dir", folder))
            step = (stop + 1) // passes
            assert stopped.returncode != 0 and "exitcode  : 143" in stopped.stderr, stopped.stderr[-3000:]
            assert checkpoints_in(folder)[-1].name == f"checkpoint-{step}"
            again = [*flags, "--output_dir", folder, "--resume_from_checkpoint", "latest"]
            done = two_ranks(script, -1, tiny_flags(*again))
            assert done.returncode == 0, done.stderr[-3000:]
            assert_same(ended(folder), ended(straight))
            # Each row as often as in the undisturbed run: passes of a step that was not whole are taken again.
            for rank in (0, 1):
                seen, wanted = ((place / f"rows-{rank}").read_text().splitlines() for place in (folder, straight))
                assert sorted(set(seen)) == sorted(wanted) and len(wanted) == 6 * passes
                again_taken = [int(line.split()[0]) for line in set(seen) for _ in range(seen.count(line) - 1)]
                assert sorted(again_taken) == list(range(step * passes, stop + 1))
        rows = [line.split()[1:] for rank in (0, 1) for line in (straight / f"rows-{rank}").read_text().splitlines()]
        assert len(rows) == 2 * 6 * passes
        first_epoch = [(straight / f"rows-{rank}").read_text().splitlines()[:4] for rank in (0, 1)]
        assert len({name for lines in first_epoch for line in lines for name in line.split()[1:]}) == 8  # none twice


@pytest.mark.long
@pytest.mark.parametrize("receiver", ["agent", "hung up", "group", "rank 0", "rank 1"])
def test_two_ranks_are_told_to_stop(tiny_flags, tmp_path, receiver):
    """By the agent that accelerate starts several ranks with, by Ctrl-C, or one alone: both save the same step."""
    script, folder = tmp_path / "slow.py", tmp_path / "out"
    slow = STOPPED.replace("    return encode(", "    __import__('time').sleep(0.3)\n    return encode(")
    script.write_text(slow, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command += ["-1", *tiny_flags(*FLAGS, "--output_dir", folder)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launched = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    rows, until = folder / "rows-0", time.monotonic() + 150
    while not (rows.exists() and len(rows.read_text().splitlines()) > 1) and time.monotonic() < until:
        time.sleep(0.05)
    below = psutil.Process(launched.pid).children(recursive=True)
    ranks = sorted(
        (child for child in below if str(script) in child.cmdline() and "RANK" in child.environ()),
        key=lambda child: child.environ()["RANK"],
    )
    told = time.monotonic()
    if receiver == "group":
        os.killpg(launched.pid, signal.SIGINT)
    elif receiver in ("agent", "hung up"):
        launched.send_signal(signal.SIGTERM if receiver == "agent" else signal.SIGHUP)
    else:
        ranks[int(receiver[-1])].terminate()
    said = launched.communicate(timeout=60)[1]
    assert launched.returncode != 0 and time.monotonic() - told < 30
    assert not [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE], said
    (saved,) = checkpoints_in(folder)
    assert 1 < step_of(saved) < 6
    resumed = two_ranks(script, -1, tiny_flags(*FLAGS, "--output_dir", folder, "--resume_from_checkpoint", "latest"))
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    passes = [int(line.split()[0]) for line in rows.read_text().splitlines()]
    assert passes == list(range(6))


LEAVING = """
import os, sys
import torch
import torch.distributed as dist
from training_run import stopping

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # who waits for a thread and the thread take turns
sys.setswitchinterval(1000)  # nobody is asked to give up Python's lock
stopping.GLOO_SETTLES = 0.05
dist.init_process_group("gloo")

def come_and_go():
    group = dist.new_group(backend="gloo")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2), process_group=group)
    dist.all_gather_into_tensor(torch.ones(2, 2), torch.ones(1, 2), group=group)
    stopping.settle_gloo()
    dist.destroy_process_group(group)

for _ in range(200):
    come_and_go()
os._exit(0)  # the group of all was not left
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="without it this finds nothing")
def test_ranks_that_leave_their_group_do_not_wait_for_each_other_for_ever(tmp_path):
    """Without the moment that Gloo gets, one of 200 groups never ends: four times of four."""
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    left = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said = left.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        for process in [*psutil.Process(left.pid).children(recursive=True), left]:
            process.kill()
        pytest.fail("a rank waits for ever")
    assert left.returncode == 0, said[-3000:]


@pytest.mark.long
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_been(tiny_flags, tmp_path):
    """SIGKILL at a random moment while every step saves: each checkpoint is whole, and the end is the same."""
    flags = [*FLAGS, "--max_train_steps", 40, "--checkpointing_steps", 1, "--checkpoints_total_limit", 2]
    moments, said = random.Random(0), tmp_path / "said"

    def start(folder: Path) -> subprocess.Popen:
        words = tiny_flags(*flags, "--output_dir", folder, "--resume_from_checkpoint", "latest")
        command = [sys.executable, str(ROOT / "train_flux_inpaint.py"), *words]
        return subprocess.Popen(command, stdout=said.open("w"), stderr=subprocess.STDOUT)

    def reached() -> int:
        found = checkpoints_in(tmp_path / "killed")
        return step_of(found[-1]) if found else 0

    assert start(tmp_path / "straight").wait() == 0, said.read_text()
    for _ in range(5):
        # From where it is now, not after so many seconds: a fast machine would be done before the last of them.
        run, step = start(tmp_path / "killed"), reached() + moments.randint(1, 3)
        while run.poll() is None and reached() < step:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        run.kill()
        assert run.wait() == -signal.SIGKILL, said.read_text()
        for checkpoint in checkpoints_in(tmp_path / "killed"):
            verify(checkpoint)
        assert step <= reached() < 40
    assert start(tmp_path / "killed").wait() == 0, said.read_text()
    assert_same(ended(tmp_path / "killed"), ended(tmp_path / "straight"))
