"""A sheet of pictures without names: what is on it, that its key is right, and what answers are worth."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import blind
from benchmarks.blind import KEY, RESULTS, SHEET, found, sheet_of

ORDER = list(RESULTS)


def asked(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["blind", *map(str, words)])
    return blind.main()


def test_answers_are_counted_and_beside_them_what_chance_finds() -> None:
    key = [ORDER, ORDER[::-1], ORDER]
    assert found(key, [4, 1, 4]) == "the LoRA's found in 3 of 3 lines (by chance with p = 0.016); instead: none"
    assert found(key, [2, 1, 1]).startswith("the LoRA's found in 1 of 3 lines (by chance with p = 0.58)")
    assert found(key, [2, 1, 1]).endswith("instead: base 1, base, other garment 1")


def test_answers_must_be_as_many_as_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / KEY).write_text(json.dumps([ORDER, ORDER]), "utf-8")
    with pytest.raises(SystemExit):
        asked(monkeypatch, "--output_dir", tmp_path, "--answers", 1)
    assert "1 for the 2 lines" in capsys.readouterr().err
    assert asked(monkeypatch, "--output_dir", tmp_path, "--answers", 4, 4) == 0
    assert "2 of 2" in capsys.readouterr().out


def test_pictures_stand_in_the_order_that_they_are_given() -> None:
    levels = (10, 60, 110, 160, 210)
    sheet = np.asarray(sheet_of([[Image.new("RGB", (96, 128), (level,) * 3) for level in levels]] * 2).convert("L"))
    for line in (0.3, 0.8):
        row = sheet[round(line * sheet.shape[0])]
        assert list(dict.fromkeys(row[row < 250].tolist())) == list(levels)


@pytest.mark.slow
@pytest.mark.long
def test_the_sheet_shows_each_person_in_four_results(
    save_random_lora: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = save_random_lora()
    words = ("--lora", lora, "--people", 2, "--output_dir", tmp_path / "sheet")
    assert asked(monkeypatch, *words) == 0
    key = json.loads((tmp_path / "sheet" / KEY).read_text("utf-8"))
    assert len(key) == 4 and all(sorted(order) == sorted(RESULTS) for order in key)
    drawn = list(blind.lines(lora, 2, 17))
    assert [kind for kind, _ in drawn].count("lower") == 2
    for _, (garment, *results) in drawn:
        assert garment.size == results[0].size
        shown = [np.asarray(result).astype(int) for result in results]
        for first in range(4):
            for second in range(first):
                different = np.abs(shown[first] - shown[second]).max(axis=2) > 0
                assert 0 < different.mean() < 0.7  # within the mask alone
    with Image.open(tmp_path / "sheet" / SHEET) as sheet:
        assert sheet.width > 5 * 216 and sheet.height > 4 * 288
