"""The processes of a command that a launcher has started together."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

#: How long ranks wait for one that checks, draws, saves or reads a base: NCCL's own 10 minutes can be too short. It
#: counts where the process group is made first.
RANKS_WAIT = timedelta(hours=2)


def launched_processes() -> int:
    """How many processes work on one run: those that a launcher has started together, else this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_state(patience: timedelta = RANKS_WAIT) -> PartialState:
    """accelerate's state of this process, made as its ``Accelerator`` will want it: the first one made is kept.

    ``patience`` is how long one process waits for another.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=patience)
