"""The command `evaluate`, as a user types it: what it writes, what it refuses, and that it goes on where it stopped."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from conftest import forget_accelerator
from diffusers import FluxTransformer2DModel
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_metrics import asked, nothing_loaded, torchvision  # noqa: F401 (fixtures)
from test_pair_folders import dresscode, names_of, of_type
from test_publish import TOKEN, Hub, hub, no_token  # noqa: F401 (fixtures)
from transformers import Dinov2Config, Dinov2Model

import train_flux_inpaint as trainer
from deepfashion_training import evaluate as command
from deepfashion_training.data.pair_folders import CATEGORIES
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.evaluation.cases import Cases
from deepfashion_training.images.layout import place_picture
from deepfashion_training.images.paste import feathered, seam_of
from deepfashion_training.inference.choice import ModelChoice
from deepfashion_training.models.fill import FillModel

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 64, 48
KINDS = {"upper", "lower", "full", "all"}
PAIRED = ("ssim", "ssim_masked", "psnr", "psnr_masked", "ciede2000_masked", "drift", "dino")
UNPAIRED = ("drift_unpaired", "dino_unpaired")
OF_SETS = ("fd_dinov2", "kd_dinov2", "fd_dinov2_unpaired", "kd_dinov2_unpaired")


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn people in the documented schema: 9 test rows, three people in three garments each. For reading only."""
    return write_wardrobe(tmp_path_factory.mktemp("evaluate") / "wardrobe", rows=90, size=(96, 72))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a DINOv2 with random weights."""
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "mlp_ratio": 2}
    folder = tmp_path_factory.mktemp("dino")
    Dinov2Model(Dinov2Config(patch_size=14, **size)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": 28}))
    return folder


@pytest.fixture(scope="module")
def make_lora(
    tiny_args: Callable[..., Any], tiny_flux_fill: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Makes folders as training leaves them, of a LoRA whose weights are moved by ``strength`` times noise."""

    def make(strength: float) -> Path:
        args = tiny_args("--lora_rank", 4, "--height", HEIGHT, "--width", WIDTH, "--max_sequence_length", 8)
        transformer = FluxTransformer2DModel.from_pretrained(tiny_flux_fill, subfolder="transformer")
        torch.manual_seed(3)
        for parameter in trainer.make_trainable(transformer, args):
            parameter.data += strength * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp("trained") / "skirts"
        folder.mkdir()
        trainer.save_lora(transformer, args, folder)
        counts = {"upper": 30, "lower": 20, "full": 14}
        run = {"arguments": {**vars(args), "raw_dataset_name": None, "embedded": True}, "step": 100}
        run |= {"dataset": {"train": {"source": "/home/x/pairs", "split": "train", "rows": 64, "by_type": counts}}}
        run |= {"seconds_per_step": 1.0, "world_size": 1, "device": "CPU"}
        (folder / "run.json").write_text(json.dumps(run, default=str), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="module")
def lora(make_lora: Callable[..., Path]) -> Path:
    return make_lora(0.1)


@pytest.fixture(scope="module")
def evaluated(wardrobe: Path) -> Iterator[Callable[..., int]]:
    """Runs the command on the drawn test split; the flags given come last and so win."""
    forget_accelerator()

    def run(out: Path, *more: object) -> int:
        size = f"--height {HEIGHT} --width {WIDTH} --num_inference_steps 1 --limit 6".split()
        flags = ["--embedded", "--dataset_name", str(wardrobe), *size, "--output_dir", str(out)]
        return command.main([*flags, *map(str, more)])

    yield run
    forget_accelerator()


@dataclass
class Done:
    folder: Path

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "metrics.csv").open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))

    @property
    def pictures(self) -> dict[str, bytes]:
        root = self.folder / "pictures"
        return {file.relative_to(root).as_posix(): file.read_bytes() for file in sorted(root.rglob("*.png"))}


@pytest.fixture(scope="module")
def first(
    evaluated: Callable[..., int], lora: Path, dino: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Done]:
    """A LoRA beside its base, in all settings. For reading only."""
    done = Done(tmp_path_factory.mktemp("first") / "report")
    assert evaluated(done.folder, "--lora", lora, "--dino_model", dino) == 0
    before = done.pictures
    yield done
    assert done.pictures == before


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(ModelChoice, "load", load)


# ---- what it writes


def test_metrics_json_is_as_the_design_says(first: Done) -> None:
    facts = first.facts
    assert set(facts["models"]) == {"base", "lora"}
    for models in facts["models"].values():
        assert set(models) == KINDS
        assert {kind: found["n"] for kind, found in models.items()} == {"upper": 2, "lower": 2, "full": 2, "all": 6}
        for found in models.values():
            assert {*found} == {"n", *OF_SETS, *(name + end for name in (*PAIRED, *UNPAIRED) for end in ("", "_ci"))}
            for name in (*PAIRED, *UNPAIRED):
                low, high = found[f"{name}_ci"]
                assert low <= found[name] <= high
    for kind, changes in facts["difference"].items():
        assert set(changes) == {*PAIRED, *UNPAIRED}
        for name, change in changes.items():
            gained = facts["models"]["lora"][kind][name] - facts["models"]["base"][kind][name]
            assert change["mean"] == pytest.approx(gained, abs=1e-9)
            assert change["people"] in (2, 3) and change["better"] is None
    settings = facts["settings"]
    assert (settings["seed"], settings["num_inference_steps"], settings["split"], settings["repaint"]) == (
        0,
        1,
        "test",
        False,
    )
    assert settings["dino_revision"].startswith("sha256:") and settings["garment_area"] == "the column parse"
    assert facts["left_out_cases"] == {} and facts["garment_areas_unknown"] == 0
    assert "6 rows at most, as many of each garment type" in (first.folder / "report.html").read_text("utf-8")
    assert any("fewer than 500 pictures (2 of upper, 2 of lower" in line for line in facts["warnings"])


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_what_this_machine_lacks_is_left_out_with_a_fix(first: Done) -> None:
    assert set(first.facts["left_out"]) == {"lpips", "fid", "kid"}
    assert all(why.endswith("pip install -r requirements-fid.txt") for why in first.facts["left_out"].values())


def test_figures_are_those_of_the_pictures_and_the_photos(first: Done, wardrobe: Path) -> None:
    table = pyarrow.parquet.read_table(next((wardrobe / "data").glob("test-*.parquet"))).to_pylist()
    checked = 0
    for row in first.rows:
        if not row["ssim"]:
            continue
        cells = {name: Image.open(io.BytesIO(table[int(row["row"])][name]["bytes"])) for name in ("image", "mask")}
        resized = place_picture(cells["image"].convert("RGB"), (HEIGHT, WIDTH), "stretch")
        photo = resized.transpose(1, 2, 0) / 255
        mask = np.asarray(cells["mask"].convert("L").resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)) > 127
        with Image.open(first.folder / f"pictures/paired/{row['model']}/{int(row['row']):06d}.png") as file:
            drawn = np.asarray(file) / 255
        how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
        assert float(row["ssim"]) == pytest.approx(structural_similarity(photo, drawn, channel_axis=2, **how), abs=1e-4)
        assert float(row["psnr"]) == pytest.approx(peak_signal_noise_ratio(photo, drawn, data_range=1), abs=1e-4)
        assert float(row["drift"]) == pytest.approx(255 * np.abs(photo - drawn)[~mask].mean(), abs=1e-4)
        checked += 1
    assert checked == 12


def test_means_are_those_of_the_table_by_type_and_in_all(first: Done) -> None:
    rows, facts = first.rows, first.facts
    assert len(rows) == 6 * 2 * 2
    for model, kinds in facts["models"].items():
        for kind, found in kinds.items():
            for name in (*PAIRED, *UNPAIRED):
                mine = [row for row in rows if row["model"] == model and kind in (row["type"], "all") and row[name]]
                assert len(mine) == found["n"]
                assert found[name] == pytest.approx(np.mean([float(row[name]) for row in mine]), rel=1e-12)


def test_the_card_gets_the_table_and_no_path(first: Done, lora: Path, wardrobe: Path, dino: Path) -> None:
    card = (lora / "README.md").read_text(encoding="utf-8")
    facts = first.facts
    base, after = (facts["models"][model]["lower"]["ciede2000_masked"] for model in ("base", "lora"))
    line = next(line for line in card.splitlines() if line.startswith("| CIEDE2000"))
    assert f"{base:.2f}" in line and f"{after:.2f}" in line
    assert "2 |" in next(line for line in card.splitlines() if line.startswith("| pictures"))
    evaluation = json.loads((lora / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["models"] == facts["models"] and evaluation["difference"] == facts["difference"]
    assert (
        evaluation["settings"]["lora_sha256"]
        == hashlib.sha256((lora / "pytorch_lora_weights.safetensors").read_bytes()).hexdigest()
    )
    for path in (lora.parent, wardrobe, dino, ROOT, first.folder):
        assert str(path) not in card + json.dumps(evaluation)


@pytest.mark.parametrize(
    "other",
    [["--prompt", "a cat"], ["--split", "train"], ["--height", 80], ["--lora_scale", 0.5], ["--lora", "the same"]],
)
def test_figures_of_other_circumstances_are_not_the_cards(
    other: list[str], lora: Path, wardrobe: Path, tmp_path: Path
) -> None:
    from accelerate import PartialState

    from deepfashion_training.evaluation.evaluation_plan import make_plan

    flags = ["--embedded", "--dataset_name", str(wardrobe), "--lora", str(lora)]
    plain = command.build_parser().parse_args([*flags, "--output_dir", str(tmp_path / "plain")])
    assert make_plan(plain, PartialState()).trained_folder == lora
    parts = [
        *flags,
        "--output_dir",
        str(tmp_path / "other"),
        *(str(lora) if word == "the same" else str(word) for word in other),
    ]
    assert make_plan(command.build_parser().parse_args(parts), PartialState()).trained_folder is None


def test_the_cards_code_loads_the_transformer_that_was_trained_on(first: Done, lora: Path) -> None:
    card = (lora / "README.md").read_text(encoding="utf-8")
    assert 'FluxTransformer2DModel.from_pretrained("PATH/TO/tiny_flux_fill", subfolder="transformer"' in card


# ---- the same noise


def identical(done: Done, pictures_of_each: int) -> None:
    """Both models drew the same, and no figure says anything else."""
    facts = done.facts
    pictures = done.pictures
    drawn = {name: content for name, content in pictures.items() if "/lora/" in name}
    assert len(drawn) == pictures_of_each
    assert all(content == pictures[name.replace("/lora/", "/base/")] for name, content in drawn.items())
    assert facts["models"]["base"] == facts["models"]["lora"]
    for changes in facts["difference"].values():
        for change in changes.values():
            assert (change["mean"], change["ci"]) == (0, [0, 0]) and change["better"] in ("neither", None)


@pytest.mark.long
def test_a_lora_of_zeros_draws_what_its_base_draws(
    evaluated: Callable[..., int], make_lora: Callable[..., Path], first: Done, tmp_path: Path
) -> None:
    done = Done(tmp_path / "zero")
    assert evaluated(done.folder, "--lora", make_lora(0.0), "--no-unpaired") == 0
    identical(done, 6)
    base = {name: content for name, content in first.pictures.items() if name.startswith("paired/base/")}
    assert base.items() < done.pictures.items()  # and the base that of the other run
    changed = [name for name in base if first.pictures[name.replace("/base/", "/lora/")] != base[name]]
    assert changed == list(base)  # which the other LoRA changed in every picture


@pytest.mark.long
def test_a_second_lora_of_zeros_changes_nothing_but_the_settings(
    evaluated: Callable[..., int], lora: Path, make_lora: Callable[..., Path], first: Done, tmp_path: Path
) -> None:
    done, zeros = Done(tmp_path / "two"), make_lora(0.0)
    card = (lora / "README.md").read_bytes()
    assert evaluated(done.folder, "--lora", lora, "--lora", zeros, "--lora_scale", 0.125, "--no-unpaired") == 0
    assert done.pictures.items() <= first.pictures.items()
    assert done.facts["settings"]["lora_scale"] == [1.0, 0.125] and len(done.facts["settings"]["lora_sha256"]) == 2
    assert "LoRA scale 1 and 0.125" in (done.folder / "report.html").read_text(encoding="utf-8")
    assert (lora / "README.md").read_bytes() == card
    assert evaluated(done.folder, "--lora", lora, "--no-unpaired") == 1  # it holds an evaluation with other settings


def test_a_lora_against_itself_differs_in_no_metric(
    evaluated: Callable[..., int], lora: Path, dino: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Done(tmp_path / "itself")
    before = (lora / "evaluation.json").read_bytes()
    assert evaluated(done.folder, "--lora", lora, "--against", lora, "--dino_model", dino) == 0
    identical(done, 12)
    assert set(done.facts["models"]["lora"]["all"]) >= {*PAIRED, *UNPAIRED, *OF_SETS}
    out = capsys.readouterr().out
    assert out.count("  too few people") == 4
    assert (lora / "evaluation.json").read_bytes() == before  # a card compares with the base


# ---- going on


def test_only_what_is_missing_is_drawn_again(
    evaluated: Callable[..., int], first: Done, lora: Path, dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Done(Path(shutil.copytree(first.folder, tmp_path / "report")))
    (done.folder / ".saving-1-metrics.json").touch()  # what a killed process was writing
    files = sorted(done.folder.rglob("pictures/**/*.png"))
    gone = {files[3], files[10], files[15], files[22]}
    for file in gone:
        file.unlink()
    times = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    draw, calls = FillModel.draw, []
    monkeypatch.setattr(FillModel, "draw", lambda *a, **k: (calls.append(1), draw(*a, **k))[1])
    flags = ("--lora", lora, "--dino_model", dino)
    assert evaluated(done.folder, *flags) == 0
    assert len(calls) == 4 and done.pictures == first.pictures
    assert {file for file, time in times.items() if file.stat().st_mtime_ns == time} == set(files) - gone
    assert done.facts == first.facts and done.rows == first.rows

    monkeypatch.setattr(ModelChoice, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    (done.folder / "metrics.json").unlink()
    files[3].write_text("no picture")
    assert evaluated(done.folder, *flags) == 0
    (why,) = done.facts["left_out_cases"].values()
    assert why.startswith(f"{files[3]} cannot be read") and "delete it" in why


def test_ctrl_c_loses_nothing(
    evaluated: Callable[..., int],
    first: Done,
    lora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done, draw, calls = Done(tmp_path / "report"), FillModel.draw, []

    def interrupted(*args: Any, **more: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return draw(*args, **more)

    monkeypatch.setattr(FillModel, "draw", interrupted)
    flags = ("--lora", lora, "--no-unpaired")
    assert evaluated(done.folder, *flags) == 130
    assert "--overwrite, continues where it stopped" in capsys.readouterr().err
    assert len(done.pictures) == 5 and not (done.folder / "metrics.json").exists()
    assert evaluated(done.folder, *flags) == 0
    assert len(calls) == 6 + 7
    assert done.pictures == {name: content for name, content in first.pictures.items() if name.startswith("paired/")}
    figures = {name: value for name, value in first.facts["models"]["lora"]["all"].items() if name.startswith("ssim")}
    assert figures.items() < done.facts["models"]["lora"]["all"].items()
    assert {name for name in done.facts["models"]["lora"]["all"] if "unpaired" in name} == set()
    assert set(done.facts["left_out"]) >= {"dino", "fd_dinov2", "kd_dinov2"}
    assert "hf download facebook/dinov2-base" in done.facts["left_out"]["dino"]


def test_other_settings_are_refused_and_overwritten_on_demand(
    evaluated: Callable[..., int],
    first: Done,
    lora: Path,
    tmp_path: Path,
    no_model: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = Done(Path(shutil.copytree(first.folder, tmp_path / "report")))
    assert evaluated(done.folder, "--lora", lora, "--seed", 1, "--limit", 3) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{done.folder} holds an evaluation with other settings (limit, seed): name another folder" in said
    assert done.pictures == first.pictures
    monkeypatch.undo()  # now it may load
    assert evaluated(done.folder, "--lora", lora, "--seed", 1, "--limit", 3, "--no-unpaired", "--overwrite") == 0
    assert len(done.pictures) == 6
    assert done.facts["models"]["lora"]["all"]["n"] == 3
    assert not set(done.pictures.values()) & set(first.pictures.values())


# ---- what is asked for


def test_without_a_limit_as_many_of_each_type_are_taken_as_tell_a_difference() -> None:
    flags = ["--embedded", "--output_dir", "r"]
    assert command.parse(flags).limit == 180 and command.parse([*flags, "--limit", "all"]).limit is None


def test_pictures_do_not_depend_on_the_batch(
    evaluated: Callable[..., int], first: Done, lora: Path, tmp_path: Path
) -> None:
    """But for rounding: of 8 bits, one level. A folder that was begun with one size goes on with another."""
    done = Done(tmp_path / "report")
    assert evaluated(done.folder, "--lora", lora, "--batch_size", 4) == 0
    gone = sorted(done.folder.rglob("pictures/**/*.png"))[::3]
    for file in gone:
        file.unlink()
    assert evaluated(done.folder, "--lora", lora, "--batch_size", 3) == 0
    assert done.pictures.keys() == first.pictures.keys()
    for name in done.pictures:
        with (
            Image.open(first.folder / "pictures" / name) as alone,
            Image.open(done.folder / "pictures" / name) as batch,
        ):
            assert np.abs(np.asarray(alone, int) - np.asarray(batch, int)).max() <= 1


def test_unpaired_garments_are_permuted_among_people_of_a_type(wardrobe: Path) -> None:
    cases = Cases(str(wardrobe), "train", (HEIGHT, WIDTH), seed=0)
    assert Counter(case.type_name for case in cases.paired) == {"upper": 24, "lower": 24, "full": 24}
    assert all(case.garment_row == case.row for case in cases.paired)
    types = {case.row: case.cloth_type for case in cases.paired}
    groups = {case.row: case.group for case in cases.paired}
    garments = [case.garment_row for case in cases.unpaired]
    assert [case.row for case in cases.unpaired] == list(types) and sorted(garments) == sorted(types)
    for case in cases.unpaired:
        assert types[case.garment_row] == case.cloth_type and groups[case.garment_row] != case.group
    again, other = (Cases(str(wardrobe), "train", (HEIGHT, WIDTH), seed=seed) for seed in (0, 1))
    assert (again.paired, again.unpaired) == (cases.paired, cases.unpaired)
    assert [case.garment_row for case in other.unpaired] != garments


def test_limit_takes_as_many_of_each_type_and_nobody_is_his_own_partner(
    evaluated: Callable[..., int], lora: Path, tmp_path: Path
) -> None:
    done = Done(tmp_path / "three")
    assert evaluated(done.folder, "--lora", lora, "--limit", 3, "--repaint") == 0
    facts = done.facts
    assert {kind: found["n"] for kind, found in facts["models"]["base"].items()} == {
        "upper": 1,
        "lower": 1,
        "full": 1,
        "all": 3,
    }
    # One of each type is left, whose "other" garment would be the own.
    assert not [name for name in facts["models"]["base"]["all"] if name.endswith("_unpaired")]
    assert not [name for name in done.pictures if name.startswith("unpaired/")]


def test_repaint_keeps_the_photo_beyond_the_feathered_mask(
    evaluated: Callable[..., int],
    first: Done,
    wardrobe: Path,
    lora: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = Done(tmp_path / "repainted")
    assert evaluated(done.folder, "--lora", lora, "--no-unpaired", "--repaint") == 0
    assert "repaint   on: beyond the mask the photo stays" in capsys.readouterr().err
    assert "repaint on" in (done.folder / "report.html").read_text(encoding="utf-8")
    cases = Cases(str(wardrobe), "test", (HEIGHT, WIDTH), limit=6)
    for case in cases.paired:
        truth = cases.truth(case)
        beyond = feathered(truth.mask.astype(np.uint8), seam_of((HEIGHT, WIDTH))) == 0
        assert beyond.any()
        for model in ("base", "lora"):
            with Image.open(done.folder / "pictures/paired" / model / case.file) as file:
                drawn = np.asarray(file)
            assert (drawn[beyond] == truth.photo[beyond]).all()
            assert (drawn[truth.mask] != truth.photo[truth.mask]).any()
    for model in ("base", "lora"):  # the seam is what is left
        assert done.facts["models"][model]["all"]["drift"] < 0.5 * first.facts["models"][model]["all"]["drift"]


@pytest.fixture
def spoilt(wardrobe: Path, tmp_path: Path) -> Path:
    """The test split with a broken photo in row 0, a broken garment in row 4, and row 8 of the same photo."""
    table = pyarrow.parquet.read_table(next((wardrobe / "data").glob("test-*.parquet")))
    rows = table.to_pylist()
    rows[0]["image"]["bytes"] = b"no picture"
    rows[4]["cloth"]["bytes"] = rows[4]["cloth"]["bytes"][:100]
    rows[8]["garment_source"] = "same_photo"
    (tmp_path / "spoilt" / "data").mkdir(parents=True)
    changed = pyarrow.Table.from_pylist(rows, schema=table.schema)
    pyarrow.parquet.write_table(changed, tmp_path / "spoilt" / "data" / "test-00000-of-00001.parquet")
    return tmp_path / "spoilt"


def test_rows_that_cannot_be_used_are_left_out_by_name(
    evaluated: Callable[..., int],
    spoilt: Path,
    lora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = Done(tmp_path / "report")
    assert evaluated(done.folder, "--dataset_name", spoilt, "--lora", lora, "--limit", 9) == 0
    cases = Cases(str(spoilt), "test", (HEIGHT, WIDTH))
    named = {case.row: case.name for case in cases.paired}
    partner = next(case.row for case in cases.unpaired if case.garment_row == 4)
    facts = done.facts
    assert set(facts["left_out_cases"]) == {named[0], named[4], named[partner]}
    assert facts["left_out_cases"][named[0]].startswith("image: not readable as a picture")
    assert facts["left_out_cases"][named[4]].startswith("cloth: ")
    if partner != 0:
        assert facts["left_out_cases"][named[partner]].startswith("unpaired: cloth: ")
    assert facts["same_photo_rows_left_out"] == 1 and 8 not in named
    assert "1 rows whose garment was cut out of the same photo are left out" in capsys.readouterr().err
    paired = {int(row["row"]) for row in done.rows if row["ssim"]}
    unpaired = {int(row["row"]) for row in done.rows if row["drift_unpaired"]}
    assert paired == {1, 2, 3, 5, 6, 7} and unpaired == set(range(8)) - {0, partner}
    assert f"{len(facts['left_out_cases'])} of the cases could not be measured" in " ".join(facts["warnings"])
    assert len([name for name in done.pictures if name.startswith("paired/")]) == 6 * 2
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert named[0] in page.split('id="left-out"')[1]
    # What cannot be drawn is no reason to load a model again.
    monkeypatch.setattr(ModelChoice, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    assert evaluated(done.folder, "--dataset_name", spoilt, "--lora", lora, "--limit", 9) == 0


def test_without_a_lora_the_base_is_measured_alone(
    evaluated: Callable[..., int], first: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Done(tmp_path / "base")
    assert evaluated(done.folder, "--no-unpaired", "--cloth_types", "lower") == 0
    facts = done.facts
    assert set(facts["models"]) == {"base"} and set(facts["models"]["base"]) == {"lower", "all"}
    assert facts["difference"] == {} and facts["settings"]["lora"] is None
    said = capsys.readouterr()
    assert "LoRA      none: the bare base" in said.err
    line = next(line for line in said.out.splitlines() if line.startswith("lower"))
    assert line.split()[:2] == ["lower", "3"] and "->" not in line


# ---- refusals


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--split", "holdout"], 1, "has no split 'holdout', only "),
        (["--dataset_name", "/nowhere/pairs"], 1, "no such folder: /nowhere/pairs"),
        (["--lora", "/nowhere/lora"], 1, "/nowhere/lora"),
        (["--cloth_types", "hats"], 2, "hats"),
        (["--dino_model", "/nowhere/dino"], 1, "--dino_model /nowhere/dino"),
        (["--lora_scale", "2"], 1, "--lora_scale 2 scales nothing"),
        (["--lara", "x"], 2, "unknown argument --lara: did you mean --lora?"),
        (["--limit", "0"], 2, "0 is not at least 1"),
        (["--against", "x"], 2, "--against compares a LoRA with another one: name the first with --lora"),
        (["--hub_private"], 2, "--hub_model_id and --hub_private go with --push_to_hub"),
        (["--guidance_scale", "-1"], 2, "-1"),
        (["--data", "x"], 2, "unknown argument --data"),
    ],
)
def test_wrong_use_is_one_line(
    flags: list[str],
    code: int,
    said: str,
    evaluated: Callable[..., int],
    tmp_path: Path,
    no_model: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluated(tmp_path / "report", *flags) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("evaluate: ") and said in lines[0]
    assert not (tmp_path / "report" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [("notes.txt", "holds something else (notes.txt)"), ("pictures/me.png", "holds something else (pictures)")],
)
def test_a_folder_of_something_else_is_left_alone(
    content: str,
    said: str,
    evaluated: Callable[..., int],
    tmp_path: Path,
    no_model: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine" / content).parent.mkdir(parents=True)
    (tmp_path / "mine" / content).write_text("mine")
    assert evaluated(tmp_path / "mine", "--overwrite") == 1
    assert said in capsys.readouterr().err
    assert [path.relative_to(tmp_path / "mine").as_posix() for path in (tmp_path / "mine").rglob("*.*")] == [content]


def test_neither_data_nor_embedded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--output_dir", str(tmp_path / "report")]) == 2
    assert "--dataset_name is needed" in capsys.readouterr().err


def test_after_a_training_what_its_flags_leave_out_is_not_told(
    evaluated: Callable[..., int], lora: Path, wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"limit": 3, "cloth_types": "upper,lower,full", "quantize_base": None, "batch_size": 8, "parser": "none"}
    flags |= {"lora": [str(lora)], "dataset_name": str(wardrobe), "split": "test", "output_dir": tmp_path / "r"}
    picture = command.evaluate_trained(torch.device("cpu"), dino_model="none", extras=False, **flags)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:1] for line in lines[2:6]] == [["upper"], ["lower"], ["full"], ["all"]]
    assert "--" not in "".join(lines[6:]) and "before_after" not in "".join(lines)  # the run says it last
    assert picture == tmp_path / "r" / "before_after.png" and picture.is_file()
    left_out = json.loads((tmp_path / "r" / "metrics.json").read_text(encoding="utf-8"))["left_out"]
    assert (left_out["fid"], left_out["dino"]) == ("--no-extras", "--dino_model none")


# ---- figures of papers


def test_figures_of_papers_appear_for_each_type_where_they_can_be_had(
    asked: list[tuple[Any, ...]],  # noqa: F811
    evaluated: Callable[..., int],
    lora: Path,
    tmp_path: Path,
) -> None:
    done = Done(tmp_path / "papers")
    assert evaluated(done.folder, "--lora", lora, "--no-unpaired", "--limit", 6) == 0
    facts = done.facts
    assert not {"lpips", "fid", "kid"} & set(facts["left_out"])
    for models in facts["models"].values():
        for found in models.values():
            assert found["fid"] == 12.5 and found["kid"] > 0 and found["lpips"] > 0 and "lpips_ci" in found
    assert len([call for call in asked if call[0] == "fid"]) == 4 * 2


# ---- publishing


def test_a_lora_of_the_embedded_model_is_not_published(
    hub: Hub,  # noqa: F811
    evaluated: Callable[..., int],
    lora: Path,
    tmp_path: Path,
    no_model: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluated(tmp_path / "a", "--lora", lora, "--push_to_hub") == 1
    assert "--push_to_hub" in capsys.readouterr().err
    for more in (["--lora_scale", "0.5"], ["--against", str(lora)]):
        assert evaluated(tmp_path / "a", "--lora", lora, "--push_to_hub", *more) == 1
        assert "--push_to_hub" in capsys.readouterr().err
    assert hub.asked == [] and not (tmp_path / "a" / "settings.json").exists()


def test_the_lora_goes_to_the_hub_with_its_figures(
    hub: Hub,  # noqa: F811
    wardrobe: Path,
    lora: Path,
    tmp_path: Path,
    evaluated: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(lora, tmp_path / "skirts"))
    flags = f"--dataset_name {wardrobe} --lora {folder} --limit 3 --no-unpaired --output_dir {tmp_path / 'r'}".split()
    flags += ["--num_inference_steps", "1"]
    hub.role = "read"
    assert command.main([*flags, "--push_to_hub"]) == 1
    assert "may only read" in capsys.readouterr().err and not (tmp_path / "r" / "pictures").exists()
    hub.role = "write"
    assert command.main([*flags, "--push_to_hub", "--hub_model_id", "acme/skirts"]) == 0
    uploaded = hub.uploads["acme/skirts"]
    assert set(uploaded) == {"pytorch_lora_weights.safetensors", "README.md", "evaluation.json"}
    assert b"CIEDE2000" in uploaded["README.md"] and b'load_lora_weights("acme/skirts")' in uploaded["README.md"]
    assert json.loads(uploaded["evaluation.json"])["models"]["lora"]["all"]["n"] >= 3
    assert not any(str(tmp_path).encode() in content or TOKEN.encode() in content for content in uploaded.values())
    said = capsys.readouterr().out.splitlines()[-2:]
    assert said == ["published https://huggingface.co/acme/skirts", f"picture   {tmp_path / 'r' / 'before_after.png'}"]


# ---- several processes

WATCHED = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
from deepfashion_training import evaluate
from deepfashion_training.models.fill import FillModel

draw, seeds = FillModel.draw, []

def watched(model, samples, given, **more):
    seeds.extend(given)
    return draw(model, samples, given, **more)

FillModel.draw = watched
code = evaluate.main(sys.argv[2:])
from accelerate import PartialState
told = {"world": PartialState().num_processes, "seeds": seeds}
Path(sys.argv[1], f"rank-{os.environ['RANK']}.json").write_text(json.dumps(told))
sys.exit(code)
"""


@pytest.mark.long
def test_two_processes_draw_and_measure_what_one_does(
    first: Done, wardrobe: Path, lora: Path, dino: Path, tmp_path: Path
) -> None:
    (tmp_path / "watched.py").write_text(WATCHED, encoding="utf-8")
    done = Done(tmp_path / "report")
    size = f"--height {HEIGHT} --width {WIDTH} --num_inference_steps 1 --limit 6".split()
    flags = ["--embedded", "--dataset_name", str(wardrobe), *size, "--lora", str(lora), "--dino_model", str(dino)]
    launch = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [*launch, str(tmp_path / "watched.py"), str(tmp_path), *flags, "--output_dir", str(done.folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-5000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert [len(rank["seeds"]) for rank in ranks] == [3 * 4, 3 * 4]
    assert not set(ranks[0]["seeds"]) & set(ranks[1]["seeds"])
    assert done.pictures == first.pictures
    assert done.facts["models"] == first.facts["models"] and done.facts["difference"] == first.facts["difference"]
    assert done.rows == first.rows
    assert ran.stdout.count("report    ") == 1 and ran.stderr.count("LoRA      ") == 1


def test_the_estimate_of_the_real_model_is_said_first() -> None:
    """720 pictures of 30 steps and 62.7 TFLOP: 66 minutes at 43% of 794 TFLOP/s."""
    recipe = SimpleNamespace(transformer="owner/flux", max_sequence_length=512)
    settings = SimpleNamespace(size=(768, 576), num_inference_steps=30)
    planned = SimpleNamespace(choice=SimpleNamespace(recipe=recipe), drawing={"base": settings})
    said = command._estimate(planned, 720)
    assert said.startswith("about 66 min on H100 80 GB, ") and "L40S 48 GB" in said and "(estimates)" in said
    recipe.transformer = str(TINY_FLUX_FILL)
    assert command._estimate(planned, 720) == ""


# ---- the benchmark of the field


def listed(folder: Path, name: str) -> list[tuple[str, str]]:
    """(person, garment) without their endings, of a list in all categories of a DressCode folder."""
    files = [folder / category / f"{name}.txt" for category in CATEGORIES]
    return [tuple(Path(word).stem for word in line.split()) for file in files for line in file.read_text().splitlines()]


def benchmark(folder: Path, out: Path, *more: object) -> dict[str, Any]:
    flags = f"--embedded --height {HEIGHT} --width {WIDTH} --num_inference_steps 1 --dino_model none".split()
    forget_accelerator()
    assert command.main([*flags, "--dataset_name", str(folder), "--output_dir", str(out), *map(str, more)]) == 0
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def test_a_dresscode_folder_is_evaluated_on_its_lists_beside_published_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "dc"
    dresscode(folder)
    facts = benchmark(folder, tmp_path / "all", "--limit", "all", "--no-extras")
    said = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "all" / "metrics.csv").read_text().splitlines()))
    cases = Cases(str(folder), "test", (HEIGHT, WIDTH))
    assert [(c.name.split("/")[0], c.garment_name.split("/")[1]) for c in cases.paired] == listed(
        folder, "test_pairs_paired"
    )
    crossed = [(c.name.split("/")[0], c.garment_name.split("/")[1]) for c in cases.unpaired]
    assert crossed == listed(folder, "test_pairs_unpaired") and all(case.unpaired for case in cases.unpaired)
    assert [(row["name"].split("/")[0], row["garment"].split("/")[1]) for row in rows] == [
        *listed(folder, "test_pairs_paired"),
        *crossed,
    ]
    assert [facts["models"]["base"][kind]["n"] for kind in ("upper", "lower", "full", "all")] == [2, 2, 2, 6]
    tables = facts["published"]["tables"]
    assert list(tables) == ["upper", "lower", "full", "all"]
    leffa = next(row for row in tables["lower"] if row["method"] == "Leffa")
    assert (leffa["fid_unpaired"], leffa["ssim"]) == (12.25, 0.941) and "2412.08486" in leffa["source"]
    page = (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
    for shown in ("2407.15886", "FitDiT", "12.25", "1800", "not comparable"):  # the papers' lists are longer
        assert shown in said and shown in page
    assert list(facts["published"]["lists"]) == list(tables)
    assert facts["settings"]["garment_area"] == "the column parse"


def test_the_garment_of_the_unpaired_list_is_what_is_tried_on(tmp_path: Path) -> None:
    dresscode(tmp_path / "dc", masks=True)
    file = tmp_path / "dc" / "lower_body" / "test_pairs_unpaired.txt"
    person, garment = names_of(2, 4)[0], names_of(2, 0)[1]  # a garment of the training people, and one person twice
    file.write_text(f"{person} {garment}\n{person} {names_of(2, 5)[1]}\n")
    cases = Cases(str(tmp_path / "dc"), "test", (96, 72), types=(2,))
    shown = [np.asarray(cases.garment(case)) for case in cases.unpaired]
    stored = [np.asarray(Image.open(io.BytesIO(of_type(2)[number]["cloth"]["bytes"]))) for number in (0, 5)]
    assert all(map(np.array_equal, shown, stored)) and not np.array_equal(*stored)
    photo = np.asarray(Image.open(io.BytesIO(of_type(2)[4]["image"]["bytes"])))
    assert all(np.array_equal(cases.rows.pictures(case.row, "image")[0], photo) for case in cases.unpaired)
    assert len({case.file for case in cases.unpaired}) == 2 and len({case.group for case in cases.unpaired}) == 1


def test_part_of_a_list_and_other_splits_stand_beside_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dresscode(tmp_path / "dc", unpaired=False)
    facts = benchmark(tmp_path / "dc", tmp_path / "part", "--limit", 3, "--no-extras")
    assert facts["published"]["tables"] == {} and "2407.15886" not in capsys.readouterr().out
    assert any("--limit all" in note for note in facts["published"]["notes"])
    assert any("permutation" in note for note in facts["published"]["notes"])
    two = benchmark(tmp_path / "dc", tmp_path / "lower", "--limit", "all", "--cloth_types", "lower", "--no-extras")
    assert list(two["published"]["tables"]) == ["lower"]
    train = benchmark(
        tmp_path / "dc", tmp_path / "train", "--limit", 3, "--split", "train", "--no-unpaired", "--no-extras"
    )
    assert "published" not in train


def test_every_published_row_has_a_figure_and_a_source_and_belongs_to_a_list() -> None:
    from deepfashion_training.evaluation import published

    table = yaml.safe_load(Path(published.__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    for entry in table["tables"]:
        assert entry["type"] in table["datasets"][entry["dataset"]]["lines"]
        assert ("arXiv 2" in entry["source"] and "table" in entry["source"]) or "github.com" in entry["source"]
        for _, size, *values in entry["rows"]:
            assert len(values) == len(published.COLUMNS) and any(value is not None for value in values)
            assert size in ("512x384", "1024x768", "not said")
            assert all(value is None or 0 < value < 1 for value in values[:2])
