"""Presets: flags for a run, kept in YAML files by name or of the user's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PRESETS = Path(__file__).resolve().parents[1] / "presets"
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
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise WrongUseError(f"--preset {path} is no valid YAML: {' '.join(str(error).split())}") from error
    flags = content.get("flags", {}) if isinstance(content, dict) else None
    if not isinstance(flags, dict) or not all(isinstance(value, _PRESET_VALUES) for value in flags.values()):
        raise WrongUseError(f"--preset {path}: it needs a mapping 'flags' of flag names to single values")
    if odd := [flag for flag in flags if not re.fullmatch(r"[a-z]\w*", str(flag), re.ASCII)]:
        raise WrongUseError(f"--preset {path}: {odd[0]!r} is no name of a flag")
    for flag, value in flags.items():  # a number of more digits cannot even be written
        if value.bit_length() > 64 if isinstance(value, int) else len(str(value)) > _LONGEST_VALUE:
            raise WrongUseError(f"--preset {path}: the value of {flag} is longer than any that a flag takes")
    typed_only = {"preset", "upstream", "embedded", "check", "debug", "output_dir", "dataroot"}
    typed_only |= {"plan", "gpu_hour_price", "push_to_hub", "hub_model_id", "hub_private"}
    if misplaced := typed_only & set(flags):
        raise WrongUseError(f"--preset {path}: {sorted(misplaced)[0]} belongs on the command line, not in a preset")
    return {str(flag): value for flag, value in flags.items()}


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
