"""The wrapper: what it refuses before a run, and whole runs through the commands that a user types."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import product
from pathlib import Path
from unittest import mock

import datasets
import pytest
import torch
from conftest import forget_accelerator
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file

from deepfashion_training import evaluate, run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.rows import documented_row, documented_specs
from deepfashion_training.embedded.wardrobe import write_wardrobe
from training_run.output_dir import LORA_FILE
from training_run.processes import process_state

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ROOT / "deepfashion_training" / "train_deepfashion_lora.sh"
QUICK = ["--preset", "quick_test", "--embedded"]


def command(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE")}
    clean |= {"HF_HUB_OFFLINE": "1", "PYTHON": sys.executable, **environment}
    return subprocess.run(list(map(str, arguments)), cwd=cwd, env=clean, capture_output=True, text=True)


# ---- checks


def test_check_refuses_what_the_run_would_destroy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("my thesis")
    assert wrapper.main([*QUICK, "--check", f"--output_dir={tmp_path}"]) == 1
    assert "README.md that the model card would replace" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{}")
    assert wrapper.main([*QUICK, "--check", f"--output_dir={tmp_path}"]) == 1
    assert "holds an earlier run (run.json)" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "my thesis"


def test_what_a_flag_needs_of_the_machine_is_checked_before_any_data_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wrapper.main([*QUICK, "--mixed_precision", "fp16", f"--output_dir={tmp_path / 'out'}"]) == 1
    assert "--mixed_precision fp16" in capsys.readouterr().err
    assert not (tmp_path / "out" / "wardrobe").exists()


def test_check_tells_a_mistyped_path_from_a_hub_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*QUICK, "--check", f"--output_dir={tmp_path / 'out'}", "--dataset_name"]
    for missing in ("/nope", "./nope", "a/b/c"):
        assert wrapper.main([*argv, missing]) == 1
        assert f"no such folder: {missing}" in capsys.readouterr().err


def test_check_names_a_missing_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *at: None if name == "prodigyopt" else find(name, *at)
    )
    argv = [*QUICK, "--check", f"--output_dir={tmp_path / 'out'}", "--optimizer", "prodigy"]
    assert wrapper.main(argv) == 1
    assert "--optimizer prodigy needs the package prodigyopt: pip install prodigyopt" in capsys.readouterr().err


def documented(folder: Path, mask: Callable[[Image.Image, Image.Image], Image.Image], spoiled: int = 24) -> Path:
    """Drawn rows, the first ``spoiled`` of which have what ``mask`` makes of photo and mask."""
    (folder / "data").mkdir(parents=True)
    rows = [documented_row(spec, (128, 96)) for spec in documented_specs(24, 3)]
    for row in rows[:spoiled]:
        photo, area = (Image.open(io.BytesIO(row[name]["bytes"])) for name in ("image", "mask"))
        sink = io.BytesIO()
        mask(photo.convert("RGB"), area.convert("L")).save(sink, "PNG")
        row["mask"] = {"bytes": sink.getvalue(), "path": "mask.png"}
    datasets.Dataset.from_list(rows).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


ODD_MASKS = {
    "inverted": lambda photo, area: ImageOps.invert(area),
    "photo itself": lambda photo, area: photo,
    "painted over": lambda photo, area: Image.composite(Image.new("RGB", photo.size, (128,) * 3), photo, area),
    "hole": lambda photo, area: Image.merge("RGBA", [*photo.split(), ImageOps.invert(area)]),
}


@pytest.mark.parametrize("odd", ODD_MASKS)
def test_rows_whose_masks_are_none_stop_training_and_evaluation_before_a_model(
    odd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = documented(tmp_path / "rows", ODD_MASKS[odd])
    looks = "inverted" if odd == "inverted" else "photo"
    assert wrapper.main([*QUICK, "--dataset_name", str(rows), "--output_dir", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert str(rows) in message and looks in message and "deepfashion_training.prepare" in message
    assert not (tmp_path / "out").exists()
    flags = ["--embedded", "--dataset_name", str(rows), "--split", "train", "--output_dir", str(tmp_path / "report")]
    assert evaluate.main(flags) == 1
    assert looks in capsys.readouterr().err.splitlines()[-1]


def test_a_single_odd_mask_is_named_and_true_ones_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = documented(tmp_path / "one", ODD_MASKS["photo itself"], spoiled=1)
    with caplog.at_level("WARNING"):
        assert (
            wrapper.main([*QUICK, "--dataset_name", str(rows), "--output_dir", str(tmp_path / "out"), "--check"]) == 0
        )
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["row 0"]


def test_check_trains_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    assert wrapper.main([*QUICK, "--check", f"--output_dir={tmp_path / 'out'}"]) == 0
    assert not (tmp_path / "out").exists()


# ---- whole runs


@pytest.fixture(scope="module")
def quick_test(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The launcher's quick test as a user types it, from its own folder, into a path with a space."""
    folder = tmp_path_factory.mktemp("quick test") / "the run"
    folder.mkdir()
    write_wardrobe(folder / "wardrobe", rows=240, size=(128, 96))  # the run would draw 6,300 rows
    steps = ["--max_train_steps", "8", "--validation_steps", "4", "--checkpointing_steps", "4", "--lora_rank", "16"]
    steps += ["--max_train_samples", "64", "--evaluate_samples", "6"]
    arguments = ["bash", LAUNCHER.name, "--quick-test", "--embedded", "--output_dir", folder, *steps]
    browser = tmp_path_factory.mktemp("browser") / "xdg-open"
    browser.write_text('#!/bin/sh\ntouch "$0.opened"\n')
    browser.chmod(0o755)
    seen = {"BROWSER": str(browser), "PATH": f"{browser.parent}:{os.environ['PATH']}", "DISPLAY": ":0"}
    done = command(*arguments, cwd=LAUNCHER.parent, **seen)
    assert not browser.with_name("xdg-open.opened").exists()
    return done, folder


@pytest.mark.slow
def test_the_quick_test_leaves_what_the_design_promises(quick_test) -> None:
    done, folder = quick_test
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "checkpoint-4", "checkpoint-8", "logs", "pytorch_lora_weights.safetensors", "run.json"),
        *("validation", "wardrobe", "latents", "evaluation", "evaluation.json"),
    }
    assert sorted(path.name for path in (folder / "validation").iterdir()) == ["step-0.png", "step-4.png", "step-8.png"]
    Image.open(folder / "validation" / "step-8.png").verify()
    compared, closing = done.stdout.strip("\n").split("\n\n")
    # The comparison first: a line for each garment type.
    lines = compared.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [["upper", "2"], ["lower", "2"], ["full", "2"], ["all", "6"]]
    assert lines[0].split("  ")[0] == "" and "CIEDE2000, lower is better" in lines[0]
    *closing, picture = closing.splitlines()
    assert picture == f"picture   {folder / 'evaluation' / 'before_after.png'}"
    closing = [shlex.split(line, comments=True) for line in closing]
    assert [words[0] for words in closing] == ["LoRA", "pictures", "report", "curves", "next"]
    for words in closing[:3]:
        assert (LAUNCHER.parent / words[1].removesuffix(",")).exists(), words
    assert closing[-1][1:] == ["bash", str(LAUNCHER), "--quick-test"]


def test_the_larger_run_is_on_the_same_data(tmp_path: Path) -> None:
    args, _ = run_arguments.parse(["--quick-test", "--dataset_name", "acme/my rows", "--output_dir", str(tmp_path)])
    assert shlex.split(wrapper.larger_run(args), comments=True)[1:] == [
        str(LAUNCHER),
        "--dataset_name",
        "acme/my rows",
        "--h100",
    ]


@pytest.mark.slow
def test_the_comparison_is_beside_the_lora_and_in_its_card(quick_test) -> None:
    _, folder = quick_test
    facts = json.loads((folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert facts["settings"]["split"] == "test" and facts["settings"]["num_inference_steps"] == 1
    assert facts["models"]["lora"]["lower"] != facts["models"]["base"]["lower"]
    with Image.open(folder / "evaluation" / "before_after.png") as picture:
        assert picture.width > 5 * 192 and picture.height > 3 * 256  # a person of each type, in five tiles
    assert "CIEDE2000" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_evaluate_gives_the_quick_tests_figures_for_its_rows(quick_test, tmp_path: Path) -> None:
    _, folder = quick_test
    report = tmp_path / "report"
    flags = ["--dataset_name", folder / "wardrobe", "--lora", folder, "--limit", 6, "--output_dir", report]
    done = command(sys.executable, "-m", "deepfashion_training.evaluate", *flags)
    assert done.returncode == 0, done.stderr
    alone, before = (
        json.loads((place / "metrics.json").read_text(encoding="utf-8"))["models"]
        for place in (report, folder / "evaluation")
    )
    for model, kind, name in product(before, ("upper", "lower", "full"), ("ciede2000_masked", "ssim_masked")):
        assert alone[model][kind][name] == pytest.approx(before[model][kind][name], rel=1e-4), (model, kind, name)


@pytest.mark.slow
def test_the_run_is_on_record(quick_test) -> None:
    _, folder = quick_test
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert run["status"] == "done"
    assert run["arguments"]["preset"] == "quick_test"
    assert run["arguments"]["max_train_steps"] == 8
    assert run["dataset"]["train"]["rows"] == 64
    counts = run["dataset"]["train"]["by_type"]
    assert set(counts) == {"upper", "lower", "full"}
    assert sum(counts.values()) == 64
    assert run["dataset"]["train"]["fingerprint"] != run["dataset"]["validation"]["fingerprint"]
    assert run["dataset"]["train"]["bad_rows"] == []
    assert run["world_size"] == 2 and run["arguments"]["train_batch_size"] == 8  # 16 pairs a step
    assert run["seconds_per_step"] > 0
    assert len(run["git_revision"].removesuffix("-dirty")) == 40


@pytest.mark.long
def test_what_fails_in_both_processes_is_said_once(quick_test, tmp_path: Path) -> None:
    _, folder = quick_test
    steps = "--max_train_steps 4 --learning_rate 1e30 --max_skipped_steps 1 --max_train_samples 64".split()
    given = ["--dataset_name", folder / "wardrobe", "--output_dir", tmp_path / "out", *steps]
    done = command("bash", LAUNCHER.name, "--quick-test", "--embedded", *given, cwd=LAUNCHER.parent)
    assert done.returncode == 1
    assert done.stderr.count("loss or gradient is not finite") == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_lora_loads_in_diffusers_and_changes_the_picture(quick_test) -> None:
    from diffusers import FluxFillPipeline

    _, folder = quick_test
    pipeline = FluxFillPipeline.from_pretrained(TINY_FLUX_FILL)
    pipeline.set_progress_bar_config(disable=True)
    picture, mask = Image.new("RGB", (192, 128), "white"), Image.new("L", (192, 128), 255)

    def draw() -> torch.Tensor:
        return pipeline(
            "a shirt", image=picture, mask_image=mask, height=128, width=192, num_inference_steps=2,
            max_sequence_length=96, generator=torch.Generator().manual_seed(0), output_type="latent",
        ).images  # fmt: skip

    before = draw()
    pipeline.load_lora_weights(folder)
    assert (draw() - before).abs().max() > 0.01
    with safe_open(folder / "pytorch_lora_weights.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["rank"], metadata["guidance_scale"], metadata["height"]) == ("16", "1.0", "128")
    assert (metadata["base_model"], metadata["use_captions"]) == (str(TINY_FLUX_FILL), "False")
    assert metadata["prompt"].startswith("The pair of images highlights a clothing")


@pytest.mark.slow
def test_the_model_card_tells_data_settings_and_use(quick_test) -> None:
    _, folder = quick_test
    card = (folder / "README.md").read_text(encoding="utf-8")
    for part in ("validation/step-8.png", "64 rows", "| `lora_rank` | 16 |", "load_lora_weights", "non-commercial"):
        assert part in card


@pytest.mark.long
def test_accelerate_launch_runs_the_wrapper(quick_test, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    steps = ["--max_train_steps", "1", "--validation_steps", "0", "--evaluate_samples", "0"]
    steps += ["--output_dir", tmp_path / "out"]
    drawn = ["--dataset_name", quick_test[1] / "wardrobe"]
    done = command(*launch, LAUNCHER.with_suffix(".py"), *QUICK, *drawn, *steps)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.long
def test_two_processes_write_one_lora_into_one_directory(quick_test, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    steps = ["--max_train_steps", "2", "--validation_steps", "2", "--num_validation_images", "1"]
    steps += ["--evaluate_samples", "3"]
    out = tmp_path / "out"
    done = command(
        *launch, LAUNCHER.with_suffix(".py"), *QUICK, *steps, "--output_dir", out, "--dataset_name",
        quick_test[1] / "wardrobe", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["world_size"] == 2
    assert [path.name for path in out.rglob("*.safetensors") if path.parent == out] == [
        "pytorch_lora_weights.safetensors"
    ]
    assert done.stdout.count("LoRA  ") == 1
    # The first process compares alone: the other has ended.
    assert json.loads((out / "evaluation" / "metrics.json").read_text())["models"]["lora"]["all"]["n"] == 3


# ---- the swap


@pytest.mark.slow
def test_the_dataset_is_swapped_while_main_runs_and_never_longer(quick_test, tmp_path: Path) -> None:
    import train_flux_inpaint

    original = train_flux_inpaint.VitonHDTestDataset
    seen = []

    class Stop(Exception):
        pass

    drawn = f"--dataset_name={quick_test[1] / 'wardrobe'}"
    args, script = run_arguments.parse([*QUICK, f"--output_dir={tmp_path / 'out'}", drawn])
    assert script is train_flux_inpaint

    def main(_: object) -> None:
        dataset = script.VitonHDTestDataset(
            dataroot_path=args.dataroot, phase="train", order="paired", size=(128, 96), data_list="any"
        )
        seen.append((type(dataset).__name__, len(dataset), dataset[0]["image"].shape))
        raise Stop

    with mock.patch.object(script, "main", main), pytest.raises(Stop):
        wrapper.run(args, script)
    assert seen == [("DeepFashionDataset", 192, torch.Size([3, 128, 192]))]
    assert train_flux_inpaint.VitonHDTestDataset is original


# ---- processes


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of a rank that is alone in its group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(name, value)
    forget_accelerator()
    yield
    torch.distributed.destroy_process_group()
    forget_accelerator()


def waits() -> timedelta:
    """How long a rank of the process group that there is waits for the others."""
    group = torch.distributed.distributed_c10d._get_default_group()
    return group._get_backend(torch.device("cpu")).options._timeout


def test_ranks_wait_two_hours_for_one_another_not_half_of_one(tmp_path: Path, one_rank: None) -> None:
    """The group that is made first is kept, so each command makes its own with the timeout that it needs."""
    args, trainer = run_arguments.parse([*QUICK, f"--output_dir={tmp_path / 'out'}"])
    process_state()
    trainer.start(args)
    assert waits() == timedelta(hours=2)
    torch.distributed.destroy_process_group()
    forget_accelerator()
    trainer.start(args)  # alone
    assert waits() == timedelta(hours=2)


def test_ranks_of_an_evaluation_wait_while_the_first_measures(
    tmp_path: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepfashion_training.evaluation import evaluation_plan

    def stop(*_: object) -> None:
        raise ValueError("planned")

    monkeypatch.setattr(evaluation_plan, "make_plan", stop)
    with pytest.raises(ValueError, match="planned"):
        evaluate.evaluate(argparse.Namespace(output_dir=tmp_path / "out"))
    assert waits() == timedelta(days=2)


#: Runs the wrapper until there is an ``Accelerator``, of the trainer or of another script, and notes what it waits.
WAITING = """
import os, sys, time
from pathlib import Path
import torch
from accelerate import Accelerator
from deepfashion_training import train_deepfashion_lora as wrapper

make = Accelerator.__init__
def noting(self, *given, **named):
    make(self, *given, **named)
    backend = torch.distributed.distributed_c10d._get_default_group()._get_backend(self.device)
    Path(sys.argv[1], os.environ["RANK"]).write_text(str(backend.options._timeout.total_seconds()))
    self.wait_for_everyone()
    time.sleep(1)
    os._exit(0)
Accelerator.__init__ = noting
sys.exit(wrapper.main(sys.argv[2:]))
"""


@pytest.mark.long
@pytest.mark.parametrize("more", [[], ["--upstream", ROOT / "tests/scripts/catvton_flux/train_flux_inpaint.py"]])
def test_two_ranks_of_the_wrapper_wait_two_hours(small_rows: Path, tmp_path: Path, more: list[str | Path]) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = [*QUICK, "--dataset_name", small_rows, "--output_dir", tmp_path / "out", "--evaluate_samples", "0", *more]
    environment = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = command(*torchrun, tmp_path / "waiting.py", tmp_path, *flags, **environment)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["7200.0", "7200.0"]


# ---- raw rows


@pytest.fixture(scope="module")
def raw_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "rows"
    return write_wardrobe(folder, "hub", rows=90, seed=2, size=(384, 288))


def test_check_plans_raw_rows_and_prepares_nothing(
    raw_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*QUICK, "--check", f"--output_dir={tmp_path / 'out'}", f"--pairs_dir={tmp_path / 'pairs'}"]
    assert wrapper.main([*argv, "--dataset_name", str(raw_rows)]) == 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "mine.txt").write_text("mine")
    assert wrapper.main([*argv, "--dataset_name", str(raw_rows)]) == 1
    assert "holds other files" in capsys.readouterr().err


def test_pairs_of_a_raw_dataset_are_kept_by_name_and_settings(
    raw_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrapper, "REPOSITORY", tmp_path)
    folders = []
    for flags in (["--prepare_limit", "60"], ["--prepare_limit", "60"], ["--prepare_limit", "61"]):
        argv = [*QUICK, "--dataset_name", str(raw_rows), *flags, f"--output_dir={tmp_path / 'out'}"]
        args = run_arguments.parse(argv)[0]
        folders.append(wrapper.pairs_dir(args, wrapper.preparation_settings(args)))
    assert folders[0] == folders[1] != folders[2]
    assert folders[0].parent == tmp_path / "outputs" / "pairs" and folders[0].name.startswith("rows-")


@pytest.mark.long
def test_training_on_raw_rows_prepares_them_once(raw_rows: Path, tmp_path: Path) -> None:
    flags = ["--quick-test", "--embedded", "--dataset_name", raw_rows, "--pairs_dir", tmp_path / "pairs"]
    flags += ["--max_train_steps", "2", "--checkpointing_steps", "2", "--validation_steps", "0"]
    flags += ["--evaluate_samples", "0"]
    first = command("bash", LAUNCHER, *flags, "--output_dir", tmp_path / "one", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert f"has raw rows: making pairs in {tmp_path / 'pairs'}" in first.stderr
    assert f"prepared: {tmp_path / 'pairs'}" in first.stderr
    report = (tmp_path / "pairs" / "report.json").stat().st_mtime_ns
    run = json.loads((tmp_path / "one" / "run.json").read_text())
    assert run["arguments"]["raw_dataset_name"] == str(raw_rows)
    assert run["arguments"]["dataset_name"] == str(tmp_path / "pairs")
    assert set(run["dataset"]["train"]["by_type"]) == {"upper", "lower", "full"}
    assert f"made from `{raw_rows.name}`" in (tmp_path / "one" / "README.md").read_text()
    assert (tmp_path / "one" / "pytorch_lora_weights.safetensors").is_file()

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    again = command(*torchrun, LAUNCHER.with_suffix(".py"), "--preset", "quick_test", *flags[1:],
                    "--output_dir", tmp_path / "two", ACCELERATE_USE_CPU="true")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert f"already prepared: {tmp_path / 'pairs'}" in again.stderr
    assert (tmp_path / "pairs" / "report.json").stat().st_mtime_ns == report


# ---- going on


@pytest.fixture(scope="module")
def small_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows") / "small"
    write_wardrobe(folder, rows=60, seed=3, size=(128, 96), num_proc=1)
    return folder


def test_the_same_run_from_elsewhere_goes_on(small_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative output directory, then an absolute one, then the directory under another name."""
    flags = [*QUICK, "--dataset_name", str(small_rows), "--evaluate_samples", "0", "--validation_steps", "0"]
    flags += "--train_batch_size 2 --lr_scheduler constant --checkpointing_steps 1 --report_to none".split()
    flags += ["--balance_cloth_types"]  # a mixture that moves depends on --max_train_steps, as schedules do
    monkeypatch.chdir(tmp_path)
    assert wrapper.main([*flags, "--output_dir", "run", "--max_train_steps", "1"]) == 0
    again = ["--resume_from_checkpoint", "latest", "--max_bad_rows", "0.5"]
    assert wrapper.main([*flags, "--output_dir", str(tmp_path / "run"), "--max_train_steps", "2", *again]) == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    assert wrapper.main([*flags, "--output_dir", "moved", "--max_train_steps", "3", *again]) == 0
    assert json.loads((tmp_path / "moved" / "run.json").read_text())["resumed_from_step"] == 2
    for changed in (["--resize_mode", "stretch"], ["--no-balance_cloth_types"]):
        assert wrapper.main([*flags, "--output_dir", "moved", "--max_train_steps", "4", *again, *changed]) == 1


def test_a_run_that_was_stopped_after_its_last_step_is_completed(
    small_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        *QUICK,
        "--dataset_name",
        str(small_rows),
        "--validation_steps",
        "0",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    flags += "--train_batch_size 2 --max_train_steps 2 --report_to none --evaluate_samples 3".split()
    compare = wrapper.compare_with_base

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wrapper, "compare_with_base", stopped)
    assert wrapper.main(flags) == 130
    lora = (tmp_path / "out" / LORA_FILE).read_bytes()
    (tmp_path / "out" / "README.md").unlink()
    monkeypatch.setattr(wrapper, "compare_with_base", compare)
    capsys.readouterr()
    assert wrapper.main([*flags, "--resume_from_checkpoint", "latest"]) == 0
    assert "all 2 steps are taken" in capsys.readouterr().err
    assert (tmp_path / "out" / LORA_FILE).read_bytes() == lora
    assert (tmp_path / "out" / "evaluation" / "report.html").exists()
    assert "## " in (tmp_path / "out" / "README.md").read_text()
    figures = (tmp_path / "out" / "evaluation.json").read_bytes()
    for other in (["--seed", "8"], ["--cloth_type_shares", "2,1,1"]):  # another run
        assert wrapper.main([*flags, "--resume_from_checkpoint", "latest", *other]) == 1
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == figures


@pytest.mark.parametrize("recorded", [True, False])  # killed after run.json was written, too, or before
def test_a_run_that_was_killed_after_its_last_checkpoint_is_completed(
    small_rows: Path, tmp_path: Path, recorded: bool
) -> None:
    """No step is left to take or to time; the LoRA, the last validation picture and the card are as they would be."""
    flags = [*QUICK, "--dataset_name", str(small_rows), "--output_dir", str(tmp_path / "out")]
    flags += "--train_batch_size 2 --max_train_steps 2 --report_to none --evaluate_samples 0".split()
    flags += "--checkpointing_steps 1 --validation_steps 2 --num_validation_images 1".split()
    assert wrapper.main(flags) == 0
    out = tmp_path / "out"
    lora, card, facts = load_file(out / LORA_FILE), (out / "README.md").read_text(), (out / "run.json").read_text()
    picture = (out / "validation" / "step-2.png").read_bytes()
    for name in (LORA_FILE, "validation/step-2.png", "README.md", "run.json"):
        (out / name).unlink()
    if recorded:
        (out / "run.json").write_text(facts.replace('"status": "done"', '"status": "running"'))
    assert wrapper.main([*flags, "--resume_from_checkpoint", "latest"]) == 0
    again = load_file(out / LORA_FILE)
    assert lora.keys() == again.keys() and all(torch.equal(lora[name], again[name]) for name in lora)
    assert (out / "validation" / "step-2.png").read_bytes() == picture
    record, card_again = json.loads((out / "run.json").read_text()), (out / "README.md").read_text()
    assert record["status"] == "done"
    if recorded:
        assert card_again == card and record["seconds_per_step"] == json.loads(facts)["seconds_per_step"]
    else:
        assert "| Steps | 2 on 1 x " in card_again and "seconds_per_step" not in record


def test_an_empty_name_of_a_checkpoint_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert wrapper.main([*QUICK, "--resume_from_checkpoint", ""]) == 2
    said = capsys.readouterr().err
    assert "--resume_from_checkpoint" in said and "empty" in said
