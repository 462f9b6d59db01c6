"""What all commands share: the parser of their flags, presets, and how a command ends.

Knows nothing of the project but the trainer's parser, and imports nothing heavy before it has to.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from training_run.flags import OneLineParser
from training_run.flags import number as number  # commands take it from here
from training_run.stopping import TerminatedError, end_with_launcher, outlive_terminal, terminable

PRESETS = Path(__file__).resolve().parent / "presets"
_WORDS = {**dict.fromkeys(("true", "yes", "on"), True), **dict.fromkeys(("false", "no", "off"), False)}


class WrongUseError(Exception):
    """A command line that cannot be understood: exit code 2."""


class LoraFlag(argparse.Action):
    """``--lora`` and ``--lora_scale``, which may be repeated: a scale is that of the LoRA before it.

    ``lora`` becomes the names in their order, ``lora_scale`` the scales by the number of LoRAs before them; both stay
    None where they are not given. A scale in front, 0, is that of the only LoRA; see ``lora_scales``.
    """

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        """Add ``value``; ``argparse.ArgumentError`` where it cannot be told which LoRA a scale is of."""
        names, scales = list(namespace.lora or ()), dict(namespace.lora_scale or {})
        if self.dest == "lora":
            names.append(value)
        elif len(names) in scales or (len(names) == 1 and 0 in scales):
            of = f"--lora {names[-1]}" if names else "the LoRA that follows"
            raise argparse.ArgumentError(self, f"{of} has two scales: leave one of them out")
        else:
            scales[len(names)] = value
        if 0 in scales and len(names) > 1:
            raise argparse.ArgumentError(
                self,
                f"--lora_scale {scales[0]:g} comes before any --lora: put each scale behind the --lora that it is for",
            )
        namespace.lora, namespace.lora_scale = names, scales


def lora_scales(args: argparse.Namespace) -> list[float]:
    """The scale of each LoRA in ``args.lora``: 1 where none was given."""
    scales = args.lora_scale or {}
    return [scales.get(number + 1, scales.get(0, 1.0)) for number in range(len(args.lora or ()))]


class RepeatedFlag(argparse.Action):
    """A flag that may be repeated: its value is the text that was given, the list of them where there are several."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        """Add ``value``."""
        before = getattr(namespace, self.dest)
        known = before if isinstance(before, list) else [before] if isinstance(before, str) else []
        setattr(namespace, self.dest, [*known, value] if known else value)


class FaultsError(ValueError):
    """Several things to fix, each said in a line of its own."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class FlagParser(OneLineParser):
    """Parser of the command ``python -m deepfashion_training.<command>``; wrong use raises ``WrongUseError``."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"python -m deepfashion_training.{command}", description=description)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raise ``WrongUseError``."""
        raise WrongUseError(message)

    def defaults(self) -> dict[str, Any]:
        """The value of each flag where it is not given."""
        every = reversed(self._actions)  # where several flags set one value, the first has its default
        return {action.dest: action.default for action in every if action.default is not argparse.SUPPRESS}


@dataclass(frozen=True)
class Preset:
    """Flags as data, with what they need of a machine."""

    name: str
    path: Path
    about: str
    flags: dict[str, str]
    """Values as they are written; an empty text or ``null`` leaves a flag out."""
    gpu_memory_gib: float | None = None
    """GPU memory that a run takes; None where the preset does not say."""
    disk_gib: float | None = None
    smaller: tuple[dict[str, str], ...] = ()
    """Flags for a GPU on which the run does not fit, each step beside those before it."""

    @property
    def of_project(self) -> bool:
        """Whether it is one of ``presets/``, by name or by path, and no file of the user's own."""
        return self.path.resolve().parent == PRESETS

    def values(
        self, parser: FlagParser, typed_only: Collection[str] = (), flags: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """The values of the flags (None: ``self.flags``) by their names in ``parser``; None for one that is left out.

        Raises ``WrongUseError`` for a flag that ``parser`` does not know or would not take this value for, and for one
        of ``typed_only``, which belong on the command line.
        """
        values: dict[str, Any] = {}
        for flag, text in (self.flags if flags is None else flags).items():
            try:
                action = parser._option_string_actions.get(f"--{flag}") or parser.refuse(f"--{flag}")
                if action.dest in typed_only:
                    parser.error(f"{flag} belongs on the command line, not in a preset")
                words = [f"--{flag}={text}"]
                if text in ("", "null", "~"):
                    words = []
                elif action.nargs is not None and text.lower() in _WORDS:  # a switch
                    words = [f"--{flag}" if _WORDS[text.lower()] else f"--no-{flag}"]
                values |= {action.dest: None} | parser.given(words)[0]
            except WrongUseError as error:
                raise WrongUseError(f"--preset {self.path}: {error}") from error
        return values


def load_preset(name: str) -> Preset:
    """The preset with this name in ``presets/``, or of a YAML file at this path.

    A value is read as it is written: ``no`` is the word, ``010`` is ten. Raises ``WrongUseError`` for what is no
    preset, and for anything in it that would not be read.
    """
    import yaml

    path = PRESETS / f"{name}.yaml"
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        known = sorted(preset.stem for preset in PRESETS.glob("*.yaml") if preset.stem != "embedded")
        raise WrongUseError(f"--preset {name}: no such preset or file; the presets are {', '.join(known)}")

    class Loader(yaml.BaseLoader):
        """Every scalar is a text; a key that is there twice is an error."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            seen = [key.value for key, _ in node.value]
            if twice := [key for key in seen if seen.count(key) > 1]:
                raise WrongUseError(f"--preset {path}: {twice[0]!r} is there twice: leave one of them out")
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise WrongUseError(f"--preset {path} is no valid YAML: {in_one_line(str(error))}") from error
    if isinstance(content, dict) and (unread := set(content) - {"about", "needs", "flags", "smaller"}):
        raise WrongUseError(
            f"--preset {path}: {min(unread)!r} is not read: the keys are about, needs, flags and smaller, with flags "
            "below the last two"
        )
    try:
        flags, needs = content.get("flags", {}), content.get("needs") or {}
        smaller = tuple(content.get("smaller", ()))
        if all(isinstance(value, str) for step in (flags, *smaller) for value in step.values()):
            numbers = {need: float(gib) for need, gib in needs.items()}
            return Preset(path.stem, path, str(content.get("about", "")), flags, smaller=smaller, **numbers)
    except (AttributeError, TypeError, ValueError):
        pass
    raise WrongUseError(
        f"--preset {path}: its keys are about, a text; needs, with the numbers gpu_memory_gib and disk_gib; flags, "
        "with the names of flags and a single value for each; and smaller, a list of such flags"
    )


def load_cards() -> list[dict[str, Any]]:
    """The entries of ``cards.yaml``: what cards are taken to do where none is here to be measured."""
    import yaml

    cards: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("cards.yaml").read_text("utf-8"))
    return cards


def run_command(command: str, argv: list[str] | None, work: Callable[[list[str]], int | None], stopped: str) -> int:
    """Do ``work`` on the words of the command line and return the exit code.

    ``argv`` takes the place of what was typed. The code is that of ``work``, 1 after an error, 2 for wrong use, 130
    after Ctrl-C and 143 after SIGTERM or SIGHUP. An error is one line on stderr, each fault of a ``FaultsError`` one,
    with its traceback before it after ``--debug``; ``stopped`` says what is left behind when it is stopped.
    """
    words = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a sign gets its escape
            stream.reconfigure(errors="backslashreplace")
    outlive_terminal()
    end_with_launcher()
    try:
        with terminable():
            return work(words) or 0
    except KeyboardInterrupt as stop:
        close_progress_bars()
        sys.stderr.write(f"\n{command}: stopped; {stopped}\n")
        return 143 if isinstance(stop, TerminatedError) else 130
    except WrongUseError as error:
        sys.stderr.write(f"{command}: {in_one_line(str(error))} (see --help)\n")
        return 2
    except Exception as error:
        close_progress_bars()
        if "--debug" in words:
            traceback.print_exc()
        faults = map(in_one_line, error.faults) if isinstance(error, FaultsError) else [describe(error)]
        sys.stderr.write("".join(f"{command}: {fault}\n" for fault in faults))
        return 1


def close_progress_bars() -> None:
    """End the line of a progress bar that an error has cut short, so that the message has its own."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def quiet_libraries() -> None:
    """Keep the libraries' progress bars out of the bar of the training, and a warning that no user can act on away."""
    import warnings

    # Where they are installed diffusers imports these for every model, and they tell what they cannot load on this
    # machine.
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
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
    warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # with a second LoRA, which is meant


def in_one_line(text: str) -> str:
    """``text`` as one line to read: cut in its middle, as the fix stands at its end; control characters as escapes."""
    line = " ".join(line for line in text.splitlines() if line.strip())
    line = line if len(line) <= 1200 else f"{line[:900]} ... {line[-300:]}"
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)


def describe(error: Exception) -> str:
    """One line that says what went wrong; the type's name is given where the message is not meant for users."""
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        name = "".join(sign if sign.isprintable() else "?" for sign in error.object)
        return (
            f"{name} is no name in UTF-8: rename that file or folder, or set PYTHONUTF8=1 where the locale is another"
        )
    lines = [line for line in str(error).splitlines() if line.strip()]
    # A data loader puts the worker's traceback before the message, so the message is the last line.
    message = (lines[-1] if "Traceback" in str(error) else " ".join(lines)) if lines else "no message"
    message = in_one_line(message)
    if isinstance(error, (ValueError, OSError)):
        return message
    return f"{type(error).__name__}: {message} (--debug shows the traceback)"
