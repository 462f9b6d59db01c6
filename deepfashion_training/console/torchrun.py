"""PyTorch's ``torchrun`` without its report of failures: a process of ours has said in one line what is wrong.

    python torchrun.py --standalone --nproc_per_node 2 SCRIPT [ARGUMENTS]

Takes what ``torchrun`` takes, and exits with the status of the first process that failed, 128 + N for signal N.
"""

from __future__ import annotations

import logging
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the processes to their end; returns the exit code."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
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
