"""The launcher, really run, with a Python and an nvidia-smi that only write down how they were called."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ROOT / "deepfashion_training" / "train_deepfashion_lora.sh"
TORCHRUN = ROOT / "deepfashion_training" / "launch.py"
HOSTILE = [
    "a b",
    "",
    "it's",
    'say "hi"',
    "; echo pwned",
    "$(echo pwned)",
    "`echo pwned`",
    "*",
    "~",
    "back\\slash",
    "two\nlines",
    "trailing ",
    "é",
    "$HOME",
    "&& true",
    "!!",
    "#no comment",
]

STUB_PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then printf '%s\\n' "${STUB_MISSING:-}"; exit 0; fi
printf '%s\\0' "$@" >"$STUB_LOG/$(ls "$STUB_LOG" | wc -l)"
for argument in "$@"; do
  if [[ $argument == --check ]]; then echo "stub check says hello" >&2; exit "${STUB_CHECK:-0}"; fi
done
exit "${STUB_EXIT:-0}"
"""
STUB_NVIDIA_SMI = """#!/usr/bin/env bash
[[ -n ${STUB_GPUS:-} ]] || { echo "NVIDIA-SMI has failed" >&2; exit 9; }
[[ "$*" == "--query-gpu=index,uuid,memory.total --format=csv,noheader,nounits" ]] || exit 3
printf '%s\\n' "$STUB_GPUS"
"""

H100, A100_40, RTX4090, LAPTOP = 81559, 40960, 24564, 8188


def gpus(*memory: object) -> str:
    """What nvidia-smi prints for GPUs with so many MiB; the third one's UUID is GPU-2222-aaaa."""
    return "\n".join(f"{i}, GPU-{str(i) * 4}-aaaa, {mib}" for i, mib in enumerate(memory))


class Machine:
    """A folder with the two stubs, and what was called there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.bin.mkdir()
        self.log.mkdir()
        self.python = self.program("stub-python", STUB_PYTHON)
        self.program("nvidia-smi", STUB_NVIDIA_SMI)

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(
        self, *arguments: str, script: Path = LAUNCHER, cwd: Path | None = None, **env: str | None
    ) -> subprocess.CompletedProcess[str]:
        """Runs the launcher; an environment variable given as None is unset."""
        inherited = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU")}
        inherited |= {"PATH": f"{self.bin}:{os.environ['PATH']}", "PYTHON": str(self.python), "STUB_LOG": str(self.log)}
        inherited |= {k: v for k, v in env.items() if v is not None}
        for name in [k for k, v in env.items() if v is None]:
            inherited.pop(name, None)
        return subprocess.run(
            ["bash", str(script), *arguments],
            capture_output=True,
            text=True,
            cwd=cwd or self.folder,
            env=inherited,
            timeout=60,
        )

    def calls(self) -> list[list[str]]:
        """The argument lists of every Python call but the package check, in order."""
        files = sorted(self.log.iterdir(), key=lambda path: int(path.name))
        return [path.read_bytes().decode().split("\0")[:-1] for path in files]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def launched(call: list[str]) -> tuple[list[str], list[str]]:
    """Splits an accelerate call into accelerate's arguments and those of the wrapper."""
    assert call[:3] == ["-m", "accelerate.commands.accelerate_cli", "launch"], call
    wrapper = next(i for i, argument in enumerate(call) if argument.endswith("train_deepfashion_lora.py"))
    return call[3:wrapper], call[wrapper + 1 :]


def one_line(text: str) -> str:
    assert text.count("\n") == 1 and text.endswith("\n"), text
    return text


# --- arguments -------------------------------------------------------------------------------------------------------
def test_arguments_reach_check_and_training_byte_for_byte(machine: Machine) -> None:
    done = machine.run("--h100", "--output_dir", *HOSTILE, "--seed=7", STUB_GPUS=gpus(H100))
    assert done.returncode == 0, done.stderr
    check, launch = machine.calls()
    own = ["--preset", "h100", "--output_dir", *HOSTILE, "--seed=7"]
    wrapper = str(LAUNCHER.with_suffix(".py"))
    assert check == [wrapper, "--check", *own]
    accelerate = "--quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --gpu_ids all"
    assert launch == [*("-m", "accelerate.commands.accelerate_cli", "launch"), *accelerate.split(), *(wrapper, *own)]


def test_dry_run_prints_a_command_that_does_the_same(machine: Machine) -> None:
    dry = machine.run("--h100", "--dry-run", "--output_dir", *HOSTILE, STUB_GPUS=gpus(H100))
    assert (dry.returncode, dry.stderr, machine.calls()) == (0, "", [])
    line = one_line(dry.stdout)

    pasted = subprocess.run(["bash", "-c", line], env={**os.environ, "STUB_LOG": str(machine.log)}, timeout=20)
    real = machine.run("--h100", "--output_dir", *HOSTILE, STUB_GPUS=gpus(H100))
    assert (pasted.returncode, real.returncode) == (0, 0)
    from_dry_run, _check, launch = machine.calls()
    assert from_dry_run == launch
    assert launched(launch)[1] == ["--preset", "h100", "--output_dir", *HOSTILE]


def test_dry_run_with_plain_arguments_reads_as_a_person_would_write_it(machine: Machine) -> None:
    dry = machine.run("--dry-run", "--embedded", "--seed", "7", STUB_GPUS=None)
    words = shlex.split(one_line(dry.stdout))
    assert words[0] == str(machine.python)
    assert words[-5:] == ["--preset", "full", "--embedded", "--seed", "7"]
    assert "--cpu" in words and "\\" not in dry.stdout


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        ([], ["--preset", "full"]),
        (["--quick-test"], ["--preset", "quick_test"]),
        (["--h100"], ["--preset", "h100"]),
        (["--low-vram"], ["--preset", "low_vram"]),
        (["--preset", "mine.yaml"], ["--preset", "mine.yaml"]),
        (["--preset=low_vram"], ["--preset=low_vram"]),
    ],
)
def test_preset_flags(machine: Machine, flags: list[str], preset: list[str]) -> None:
    done = machine.run("--seed", "7", *flags, STUB_GPUS=gpus(H100))
    assert done.returncode == 0, done.stderr
    own = launched(machine.calls()[-1])[1]
    assert sorted(own) == sorted([*preset, "--seed", "7"])
    assert own[own.index(preset[0]) :][: len(preset)] == preset


@pytest.mark.parametrize(
    "flags",
    [
        ["--quick-test", "--h100"],
        ["--low-vram", "--h100"],
        ["--h100", "--h100"],
        ["--h100", "--preset", "full"],
        ["--preset=full", "--quick-test"],
        ["--preset", "full", "--preset", "h100"],
    ],
)
def test_two_presets_are_wrong_use(machine: Machine, flags: list[str]) -> None:
    done = machine.run(*flags, STUB_GPUS=gpus(H100))
    assert done.returncode == 2
    assert "preset" in one_line(done.stderr)
    assert machine.calls() == []


@pytest.mark.parametrize("flags", [["--preset"], ["--preset", "--seed"], ["--preset="], ["--preset", ""]])
def test_preset_without_a_value_is_wrong_use(machine: Machine, flags: list[str]) -> None:
    done = machine.run(*flags, STUB_GPUS=gpus(H100))
    assert done.returncode == 2
    assert "--preset needs a value" in one_line(done.stderr)
    assert machine.calls() == []


# --- GPUs ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("0", 1),
        ("0,1", 2),
        (" 3 , 1 ", 2),
        ("GPU-2222-aaaa", 1),
        ("GPU-2222,0", 2),
        ("1,-1,2", 1),
        ("0,9,1", 1),
        ("9", 0),
        ("NoDevFiles", 0),
        ("MIG-1234", 1),
    ],
)
def test_one_process_per_visible_gpu(machine: Machine, visible: str | None, count: int) -> None:
    done = machine.run("--h100", "--dry-run", STUB_GPUS=gpus(H100, H100, H100, H100), CUDA_VISIBLE_DEVICES=visible)
    assert done.returncode == 0
    accelerate, _ = launched(shlex.split(done.stdout)[1:])
    assert accelerate[accelerate.index("--num_processes") + 1] == str(max(count, 1))
    assert ("--multi_gpu" in accelerate) == (count > 1)
    assert ("--cpu" in accelerate) == (count == 0)
    assert ("none is visible here" in done.stderr) == (count == 0)


def test_two_processes_share_a_cpu_but_for_a_script_of_the_users(machine: Machine) -> None:
    """Each has one thread, unless OMP_NUM_THREADS says otherwise."""
    torchrun = [str(TORCHRUN), *"--standalone --nproc_per_node 2".split()]
    for threads, wanted in ((None, "1"), ("3", "3")):
        dry = machine.run("--quick-test", "--dry-run", OMP_NUM_THREADS=threads)
        accelerate, _ = launched(shlex.split(dry.stdout)[1:])
        assert accelerate[-7:] == ["--cpu", "--num_cpu_threads_per_process", wanted, *torchrun]
    for own in (["--upstream", "mine.py"], ["--upstream=mine.py"]):
        accelerate, _ = launched(shlex.split(machine.run("--quick-test", "--dry-run", *own).stdout)[1:])
        assert str(TORCHRUN) not in accelerate
    accelerate, _ = launched(shlex.split(machine.run("--embedded", "--dry-run", STUB_GPUS=gpus(H100)).stdout)[1:])
    assert str(TORCHRUN) not in accelerate


@pytest.mark.parametrize(("value", "cpu"), [("true", True), ("1", True), ("Yes", True), ("false", False), ("", False)])
def test_accelerate_use_cpu_hides_the_gpus(machine: Machine, value: str, cpu: bool) -> None:
    done = machine.run("--embedded", "--dry-run", STUB_GPUS=gpus(H100), ACCELERATE_USE_CPU=value)
    assert ("--cpu" in shlex.split(done.stdout)) == cpu


@pytest.mark.parametrize(
    ("flags", "cards", "said"),
    [
        (["--h100"], [], "h100 needs an NVIDIA GPU with 75 GiB of memory, and none is visible here"),
        (["--h100"], [RTX4090], "75 GiB of memory, and the one here has 24.0"),
        (["--h100"], [A100_40], "the default preset (36 GiB), --low-vram (22 GiB, a 24 GB card), --quick-test"),
        (["--h100"], [H100, RTX4090], "the smallest of the 2 here has 24.0"),
        ([], [RTX4090], "full needs an NVIDIA GPU with 36 GiB"),
        ([], [], "use --low-vram (22 GiB, a 24 GB card), --quick-test (any machine)"),
        (["--low-vram"], [LAPTOP], "22 GiB of memory, and the one here has 8.0; use --quick-test (any machine)"),
    ],
)
def test_too_small_a_machine_is_told_what_to_do(
    machine: Machine, flags: list[str], cards: list[int], said: str
) -> None:
    done = machine.run(*flags, STUB_GPUS=gpus(*cards))
    assert done.returncode == 1
    line = one_line(done.stderr)
    assert line.startswith("error: ") and said in line and "--embedded" in line
    assert [call[1] for call in machine.calls()] == ["--check"]  # wrong use was looked for, nothing was launched

    dry = machine.run(*flags, "--dry-run", STUB_GPUS=gpus(*cards))
    assert dry.returncode == 0
    assert said in one_line(dry.stderr) and dry.stderr.startswith("warning: ")
    launched(shlex.split(one_line(dry.stdout))[1:])


@pytest.mark.parametrize(
    ("flags", "card"),
    [
        (["--h100"], H100),
        ([], A100_40),
        (["--low-vram"], RTX4090),
        (["--preset=low_vram"], RTX4090),
        (["--h100"], "[N/A]"),
        (["--h100", "--embedded"], LAPTOP),
    ],
)
def test_large_enough_a_machine_trains(machine: Machine, flags: list[str], card: object) -> None:
    done = machine.run(*flags, STUB_GPUS=gpus(card))
    assert done.returncode == 0, done.stderr
    assert len(machine.calls()) == 2


def test_wrong_use_counts_for_more_than_a_missing_gpu(machine: Machine) -> None:
    done = machine.run("--h100", "--nonsense", STUB_CHECK="2")
    assert (done.returncode, done.stderr) == (2, "stub check says hello\n")


def test_gpu_need_is_read_from_a_preset_of_ones_own(machine: Machine) -> None:
    mine = machine.folder / "my preset.yaml"
    mine.write_text("about: mine\nneeds: {gpu_memory_gib: 10.5, disk_gib: 1}  # tight\nflags: {}\n")
    assert machine.run("--preset", str(mine), STUB_GPUS=gpus(LAPTOP)).returncode == 1
    assert machine.run("--preset", "my preset.yaml", STUB_GPUS=gpus(RTX4090)).returncode == 0


@pytest.mark.parametrize("cards", [[], [LAPTOP]])
@pytest.mark.parametrize("flags", [["--quick-test"], ["--preset", "quick_test"]])
def test_quick_test_runs_embedded_where_no_gpu_is_large_enough(
    machine: Machine, flags: list[str], cards: list[int]
) -> None:
    done = machine.run(*flags, "--seed", "7", STUB_GPUS=gpus(*cards))
    assert done.returncode == 0
    note, check = done.stderr.splitlines()
    assert "--embedded" in note and "GPU" in note and check == "stub check says hello"
    for call in machine.calls():
        assert call.count("--embedded") == 1


def test_quick_test_keeps_the_users_embedded_and_says_nothing(machine: Machine) -> None:
    done = machine.run("--quick-test", "--embedded")
    assert (done.returncode, done.stderr) == (0, "stub check says hello\n")
    assert launched(machine.calls()[-1])[1] == ["--preset", "quick_test", "--embedded"]


def test_quick_test_on_a_large_gpu_is_not_embedded(machine: Machine) -> None:
    machine.run("--quick-test", STUB_GPUS=gpus(H100))
    assert launched(machine.calls()[-1])[1] == ["--preset", "quick_test"]


# --- a plan ----------------------------------------------------------------------------------------------------------
PLAN = ["--plan", "--gpu_hour_price", "2.5"]


@pytest.mark.parametrize("flags", [["--h100"], [], ["--low-vram"]])
def test_a_plan_without_a_gpu_is_one_process_of_the_wrapper(machine: Machine, flags: list[str]) -> None:
    done = machine.run(*flags, *PLAN, STUB_EXIT="7")
    assert (done.returncode, done.stderr) == (7, "")  # no complaint, and the wrapper's own status
    preset = {"--h100": "h100", "--low-vram": "low_vram"}.get("".join(flags), "full")
    assert machine.calls() == [[str(LAUNCHER.with_suffix(".py")), "--preset", preset, *PLAN]]
    dry = machine.run(*flags, *PLAN, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert shlex.split(one_line(dry.stdout))[1:] == machine.calls()[0]


def test_a_plan_is_measured_on_a_gpu_that_is_too_small_for_the_preset(machine: Machine) -> None:
    done = machine.run("--h100", *PLAN, STUB_GPUS=gpus(RTX4090, RTX4090))
    assert (done.returncode, done.stderr) == (0, "stub check says hello\n")
    check, launch = machine.calls()
    assert check[1:] == ["--check", "--preset", "h100", *PLAN]
    accelerate, own = launched(launch)
    assert own == ["--preset", "h100", *PLAN] and accelerate[accelerate.index("--num_processes") + 1] == "2"


def test_a_plan_of_the_quick_test_without_a_gpu_measures_the_small_model(machine: Machine) -> None:
    done = machine.run("--quick-test", "--plan")
    assert done.returncode == 0 and done.stderr.startswith("note: no NVIDIA GPU is visible, so this quick test runs")
    accelerate, own = launched(machine.calls()[-1])
    assert own == ["--preset", "quick_test", "--embedded", "--plan"] and "--cpu" in accelerate


def test_a_plan_needs_packages_and_a_check_as_a_run_does(machine: Machine) -> None:
    done = machine.run("--h100", "--plan", STUB_MISSING="torch")
    assert done.returncode == 1 and "lacks torch" in one_line(done.stderr) and machine.calls() == []
    done = machine.run("--h100", "--plan", STUB_GPUS=gpus(H100), STUB_CHECK="1")
    assert done.returncode == 1 and [call[1] for call in machine.calls()] == ["--check"]


# --- Python ----------------------------------------------------------------------------------------------------------
def test_missing_packages_are_all_named(machine: Machine) -> None:
    bare = machine.program("bare-python", f'#!/usr/bin/env bash\nexec {shlex.quote(sys.executable)} -S "$@"\n')
    here = machine.folder / "datasets"
    here.mkdir()  # a folder in the working directory is not the package
    loud = machine.folder / "site" / "torch"
    loud.mkdir(parents=True)
    (loud / "__init__.py").write_text("raise SystemExit('torch was imported')")
    done = machine.run("--embedded", PYTHON=str(bare), PYTHONPATH=str(loud.parent))
    assert done.returncode == 1
    line = one_line(done.stderr)
    assert "`make setup`" in line and str(ROOT) in line
    listed = re.search(r"lacks ([^;]*);", line)
    required = re.findall(r"^([\w-]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert listed and set(listed[1].split(", ")) == set(required) - {"torch"}


@pytest.mark.long
def test_packages_of_this_environment_are_found(machine: Machine) -> None:
    done = machine.run("--embedded", "--check", PYTHON=sys.executable, cwd=machine.folder)
    assert done.returncode == 0, done.stderr
    assert "lacks" not in done.stderr


@pytest.mark.parametrize("flags", [["--embedded"], ["--embedded", "--dry-run"]])
def test_a_python_that_is_not_there(machine: Machine, flags: list[str]) -> None:
    done = machine.run(*flags, PYTHON="/no/such python")
    assert done.returncode == 1 and done.stdout == ""
    assert "'/no/such python'" in one_line(done.stderr)


def copy_of_the_scripts(folder: Path) -> Path:
    """A repository of its own with the launcher and what it needs beside the wrapper; returns the launcher."""
    home = folder / "a repo; of $ones own" / "deepfashion_training"
    shutil.copytree(ROOT / "deepfashion_training" / "presets", home / "presets")
    shutil.copy(TORCHRUN, home)
    shutil.copytree(ROOT / "training_run", home.parent / "training_run")
    return Path(shutil.copy(LAUNCHER, home))


def test_python_is_the_repositorys_own_before_that_of_the_path(machine: Machine) -> None:
    script = copy_of_the_scripts(machine.folder)
    machine.program("python3", STUB_PYTHON)
    dry = machine.run("--embedded", "--dry-run", script=script, PYTHON=None)
    assert shlex.split(dry.stdout)[0] == "python3"
    own = script.parents[1] / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(machine.python)
    dry = machine.run("--embedded", "--dry-run", script=script, PYTHON=None)
    assert shlex.split(dry.stdout)[0] == str(own)
    own.unlink()
    own.symlink_to(machine.folder / "gone")  # its base Python was removed
    dry = machine.run("--embedded", "--dry-run", script=script, PYTHON="")
    assert shlex.split(dry.stdout)[0] == "python3"


# --- places and statuses ---------------------------------------------------------------------------------------------
def test_works_from_anywhere_through_links_and_odd_names(machine: Machine) -> None:
    script = copy_of_the_scripts(machine.folder)
    link = machine.folder / "links" / "train"
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(script, link.parent))  # relative, and seen from its own folder
    again = machine.folder / "again"
    again.symlink_to(link)
    runs = [
        machine.run("--embedded", script=script, cwd=Path("/")),
        machine.run("--embedded", script=Path(script.name), cwd=script.parent),
        machine.run("--embedded", script=again),
        machine.run("--embedded", script=Path("../links/train"), cwd=machine.bin, CDPATH=str(machine.folder)),
    ]
    assert [done.returncode for done in runs] == [0, 0, 0, 0], runs
    wrapper = str(script.with_suffix(".py").resolve())
    first, *others = machine.calls()[1::2]
    assert wrapper in first
    assert others == [first] * 3


@pytest.mark.parametrize("status", [1, 2])
def test_nothing_starts_when_the_check_fails(machine: Machine, status: int) -> None:
    done = machine.run("--embedded", STUB_CHECK=str(status))
    assert (done.returncode, done.stderr) == (status, "stub check says hello\n")
    assert [call[1] for call in machine.calls()] == ["--check"]


def test_the_users_own_check_starts_nothing(machine: Machine) -> None:
    assert machine.run("--embedded", "--check").returncode == 0
    assert len(machine.calls()) == 1


def test_exit_status_is_that_of_accelerate(machine: Machine) -> None:
    assert machine.run("--embedded", STUB_EXIT="143").returncode == 143


# --- help, and the real accelerate -----------------------------------------------------------------------------------
@pytest.mark.skipif(not LAUNCHER.with_suffix(".py").exists(), reason="train_deepfashion_lora.py is not there yet")
@pytest.mark.parametrize("flags", [["--help"], ["--h100", "-h"]])
def test_help_is_quick_and_whole(machine: Machine, flags: list[str]) -> None:
    # -X importtime would show torch; a broken torch first on the path does it faster.
    (machine.folder / "torch.py").write_text("raise SystemExit('torch was imported')")
    start = time.perf_counter()
    done = machine.run(*flags, PYTHON=sys.executable, PYTHONPATH=str(machine.folder))
    seconds = time.perf_counter() - start
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "--quick-test",
        "--low-vram",
        "needs a GPU with 75 GiB",
        "--max_train_samples",
        "train_flux_inpaint.py",
    ):
        assert words in done.stdout, done.stdout
    assert seconds < 1


def test_help_without_python_still_helps(machine: Machine) -> None:
    done = machine.run("--help", PYTHON="/no/such/python")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--quick-test" in done.stdout


@pytest.mark.parametrize("threads", [None, "3"])
def test_real_accelerate_hands_everything_on(machine: Machine, threads: str | None) -> None:
    """A wrapper that writes down its arguments, under the accelerate that is installed."""
    script = copy_of_the_scripts(machine.folder)
    script.with_suffix(".py").write_text(
        "import json, os, sys\n"
        "if '--check' in sys.argv: sys.exit(0)\n"
        "seen = {'argv': sys.argv[1:], 'threads': os.environ['OMP_NUM_THREADS'], 'cwd': os.getcwd()}\n"
        "open('seen.json', 'w').write(json.dumps(seen))\n"
        "sys.exit(3)\n"
    )
    values = ["--output_dir", *HOSTILE, "--cpu", "-q", "-m", "--num_processes", "7"]
    done = machine.run("--quick-test", *values, script=script, PYTHON=sys.executable, OMP_NUM_THREADS=threads)
    seen = json.loads((machine.folder / "seen.json").read_text())
    assert seen["argv"] == ["--preset", "quick_test", "--embedded", *values]
    assert seen["threads"] == (threads or "1")
    assert seen["cwd"] == str(machine.folder)
    assert done.returncode == 1  # accelerate turns any failure of one process into 1
    assert len(done.stderr.splitlines()) == 1, done.stderr  # the note; no traceback, no list of defaults


# ------------------------------------------------------------------------------------------------------------ signals

#: A wrapper that registers as the real one does, waits, and on a signal takes its time before it ends.
PATIENT = """
import os, pathlib, signal, sys, time
if '--check' in sys.argv: sys.exit(0)
folder = pathlib.Path(os.environ['DEEPFASHION_LAUNCH'])
def stop(number, frame):
    for each in (signal.SIGTERM, signal.SIGINT): signal.signal(each, signal.SIG_IGN)  # the first one counts
    time.sleep(0.5)
    pathlib.Path('saved').write_text(str(number))
    (folder / ('status-' + os.environ.get('RANK', '0'))).write_text(str(128 + number))
    sys.exit(128 + number)
for each in (signal.SIGTERM, signal.SIGINT): signal.signal(each, stop)
sys.path.insert(0, {root!r})
from training_run.stopping import end_with_launcher
end_with_launcher()
(folder / f'pid-{{os.getpid()}}').touch()
rank = os.environ.get('RANK', '0')
pathlib.Path('starting-' + rank).write_text(str(os.getpid()))
os.replace('starting-' + rank, 'started-' + rank)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("receiver", "signum"),
    [
        ("launcher", signal.SIGTERM),
        ("launcher", signal.SIGINT),
        ("group", signal.SIGINT),  # Ctrl-C in a terminal
        ("accelerate", signal.SIGTERM),
        ("accelerate", signal.SIGKILL),
        ("torchrun", signal.SIGTERM),
        ("torchrun", signal.SIGKILL),
        ("trainer", signal.SIGTERM),
    ],
)
def test_a_signal_reaches_the_trainer_and_its_status_comes_back(machine: Machine, receiver: str, signum: int) -> None:
    script = copy_of_the_scripts(machine.folder)
    script.with_suffix(".py").write_text(PATIENT.format(root=str(ROOT)))
    work = machine.folder / "work"
    work.mkdir()

    def like_a_shell() -> None:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a process that was started in the background ignores it

    environment = {**os.environ, "PYTHON": sys.executable, "TMPDIR": str(work)}
    launcher = subprocess.Popen(
        ["bash", str(script), "--quick-test", "--embedded"], cwd=work, env=environment, stderr=subprocess.PIPE,
        preexec_fn=like_a_shell, text=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    # Both ranks, or torchrun ends the later one by SIGTERM when the first has ended by another signal.
    while len(list(work.glob("started-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    trainer = psutil.Process(int((work / "started-0").read_text()))
    torchrun = trainer.parent()
    pids = {"launcher": launcher.pid, "accelerate": torchrun.ppid(), "torchrun": torchrun.pid, "trainer": trainer.pid}
    if receiver == "group":
        os.killpg(launcher.pid, signum)
    else:
        os.kill(pids[receiver], signum)
    said = launcher.communicate(timeout=30)[1]
    ended_by = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
    assert launcher.returncode == 128 + ended_by, said
    assert (work / "saved").read_text() == str(int(ended_by))  # once, and before the launcher ended
    assert not psutil.pid_exists(trainer.pid) or trainer.status() == psutil.STATUS_ZOMBIE
    assert "Traceback" not in said
    assert [path for path in work.iterdir() if path.name.startswith("tmp")] == []  # its folder is gone


@pytest.mark.slow
def test_a_trainer_that_was_killed_is_not_silent(machine: Machine) -> None:
    """As the system does where main memory ends: nothing of the trainer's own can say it."""
    script = copy_of_the_scripts(machine.folder)
    killed = PATIENT.format(root=str(ROOT)).replace("time.sleep(60)", "os.kill(os.getpid(), signal.SIGKILL)")
    script.with_suffix(".py").write_text(killed)
    done = machine.run("--quick-test", "--embedded", script=script, PYTHON=sys.executable)
    assert done.returncode == 1
    assert "the trainer was killed and could say nothing" in done.stderr and "Traceback" not in done.stderr


#: Of two ranks the second has ended well, and the first, which compares, is ended by a signal and leaves no status.
ALONE = """
import os, pathlib, signal, sys, time
if '--check' in sys.argv: sys.exit(0)
folder = pathlib.Path(os.environ['DEEPFASHION_LAUNCH'])
if os.environ['RANK'] == '1':
    (folder / 'status-1').write_text('0')
    sys.exit(0)
(folder / f'pid-{os.getpid()}').touch()
while not (folder / 'status-1').exists(): time.sleep(0.05)
os.kill(SIGNALLED, signal.SIGNAL)
time.sleep(30)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signalled", "name", "status"), [("os.getpid()", "SIGKILL", 1), ("int(os.environ['LAUNCHER'])", "SIGTERM", 143)]
)
def test_the_first_of_two_processes_ends_last(machine: Machine, signalled: str, name: str, status: int) -> None:
    script = copy_of_the_scripts(machine.folder)
    script.with_suffix(".py").write_text(
        ALONE.replace("SIGNALLED", signalled).replace("signal.SIGNAL", f"signal.{name}")
    )
    command = f"export LAUNCHER=$$; exec bash {shlex.quote(str(script))} --quick-test --embedded"
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == status, done.stderr
    assert ("the trainer was killed and could say nothing" in done.stderr) == (status == 1)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_signal_before_the_trainers_have_begun_leaves_none_behind(machine: Machine) -> None:
    """torchrun is there, and has started nobody: it ends with accelerate."""
    script = copy_of_the_scripts(machine.folder)
    script.with_suffix(".py").write_text(PATIENT.format(root=str(ROOT)))
    torchrun = script.parent / "launch.py"
    slow = "    from torch.distributed import run\n"
    text = torchrun.read_text("utf-8")
    assert text.count(slow) == 1
    note = f"    import time; Path('begun').write_text(str(os.getpid())); time.sleep(3)\n{slow}"
    torchrun.write_text(text.replace(slow, note), "utf-8")
    launcher = subprocess.Popen(
        ["bash", str(script), "--quick-test", "--embedded"], cwd=machine.folder, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    begun, until = machine.folder / "begun", time.monotonic() + 60
    while not (begun.exists() and begun.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate(timeout=20)[1]
    assert launcher.returncode == 143 and "Traceback" not in said
    time.sleep(4)
    assert not list(machine.folder.glob("started-*"))
    number = int(begun.read_text())
    assert not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_check_runs_leaves_nothing_behind(machine: Machine, signum: int) -> None:
    script = copy_of_the_scripts(machine.folder)
    script.with_suffix(".py").write_text(
        "import os, pathlib, time\npathlib.Path('checking').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )

    def hears_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    launcher = subprocess.Popen(
        ["bash", str(script), "--quick-test", "--embedded"], cwd=machine.folder, preexec_fn=hears_ctrl_c,
        env={**os.environ, "PYTHON": sys.executable}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    note, until = machine.folder / "checking", time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    launcher.send_signal(signum)
    launcher.communicate(timeout=20)
    assert launcher.returncode == 128 + signum
    checking = int(note.read_text())
    assert not psutil.pid_exists(checking) or psutil.Process(checking).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_accelerate_without_the_launcher_is_told_to_stop(tmp_path: Path) -> None:
    """It hands no signal on and ends at once; the trainer hears of it, saves and ends."""
    script = tmp_path / "script.py"
    script.write_text(PATIENT.format(root=str(ROOT)))
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet", "--cpu"]
    command += [*"--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no".split(), str(script)]
    launched = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "DEEPFASHION_LAUNCH": str(tmp_path)})
    note, until = tmp_path / "started-0", time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    trainer = int(note.read_text())
    launched.terminate()
    launched.wait(timeout=20)
    until = time.monotonic() + 20
    while not (tmp_path / "saved").exists() and time.monotonic() < until:
        time.sleep(0.05)
    alive = psutil.pid_exists(trainer) and psutil.Process(trainer).status() != psutil.STATUS_ZOMBIE
    if alive and not (tmp_path / "saved").exists():
        os.kill(trainer, signal.SIGKILL)
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGTERM))
