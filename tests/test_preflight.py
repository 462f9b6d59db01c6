"""What is checked before a run: a line for each check, all faults together, each check on a machine that fails it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch.utils.data import default_collate

import train_flux_inpaint as trainer
from deepfashion_training import preflight, run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.embedded import TINY_FLUX_FILL
from training_run import guards
from training_run.transfer import collate

GIB = 2**30
CHECKS = "GPU packages compiler shared memory GPU memory main memory output models data disk"
Fault = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., preflight.Preflight]:
    """The checks of a run with these flags, into a new folder."""

    def made(*flags: str, pairs: Path | None = None) -> preflight.Preflight:
        args, script = run_arguments.parse([*flags, f"--output_dir={tmp_path / 'out'}"])
        return preflight.Preflight(args, script, lambda: "rows", [pairs] if pairs else [])

    return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """A GPU with so many GiB free and in all, on a machine with as much main memory as there is here."""

    def there(free: float, total: float) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * GIB), int(total * GIB)))

    return there


def lines_of(output: str) -> dict[str, str]:
    """What each check has found, as ``--check`` prints it."""
    assert all(line.startswith("ok  ") for line in output.splitlines())
    return {line[4:19].strip(): line[19:] for line in output.splitlines()}


def test_every_check_says_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wrapper.main(["--quick-test", "--embedded", "--check", f"--output_dir={tmp_path / 'out'}"]) == 0
    told = capsys.readouterr()
    found = lines_of(told.out)
    assert " ".join(found) == CHECKS and all(found.values()) and not (tmp_path / "out").exists()
    assert str(tmp_path / "out") in found["output"] and found["data"] == "drawn for this run"


def test_all_faults_are_said_together_and_the_gpus_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rented machine with an old driver, nothing compiled, Docker's shared memory, no licence and a full disk."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(guards, "gpu_fault", lambda: "PyTorch for CUDA 13.0, driver 550.54")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(guards, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    flags = ["--h100", "--use_8bit_adam", f"--output_dir={tmp_path / 'out'}"]
    named = ["driver 550.54", "--no-compile_blocks", "--shm-size", "README.md", "FLUX.1-Fill-dev"]
    named += ["deepFashion-with-masks", "checkpoints"]
    for more in ([], ["--check"]):
        assert wrapper.main([*flags, *more]) == 1
        told = capsys.readouterr()
        lines = told.err.splitlines()
        assert told.out == "" and len(lines) == len(named)
        assert all(line.startswith("train_deepfashion_lora: ") for line in lines)
        assert all(what in line for what, line in zip(named, lines, strict=True))


def test_memory_of_the_gpu_is_held_beside_the_prediction(make, gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` may recompute every block; what is free counts, not what the card has."""
    asked: list[Any] = []

    def predicted(args: Any, make_trainable: Any, shape: Any) -> Any:
        asked.append((args.compile_blocks, shape["num_layers"]))
        return SimpleNamespace(least=lambda setting: {"auto": 29 * GIB, 0: 84 * GIB}[setting])

    monkeypatch.setattr(preflight, "predict", predicted)
    gpu(31, 80)
    assert "29.0 GiB" in make("--h100").gpu_memory()
    gpu(30, 80)  # of which auto fills 95%
    with pytest.raises(ValueError, match=r"29\.0 GiB.*30\.0 of 80\.0.*--plan"):
        make("--h100").gpu_memory()
    gpu(79, 80)
    with pytest.raises(ValueError, match=r"84\.0 GiB"):
        make("--h100", "--no-gradient_checkpointing").gpu_memory()
    assert asked == [(False, 19), (False, 19), (True, 19)]
    make("--h100", "--embedded").gpu_memory()  # a small model fits anywhere
    assert len(asked) == 3


def test_what_a_worker_hands_over_is_counted_as_it_is(make, tiny_args, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes to our own trainer, the whole sample to a script that we drive."""
    seen: list[int] = []
    monkeypatch.setattr(guards, "check_shared_memory", lambda args, pair, processes: seen.append(pair) or "")
    args = tiny_args()
    samples = [trainer.build_datasets(args)[0][row] for row in range(2)]
    sent = [
        sum(part.nbytes for name, part in batch.items() if isinstance(part, torch.Tensor) and name != "cloth_type")
        for batch in (collate(samples), default_collate(samples))
    ]
    checks = make("--embedded")
    checks.args = args
    for checks.is_ours in (True, False):
        checks.processes = 1
        checks.shared_memory()
    assert [2 * pair for pair in seen] == sent


def test_main_memory_is_what_processes_and_checkpoints_take(make, gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(80, 80)
    free = [preflight.PROCESS_BYTES + 2 * 130_744_320 * 12]  # LoRA of rank 32 with two moments, fp32
    monkeypatch.setattr(guards, "available_memory", lambda: free[0])
    checks = make("--h100")
    checks.main_memory()
    free[0] -= 1
    with pytest.raises(ValueError, match="main memory"):
        checks.main_memory()
    free[0] = 2**40
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "400")
    with pytest.raises(ValueError, match="main memory"):
        make("--h100").main_memory()
    make("--h100", "--embedded").main_memory()


def test_disks_are_summed_by_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders on one disk share what is free there; a third one has a disk of its own."""
    devices = {tmp_path / "a": 1, tmp_path / "b": 1, tmp_path / "c": 2}
    free = {1: 5 * GIB, 2: 3 * GIB}
    for folder in devices:
        folder.mkdir()
    real = Path.stat
    monkeypatch.setattr(
        Path, "stat",
        lambda self, **more: SimpleNamespace(st_dev=devices[self]) if self in devices else real(self, **more),
    )  # fmt: skip
    monkeypatch.setattr(preflight.access, "existing", lambda path: path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[devices[path]]))
    needs = [("models", tmp_path / "a", 3 * GIB), ("pairs", tmp_path / "b", 2 * GIB), ("run", tmp_path / "c", 3 * GIB)]
    said = preflight.check_disks(needs)
    assert "5.0 GiB needed and 5.0 GiB free" in said and "3.0 GiB needed and 3.0 GiB free" in said
    needs[0] = ("models", tmp_path / "a", 3 * GIB + 1)
    with pytest.raises(ValueError, match=f"models.*{tmp_path / 'a'}.*pairs.*HF_HOME"):
        preflight.check_disks(needs)


def test_what_a_run_writes_is_counted(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 16 trains 65.37M weights: a checkpoint has them and two moments in fp32, the LoRA has them alone."""
    seen: list[list[tuple[str, Path, int]]] = []
    monkeypatch.setattr(preflight, "check_disks", lambda needs: seen.append(needs) or "")
    monkeypatch.setattr(preflight.access, "dataset_bytes", lambda name, revision: 7)
    checks = make("--low-vram", "--no-use_8bit_adam", pairs=tmp_path / "pairs")
    checks.downloads["models"] = (tmp_path, 5)
    checks.data()
    checks.disk()
    needs = {what: count for what, _, count in seen[0]}
    assert (needs["models"], needs["data"], needs["data, unpacked"], needs["pairs"]) == (5, 7, 7, 14)
    assert needs["checkpoints"] == 65_372_160 * (3 * 12 + 4)  # two are kept, and one more while it is written
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "report.json").touch()  # made by an earlier run
    checks.disk()
    assert "pairs" not in {what for what, _, _ in seen[1]}


def test_a_script_of_which_nothing_is_known_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    args, _ = run_arguments.parse(["--embedded", f"--output_dir={tmp_path / 'out'}"])
    other = SimpleNamespace(gets_lora=False)
    names = preflight.Preflight(args, other, lambda: "rows", []).checks
    assert not {"compiler", "shared memory", "GPU memory"} & names.keys() and {"models", "disk"} <= names.keys()
    assert str(TINY_FLUX_FILL) in preflight.Preflight(args, other, lambda: "rows", []).models()
