"""How many pictures of an evaluation are drawn at once: as many as fit a GPU, fewer where too many were taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepfashion_training.evaluation import draw_cases
from deepfashion_training.evaluation.cases import Case
from deepfashion_training.images.layout import Box
from deepfashion_training.inference.dress import DrawingSettings

GIB = 2**30
ROWS = 20


class Model:
    """Takes the place of ``FillModel``: a picture takes ``each`` GiB; more than ``room`` are too many."""

    def __init__(self, each: float, room: float) -> None:
        self.each, self.room, self.drawn, self.peak = each, room, list[int](), 0.0

    def draw(self, samples: list[Any], seeds: list[int], **_: Any) -> torch.Tensor:
        if self.each * len(samples) > self.room:
            raise ValueError("the GPU's memory was too small") from RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"
            )
        self.drawn.append(len(samples))
        self.peak = self.each * len(samples)
        return torch.zeros(len(samples), 3, 16, 32)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Model, set[str]]]:
    """Draws 20 cases on a pretended GPU where ``free`` GiB are free and PyTorch holds 30, 28 of them models."""

    def draw(
        free: float, each: float = 2, room: float = 99, batch_size: int | None = None, device: str = "cuda"
    ) -> Any:
        model = Model(each, room)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * GIB), 80 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30 * GIB)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 28 * GIB)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: int((28 + model.peak) * GIB))
        monkeypatch.setattr(draw_cases, "free_memory", lambda: None)
        cases = [Case(row, row, 1, f"{row}", f"{row}", f"{row}", False) for row in range(ROWS)]
        sample = {"image": torch.zeros(3, 16, 32), "inpaint_mask": torch.zeros(1, 16, 32)}
        look = DrawingSettings((16, 16), 1, 1.0, repaint=False)
        plan: Any = SimpleNamespace(
            sets=[cases],
            drawing={"base": look, "lora": look},
            settings={"seed": 0},
            batch_size=batch_size,
            against=None,
            cases=SimpleNamespace(
                sample=lambda case: (sample, Box(0, 0, 16, 16)), rows=SimpleNamespace(caption=lambda row: "")
            ),
            choice=SimpleNamespace(
                recipe=SimpleNamespace(prompt_of=lambda caption: ""), load=lambda prompts, **_: model
            ),
            picture=lambda name, case: tmp_path / name / case.file,
        )
        state: Any = SimpleNamespace(
            process_index=0, num_processes=1, is_main_process=True, device=torch.device(device)
        )
        draw_cases.draw_missing(plan, state)
        return model, {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}

    return draw


def test_processes_share_the_pictures_that_are_missing(tmp_path: Path) -> None:
    sets = [[Case(row, row, 1, "", "", "", False) for row in rows] for rows in (range(7), range(10, 15))]
    plan: Any = SimpleNamespace(
        sets=sets, drawing=("base", "lora"), picture=lambda name, case: tmp_path / f"{name}-{case.row}"
    )
    for name in ("base-3", "base-11", "lora-11"):
        (tmp_path / name).touch()
    shares = [draw_cases.missing_cases(plan, rank, 3) for rank in range(3)]
    found = {case.row: names for share in shares for case, names in share}
    assert [len(share) for share in shares] == [5, 3, 3]
    assert found.pop(3) == ["lora"] and sorted(found) == [0, 1, 2, 4, 5, 6, 10, 12, 13, 14]
    assert all(names == ["base", "lora"] for names in found.values())


EVERYTHING = {f"{name}/{row:06d}.png" for name in ("base", "lora") for row in range(ROWS)}


@pytest.mark.parametrize(
    ("free", "each", "sizes"),
    [
        (50, 2, [1, 8, 8, 3]),  # 0.95 of 80, less 28: room for 24, of which 8 are taken
        (8, 2, [1, 4, 4, 4, 4, 3]),  # 0.95 of 38 are 36.1: 8.1 are left
        (8, 1.5, [1, 5, 5, 5, 4]),  # smaller pictures
        (0, 2, [1] * 20),  # 0.5 are left: one fits, as has been seen
    ],
)
def test_the_batch_follows_from_free_memory_and_what_the_first_picture_took(
    drawn, capsys, free: float, each: float, sizes: list[int]
) -> None:
    model, files = drawn(free, each)
    assert model.drawn == [size for size in sizes for _ in ("base", "lora")]  # both models in the same batches
    assert files == EVERYTHING


def test_a_batch_that_is_too_large_is_halved_and_nothing_is_lost(drawn, capsys) -> None:
    model, files = drawn(50, 2, room=7)
    assert model.drawn == [1, 1, *[2] * 18, 1, 1] and files == EVERYTHING
    said = [line.split()[:2] for line in capsys.readouterr().err.splitlines() if "note" in line]
    assert said == [["note", "8"], ["note", "4"]]


def test_one_picture_for_which_the_memory_is_too_small_is_an_error(drawn) -> None:
    with pytest.raises(ValueError, match="memory was too small"):
        drawn(50, 8, room=7)


@pytest.mark.parametrize(("batch_size", "device", "sizes"), [(6, "cuda", [6, 6, 6, 2]), (None, "cpu", [1] * 20)])
def test_a_size_that_was_asked_for_and_a_cpu(drawn, batch_size: int | None, device: str, sizes: list[int]) -> None:
    model, _ = drawn(50, batch_size=batch_size, device=device)
    assert model.drawn == [size for size in sizes for _ in ("base", "lora")]


def test_the_time_that_is_left_is_said_once_after_the_second_batch(drawn, monkeypatch, capsys) -> None:
    clock = iter(range(0, 10_000, 60))  # a minute between two looks
    monkeypatch.setattr(draw_cases.time, "perf_counter", lambda: next(clock))
    drawn(8, 2)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("time")]
    # Two models' 4 pictures in a minute: 7.5 s each, and 2 x 15 are left.
    assert said == ["time      about 4 min left: 7.5 s a picture, 4 at once"]
