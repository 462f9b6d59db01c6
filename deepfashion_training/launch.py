"""PyTorch's ``torchrun`` for processes on a CPU, without its reports: a process of ours says itself what is wrong.

    python torchrun.py --standalone --nproc_per_node 2 SCRIPT [ARGUMENTS]

Takes what ``torchrun`` takes, and exits with the status of the first process that failed, 128 + N for signal N.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # run by path: the trainer's modules are found from here, and not this folder's
    sys.path[0] = str(Path(__file__).resolve().parents[1])

#: glibc gives the memory of large pictures back after every layer, and takes it again, which costs more than the layer.
KEEPS_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**29)}


def main(argv: list[str] | None = None) -> int:
    """Run the processes to their end; returns the exit code."""
    from training_run.stopping import end_with_launcher

    end_with_launcher()  # accelerate hands no signal on
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)
    os.environ |= KEEPS_MEMORY | os.environ
    try:
        run.run(run.parse_args(sys.argv[1:] if argv is None else argv))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except SignalException as error:  # this process was told to end, and has ended the others
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
