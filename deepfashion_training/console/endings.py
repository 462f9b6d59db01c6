"""How a command ends: its exit code, and one line for what went wrong."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable


def run_command(command: str, work: Callable[[], int | None], *, debug: bool, stopped: str) -> int:
    """Do ``work`` and return the exit code: its own, 1 after an error, 130 after Ctrl-C.

    An error is one line on stderr, with its traceback before it where ``debug`` is set; ``stopped`` says what Ctrl-C
    leaves behind.
    """
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


def close_progress_bars() -> None:
    """End the line of a progress bar that an error has cut short, so that the message has its own."""
    from tqdm import tqdm

    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def quiet_libraries() -> None:
    """Keep the libraries' progress bars out of the bar of the training, and a warning that no user can act on away."""
    import warnings

    # Where torchao is installed diffusers imports it for every model, and it tells what it cannot load on this machine.
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # for datasets, which is not imported for this alone
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # CLIP reads 77 tokens, so with captions this would be said of every row; T5 reads the whole prompt.
    logging.getLogger("diffusers.pipelines.flux").setLevel(logging.ERROR)
    # diffusers before 0.38 knows this argument by no other name, so the trainer has to use it.
    warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)


#: Longest message, and how much of a longer one's end is kept: the mend stands there.
_LONGEST, _END = 1200, 300


def in_one_line(text: str) -> str:
    """``text`` as one line to read: cut in its middle, control characters as escapes.

    What data or a file name put into a message must neither fill the screen nor steer the terminal.
    """
    line = " ".join(line for line in text.splitlines() if line.strip())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - _END]} ... {line[-_END:]}"
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)


def describe(error: Exception) -> str:
    """One line that says what went wrong; the type's name is given where the message is not meant for users."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    # A data loader puts the worker's traceback before the message, so the message is the last line.
    message = (lines[-1] if "Traceback" in str(error) else " ".join(lines)) if lines else "no message"
    message = in_one_line(message)
    if isinstance(error, (ValueError, OSError)):
        return message
    return f"{type(error).__name__}: {message} (--debug shows the traceback)"
