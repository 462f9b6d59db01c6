"""Recipes beside one another: what is refused before any training, what is made of figures, and two real runs."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import compare_recipes
from benchmarks.compare_recipes import call, compare, difference, judge_all, main, recipe, runs_of, table
from deepfashion_training.cli import WrongUseError
from deepfashion_training.embedded.wardrobe import write_wardrobe
from training_run.output_dir import LORA_FILE

TYPES = ("upper", "lower", "full")


def asked(folder: Path, *recipes: str, seeds: Iterable[int] = (0, 1, 2), steps: int | None = None) -> Any:
    words = [word for text in recipes for word in ("--recipe", text)]
    words += ["--seeds", *map(str, seeds), "--work_dir", str(folder), *(["--steps", str(steps)] if steps else [])]
    return compare_recipes.build_argument_parser().parse_args(words)


def judged(upper: float, others: float, kept: float = 0.5) -> dict[str, Any]:
    """Errors of a LoRA beside a base whose 1-SSIM is 0.5 and whose CIEDE2000 is 10, and patterns kept beside 0.25."""
    before = {"dssim_masked": 0.5, "ciede2000_masked": 10.0, "patterns": {"kept": 0.25, "n": 9}}

    def after(share: float) -> dict[str, Any]:
        return {"dssim_masked": 0.5 * share, "ciede2000_masked": 10 * share, "patterns": {"kept": kept, "n": 9}}

    return {
        "base": dict.fromkeys(TYPES, before),
        "LoRA": {kind: after(upper if kind == "upper" else others) for kind in TYPES},
    }


def test_a_recipe_is_a_name_and_flags() -> None:
    assert recipe("plain=") == ("plain", [])
    assert recipe("soft=--learning_rate 1e-3 --instance_prompt 'a b'") == (
        "soft", ["--learning_rate", "1e-3", "--instance_prompt", "a b"],
    )  # fmt: skip
    for text in ("plain", "=--lora_rank 4", "../x=", "torn='"):
        with pytest.raises(argparse.ArgumentTypeError):
            recipe(text)


def test_runs_differ_in_recipe_and_seed_alone(tmp_path: Path) -> None:
    runs = runs_of(asked(tmp_path, "plain=", "soft=--learning_rate 1e-3", "bare=--no-cache_latents", steps=7))
    assert list(runs)[:4] == [("plain", 0), ("soft", 0), ("bare", 0), ("plain", 1)] and len(runs) == 9
    plain, soft, bare = (runs[name, 1] for name in ("plain", "soft", "bare"))
    left = [word for word in soft if word not in plain]
    assert left == ["--learning_rate", "1e-3", str(tmp_path / "soft-seed1")]
    assert plain[plain.index("--seed") + 1] == "1" and plain[plain.index("--max_train_steps") + 1] == "7"
    assert plain[plain.index("--latents_dir") + 1] == str(tmp_path / "latents")
    assert "--latents_dir" not in bare  # which does nothing there, and is refused


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--learning_rat 1", "--learning_rate"),
        ("--lora_rank none", "--lora_rank"),
        ("--seed 3", "--seed"),
        ("--output_dir x", "--output_dir"),
        ("--dataset_name x", "--dataset_name"),
        ("--h100", "--preset"),
        ("--push_to_hub", "--push_to_hub"),
        ("--height 64", "--height"),
        ("--pretrained_inpaint_model_name_or_path x", "--pretrained_inpaint_model_name_or_path"),  # another base
        ("--check", "--check"),
        ("--train_base_model", "--train_base_model"),
        ("--lr_power 2", "--lr_power"),  # does nothing beside the preset's schedule
    ],
)
def test_flags_that_are_no_recipe_end_before_anything_is_written(tmp_path: Path, flags: str, named: str) -> None:
    with pytest.raises(WrongUseError, match=rf"--recipe odd.*{named}"):
        runs_of(asked(tmp_path / "work", "plain=", f"odd={flags}"))
    assert not (tmp_path / "work").exists()


def test_names_seeds_and_what_a_folder_has_belong_to_one_recipe(tmp_path: Path) -> None:
    for arguments in (
        asked(tmp_path, "plain="),
        asked(tmp_path, "plain=", "plain=--lora_rank 4"),
        asked(tmp_path, "plain=", "low=--lora_rank 4", seeds=(1, 1)),
    ):
        with pytest.raises(WrongUseError):
            runs_of(arguments)
    runs_of(asked(tmp_path, "plain=", "low=--lora_rank 4"))
    with pytest.raises(WrongUseError, match=r"--recipe low.*--lora_rank 4"):
        runs_of(asked(tmp_path, "plain=", "low=--lora_rank 8"))
    runs_of(asked(tmp_path, "plain=", "lower=--lora_rank 8"))


def test_an_interval_is_students_and_says_a_word_only_off_zero() -> None:
    found = difference([1, 2, 3], "better", "worse")
    # 4.3027 is the 97.5% quantile for 2 degrees of freedom, and 1 / sqrt(3) the standard error.
    assert found["mean"] == 2 and found["interval"] == pytest.approx([2 - 2.4841, 2 + 2.4841], abs=1e-3)
    assert found["verdict"] == "open"
    assert difference([3, 4, 5], "better", "worse")["verdict"] == "worse"
    assert difference([-3, -4, -5], "better", "worse")["verdict"] == "better"
    assert difference([0, 0, 0], "better", "worse")["verdict"] == "open"
    assert difference([-3, -4], "better", "worse")["interval"] is None
    assert difference([-3, -4], "better", "worse")["verdict"] == ""


def test_recipes_are_compared_seed_by_seed() -> None:
    upper = {"plain": (1.08, 1.10, 1.12), "keep": (1.02, 1.03, 1.04)}
    others = {"plain": (0.5, 0.6, 0.7), "keep": (0.52, 0.61, 0.73)}
    figures = {
        (name, seed): judged(upper[name][seed], others[name][seed], 0.5 + 0.1 * (name == "keep"))
        for name in upper
        for seed in range(3)
    }
    rows = {(row["type"], row["figure"]): row for row in compare(figures, ["plain", "keep"], range(3))}
    lower = rows["lower", "dssim_masked"]
    assert lower["base"] == 0.5 and lower["changes"]["plain"] == pytest.approx([-0.5, -0.4, -0.3])
    # The seeds differ by 0.2 and the recipes by 0.02: paired, that is seen.
    assert lower["differences"]["keep"]["mean"] == pytest.approx(0.02)
    assert lower["differences"]["keep"]["interval"] == pytest.approx([0.02 - 0.02484, 0.02 + 0.02484], abs=1e-4)
    tops = rows["upper", "ciede2000_masked"]
    assert tops["differences"]["keep"]["verdict"] == "better"
    loss = tops["losses"]["keep"]
    assert loss["share"] == pytest.approx(0.3)
    assert loss["difference"]["mean"] == pytest.approx(-0.02) and loss["difference"]["verdict"] == "at most half"
    assert rows["full", "patterns"]["changes"]["keep"] == pytest.approx([0.35] * 3)
    assert rows["full", "patterns"]["differences"]["keep"]["mean"] == pytest.approx(0.1)
    lines = table(list(rows.values()), ["plain", "keep"]).splitlines()
    assert lines[0] == "| | base | plain | keep | keep - plain |"
    assert "| lower, 1-SSIM | 0.5 | -40.0% | -38.0% | +2.0 [-0.5, +4.5] open |" in lines
    assert len({line.count("|") for line in lines}) == 1


def test_a_recipe_gains_nothing_by_a_base_that_it_draws_worse() -> None:
    figures = {("plain", 0): judged(1.0, 0.5), ("odd", 0): judged(1.0, 0.5)}
    figures["odd", 0]["base"] = {
        kind: dict.fromkeys(("dssim_masked", "ciede2000_masked"), 99.0) | {"patterns": {"kept": 0.0, "n": 9}}
        for kind in TYPES
    }
    assert all(row["differences"]["odd"]["mean"] == 0 for row in compare(figures, ["plain", "odd"], [0]))


def test_more_of_a_pattern_is_better() -> None:
    figures = {(name, seed): judged(0.9, 0.5, kept) for name, kept in (("a", 0.3), ("b", 0.4)) for seed in range(3)}
    for seed in range(3):
        figures["b", seed] = judged(0.9, 0.5, 0.4 + seed / 1000)
    rows = {(row["type"], row["figure"]): row for row in compare(figures, ["a", "b"], range(3))}
    assert rows["lower", "patterns"]["differences"]["b"]["verdict"] == "better"


@pytest.mark.parametrize(("keep", "word"), [(0.97, "at most half"), (0.995, "open"), (1.02, "more than half")])
def test_beside_tops_that_gain_half_of_the_loss_is_none(keep: float, word: str) -> None:
    figures = {("plain", seed): judged(0.96 + seed / 100, 0.5) for seed in range(3)}
    figures |= {("keep", seed): judged(keep + seed / 200, 0.5) for seed in range(3)}
    rows = compare(figures, ["plain", "keep"], range(3))
    loss = next(row["losses"]["keep"] for row in rows if (row["type"], row["figure"]) == ("upper", "dssim_masked"))
    assert loss["share"] is None and loss["difference"]["verdict"] == word
    assert loss["difference"]["mean"] == pytest.approx(keep + 1 / 200 - 1)
    line = next(line for line in table(rows, ["plain", "keep"]).splitlines() if line.startswith("| loss"))
    assert line.startswith("| loss, and less half of plain's |  | none |  |") and word in line


def test_no_run_starts_after_one_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def fails(name: str, seed: int, *_: Any) -> None:
        started.append(seed)
        time.sleep(0.01)
        raise ValueError(f"{name} {seed}")

    monkeypatch.setattr(compare_recipes, "train_and_judge", fails)
    with pytest.raises(ValueError, match="plain 0"):
        judge_all({("plain", seed): [] for seed in range(50)}, SimpleNamespace(jobs=1))
    assert len(started) < 50


def test_what_runs_is_told_to_stop_and_waited_for(tmp_path: Path) -> None:
    script, stop = tmp_path / "run.py", threading.Event()
    script.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(143)))\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    with (tmp_path / "log").open("w") as sink, ThreadPoolExecutor() as pool:
        code = pool.submit(call, [script], sink, stop)
        while "begun" not in (tmp_path / "log").read_text():
            time.sleep(0.05)
        stop.set()
        assert code.result() == 143
    assert (tmp_path / "log").read_text().split() == ["begun", "saved"]


@pytest.mark.slow
@pytest.mark.long
def test_equal_recipes_give_equal_loras_and_what_is_complete_is_used_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, out = tmp_path / "work", tmp_path / "found.json"
    write_wardrobe(work / "wardrobe", rows=30, size=(128, 96))
    words = "--recipe plain= --recipe same= --seeds 5 --steps 2 --people 2".split()
    words += ["--recipe", "steep=--learning_rate 1e-2", "--work_dir", str(work), "--json", str(out)]
    assert main(words) == 0
    rows = json.loads(out.read_text("utf-8"))["rows"]
    plain, same, steep = (work / f"{name}-seed5" / LORA_FILE for name in ("plain", "same", "steep"))
    weights = [
        torch.cat([part.flatten() for _, part in sorted(load_file(file).items())]) for file in (plain, same, steep)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    errors = [row for row in rows if row["figure"] != "patterns"]
    assert len(errors) == 6
    for row in errors:
        assert row["differences"]["same"]["mean"] == 0 != row["differences"]["steep"]["mean"]
        assert row["differences"]["steep"]["verdict"] == ""
    assert not list(work.glob("*-seed5/validation")) and not list(work.glob("*-seed5/evaluation"))
    before, written = plain.stat().st_mtime_ns, capsys.readouterr().out
    assert main(words) == 0
    assert plain.stat().st_mtime_ns == before
    assert capsys.readouterr().out == written
