"""The launcher: what it asks of a machine, what it starts there, and how it ends."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from deepfashion_training import launch, plan

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ROOT / "deepfashion_training" / "train_deepfashion_lora.sh"
TRAIN = str(LAUNCHER.with_suffix(".py"))
VISIBLE_GPUS = launch.visible_gpus
#: GiB of memory as PyTorch shows it.
H100, A100_40, RTX4090, LAPTOP = 79.1, 39.4, 23.6, 7.8


class Machine:
    """What the launcher says here, and the processes that it would start."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.patch, self.capsys = folder, patch, capsys
        for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", *launch.ON_CPU):
            patch.delenv(name, raising=False)
        patch.setattr(launch, "supervise", self.started)
        self.gpus()
        self.calls: list[tuple[list[str], list[dict[str, str]]]] = []

    def started(self, command: list[str], environments: list[dict[str, str]]) -> int:
        self.calls.append((command, environments))
        return 7

    def gpus(self, *memory: float) -> None:
        """CUDA shows GPUs with so many GiB."""
        self.patch.setattr(launch, "visible_gpus", lambda: list(memory))

    def run(self, *flags: str) -> tuple[int, str, str]:
        self.calls.clear()
        code = launch.main(list(flags))
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def starts(self, *flags: str) -> tuple[list[str], list[dict[str, str]]]:
        """Words for the trainer, and the environments of its processes."""
        code, out, _ = self.run(*flags)
        assert (code, out) == (7, "")
        ((command, environments),) = self.calls
        assert command[:2] == [sys.executable, TRAIN]
        return command[2:], environments


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path, monkeypatch, capsys)


# ---- flags


def test_words_are_handed_on_as_they_are(machine: Machine) -> None:
    machine.gpus(H100)
    odd = ["--instance_prompt", "a b", "--prompt_of", "$(echo pwned)", "--seed=7"]
    odd[2:4] = ["--output_dir", 'it\'s; `echo` "x" \n * ~ \\ é']
    assert machine.starts("--h100", *odd) == (["--h100", *odd], [{}])


def test_a_dry_run_prints_what_can_be_pasted(machine: Machine) -> None:
    machine.gpus(H100)
    flags = ["--h100", "--output_dir", "a $HOME 'quoted'\nfolder"]
    code, out, err = machine.run(*flags, "--dry-run")
    assert (code, err, machine.calls) == (0, "", [])
    accelerate, script = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"], shlex.split(out)
    assert script[:4] == accelerate and script[script.index("--num_processes") + 1] == "1"
    assert script[script.index(TRAIN) :] == [TRAIN, *flags]
    machine.gpus(H100, H100)
    script = shlex.split(machine.run("--h100", "--dry-run")[1])
    assert script[:4] == accelerate and script[script.index("--num_processes") + 1] == "2" and "--multi_gpu" in script
    machine.gpus()
    out = machine.run("--embedded", "--dry-run")[1]
    assert out.startswith("ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 ") and "torch.distributed.run" in out


def test_a_dry_run_says_what_a_small_card_gets(machine: Machine) -> None:
    """Of the cards in the table where there is no GPU, beside the command and not in it."""
    memory = SimpleNamespace(recomputed=lambda *_: 7, peak=lambda _: 8 * 2**30, blocks=(19, 38))
    machine.patch.setattr(plan, "predict", lambda args, *more: memory)
    code, out, err = machine.run("--low-vram", "--dry-run")
    assert code == 0 and shlex.split(out)[-1] == "--low-vram"
    for card in ("RTX 3060 12 GB", "RTX 4080 16 GB", "RTX 4090 24 GB"):
        assert re.search(rf"^{card} +512x384: 8.0 of [\d.]+ GiB free .*7 of 57", err, re.M), err
    assert machine.run("--low-vram", "--embedded", "--dry-run")[2] == ""


#: What ``accelerate config`` wrote for another project.
SAVED_CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
dynamo_config: {dynamo_backend: INDUCTOR, dynamo_mode: default}
mixed_precision: fp16
num_machines: 1
num_processes: 4
gpu_ids: 2,3
use_cpu: false
"""
TELL = """
import os
names = "CUDA_VISIBLE_DEVICES OMP_NUM_THREADS WORLD_SIZE ACCELERATE_DYNAMO_BACKEND ACCELERATE_MIXED_PRECISION".split()
names += [name for name in os.environ if name.startswith(("ACCELERATE_USE", "FSDP"))]
told = " ".join(sorted(f"{name}={os.environ[name]}" for name in names if name in os.environ))
os.write(1, f"{told}\\n".encode())  # at once, as print does not in two processes that are not buffered
"""


@pytest.mark.parametrize("count", [1, 2])
def test_the_printed_command_takes_nothing_from_a_saved_accelerate_config(machine: Machine, count: int) -> None:
    (machine.folder / "accelerate").mkdir()
    (machine.folder / "accelerate" / "default_config.yaml").write_text(SAVED_CONFIG)
    (machine.folder / "tell.py").write_text(TELL)
    machine.gpus(*[H100] * count)
    words = shlex.split(machine.run("--h100", "--dry-run")[1])
    words[words.index(TRAIN) :] = [str(machine.folder / "tell.py")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE")}
    done = subprocess.run(words, capture_output=True, text=True, env={**clean, "HF_HOME": str(machine.folder)})
    assert done.returncode == 0, done.stderr
    cores = f"OMP_NUM_THREADS={len(os.sched_getaffinity(0))}"
    same = f"ACCELERATE_DYNAMO_BACKEND=NO ACCELERATE_MIXED_PRECISION=no {{}}{cores}"
    told = same.format("ACCELERATE_USE_CPU=False ") if count == 1 else f"{same.format('')} WORLD_SIZE=2"
    assert done.stdout.splitlines() == [told] * count


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true"), ("ACCELERATE_USE_FSDP", "true"), ("ACCELERATE_USE_MEGATRON_LM", "true"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"), ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
    ],
)  # fmt: skip
def test_another_way_to_train_is_refused_and_the_way_out_named(machine: Machine, name: str, value: str) -> None:
    machine.patch.setenv(name, value)
    for flags in (["--embedded"], ["--embedded", "--dry-run"]):
        code, out, err = machine.run(*flags)
        assert (code, out, machine.calls) == (1, "", [])
        assert f"{name}={value}" in err and "--config_file" in err and err.count("\n") == 1
    if "STEPS" in name:
        machine.patch.delenv(name)
    else:
        machine.patch.setenv(name, "NO" if "DYNAMO" in name else "false")
    assert machine.starts("--embedded")


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--plan"]])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--h100", "--lora_rnk", "4"], "unknown argument --lora_rnk: did you mean --lora_rank?"),
        (["--quick_test"], "did you mean --quick-test?"),
        (["--h100", "--quick-test"], "not allowed with argument --h100"),
        (["--preset", "h100", "--low-vram"], "not allowed with argument --preset"),
        (["--preset"], "--preset: expected one argument"),
        (["--preset="], "--preset is empty"),
        (["--height", "100"], "--height: 100 is not at least 16 and a multiple of 16"),
    ],
)
def test_wrong_use_starts_nothing(machine: Machine, flags: list[str], said: str, more: list[str]) -> None:
    code, out, err = machine.run(*flags, *more)
    assert (code, out, machine.calls) == (2, "", [])
    assert said in err and err.count("\n") == 1


def test_flags_of_another_script_are_known_in_a_dry_run(machine: Machine, tmp_path: Path) -> None:
    script = ROOT / "tests" / "scripts" / "catvton_flux" / "train_flux_inpaint.py"
    flags = ["--embedded", "--upstream", str(script), "--dry-run"]
    assert machine.run(*flags, "--dropout_prob", "0.25")[0] == 0
    code, _, err = machine.run(*flags, "--dropout_prop", "0.25")
    assert code == 2 and "did you mean --dropout_prob?" in err
    code, out, err = machine.run("--embedded", "--upstream", "no-such.py", "--dry-run")
    assert (code, out) == (1, "") and "no-such.py" in err


# ---- GPUs


@pytest.mark.parametrize(("value", "hidden"), [("true", True), ("Yes", True), ("false", False)])
def test_gpus_are_those_that_cuda_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, hidden: bool
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    monkeypatch.setattr(launch, "ASK_CUDA", "print('[[79.1, 23.6], null]')")
    monkeypatch.setattr(launch.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert launch.visible_gpus() == ([] if hidden else [79.1, 23.6])
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    assert launch.visible_gpus() == []


#: Makes of PyTorch in a new process one for CUDA 13 that finds an older driver.
OLD_DRIVER = """
import torch
said = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver."
def refuse(): raise RuntimeError(said)
torch.version.cuda, torch.cuda.init, torch.cuda.is_available = "13.0", refuse, lambda: False
"""


@pytest.fixture
def old_driver(machine: Machine) -> Machine:
    """A machine with a GPU whose driver is older than PyTorch's CUDA."""
    machine.patch.setattr(launch, "visible_gpus", VISIBLE_GPUS)
    machine.patch.setattr(launch, "ASK_CUDA", OLD_DRIVER + launch.ASK_CUDA)
    (machine.folder / "bin").mkdir()
    smi = machine.folder / "bin" / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 550.54.15\n")
    smi.chmod(0o755)
    machine.patch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    return machine


@pytest.mark.parametrize("flags", [["--h100"], ["--quick-test"], ["--low-vram", "--plan"]])
def test_too_old_a_driver_is_said_as_cuda_says_it(old_driver: Machine, flags: list[str]) -> None:
    code, _, err = old_driver.run(*flags)
    assert (code, old_driver.calls) == (1, [])
    assert err.count("\n") == 1 and "visible" not in err
    for what in ("too old (found version 12040)", "CUDA 13.0", "driver 550.54.15", "R580", "--embedded"):
        assert what in err


def test_with_too_old_a_driver_the_small_model_trains_and_the_check_is_made(old_driver: Machine) -> None:
    code, _, err = old_driver.run("--embedded")
    assert code == 7 and "too old" in err and err.count("\n") == 1
    assert [one["ACCELERATE_USE_CPU"] for one in old_driver.calls[0][1]] == ["true", "true"]
    code, _, err = old_driver.run("--h100", "--check")  # it sees the same and says it with the rest
    assert (code, err) == (7, "") and old_driver.calls[0][1] == [{}]
    code, out, err = old_driver.run("--h100", "--dry-run")
    assert code == 0 and TRAIN in out and "too old" in err


def test_a_pytorch_that_does_not_start_is_no_machine_without_gpus(old_driver: Machine) -> None:
    old_driver.patch.setattr(launch, "ASK_CUDA", "raise ImportError('libcudart.so.13: no such file')")
    code, _, err = old_driver.run("--h100")
    assert (code, old_driver.calls) == (1, []) and "libcudart.so.13" in err and err.count("\n") == 1


def test_one_process_for_each_gpu(machine: Machine) -> None:
    machine.gpus(H100, H100)
    first, second = machine.starts("--h100")[1]
    assert (first["RANK"], second["LOCAL_RANK"]) == ("0", "1")
    assert first["WORLD_SIZE"] == second["WORLD_SIZE"] == "2" and first["MASTER_PORT"] == second["MASTER_PORT"]
    assert "ACCELERATE_USE_CPU" not in first and "OMP_NUM_THREADS" not in first
    assert machine.starts("--h100", "--check")[1] == [{}]


def test_the_check_is_made_where_a_gpu_is_too_small_too(machine: Machine) -> None:
    """It says so itself, with whatever else is in the way."""
    machine.gpus(LAPTOP)
    assert machine.starts("--h100", "--check") == (["--h100", "--check"], [{}])


def test_two_processes_share_a_cpu_but_for_a_script_of_the_users(machine: Machine) -> None:
    """Each has one thread, unless OMP_NUM_THREADS says otherwise."""
    assert [one["OMP_NUM_THREADS"] for one in machine.starts("--embedded")[1]] == ["1", "1"]
    machine.patch.setenv("OMP_NUM_THREADS", "3")
    assert [one["OMP_NUM_THREADS"] for one in machine.starts("--embedded")[1]] == ["3", "3"]
    script = ROOT / "tests" / "scripts" / "catvton_flux" / "train_flux_inpaint.py"
    ((alone),) = machine.starts("--embedded", "--upstream", str(script))[1]
    assert alone["ACCELERATE_USE_CPU"] == "true" and "RANK" not in alone


@pytest.mark.parametrize(
    ("flags", "cards", "said"),
    [
        (["--h100"], [], "h100 needs an NVIDIA GPU with 75 GiB of memory, and none is visible here"),
        (["--h100"], [RTX4090], "75 GiB of memory, and the smallest one here has 23.6"),
        (["--h100"], [H100, RTX4090], "the smallest one here has 23.6"),
        ([], [RTX4090], "and the smallest one here has 23.6; use --low-vram, or --embedded"),
        (["--low-vram"], [LAPTOP], "the smallest one here has 7.8; use --embedded"),
    ],
)
def test_too_small_a_machine_is_told_what_to_do(
    machine: Machine, flags: list[str], cards: list[float], said: str
) -> None:
    machine.gpus(*cards)
    code, _, err = machine.run(*flags)
    assert (code, machine.calls) == (1, [])
    assert said in err and "--embedded" in err and err.count("\n") == 1
    machine.patch.setattr(plan, "say_what_fits", lambda *_: None)
    code, out, err = machine.run(*flags, "--dry-run")
    assert code == 0 and TRAIN in out and err.startswith("warning: ") and said in err


@pytest.mark.parametrize(
    ("flags", "card"),
    [
        (["--h100"], H100), ([], A100_40), (["--low-vram"], RTX4090), (["--preset=low_vram"], RTX4090),
        (["--h100", "--embedded"], LAPTOP),
    ],
)  # fmt: skip
def test_large_enough_a_machine_trains(machine: Machine, flags: list[str], card: float) -> None:
    machine.gpus(card)
    assert machine.starts(*flags)[0] == flags


def test_gpu_need_is_read_from_a_preset_of_ones_own(machine: Machine) -> None:
    mine = machine.folder / "my preset.yaml"
    mine.write_text("about: mine\nneeds: {gpu_memory_gib: 10.5, disk_gib: 1}  # tight\nflags: {}\n")
    machine.gpus(LAPTOP)
    assert machine.run("--preset", str(mine))[0] == 1
    machine.gpus(RTX4090)
    assert machine.starts("--preset", str(mine))


@pytest.mark.parametrize("cards", [[], [LAPTOP]])
@pytest.mark.parametrize("flags", [["--quick-test"], ["--preset", "quick_test"]])
def test_quick_test_runs_embedded_where_no_gpu_is_large_enough(
    machine: Machine, flags: list[str], cards: list[float]
) -> None:
    machine.gpus(*cards)
    _, _, err = machine.run(*flags)
    assert "--embedded" in err and "GPU" in err and err.count("\n") == 1
    assert machine.calls[0][0][2:] == ["--embedded", *flags]
    assert machine.run(*flags, "--embedded")[2] == "" and machine.calls[0][0][2:] == [*flags, "--embedded"]
    machine.gpus(H100)
    assert machine.starts(*flags)[0] == flags


def test_a_plan_without_a_gpu_is_one_process_and_no_complaint(machine: Machine) -> None:
    plan = ["--plan", "--gpu_hour_price", "2.5"]
    words, environments = machine.starts("--h100", *plan)
    assert words == ["--h100", *plan] and len(environments) == 1
    machine.gpus(RTX4090, RTX4090)  # measured all the same: other flags may fit
    assert len(machine.starts("--h100", *plan)[1]) == 2


# ---- Python and places


def test_missing_packages_are_all_named(machine: Machine) -> None:
    bare = subprocess.run(
        [sys.executable, "-S", str(LAUNCHER.with_name("launch.py")), "--embedded"], capture_output=True, text=True
    )
    assert bare.returncode == 1 and bare.stderr.count("\n") == 1
    assert all(name in bare.stderr for name in ("torch,", "Pillow,", "PyYAML,", "make setup"))


def from_shell(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(["bash", *map(str, words)], capture_output=True, text=True, env=env, timeout=60)


def test_help_is_quick_and_whole(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    start = time.perf_counter()
    done = from_shell(LAUNCHER, "--h100", "-h", PYTHONPATH=str(tmp_path))
    assert time.perf_counter() - start < 2
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("--quick-test", "--low-vram", "needs a GPU with 75 GiB", "--max_train_samples", "--lora_rank"):
        assert words in done.stdout


def test_works_from_anywhere_through_links_and_odd_names(tmp_path: Path) -> None:
    home = tmp_path / "a repo; of $ones own"
    shutil.copytree(ROOT / "training_run", home / "training_run")
    shutil.copy(ROOT / "requirements.txt", home)
    package = home / "deepfashion_training"
    package.mkdir()
    for name in ("__init__.py", "cli.py", "garment_types.py", "launch.py", "run_arguments.py", TRAIN, LAUNCHER):
        shutil.copy(ROOT / "deepfashion_training" / name, package)
    shutil.copytree(ROOT / "deepfashion_training" / "presets", package / "presets")
    link = tmp_path / "links" / "train"
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(package / LAUNCHER.name, link.parent))  # relative, and seen from its own folder
    again = tmp_path / "again"
    again.symlink_to(link)
    said = {from_shell(script, "--h100", "--dry-run").stdout for script in (package / LAUNCHER.name, link, again)}
    inside = f"cd {shlex.quote(str(package))} && bash {LAUNCHER.name} --h100 --dry-run"
    said.add(from_shell("-c", inside, CDPATH=str(tmp_path)).stdout)
    assert len(said) == 1 and str(package / Path(TRAIN).name) in shlex.split(said.pop())


def test_python_is_the_one_that_is_named(tmp_path: Path) -> None:
    done = from_shell(LAUNCHER, "--embedded", PYTHON="/no/such python")
    assert done.returncode == 1 and "'/no/such python'" in done.stderr and done.stderr.count("\n") == 1
    other = tmp_path / "my python"
    other.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    other.chmod(0o755)
    assert from_shell(LAUNCHER, "a b", PYTHON=str(other)).stdout == f"{LAUNCHER.with_name('launch.py')}\na b\n"


# ---- processes

#: Notes that it has started, waits, and on a signal takes its time before it ends.
PATIENT = """
import os, pathlib, signal, sys, time
rank = os.environ.get('RANK', '0')
def stop(number, frame):
    for each in (signal.SIGTERM, signal.SIGINT): signal.signal(each, signal.SIG_IGN)
    time.sleep(0.5)
    pathlib.Path('saved-' + rank).write_text(str(number))
    sys.exit(128 + number)
for each in (signal.SIGTERM, signal.SIGINT): signal.signal(each, stop)
pathlib.Path('starting-' + rank).write_text(str(os.getpid()))
os.replace('starting-' + rank, 'started-' + rank)
"""


class Supervised:
    """Two processes of a script under the launcher, in a folder of their own."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder = folder
        (folder / "script.py").write_text(script)
        begin = (
            "import sys; from deepfashion_training import launch; launch.PATIENCE = 3.0; "
            "sys.exit(launch.supervise([sys.executable, 'script.py'], [{'RANK': '0'}, {'RANK': '1'}]))"
        )

        def like_a_shell() -> None:
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a process that was started in the background ignores it

        self.launcher = subprocess.Popen(
            [sys.executable, "-c", begin], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            stderr=subprocess.PIPE, preexec_fn=like_a_shell,
        )  # fmt: skip

    def pids(self) -> list[int]:
        """The two processes, once they have started."""
        until = time.monotonic() + 30
        while len(notes := sorted(self.folder.glob("started-*"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        return [int(note.read_text()) for note in notes]

    def end(self) -> tuple[int, str]:
        said = self.launcher.communicate(timeout=30)[1]
        return self.launcher.returncode, said


@pytest.fixture
def supervised(tmp_path: Path) -> Callable[[str], Supervised]:
    return lambda more: Supervised(tmp_path, PATIENT + more)


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("receiver", "signum"),
    [
        ("launcher", signal.SIGTERM), ("launcher", signal.SIGHUP), ("launcher", signal.SIGINT),
        ("group", signal.SIGINT),  # Ctrl-C in a terminal
        ("trainer", signal.SIGTERM),
    ],
)  # fmt: skip
def test_a_signal_reaches_every_process_once(
    supervised: Callable[[str], Supervised], receiver: str, signum: int
) -> None:
    run = supervised("time.sleep(60)")
    pids = run.pids()
    if receiver == "group":
        os.killpg(run.launcher.pid, signum)
    else:
        os.kill(run.launcher.pid if receiver == "launcher" else pids[0], signum)
    code, said = run.end()
    arrives = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
    assert code == 128 + arrives, said
    assert [(run.folder / f"saved-{rank}").read_text() for rank in (0, 1)] == [str(int(arrives))] * 2
    assert all(map(ended, pids)) and said == ""


def test_a_process_that_was_killed_is_not_silent(supervised: Callable[[str], Supervised]) -> None:
    """As the system does where main memory ends: nothing of the trainer's own can say it."""
    run = supervised("if rank == '1': os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)")
    code, said = run.end()
    assert code == 1 and "SIGKILL" in said and "main memory" in said
    assert (run.folder / "saved-0").exists()


@pytest.mark.parametrize(("rank", "code"), [("0", 1), ("1", 2)])
def test_a_process_that_fails_ends_the_others(supervised: Callable[[str], Supervised], rank: str, code: int) -> None:
    run = supervised(f"if rank == '{rank}': sys.exit({code})\ntime.sleep(60)")
    assert run.end() == (code, "")


def test_a_process_that_does_not_hear_is_killed_after_a_failure(supervised: Callable[[str], Supervised]) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nif rank == '1': sys.exit(3)\n"
    run = supervised(f"{deaf}pathlib.Path('deaf').touch()\ntime.sleep(60)")
    assert run.end() == (3, "")


def test_the_first_process_may_end_long_after_the_second(supervised: Callable[[str], Supervised]) -> None:
    run = supervised("time.sleep(4 if rank == '0' else 0)\npathlib.Path('done-' + rank).touch()")
    assert run.end() == (0, "")
    assert (run.folder / "done-0").exists()


@pytest.mark.slow
def test_a_signal_before_anything_is_loaded_leaves_nothing_behind(tmp_path: Path) -> None:
    command = ["bash", str(LAUNCHER), "--quick-test", "--embedded", "--output_dir", str(tmp_path / "out")]
    launcher = subprocess.Popen(
        command, env={**os.environ, "PYTHON": sys.executable}, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 30
    while len(children := psutil.Process(launcher.pid).children()) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate(timeout=20)[1]
    assert launcher.returncode == 143 and "Traceback" not in said
    assert all(ended(child.pid) for child in children) and not (tmp_path / "out").exists()
