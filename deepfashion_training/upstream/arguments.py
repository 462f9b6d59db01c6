"""Our presets and flags in the words of a third-party script's own parser."""

from __future__ import annotations

import argparse
import contextlib
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from deepfashion_training.cli import WrongUseError
from deepfashion_training.upstream.script import Script

#: Arguments of our trainer that take effect without the script's help when it gets a LoRA.
FROM_OUTSIDE = frozenset(
    "lora lora_rank lora_alpha lora_target_modules lora_dropout use_dora use_rslora quantize_base inpaint_revision "
    "overwrite_output_dir num_validation_images num_inference_steps dataloader_num_workers dataloader_prefetch_factor "
    "checkpoints_total_limit resume_from_checkpoint".split()
)
#: Arguments of a script that gets a LoRA that would do nothing: decided for it, or for an upload that is not its own.
DECIDED = frozenset("train_base_model train_data_list train_verification_list validation_data_list hub_token".split())
_TRANSFORMER = "pretrained_inpaint_model_name_or_path"
#: Arguments whose default is our trainer's, because the script's own is not that of a LoRA for our base.
_OUR_DEFAULT = ("pretrained_model_name_or_path", _TRANSFORMER, "seed")


def parser_of(script: Script) -> ArgumentParser | None:
    """The parser that the script's ``parse_args`` builds; nothing is parsed. None where it uses no argparse."""
    seen: list[ArgumentParser] = []

    def stop(parser: ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        seen.append(parser)
        raise SystemExit

    stopped = mock.patch.multiple(ArgumentParser, parse_args=stop, parse_known_args=stop)
    with script.imports.importable(), stopped, contextlib.suppress(SystemExit):
        script.module.parse_args([])
    return seen[0] if seen else None


def parse_arguments(
    script: Script,
    ours: ArgumentParser,
    from_preset: dict[str, Any],
    given: dict[str, Any],
    from_user: dict[str, Any],
    handed_on: list[str],
) -> Namespace:
    """Arguments of a run through ``script``; ``ours`` is the parser of our own trainer.

    Values are by the names of our trainer's arguments: those of the preset, those ``given`` by what is known already,
    and those typed, each winning over the ones before; ``handed_on`` are words that only the script knows. For a script
    that gets a LoRA every argument of our trainer is there, for any other those that it has itself. What a preset has
    and the script does not know goes into ``script.notes``. Raises ``WrongUseError`` for what was typed and would do
    nothing, and for a value that the script's parser refuses.
    """
    theirs = parser_of(script) or ours
    if script.gets_lora:
        given = {name: ours.get_default(name) for name in _OUR_DEFAULT if name not in from_preset} | given
    elif (Path(given.get(_TRANSFORMER, "")) / "transformer" / "config.json").is_file():
        given = {**given, _TRANSFORMER: str(Path(given[_TRANSFORMER]) / "transformer")}  # others look at the root alone
    values = {**from_preset, **given, **from_user}
    outside = FROM_OUTSIDE if script.gets_lora else frozenset()
    typed = {*from_user, *(word.partition("=")[0].removeprefix("--") for word in handed_on)}
    if script.gets_lora and (decided := DECIDED & typed):
        raise WrongUseError(f"--{min(decided)} does nothing here: the script is made to train a LoRA on our pairs")
    actions = {action.dest: action for action in theirs._actions}
    words, lost = [], []
    for name, value in values.items():
        if name in outside:
            continue
        # That of catvton-flux would go on with AdamW.
        if name in actions and (name, value) != ("optimizer", "muon"):
            words += words_of(actions[name], value)
        elif name in from_user:
            raise WrongUseError(f"--{name} {value} does nothing here: this --upstream script does not know it")
        elif name not in given:
            lost.append(f"--{name} {value}")
    if lost:
        script.notes.append(f"  of the preset, without effect in this script: {', '.join(lost)}")
    if "--instance_data_dir" in theirs._option_string_actions and "dataset_name" not in typed:
        words.append(f"--instance_data_dir={given['dataroot']}")  # that of catvton-flux wants one of the two
    with script.imports.importable(), mock.patch.object(ArgumentParser, "error", _refuse):
        args = script.module.parse_args([*words, *handed_on])
    return settings_of(ours, values, args) if script.gets_lora else args


def _refuse(parser: ArgumentParser, message: str) -> NoReturn:
    """In place of argparse's whole usage and exit."""
    raise WrongUseError(message)


def words_of(action: argparse.Action, value: Any) -> list[str]:
    """``value`` as one would type it for ``action``; no word where that is what the flag's absence means."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return [f"--{'' if value else 'no-'}{action.dest}"]
    flag = max(action.option_strings, key=len)
    if action.nargs == 0:  # a switch, which stores its constant when it is there
        return [flag] if bool(value) == bool(action.const) else []
    return [] if value is None else [f"{flag}={value}"]


def settings_of(ours: ArgumentParser, given: dict[str, Any], script_args: Namespace) -> Namespace:
    """Every argument of our trainer as it holds in a run through a script that gets a LoRA, and the script's own.

    Values are the script's, for what takes effect from outside those that were ``given``, else our trainer's defaults.
    """
    values = {action.dest: action.default for action in ours._actions if action.dest != "help"}
    values |= {name: value for name, value in vars(script_args).items() if name not in FROM_OUTSIDE}
    values |= {name: value for name, value in given.items() if name in FROM_OUTSIDE}
    values["train_base_model"] = False  # what is trained is the LoRA, whatever the script calls it
    values["mixed_precision"] = values["mixed_precision"] or "no"
    return Namespace(**values)
