"""Presets: flags for a run, kept in YAML files by name or of the user's own."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PRESETS = Path(__file__).resolve().parents[1] / "presets"
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
