"""How a process ends before its work is done: by a signal, or because what started it is gone.

SIGTERM, SIGHUP (a closed session) and Ctrl-C let a run end at a whole step, with its checkpoint written, on all ranks
alike. While ``Stopping`` is held a signal only leaves a note; the run looks at it between forward passes. Before a run
has anything to save, and at a second Ctrl-C, the signal ends it at once. A SIGHUP that is ignored at the start, as
under ``nohup``, stays ignored.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from training_run.processes import launched_processes

#: The variable by which our launcher tells the processes that it starts which process it is.
LAUNCHER = "DEEPFASHION_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1
#: Programs, and modules behind ``python -m``, that start processes together.
_LAUNCHERS = {
    "accelerate-launch", "accelerate.commands.launch", "torchrun", "torch.distributed.run", "torch.distributed.launch",
}  # fmt: skip
#: Seconds between two looks for a process that is gone, where the system does not tell.
_LOOK_EVERY = 0.5
#: How long the processes that load rows outlive a SIGTERM; the run has ended by then.
WORKERS_STAY = 30
#: Seconds between the last word of a rank to the others and its leaving them, where they speak through Gloo.
GLOO_SETTLES = 0.5


class StoppedError(SystemExit):
    """The run was stopped by a signal; as an exit code 128 + its number: 143 after SIGTERM, 130 after Ctrl-C."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name


class TerminatedError(KeyboardInterrupt):
    """SIGTERM or SIGHUP, where there is nothing to save: the work ends as it does after Ctrl-C, with exit code 143."""


def _signals() -> list[signal.Signals]:
    """The signals that end a process in order."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, *hangup]


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise ``TerminatedError`` in the main thread, so that what has begun is cleaned up.

    One of several ranks is ended by the system as ever: while it waits for the others no Python would run in it.
    """
    if threading.current_thread() is not threading.main_thread() or launched_processes() > 1:
        yield
        return

    def end(*_: object) -> None:
        raise TerminatedError

    before = {signum: signal.signal(signum, end) for signum in _signals()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class Stopping:
    """Context manager: inside, a signal asks the run to stop.

    While ``saving`` is set there is something to save, so a signal is noted only; otherwise it ends the run. ``asked``
    is the signal that came first, or 0; SIGHUP counts as SIGTERM. ``saved_at`` is when the last checkpoint was written.
    The handlers from before are set again on leaving.
    """

    def __init__(self, every_minutes: float = 0) -> None:
        self.asked = 0
        self.saving = False
        self.every = 60 * every_minutes
        self.saved_at = time.monotonic()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            outlive_terminal()
            self._before = {signum: signal.signal(signum, self._note) for signum in [*_signals(), signal.SIGINT]}
            end_with_launcher()
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        signum = signal.SIGTERM if signum == signal.SIGHUP else signum
        again = self.asked == signum == signal.SIGINT
        self.asked = self.asked or signum
        if not self.saving or again:
            raise StoppedError(self.asked)
        if self.asked == signum and os.environ.get("RANK", "0") == "0":
            sys.stderr.write("\nstopping: the checkpoint is written first\n")

    def agreed(self, accelerator: Any) -> tuple[int, bool]:
        """What all ranks agree on: the signal that any of them got, or 0, and whether a checkpoint is due by the clock.

        Every rank calls this at the same place.
        """
        due = bool(self.every) and time.monotonic() - self.saved_at >= self.every
        if accelerator.num_processes == 1:
            return self.asked, due
        import torch  # commands ask this module for its error, and are not to wait for torch

        notes = torch.tensor([self.asked, due and accelerator.is_main_process], device=accelerator.device).float()
        signum, due_anywhere = accelerator.gather(notes[None]).max(dim=0).values.int().tolist()
        self.asked = self.asked or signum
        return signum, bool(due_anywhere)


def worker_ignores_signals(_worker: int) -> None:
    """``worker_init_fn`` of a loader: after a signal to the whole process group, rows for the last step still come.

    multiprocessing ends workers by SIGTERM, too, and waits for them. So a worker ends ``WORKERS_STAY`` seconds later.
    """
    end_with_parent()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKERS_STAY))


def settle_gloo() -> None:
    """Wait a moment on CPUs before a rank leaves the others, or it may never end.

    Gloo's threads release tensors under Python's lock, a moment after the call that waited for them has returned. The
    code that frees the group waits for these threads while it holds the lock (PyTorch issue 56297).
    """
    import torch

    group = torch.distributed
    if group.is_available() and group.is_initialized() and group.get_backend() == "gloo":
        time.sleep(GLOO_SETTLES)


class _Terminal(io.FileIO):
    """A terminal that may be closed: what is written to it then is lost, and nobody fails for that."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno != errno.EIO:  # which a terminal gives from the moment on when its session is closed
                raise
            return len(content)


def outlive_terminal() -> None:
    """Let a progress bar in a terminal that was closed not end the run before the signal of that has come."""
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        if not isinstance(stream, io.TextIOWrapper) or not stream.isatty():
            continue
        if not isinstance(getattr(stream.buffer, "raw", None), _Terminal):
            stream.flush()
            lasting = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(lasting, stream.encoding, stream.errors, line_buffering=True))


def end_with_launcher() -> None:
    """Let this process end when what launched it is gone, so that no run goes on unseen and keeps a GPU.

    Our launcher and torchrun hand signals on, so they have been killed then, and this process is killed, too.
    `accelerate launch` with a single process hands none on and may have got a SIGTERM, so this process gets one and
    saves. Any other parent, such as a shell that was closed after ``nohup``, may end without ending the run.
    """
    if own := os.environ.get(LAUNCHER):
        _end_with(int(own), signal.SIGKILL)
        return
    elastic = "TORCHELASTIC_RUN_ID" in os.environ
    if not elastic and "ACCELERATE_MIXED_PRECISION" not in os.environ:  # which `accelerate launch` always sets
        return
    import psutil

    launcher = os.getppid() if elastic else None  # a program of the user's may start workers as torchrun does
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if _launches(process.cmdline()):
                launcher = process.pid
                break
    if launcher is not None:
        _end_with(launcher, signal.SIGKILL if elastic else signal.SIGTERM)


def _launches(words: list[str]) -> bool:
    """Whether a command line is that of torchrun or `accelerate launch`."""
    names = {Path(word).name for word in words[:4]}
    return bool(names & _LAUNCHERS) or ("launch" in words and any(name.startswith("accelerate") for name in names))


def end_with_parent() -> None:
    """In a process of ``multiprocessing``: let it be killed when the one that started it is gone."""
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        _end_with(parent.pid, signal.SIGKILL)


def _end_with(pid: int, signum: int) -> None:
    """Send ``signum`` to this process when the process ``pid``, one of those above it, ends.

    Linux does that for the parent, also while this process is busy in C. For one further up, and elsewhere, a thread
    looks for it.
    """
    if sys.platform.startswith("linux") and os.getppid() == pid:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
        if os.getppid() != pid:
            os.kill(os.getpid(), signum)
        return
    import psutil

    def is_gone() -> bool:
        try:
            return not other.is_running() or other.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return True

    def watch() -> None:
        while not is_gone():
            time.sleep(_LOOK_EVERY)
        os.kill(os.getpid(), signum)

    try:
        other = psutil.Process(pid)
    except psutil.Error:
        os.kill(os.getpid(), signum)
        return
    threading.Thread(target=watch, daemon=True).start()
