"""Our presets and flags in the words of a third-party script's own parser."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Arguments of our trainer that take effect without the script's help when a LoRA goes through it as an adapter.
FROM_OUTSIDE = frozenset(
    "lora_rank lora_alpha lora_target_modules use_dora use_rslora quantize_base inpaint_revision overwrite_output_dir "
    "num_validation_images num_inference_steps dataloader_num_workers dataloader_prefetch_factor "
    "checkpoints_total_limit resume_from_checkpoint".split()
)
#: Arguments of a script that are decided for it, so that typing them would do nothing.
DECIDED = frozenset({"train_base_model", "train_data_list", "train_verification_list", "validation_data_list"})
#: Values that a script takes for something else: that of catvton-flux goes on with AdamW.
OURS_ALONE = {"optimizer": "muon"}


class UnknownFlagError(ValueError):
    """A flag that was typed and that nobody would read; the message is one line."""


@dataclass
class Translation:
    """Arguments for a script, and what became of the others."""

    tokens: list[str]
    """For the script's ``parse_args``."""
    settings: dict[str, Any]
    """Values of our trainer's arguments that were given, by the preset or on the command line."""
    lost: list[str] = field(default_factory=list)
    """Flags of the preset, with their values, that the script does not know."""


def translate(
    theirs: argparse.ArgumentParser,
    from_preset: Mapping[str, Any],
    from_user: Mapping[str, Any],
    handed_on: Sequence[str],
    *,
    adapter: bool,
) -> Translation:
    """Values of our trainer's arguments, ``from_preset`` and ``from_user``, for a script with the parser ``theirs``.

    ``handed_on`` are tokens that only ``theirs`` knows. A flag of the preset that the script does not know is listed; a
    typed one, or one that is decided for a script that gets an ``adapter``, raises ``UnknownFlagError``.
    """
    found = Translation([], {**from_preset, **from_user})
    actions = {action.dest: action for action in theirs._actions}
    typed = {*from_user, *(token.partition("=")[0].removeprefix("--") for token in handed_on)}
    if adapter and (refused := DECIDED & typed):
        raise UnknownFlagError(f"--{min(refused)} does nothing here: it is decided by what --upstream is driven for")
    for name, value in found.settings.items():
        if adapter and name in FROM_OUTSIDE:
            continue
        if name in actions and (value is None or OURS_ALONE.get(name) != value):
            found.tokens += tokens_of(actions[name], value)
        elif name in from_user:
            raise UnknownFlagError(f"--{name} {value} does nothing here: this --upstream script does not know it")
        else:
            found.lost.append(f"--{name} {value}")
    found.tokens += handed_on
    return found


def tokens_of(action: argparse.Action, value: Any) -> list[str]:
    """``value`` as one would type it for ``action``; no token where that is what the flag's absence means."""
    flag = max(action.option_strings, key=len)
    if isinstance(action, argparse.BooleanOptionalAction):
        return [f"--{'' if value else 'no-'}{action.dest}"]
    if action.nargs == 0:  # a switch, which stores its constant when it is there
        return [flag] if bool(value) == bool(action.const) else []
    return [] if value is None else [f"{flag}={value}"]


def settings_of(ours: argparse.ArgumentParser, given: Mapping[str, Any], script_args: Namespace) -> Namespace:
    """Every argument of our trainer as it holds in the run.

    What takes effect without the script is as given, else our default; the rest as the script has it, where it does.
    """
    values = {action.dest: action.default for action in ours._actions if action.dest != "help"}
    values |= {name: value for name, value in vars(script_args).items() if name not in FROM_OUTSIDE}
    values |= {name: value for name, value in given.items() if name in FROM_OUTSIDE}
    values["train_base_model"] = False  # what is trained is the LoRA, whatever the script calls it
    values["mixed_precision"] = values["mixed_precision"] or "no"
    return Namespace(**values)
