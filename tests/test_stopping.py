"""How processes end before their work is done: by a signal, by a closed terminal, or without their launcher."""

from __future__ import annotations

import multiprocessing
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from deepfashion_training.cli import run_command
from deepfashion_training.embedded.wardrobe import write_wardrobe
from training_run import stopping
from training_run.output_dir import LORA_FILE
from training_run.stopping import LAUNCHER, StoppedError, Stopping, worker_ignores_signals

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
#: A trainer, and a process that loads rows for it. It notes both, and the signal that it got.
TRAINER = """
import multiprocessing, os, pathlib, signal, sys, time
from training_run.stopping import end_with_launcher, worker_ignores_signals
def load(): worker_ignores_signals(0); ready.set(); time.sleep(60)
def stop(number, frame): pathlib.Path('saved-' + rank).write_text(str(int(number))); os._exit(0)
rank, ready = os.environ.get('RANK', '0'), multiprocessing.get_context('fork').Event()
end_with_launcher()
signal.signal(signal.SIGTERM, stop)
loader = multiprocessing.get_context('fork').Process(target=load)
loader.start()
assert ready.wait(30)
pathlib.Path('starting-' + rank).write_text(f'{os.getpid()} {loader.pid}')
os.replace('starting-' + rank, 'started-' + rank)
time.sleep(60)
"""
SUPERVISE = (
    "import sys; from deepfashion_training import launch; "
    "sys.exit(launch.supervise([sys.executable, 'trainer.py'], [{'RANK': '0'}, {'RANK': '1'}]))"
)
NOT_LINUX = "import psutil, sys; sys.platform = 'another'\n"  # which psutil would not know


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "trainer.py").write_text(TRAINER)
    return tmp_path


def noted(folder: Path, ranks: int) -> list[int]:
    """The processes that the trainers have noted."""
    until = time.monotonic() + 90
    while len(notes := sorted(folder.glob("started-*"))) < ranks:
        assert time.monotonic() < until
        time.sleep(0.02)
    return [int(pid) for note in notes for pid in note.read_text().split()]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def assert_gone(pids: list[int]) -> None:
    until = time.monotonic() + 5
    while any(map(alive, pids)):
        assert time.monotonic() < until, f"{list(filter(alive, pids))} have stayed"
        time.sleep(0.05)


def started(words: list[str], folder: Path, **more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, cwd=folder, env={**ENVIRONMENT, **more}, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("system", ["Linux", "another"])
def test_trainers_and_their_loaders_end_with_the_launcher(folder: Path, system: str) -> None:
    if system == "another":
        (folder / "trainer.py").write_text(
            TRAINER.replace("end_with_launcher()\n", f"{NOT_LINUX}end_with_launcher()\n")
        )
    launcher = started([sys.executable, "-c", SUPERVISE], folder)
    pids = noted(folder, 2)
    assert len(pids) == 4 and all(map(alive, pids))
    launcher.kill()
    launcher.wait()
    assert_gone(pids)
    assert not list(folder.glob("saved-*"))


def test_a_trainer_sees_its_launcher_through_others(folder: Path) -> None:
    """As where a script of the user's stands between them; and where the launcher was gone before it looked."""
    command = "import subprocess, sys, os; os.environ[sys.argv[1]] = str(os.getpid()); "
    command += "subprocess.run(['bash', '-c', f'{sys.executable} trainer.py; true'])"
    launcher = started([sys.executable, "-c", command, LAUNCHER], folder)
    pids = noted(folder, 1)
    launcher.kill()
    launcher.wait()
    assert_gone(pids)
    assert started([sys.executable, "trainer.py"], folder, **{LAUNCHER: str(launcher.pid)}).wait(20) == -signal.SIGKILL


def test_a_shell_may_end(folder: Path) -> None:
    """Whatever started a trainer that is not launched with others: it goes on."""
    shell = started(["bash", "-c", f"{sys.executable} trainer.py & wait"], folder)
    pids = noted(folder, 1)
    shell.kill()
    shell.wait()
    time.sleep(1)
    assert all(map(alive, pids))
    os.kill(pids[0], signal.SIGKILL)
    assert_gone(pids)  # the loader ends with the trainer


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_trainers_end_with_accelerate_and_torchrun(folder: Path, ranks: int, signum: int) -> None:
    """`accelerate launch` hands nothing on to a single process, which saves; several are torchrun's."""
    words = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet", "--cpu"]
    words += "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    if ranks == 2:
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher = started([*words, "trainer.py"], folder)
    pids = noted(folder, ranks)
    launcher.send_signal(signum)
    if ranks == 1 or signum == signal.SIGKILL:
        launcher.wait(20)
    assert_gone(pids)
    launcher.wait(20)
    assert len(list(folder.glob("saved-*"))) == (1 if ranks == 1 else 2 if signum == signal.SIGTERM else 0)


@pytest.mark.long
def test_kills_of_the_launcher_change_nothing_about_the_result(tmp_path: Path) -> None:
    """20 SIGKILLs of the launcher alone at random moments, each next start one second later."""
    write_wardrobe(tmp_path / "rows", rows=60, size=(128, 96))
    command = ["bash", str(ROOT / "deepfashion_training" / "train_deepfashion_lora.sh"), "--quick-test", "--embedded"]
    command += ["--dataset_name", str(tmp_path / "rows"), "--resume_from_checkpoint", "latest"]
    command += "--max_train_steps 12 --checkpointing_steps 1 --validation_steps 0 --dataloader_num_workers 1".split()
    command += ["--evaluate_samples", "0", "--output_dir"]
    moments, said = random.Random(7), (tmp_path / "said").open("a")

    def train(name: str, seconds: float | None = None) -> list[int]:
        """Train into a folder, or kill the launcher after so many seconds; the processes that it had."""
        launcher = subprocess.Popen(
            [*command, str(tmp_path / name)], env={**ENVIRONMENT, "PYTHON": sys.executable}, stderr=said
        )
        try:
            assert launcher.wait(seconds) == 0, (tmp_path / "said").read_text()[-3000:]
            return []
        except subprocess.TimeoutExpired:
            # Its own: this process may have others, of earlier tests.
            pids = [child.pid for child in psutil.Process(launcher.pid).children(recursive=True)]
            launcher.kill()
            launcher.wait()
            return pids

    began = time.monotonic()
    train("straight")
    whole = time.monotonic() - began
    watched = 0
    for _ in range(20):
        pids = train("killed", moments.uniform(0.1, 0.9) * whole)
        watched += bool(pids)
        time.sleep(1)
        assert_gone(pids)
    assert watched > 0  # in at least one round there were trainers to end
    train("killed")
    said.close()
    lora, straight = (load_file(tmp_path / name / LORA_FILE) for name in ("killed", "straight"))
    assert lora.keys() == straight.keys() and all(torch.equal(lora[name], straight[name]) for name in lora)
    assert not list((tmp_path / "killed").glob(".*"))


# ---- signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_every_command_ends_in_order(signum: int, capsys: pytest.CaptureFixture[str]) -> None:
    ended = []

    def work(_words: list[str]) -> None:
        try:
            os.kill(os.getpid(), signum)
            time.sleep(20)
        finally:
            ended.append("in order")

    before = signal.getsignal(signum)
    assert run_command("prepare", [], work, "batches stay") == 143
    assert ended == ["in order"] and signal.getsignal(signum) == before
    assert capsys.readouterr().err == "\nprepare: stopped; batches stay\n"


def test_what_nohup_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(_words: list[str]) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        with Stopping() as held:
            os.kill(os.getpid(), signal.SIGHUP)
            assert held.asked == 0

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_command("prepare", [], work, "") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_that_is_hung_up_ends_as_after_sigterm() -> None:
    with pytest.raises(StoppedError) as stopped, Stopping():
        os.kill(os.getpid(), signal.SIGHUP)
    assert stopped.value.code == 143 and str(stopped.value) == "SIGTERM"
    with Stopping() as held:
        held.saving = True
        os.kill(os.getpid(), signal.SIGHUP)
        assert held.asked == signal.SIGTERM


#: Works through steps with a progress bar, as a run does, in a terminal that is closed after the first ones.
IN_A_TERMINAL = """
import pathlib, signal, sys, time
from tqdm import tqdm
from training_run.stopping import Stopping
if sys.argv[1] == "ignored": signal.signal(signal.SIGHUP, signal.SIG_IGN)
with Stopping() as stopping:
    stopping.saving = True
    for step in tqdm(range(60), mininterval=0):
        sys.stderr.write(f"step {step}\\n")
        pathlib.Path("step").write_text(str(step))
        time.sleep(0.05)
        if stopping.asked:
            pathlib.Path("saved").touch()
            sys.exit(143)
print("done")
sys.exit(5)
"""


@pytest.mark.parametrize("hangup", ["heard", "ignored"])
def test_a_terminal_that_is_closed_does_not_fail_the_run(tmp_path: Path, hangup: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-c", IN_A_TERMINAL, hangup], ENVIRONMENT)
    while not (tmp_path / "step").exists():
        time.sleep(0.05)
    os.close(terminal)  # its session is closed: the leader gets SIGHUP, and nothing can be written any more
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == (143 if hangup == "heard" else 5)
    assert (tmp_path / "saved").exists() == (hangup == "heard")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_loader_of_rows_outlives_a_signal_to_all(method: str) -> None:
    context = multiprocessing.get_context(method)
    loader = context.Process(target=_load, args=(ready := context.Event(),))
    loader.start()
    assert ready.wait(60)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(loader.pid or 0, signum)
    loader.join(1)
    assert loader.is_alive()
    loader.kill()
    loader.join()


def _load(ready: object) -> None:
    worker_ignores_signals(0)
    ready.set()  # type: ignore[attr-defined]
    time.sleep(60)


@pytest.mark.parametrize(
    ("command", "launches"),
    [
        ("python /x/bin/accelerate launch --cpu train.py", True), ("/x/accelerate-launch train.py", True),
        ("python -m accelerate.commands.accelerate_cli launch train.py", True),
        ("python /x/bin/torchrun --standalone train.py", True), ("python -m torch.distributed.run train.py", True),
        ("python /home/accelerate/launch/train.py", False), ("bash -c train.sh launch", False),
        ("python accelerate_me.py", False),
    ],
)  # fmt: skip
def test_launchers_are_known_by_their_command_lines(command: str, launches: bool) -> None:
    assert stopping._launches(command.split()) == launches
