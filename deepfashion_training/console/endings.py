"""How a command ends: its exit code, and one line for what went wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def run_command(command: str, work: Callable[[], int | None], *, debug: bool, stopped: str) -> int:
    """Do ``work`` and return the exit code: its own, 1 after an error, 130 after Ctrl-C.

    An error is one line on stderr, with its traceback before it where ``debug`` is set; ``stopped`` says what Ctrl-C
    leaves behind.
    """
    from deepfashion_training.train_deepfashion_lora import close_progress_bars, describe, quiet_libraries

    # Read when torch is loaded: threads that spin while they wait make a CPU step 15 times slower on a shared core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        quiet_libraries()
        return work() or 0
    except KeyboardInterrupt:
        close_progress_bars()
        sys.stderr.write(f"\n{command}: stopped; {stopped}\n")
        return 130
    except Exception as error:
        close_progress_bars()
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"{command}: {describe(error)}\n")
        return 1
