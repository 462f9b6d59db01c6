"""How the small base is measured: the figure for patterns, on whom, and that the others are those of evaluate."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import embedded_base
from benchmarks.embedded_base import REACH, SEED, pattern_kept, spread, unseen_seed
from deepfashion_training import evaluate
from deepfashion_training.embedded.make.make_base import PAINTED_SEED, PAIRS_SEED
from deepfashion_training.embedded.make.top_rows import FORMER_TOPS_SEEDS, TOPS_SEED
from deepfashion_training.embedded.wardrobe import OWN_SEED, write_wardrobe

AREA = np.zeros((128, 96), bool)
AREA[30:100, 20:70] = True


def stripes(pitch: int, axis: int = 0) -> np.ndarray:
    rows_and_columns = np.indices(AREA.shape)[axis]
    return np.repeat((rows_and_columns // pitch % 2 * 0.6 + 0.2)[..., None], 3, axis=2)


def test_a_pattern_is_kept_wherever_it_lies_within_reach() -> None:
    truth = stripes(7)
    assert pattern_kept(truth, truth, AREA) == pytest.approx(1)
    assert pattern_kept(0.5 * truth + 0.1, truth, AREA) == pytest.approx(1)  # paler, and in another colour
    assert pattern_kept(np.roll(truth, REACH, axis=0), truth, AREA) == pytest.approx(1, abs=0.01)


def test_a_plain_garment_another_pattern_and_noise_have_none_of_it() -> None:
    truth = stripes(4)
    assert pattern_kept(np.full_like(truth, 0.5), truth, AREA) == 0
    assert pattern_kept(stripes(4, axis=1), truth, AREA) < 0.2
    noise = np.random.default_rng(0).normal(0.5, 0.2, truth.shape)
    assert pattern_kept(noise, truth, AREA) < 0.1


def test_only_the_garment_counts() -> None:
    truth = stripes(7)
    beside = np.where(AREA[..., None], 0.5, truth)
    assert pattern_kept(beside, truth, AREA) < 0.5 < pattern_kept(beside, truth, np.ones_like(AREA))


@pytest.mark.parametrize("seed", [OWN_SEED, PAIRS_SEED, TOPS_SEED, *FORMER_TOPS_SEEDS, PAINTED_SEED])
def test_people_that_something_has_learned_from_measure_nothing(seed: int) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=str(seed)):
        unseen_seed(str(seed))
    assert unseen_seed(str(SEED)) == SEED


def test_changes_stand_by_seed_with_mean_and_range() -> None:
    def judged(error: float, kept: float) -> dict[str, dict[str, dict[str, Any]]]:
        before = {"dssim_masked": 0.5, "ciede2000_masked": 20.0, "patterns": {"kept": 0.25, "n": 9}}
        after = {"dssim_masked": error, "ciede2000_masked": 5.0, "patterns": {"kept": kept, "n": 9}}
        types = ("upper", "lower", "full")
        return {"base": dict.fromkeys(types, before), "LoRA": dict.fromkeys(types, after)}

    lines = spread({11: judged(0.3, 0.5), 12: judged(0.25, 0.125)}).splitlines()
    assert "| lower, 1-SSIM | -40.0% | -50.0% | -45.0% | -50.0% to -40.0% |" in lines
    assert "| full, CIEDE2000 | -75.0% | -75.0% | -75.0% | -75.0% to -75.0% |" in lines
    assert "| upper, pattern kept | +0.250 | -0.125 | +0.062 | -0.125 to +0.250 |" in lines


@pytest.mark.slow
@pytest.mark.long
def test_figures_are_those_of_evaluate_with_its_defaults(tmp_path: Path) -> None:
    judged = embedded_base.judge(None, people=2, seed=11)
    data = write_wardrobe(tmp_path / "people", rows=6, seed=11, size=(128, 96))  # of so few, all are in train
    words = f"--embedded --dataset_name {data} --split train --no-unpaired --output_dir {tmp_path / 'report'}"
    assert evaluate.main(words.split()) == 0
    facts = json.loads((tmp_path / "report" / "metrics.json").read_text("utf-8"))
    for kind in ("upper", "lower", "full"):
        said = facts["models"]["base"][kind]
        assert judged["n"][kind] == said["n"] == 2
        assert judged["base"][kind]["ciede2000_masked"] == pytest.approx(said["ciede2000_masked"], rel=1e-3)
        assert judged["base"][kind]["dssim_masked"] == pytest.approx(1 - said["ssim_masked"], rel=1e-3)
    upper = {name: judged[name]["upper"]["ciede2000_masked"] for name in judged if name != "n"}
    assert min(upper, key=upper.__getitem__) == "photo through the VAE"
    assert upper["base"] < upper["base, wrong garment"]
