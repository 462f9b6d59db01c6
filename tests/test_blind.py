"""A sheet of pictures without names: what is on it, that its key is right, and what answers are worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import blind
from benchmarks.blind import KEY, RESULTS, SHEET, found

ORDER = list(RESULTS)
#: What the small base draws with.
AS_SMALL = "--height 128 --width 96 --max_sequence_length 8 --num_inference_steps 1".split()
#: Grey levels that stand for the garment and the results of a line.
LEVELS = (10, 60, 110, 160, 210)


def asked(*words: object) -> int:
    return blind.main([str(word) for word in words])


def test_answers_are_counted_and_beside_them_what_chance_finds() -> None:
    key = [ORDER, ORDER[::-1], ORDER]
    assert found(key, [4, 1, 4]) == "the LoRA's found in 3 of 3 lines (by chance with p = 0.016); instead: none"
    assert found(key, [2, 1, 1]).startswith("the LoRA's found in 1 of 3 lines (by chance with p = 0.58)")
    assert found(key, [2, 1, 1]).endswith("instead: base 1, base, other garment 1")


def test_answers_must_fit_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked("--output_dir", tmp_path, "--answers", 1) == 2
    assert "has no key.json: draw a sheet there with --lora" in capsys.readouterr().err
    (tmp_path / KEY).write_text(json.dumps([ORDER, ORDER]), "utf-8")
    assert asked("--output_dir", tmp_path, "--answers", 1) == 2
    assert "1 for the 2 lines" in capsys.readouterr().err
    assert asked("--output_dir", tmp_path, "--answers", 4, 4, "--seed", 5) == 2
    assert "--seed" in capsys.readouterr().err
    assert asked("--output_dir", tmp_path, "--answers", 4, 4) == 0
    assert "2 of 2" in capsys.readouterr().out


def test_the_key_says_what_stands_where_on_the_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [Image.new("RGB", (96, 128), (level,) * 3) for level in LEVELS]
    monkeypatch.setattr(blind, "lines", lambda *_: iter([("full", pictures), ("lower", pictures)] * 4))
    assert asked("--output_dir", tmp_path, "--lora", "it") == 0
    key = json.loads((tmp_path / KEY).read_text("utf-8"))
    with Image.open(tmp_path / SHEET) as sheet:
        levels = np.asarray(sheet.convert("L"))
    name_of = dict(zip(LEVELS[1:], RESULTS, strict=True))
    for line, order in enumerate(key):
        row = levels[round(levels.shape[0] * (line + 0.6) / len(key))]
        garment, *shown = dict.fromkeys(row[row < 250].tolist())
        assert garment == LEVELS[0] and [name_of[level] for level in shown] == order
    assert len({tuple(order) for order in key}) > 1


@pytest.mark.slow
@pytest.mark.long
def test_the_sheet_shows_each_person_by_base_and_lora_in_two_garments(
    save_random_lora: Callable[..., Path], tmp_path: Path
) -> None:
    by_type = {"lower": 0, "full": 0}
    for kind, (garment, *results) in blind.lines(save_random_lora(*AS_SMALL, size=0.0), 2, 17):
        by_type[kind] += 1
        assert garment.size == results[0].size == (96, 128)
        others, own, lora_others, lora_own = (np.asarray(result).astype(int) for result in results)
        assert np.array_equal(own, lora_own) and np.array_equal(others, lora_others)  # a LoRA that changes nothing
        same = (own == others).all(axis=2)
        assert not same.all() and same[[0, -1]].all() and same[:, [0, -1]].all()  # the photo, outside of the mask
    assert by_type == {"lower": 2, "full": 2}
    lora = save_random_lora(*AS_SMALL)
    assert asked("--output_dir", tmp_path, "--lora", lora, "--people", 2) == 0
    for _, (_, _, base, _, changed) in blind.lines(lora, 2, 17):
        assert np.asarray(base).tolist() != np.asarray(changed).tolist()
    assert len(json.loads((tmp_path / KEY).read_text("utf-8"))) == 4
