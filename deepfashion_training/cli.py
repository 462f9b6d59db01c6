"""What all commands share: one parser class, presets, and how a command ends.

Knows no room of the project, and imports nothing heavy before it has to.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn


class FlagParser(argparse.ArgumentParser):
    """Parser that answers an unknown flag with the nearest known one, in one line; exit code 2.

    ``command`` is the module's name in ``deepfashion_training``.
    """

    def __init__(self, command: str, description: str, **more: Any) -> None:
        super().__init__(
            prog=f"python -m deepfashion_training.{command}", description=description, allow_abbrev=False, **more
        )
        self.command = command

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; an unknown flag is told before what its misspelling leaves out."""
        for given in sys.argv[1:] if args is None else args:
            if given == "--":
                break
            name = given.split("=")[0]
            # With a blank in it, it is a value that begins with hyphens.
            if name.startswith("--") and " " not in name and name not in self._option_string_actions:
                self._refuse(name)
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0])
        return parsed

    def _refuse(self, unknown: str) -> NoReturn:
        near = difflib.get_close_matches(unknown.split("=")[0], self._option_string_actions, n=1)
        self.error(f"unknown argument {unknown}" + (f": did you mean {near[0]}?" if near else ""))

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and one line."""
        self.exit(2, f"{self.command}: {message} (see --help)\n")


def number(
    kind: type[int] | type[float], low: float = -math.inf, high: float = math.inf, step: int = 0
) -> Callable[[str], Any]:
    """Converter for argparse: a finite number in [low, high], and a multiple of ``step`` where one is given."""

    def read(text: str) -> Any:
        value = kind(text)
        # An int of 400 digits is finite, and none that isinf could look at.
        if not low <= value <= high or value in (math.inf, -math.inf) or (step and value % step):
            limits = f"from {low:g} to {high:g}" if high < math.inf else f"at least {low:g}"
            limits = "a finite number" if low == -math.inf and high == math.inf else limits
            raise argparse.ArgumentTypeError(f"{text} is not {limits}" + (f" and a multiple of {step}" if step else ""))
        return value

    read.__name__ = kind.__name__  # what argparse calls it in its messages
    return read


def garment_types(text: str) -> str:
    """Converter for argparse: a comma-separated list of garment types, in ascending order and without repeats."""
    from deepfashion_training.garment_types import TYPE_NAMES, parse_cloth_types

    try:
        return ",".join(TYPE_NAMES[number] for number in parse_cloth_types(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


PRESETS = Path(__file__).resolve().parent / "presets"
#: What is read of a preset.
_KEYS = ("about", "needs", "flags")
_NEEDS = ("gpu_memory_gib", "disk_gib")
#: What a flag's value in a preset may be: no collections, bytes or dates.
_PRESET_VALUES = (bool, int, float, str, type(None))
#: Longest value of a preset: far above any prompt or number.
_LONGEST_VALUE = 4000


class WrongUseError(Exception):
    """A command line that cannot be understood: exit code 2."""


def load_preset(name: str) -> dict[str, Any]:
    """Flags of a preset, by its name in ``presets/`` or by the path of a YAML file."""
    import yaml

    path = _preset_file(name)
    if not path.is_file():
        known = sorted(preset.stem for preset in PRESETS.glob("*.yaml") if preset.stem != "embedded")
        raise WrongUseError(f"--preset {name}: no such preset or file; the presets are {', '.join(known)}")
    try:
        text = path.read_text(encoding="utf-8")
        content, as_written = yaml.safe_load(text), _as_written(path, yaml.compose(text, yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise WrongUseError(f"--preset {path} is no valid YAML: {' '.join(str(error).split())}") from error
    flags = content.get("flags", {}) if isinstance(content, dict) else None
    for key in content if isinstance(content, dict) else ():
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            fix = f"did you mean '{near[0]}'?" if near else "flags stand below 'flags:', indented"
            raise WrongUseError(f"--preset {path}: nobody reads {key!r} there: {fix}")
    if not isinstance(flags, dict) or not all(isinstance(value, _PRESET_VALUES) for value in flags.values()):
        raise WrongUseError(f"--preset {path}: it needs a mapping 'flags' of flag names to single values")
    if odd := [flag for flag in flags if not re.fullmatch(r"[a-z]\w*", str(flag), re.ASCII)]:
        raise WrongUseError(f"--preset {path}: {odd[0]!r} is no name of a flag")
    for flag, value in flags.items():  # a number of more digits cannot even be written
        if value.bit_length() > 64 if isinstance(value, int) else len(str(value)) > _LONGEST_VALUE:
            raise WrongUseError(f"--preset {path}: the value of {flag} is longer than any that a flag takes")
    for flag, value in flags.items():
        written = as_written["flags"].get(str(flag))  # none for one that a merge key (<<) brings
        if type(value) in (int, float) and written is not None and not _is_number(written, value):
            raise WrongUseError(
                f"--preset {path}: YAML reads {flag}: {written} as {value}: write the number as it is meant, or in "
                "quotes what is no number"
            )
    needs = content.get("needs") or {}
    if not isinstance(needs, dict) or any(
        need not in _NEEDS or type(amount) not in (int, float) for need, amount in needs.items()
    ):
        raise WrongUseError(
            f"--preset {path}: below 'needs' stand {' and '.join(_NEEDS)}, as numbers, and nothing else"
        )
    typed_only = {"preset", "upstream", "embedded", "check", "debug", "output_dir", "dataroot"}
    typed_only |= {"plan", "gpu_hour_price", "push_to_hub", "hub_model_id", "hub_private"}
    if misplaced := typed_only & set(flags):
        raise WrongUseError(f"--preset {path}: {sorted(misplaced)[0]} belongs on the command line, not in a preset")
    return {str(flag): value for flag, value in flags.items()}


def _as_written(path: Path, node: Any) -> Any:
    """The mappings of a YAML ``node``, their values as they are written; ``WrongUseError`` for a key that is twice."""
    if node is None or node.id != "mapping":
        return getattr(node, "value", None)
    found: dict[str, Any] = {}
    for key, value in node.value:
        if key.value in found:
            raise WrongUseError(f"--preset {path}: {key.value!r} is there twice: leave one of them out")
        found[str(key.value)] = _as_written(path, value)
    return found


def _is_number(written: str, value: float) -> bool:
    """Whether a person reads ``value`` in ``written``; not in 010, which is octal, or in 1:30, which are sixties."""
    try:
        return (int(written) if isinstance(value, int) else float(written)) == value
    except ValueError:
        return False


def refuse_booleans(name: str, flags: dict[str, Any], parsers: Iterable[argparse.ArgumentParser]) -> None:
    """Raise ``WrongUseError`` for a flag of the preset ``name`` that takes a word and has got a boolean.

    YAML reads ``no``, ``off``, ``yes`` and ``on`` as booleans.
    """
    options: dict[str, Any] = {}
    for parser in parsers:
        options |= parser._option_string_actions
    for flag, value in flags.items():
        action = options.get(f"--{flag}")
        if isinstance(value, bool) and action and (action.nargs is None or as_typed({flag: value})[0] not in options):
            words = list(action.choices or ())
            fix = 'write it in quotes, "no"' if "no" in words else "write null to leave it out"
            fix += f"; it can be {', '.join(map(str, words))}" if words else ""
            raise WrongUseError(
                f"--preset {_preset_file(name)}: {flag} takes a word, and YAML reads no, off, yes and on as true or "
                f"false: {fix}"
            )


def _preset_file(name: str) -> Path:
    own = PRESETS / f"{name}.yaml"
    return own if own.is_file() else Path(name)


def gpu_memory_of(name: str) -> float | None:
    """GPU memory in GiB that the preset asks for; None where it does not say. ``load_preset`` has read it before."""
    import yaml

    needs = yaml.safe_load(_preset_file(name).read_text(encoding="utf-8")).get("needs")
    gib = needs.get("gpu_memory_gib") if isinstance(needs, dict) else None
    return float(gib) if isinstance(gib, (int, float)) and gib > 0 else None


def as_typed(flags: dict[str, Any]) -> list[str]:
    """``flags`` as they would be typed; a flag whose value is None is left out."""
    switches = {True: "--{}", False: "--no-{}"}
    return [
        switches[value].format(flag) if isinstance(value, bool) else f"--{flag}={value}"
        for flag, value in flags.items()
        if value is not None
    ]


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
