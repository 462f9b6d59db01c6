"""SIGTERM and Ctrl-C: let a run end at a whole step, with its checkpoint written, on all ranks alike.

While ``Stopping`` is held a signal only leaves a note; the run looks at it between forward passes. Before a run has
anything to save, and at a second Ctrl-C, the signal ends it at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1
#: How long the processes that load rows outlive a SIGTERM; the run has ended by then.
WORKERS_STAY = 30
#: How long ranks wait for one that checks, draws, saves or reads a base: NCCL's own 10 minutes can be too short. It
#: counts where the process group is made first.
RANKS_WAIT = timedelta(hours=2)
#: Seconds between the last word of a rank to the others and its leaving them, where they speak through Gloo.
GLOO_SETTLES = 0.5


class StoppedError(SystemExit):
    """The run was stopped by a signal; as an exit code 128 + its number: 143 after SIGTERM, 130 after Ctrl-C."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return "Ctrl-C" if self.signum == signal.SIGINT else signal.Signals(self.signum).name


class Stopping:
    """Context manager: inside, a signal asks the run to stop.

    While ``saving`` is set there is something to save, so a signal is noted only; otherwise it ends the run. ``asked``
    is the signal that came first, or 0. ``saved_at`` is when the last checkpoint was written. The handlers from before
    are set again on leaving.
    """

    def __init__(self, every_minutes: float = 0) -> None:
        self.asked = 0
        self.saving = False
        self.every = 60 * every_minutes
        self.saved_at = time.monotonic()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
            end_with_launcher()
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
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


def end_with_launcher() -> None:
    """Ask Linux for SIGTERM when the parent ends, where that is ``accelerate launch`` with a single process.

    It passes no signal on, so without this the run would go on after its launcher has ended. Any other parent, such as
    a shell that was closed after ``nohup``, may end without ending the run.
    """
    if not sys.platform.startswith("linux") or "LOCAL_RANK" in os.environ:
        return
    import psutil

    parent = os.getppid()
    try:
        words = psutil.Process(parent).cmdline()
    except psutil.Error:
        return
    if any("accelerate" in word for word in words[:4]) and "launch" in words:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            raise StoppedError(signal.SIGTERM)
