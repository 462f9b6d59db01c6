"""The parts of a driven run that need no script: which checkpoint it continues from, and the order of its rows."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepfashion_training.upstream import driven_run as run_module
from training_run import checkpoints

LORA = "pytorch_lora_weights.safetensors"


# ---- checkpoints


def checkpoint(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).touch()
    checkpoints.seal(folder)
    return folder


def test_latest_is_the_highest_number_and_nothing_else(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-500-tmp", ".saving-checkpoint-600", "checkpoint-x"):
        checkpoint(tmp_path / name, LORA, "optimizer.bin")
    settings = Namespace(resume_from_checkpoint="latest", output_dir=str(tmp_path), max_train_steps=20)
    assert run_module.find_checkpoint(settings) == str(tmp_path / "checkpoint-10")
    assert run_module.step_of(str(tmp_path / "checkpoint-10")) == 10
    settings.output_dir = str(tmp_path / "empty")
    assert run_module.find_checkpoint(settings) is None


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("out/checkpoint-3", (LORA, "optimizer.bin", "training_state.json"), "written by train_flux_inpaint.py: leave"),
        ("out/checkpoint-3", (LORA,), "no complete checkpoint there"),
        ("out/checkpoint-3", ("optimizer.bin",), "no complete checkpoint there"),
        ("out/other", (LORA, "optimizer.bin"), "its name is not checkpoint-<step>"),
        ("out/checkpoint-3-tmp", (LORA, "optimizer.bin"), "its name is not checkpoint-<step>"),
        ("out/checkpoint-3", (LORA, "optimizer.bin"), "is at step 3 of 3: raise --max_train_steps"),
        ("else/checkpoint-3", (LORA, "optimizer.bin"), "this script continues nowhere else"),
    ],
)
def test_a_checkpoint_that_cannot_be_continued_is_refused_in_one_line(
    name: str, files: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    settings = Namespace(output_dir=str(tmp_path / "out"), resume_from_checkpoint=str(tmp_path / name))
    settings.max_train_steps = 3 if "of 3" in message else None
    checkpoint(tmp_path / name, *files)
    with pytest.raises(ValueError, match=message) as error:
        run_module.find_checkpoint(settings)
    assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)


# ---- rows


class Rows:
    """A dataset of three kinds of rows, the first two rare."""

    def __init__(self, weights: list[float] | None) -> None:
        self.weights = weights

    def __len__(self) -> int:
        return 100

    def __getitem__(self, row: int) -> int:
        return row

    def sampling_weights(self) -> list[float] | None:
        return self.weights


def stream_of(weights: list[float] | None, **settings: Any) -> run_module.RowStream:
    values = {"train_batch_size": 4, "gradient_accumulation_steps": 1, "max_train_steps": 150, "seed": 3}
    values |= {"output_dir": "out", "resume_from_checkpoint": None, "num_train_epochs": 1, **settings}
    run = run_module.DrivenRun(Namespace(**values), Namespace(), lambda *_: Rows(weights), {})
    run.accelerator = SimpleNamespace(num_processes=2)
    return run.build_dataset("anywhere", "train", data_list=run_module.TRAIN_LIST)


def test_rows_are_shuffled_whole_epochs_or_balanced() -> None:
    plain = [stream_of(None)[place] for place in range(300)]
    assert sorted(plain[:100]) == sorted(plain[100:200]) == list(range(100))
    assert plain[:100] != plain[100:200]
    rare = [stream_of([1 / 10] * 10 + [1 / 90] * 90)[place] < 10 for place in range(1000)]
    assert 450 < sum(rare) < 550


def test_a_stream_is_as_long_as_the_run_on_all_ranks() -> None:
    assert len(stream_of(None)) == 150 * 4 * 2
    later = stream_of(None, resume_from_checkpoint="x/checkpoint-149", gradient_accumulation_steps=3)
    assert (later.first, len(later)) == (149 * 24, 150 * 24)  # scripts count epochs by the length of a whole run
    epochs = stream_of(None, max_train_steps=None, num_train_epochs=2)
    assert len(epochs) == 25 * 8
    with pytest.raises(IndexError):
        epochs[200]
