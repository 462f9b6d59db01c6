"""The scaling benchmark: what it makes of the rates of runs, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scaling


def test_efficiency_is_against_as_many_single_processes(tmp_path, monkeypatch, capsys):
    asked = []

    def rate(folder: Path, processes: int, steps: int, *flags: str) -> float:
        assert (folder / "transformer" / "config.json").is_file() and (folder / "tops" / "train_pairs.txt").is_file()
        asked.append((processes, steps, flags))
        return {1: 1.0, 2: 1.2 if flags else 1.6}[processes] + 0.01 * len(asked)

    monkeypatch.setattr(scaling, "rate", rate)
    monkeypatch.setattr(scaling.os, "sched_getaffinity", lambda _: {0, 1})
    report = tmp_path / "figures.json"
    assert scaling.main(["--steps", "5", "--rounds", "3", "--json", str(report)]) == 0
    assert asked == [(1, 5, ()), (2, 5, ()), (2, 5, ("--shard_base",))] * 3  # runs take turns
    rows = {row["processes"]: row for row in json.loads(report.read_text())}
    assert rows["1"]["efficiency"] == 1 and rows["2"]["pairs_per_s"] == pytest.approx(1.65)
    assert rows["2"]["efficiency"] == pytest.approx(1.65 / 1.04 / 2)
    assert rows["2, --shard_base"]["efficiency"] == pytest.approx(1.26 / 1.04 / 2)
    assert "2                     1.650        0.79" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"), [(["--processes", "1"], "give 2 or more"), (["--processes", "3"], "as many cores")]
)
def test_what_cannot_be_measured_is_refused(flags, told, monkeypatch, capsys):
    monkeypatch.setattr(scaling.os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(SystemExit) as ended:
        scaling.main(flags)
    assert ended.value.code == 2 and told in capsys.readouterr().err
