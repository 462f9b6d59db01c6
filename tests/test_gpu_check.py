"""The check of a GPU: time limits, what is written on the way, exit codes, and the whole of its tiny size."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import CannotRunError, Check, Trial
from training_run.memory import StepMemory


def holds(trial: Trial) -> None:
    trial.note(said="42 of 42", answer=42)


def fails(trial: Trial) -> None:
    trial.note(answer=41)
    raise ValueError("41 is not 42")


def cannot(_: Trial) -> None:
    raise CannotRunError("there is no answer here")


def hangs(trial: Trial) -> None:
    trial.note(answer=40, child=subprocess.Popen(["sleep", "60"]).pid)
    time.sleep(60)


def dies(_: Trial) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def no_check_is_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "SHORTEST", 0.0)


def settled(*checks: Check, minutes: float = 1) -> tuple[int, list[dict]]:
    """Exit code and rows of ``checks`` after one that holds, as the machine's does."""
    rows: list[list[dict]] = []
    code = gpu_check.settle([Check("machine", 9, holds), *checks], "tiny", minutes, lambda some: rows.append([*some]))
    assert [len(some) for some in rows] == list(range(1, len(rows) + 1))  # written after every check
    return code, rows[-1]


def test_a_check_that_hangs_is_ended_with_all_it_started_and_the_next_one_runs(capsys) -> None:
    began = time.monotonic()
    code, (_, hung, after) = settled(Check("hangs", 2, hangs), Check("after", 9, holds))
    assert time.monotonic() - began < 15
    assert (hung["result"], hung["facts"]["answer"]) == ("FAILS", 40) and "2 s" in hung["why"]
    assert not psutil.pid_exists(hung["facts"]["child"]) or psutil.Process(hung["facts"]["child"]).status() == "zombie"
    assert (after["result"], after["facts"]["answer"]) == ("holds", 42)
    assert code == 1 and capsys.readouterr().out.endswith("these FAIL: hangs\n")


def test_a_check_that_fails_is_named_with_what_it_found(capsys) -> None:
    code, (_, failed, after) = settled(Check("fails", 9, fails), Check("after", 9, holds))
    assert code == 1 and "these FAIL: fails" in capsys.readouterr().out
    assert (failed["result"], failed["why"], failed["facts"]) == ("FAILS", "41 is not 42", {"answer": 41})
    assert any("in fails" in line for line in failed["log"])  # the traceback
    assert after["result"] == "holds" and "log" not in after


def test_a_process_that_is_killed_fails_its_check_alone() -> None:
    code, (_, died, after) = settled(Check("dies", 9, dies), Check("after", 9, holds))
    assert code == 1 and died["result"] == "FAILS" and "-9" in died["why"] and after["result"] == "holds"


def test_what_cannot_run_here_says_why_and_does_not_fail(capsys) -> None:
    code, rows = settled(Check("cannot", 9, cannot), Check("package", 9, fails, ("no_such_package",)))
    assert code == 0
    assert [(row["result"], row["why"]) for row in rows[1:]] == [
        ("cannot run", "there is no answer here"),
        ("cannot run", "the package no_such_package is missing"),
    ]
    assert "not settled: cannot, package" in capsys.readouterr().out


def test_when_the_minutes_are_over_the_rest_is_not_begun() -> None:
    code, (_, cut, late) = settled(Check("cut", 60, hangs), Check("late", 60, holds), minutes=2.5 / 60)
    assert code == 0
    assert (cut["result"], cut["facts"]["answer"]) == ("no time", 40)
    assert (late["result"], late["why"], late["seconds"]) == ("no time", "no time left", 0.0)


def test_a_machine_that_does_not_answer_ends_it() -> None:
    rows: list[dict] = []
    checks = [Check("machine", 9, fails), Check("after", 9, holds)]
    assert gpu_check.settle(checks, "tiny", 1, rows.extend) == 1
    assert [row["name"] for row in rows] == ["machine"]


def test_without_a_gpu_full_is_refused_in_cudas_own_words() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    rows: list[dict] = []
    assert gpu_check.settle(gpu_check.CHECKS, "full", 1, rows.extend) == 1
    assert [row["name"] for row in rows] == ["machine"] and rows[0]["result"] == "FAILS"
    assert "--size tiny" in rows[0]["why"]


def test_where_an_import_has_begun_cuda_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def outcome(check: Check, _case: Trial, _seconds: float, method: str) -> dict:
        asked.append((check.name, method))
        facts = {"forked_too_late": True} if method == "fork" else {}
        return gpu_check.row_of(check, facts | {"result": "holds"}, 1.0)

    monkeypatch.setattr(gpu_check, "outcome", outcome)
    assert gpu_check.settle([Check("machine", 9, holds), Check("after", 9, holds)], "tiny", 1, len) == 0
    assert asked == [("machine", "fork"), ("machine", "spawn"), ("after", "spawn")]


def test_the_capability_is_known_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing bitsandbytes asks for it, and CUDA begun by that would fail in every check."""
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\n[ "$1" = --query-gpu=compute_cap ] && echo 12.1\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_check.capability(torch.device("cuda")) == (12, 1)


def test_the_file_is_there_after_every_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.json"

    def reads(trial: Trial) -> None:
        trial.note(found=json.loads(report.read_text()))

    monkeypatch.setattr(
        gpu_check, "CHECKS", [Check("machine", 9, holds), Check("fails", 9, fails), Check("b", 9, reads)]
    )
    assert gpu_check.main(["--size", "tiny", "--json", str(report)]) == 1
    *_, last = json.loads(report.read_text())["checks"]
    found = last["facts"]["found"]
    assert found["pending"] == ["b"] and found["size"] == "tiny"
    assert [(row["name"], row["result"]) for row in found["checks"]] == [("machine", "holds"), ("fails", "FAILS")]
    assert json.loads(report.read_text())["pending"] == []


def test_rows_fit_a_terminal_of_100_columns() -> None:
    facts = {"result": "cannot run", "why": "so " * 80, "said": "many words " * 20, "left_out": ["memory", "nf4"]}
    lines = gpu_check.table_row(gpu_check.row_of(Check("quick_test", 90, holds), facts, 101.2)).splitlines()
    assert len(lines) > 3 and all(len(line) <= 100 for line in lines)
    assert lines[0].startswith("quick_test  cannot run   101  so so") and lines[1].startswith(" " * 30 + "so")


def test_only_results_of_a_step_are_waited_for() -> None:
    """The mode of CUDA's synchronisation check while each part of two steps is at work."""
    modes, seen = ["default"], list[str]()

    def at_work(name: str, result: object = None) -> object:
        seen.append(f"{name} {modes[-1]}")
        return result

    norm = torch.tensor(2.0)
    accelerator = SimpleNamespace(reduce=lambda *_: torch.ones(2), clip_grad_norm_=lambda *_: at_work("clip", norm))
    run = SimpleNamespace(step=0, accelerator=accelerator, encode=lambda *_: at_work("encode"))
    run.optimizer_step = lambda *_: at_work("optimizer", True)
    gpu_check.watch(run, modes.append)  # type: ignore[arg-type]
    before = gpu_check.Awaited.waits
    for run.step in (0, 1):
        run.encode()
        at_work("backward")
        found = accelerator.clip_grad_norm_()
        assert accelerator.reduce().tolist() == [1, 1] and float(found) == 2
        at_work("between")
        assert run.optimizer_step()
        at_work("logging")
    assert gpu_check.Awaited.waits - before == 4
    first, second = seen[:6], seen[6:]
    assert first[:3] == ["encode default", "backward default", "clip default"]
    assert first[4:] == ["optimizer default", "logging default"]
    assert second == [f"{part} error" for part in "encode backward clip between optimizer".split()] + [
        "logging default"
    ]


def memory_of_a_step(*_: object) -> StepMemory:
    """57 blocks that keep 0.5 GiB each, or 0.1 when they are recomputed, over 20 GiB of weights."""
    half, tenth = 2**29, 2**30 // 10
    return StepMemory((19, 38), 20 * 2**30, 0, 0, (half, half), (tenth, tenth), 0, 0, 0)


@pytest.fixture
def full_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trial:
    """A trial of real size on a pretended GPU, whose steps take 2 s and peak at 48.5 GiB."""
    run = {"seconds_per_step": 2.0, "pairs_per_second": 2.0, "last_step_seconds": [31.0, 2.0, 2.0]}
    monkeypatch.setattr(gpu_check, "on_gpu", lambda: True)
    monkeypatch.setattr(gpu_check, "trained", lambda _: run | {"peak_gpu_memory_gib": 48.5, "recomputed_blocks": 0})
    monkeypatch.setattr(gpu_check, "predict", memory_of_a_step)
    monkeypatch.setattr(gpu_check, "do_without", lambda _: [])
    monkeypatch.setattr(gpu_check, "models", lambda *_: contextlib.nullcontext())
    return Trial("full", tmp_path, {"machine": {"memory_gib": 79.1, "ceiling_tflops": 800.0}})


def test_a_step_beside_its_prediction_and_the_ceiling(full_trial: Trial) -> None:
    gpu_check.preset_step(full_trial, "full")
    facts = full_trial.noted()
    assert (facts["peak_gib"], facts["predicted_gib"], facts["recomputed_blocks"]) == (48.5, 48.5, 0)
    assert facts["share_of_ceiling"] == pytest.approx(136.5 * 2 / 800, rel=1e-3)  # TFLOP a pair of 768x1152, rank 16
    assert facts["first_step_s"] == 31 and facts["left_out"] == []


def test_a_peak_far_from_the_prediction_fails(full_trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    run = gpu_check.trained(None)  # type: ignore[arg-type]
    monkeypatch.setattr(gpu_check, "trained", lambda _: run | {"peak_gpu_memory_gib": 54.0})
    with pytest.raises(ValueError, match=r"\+11%"):
        gpu_check.preset_step(full_trial, "full")
    assert full_trial.noted()["peak_gib"] == 54.0  # told all the same


def test_a_card_that_is_too_small_for_a_preset_is_told(full_trial: Trial) -> None:
    full_trial.known["machine"]["memory_gib"] = 23.6
    with pytest.raises(CannotRunError, match=r"75 GiB, and this one has 23\.6"):
        gpu_check.preset_step(full_trial, "h100")


@pytest.mark.parametrize(("h100", "holds_"), [(2.5, True), (1.9, False)])
def test_h100_has_to_be_faster_than_plain(full_trial: Trial, h100: float, holds_: bool) -> None:
    full_trial.known["h100"] = {"pairs_per_second": h100}
    with contextlib.nullcontext() if holds_ else pytest.raises(ValueError, match="plain"):
        gpu_check.preset_step(full_trial, "h100", gpu_check.PLAIN, "h100")


def test_what_is_no_matter_of_the_gpu_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: object) -> str:
        raise ValueError("there is none")

    args = SimpleNamespace(compile_blocks=True, dataloader_num_workers=8, height=64, width=48)
    monkeypatch.setattr(gpu_check.guards, "check_compiler", lambda args: "gcc")
    monkeypatch.setattr(gpu_check.guards, "check_shared_memory", lacks)
    assert gpu_check.do_without(args) == ["--dataloader_num_workers (there is none)"]  # type: ignore[arg-type]
    assert (args.compile_blocks, args.dataloader_num_workers) == (True, 0)
    monkeypatch.setattr(gpu_check.guards, "check_compiler", lacks)
    monkeypatch.setattr(gpu_check.guards, "check_shared_memory", lambda *_: "there")
    assert gpu_check.do_without(args) == ["--compile_blocks (there is none)"]  # type: ignore[arg-type]
    assert args.compile_blocks is False


def test_missing_packages_are_named(tmp_path: Path) -> None:
    source = Path(gpu_check.__file__).read_text().replace('NEEDED = "', 'NEEDED = "no_such_package no_other ')
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gpu_check.py").write_text(source)
    done = subprocess.run([sys.executable, tmp_path / "benchmarks" / "gpu_check.py"], capture_output=True, text=True)
    assert done.returncode == 1 and "no_such_package, no_other" in done.stderr


@pytest.mark.long
def test_all_of_tiny_on_a_cpu(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, gpu_check.__file__, "--size", "tiny", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    found = json.loads(report.read_text())
    rows = {row["name"]: row for row in found["checks"]}
    assert done.returncode == 0, [row for row in rows.values() if row["result"] == "FAILS"]
    assert list(rows) == [check.name for check in gpu_check.CHECKS] and found["pending"] == []
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
    if not torch.cuda.is_available():
        refused = {name for name, row in rows.items() if row["result"] == "cannot run"}
        assert {"nf4", "fp16", "gpu tests"} <= refused <= {"nf4", "fp16", "gpu tests", "int8"}
        assert rows["h100"]["left_out"] == ["memory, share of the ceiling, --compile_blocks (no GPU)"]
        assert rows["resume"]["facts"]["losses_differ"] == 0
    assert rows["quick_test"]["facts"]["pairs_per_second"] > 0
    assert list(tmp_path.iterdir()) == [report]
