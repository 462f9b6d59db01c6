"""Parsing of a command line: the nearest known flag for an unknown one, and numbers within limits."""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Callable
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
    from deepfashion_training.pairs.garment_types import TYPE_NAMES, parse_cloth_types

    try:
        return ",".join(TYPE_NAMES[number] for number in parse_cloth_types(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
