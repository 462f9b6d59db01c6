"""A token in the environment and in flags: nothing that a run writes or prints has it, nor a process's command line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import forget_accelerator

from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.embedded.wardrobe import write_wardrobe

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).parent / "scripts" / "catvton_flux" / "train_flux_inpaint.py"
#: Tokens as the Hub and Weights & Biases make them; no two have a part in common that other bytes could have.
CANARIES = {
    "HF_TOKEN": "hf_CanaryEnvAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "HUGGING_FACE_HUB_TOKEN": "hf_CanaryOldBBBBBBBBBBBBBBBBBBBBBBBBBB",
    "WANDB_API_KEY": "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00",
}
TYPED = "hf_CanaryFlagCCCCCCCCCCCCCCCCCCCCCCCCC"
#: A part of each: also a token that was cut, or stands in another encoding beside other bytes, is found.
PARTS = [b"CanaryEnv", b"CanaryOld", b"CanaryFlag", b"c0ffee00c0ffee00"]


def hits(folder: Path) -> list[tuple[Path, bytes]]:
    """Files below ``folder``, or names of them, that hold a token; UTF-16 counts too."""
    found = []
    for path in folder.rglob("*"):
        content = str(path).encode() + (path.read_bytes() if path.is_file() else b"")
        wide = content.replace(b"\0", b"")
        found += [(path, part) for part in PARTS if part in content or part in wide]
    return found


class Watch:
    """Command lines of the processes that this one starts, as long as it lasts."""

    def __init__(self) -> None:
        self.seen: dict[int, list[str]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stopped.wait(0.02):
            for child in psutil.Process().children(recursive=True):
                try:
                    self.seen[child.pid] = child.cmdline()
                except psutil.Error:  # it has ended meanwhile
                    continue

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wardrobe(tmp_path_factory.mktemp("data") / "wardrobe", rows=30, seed=1, size=(128, 96))


@pytest.fixture(scope="module")
def quick_test(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, Watch, int]]:
    """The launcher's quick test of the small model with all tokens in its environment: folder, output, processes."""
    home = tmp_path_factory.mktemp("run")
    folder = home / "out"
    flags = "--max_train_steps 2 --validation_steps 2 --checkpointing_steps 1 --lora_rank 4 --evaluate_samples 3"
    flags += " --logging_steps 1 --num_validation_images 1 --num_inference_steps 1 --train_batch_size 2"
    command = ["bash", str(ROOT / "deepfashion_training" / "train_deepfashion_lora.sh"), "--quick-test", "--embedded"]
    command += ["--dataset_name", str(data), "--output_dir", str(folder), *flags.split()]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE")}
    clean |= {"HF_HUB_OFFLINE": "1", "PYTHON": sys.executable, "HOME": str(home), **CANARIES}
    with Watch() as watch:
        done = subprocess.run(command, cwd=home, env=clean, capture_output=True, text=True, timeout=280)
    yield folder, done.stdout + done.stderr, watch, done.returncode


@pytest.mark.slow
def test_a_run_writes_and_prints_no_token_of_its_environment(quick_test) -> None:
    folder, said, _, code = quick_test
    assert code == 0, said
    names = {path.name for path in folder.rglob("*")}
    assert {"run.json", "README.md", "losses.jsonl", "checkpoint-2", "metrics.csv", "report.html"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names) and "step-2.png" in names
    assert hits(folder.parent) == []  # the home of the run, with whatever libraries keep there
    assert [part for part in PARTS if part.decode() in said] == []


@pytest.mark.slow
def test_no_process_has_a_token_in_its_command_line(quick_test) -> None:
    _, _, watch, _ = quick_test
    lines = [" ".join(line) for line in watch.seen.values()]
    assert any("train_deepfashion_lora.py" in line for line in lines), lines  # the watch has seen the training
    assert [line for line in lines if any(part.decode() in line for part in PARTS)] == []


@pytest.mark.slow
def test_a_token_of_the_environment_is_in_nothing_that_a_script_leaves(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    flags = ["--preset", "quick_test", "--embedded", "--upstream", SCRIPT, "--dataset_name", data]
    flags += ["--output_dir", tmp_path / "out", "--evaluate_samples", 0, "--lora_rank", 4]
    flags += "--max_train_steps 2 --checkpointing_steps 1 --validation_steps 2 --num_inference_steps 1".split()
    flags += "--train_batch_size 2 --num_validation_images 1".split()
    forget_accelerator()
    with Watch() as watch:
        code = wrapper.main([str(flag) for flag in flags])
    forget_accelerator()
    said = "".join(capfd.readouterr())
    assert code == 0, said
    assert (tmp_path / "out" / "run.json").is_file() and (tmp_path / "out" / "checkpoint-2").is_dir()
    assert hits(tmp_path) == [] and [part for part in PARTS if part.decode() in said] == []
    children = [" ".join(line) for line in watch.seen.values()]
    assert [line for line in children if any(part.decode() in line for part in PARTS)] == []


@pytest.mark.parametrize(
    "flags",
    [
        [f"--hub_token={TYPED}"],  # our own trainer has no such flag
        [f"--hub_token={TYPED}", "--upstream", str(SCRIPT)],
        [f"--hub_tokn={TYPED}", "--upstream", str(SCRIPT)],
        [f"--tokn={TYPED}"],
        [f"--wandb_api_key={TYPED}"],
    ],
)
def test_a_mistyped_flag_is_named_without_its_value(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--embedded", "--preset", "quick_test", "--check", "--output_dir", str(tmp_path / "out")]
    assert wrapper.main([*known, *flags]) == 2
    said = "".join(capsys.readouterr())
    assert flags[0].partition("=")[0] in said and "Canary" not in said


def test_a_preset_with_a_token_leaves_it_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(f"flags: {{hub_token: {TYPED}}}")
    flags = ["--preset", str(tmp_path / "mine.yaml"), "--check", "--output_dir", str(tmp_path / "out")]
    assert wrapper.main(flags) == 2
    said = "".join(capsys.readouterr())
    assert "hub_token" in said and "Canary" not in said
