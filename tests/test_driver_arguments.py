"""Our presets and flags in the words of a script's own parser: what is handed on, lost, unread or refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.upstream import script as upstream
from deepfashion_training.upstream.arguments import (
    FROM_OUTSIDE,
    UnknownFlagError,
    explicit,
    settings_of,
    tokens_of,
    translate,
)

STAND_INS = Path(__file__).parent / "stand_ins"
SCRIPT = STAND_INS / "catvton_flux" / "train_flux_inpaint.py"


def resolve(*argv: object) -> tuple[argparse.Namespace, upstream.DrivenScript]:
    args, script = wrapper.resolve([*map(str, argv), f"--upstream={SCRIPT}", "--output_dir=/nowhere/out"])
    assert isinstance(script, upstream.DrivenScript)
    return args, script


def values_of(name: str) -> dict[str, Any]:
    return wrapper.load_preset(name).values(wrapper.build_parser())


def preset(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- the presets that come with the project

SIZES = {"quick_test": (512, 384), "full": (768, 576), "h100": (768, 576), "low_vram": (512, 384)}
SWITCHES = {
    "quick_test": {"--gradient_checkpointing"},
    "full": {"--gradient_checkpointing", "--allow_tf32"},
    "h100": {"--gradient_checkpointing", "--allow_tf32"},
    "low_vram": {"--gradient_checkpointing", "--allow_tf32", "--use_8bit_adam"},
}


@pytest.mark.parametrize("name", SIZES)
def test_every_preset_translates_without_a_loss(name: str) -> None:
    _, script = resolve("--preset", name)
    flags = values_of(name)
    tokens = script.translation.tokens
    # A script compiles or it does not; it is told that it will not.
    assert script.translation.lost == (["--compile_blocks True"] if name == "h100" else [])
    assert not script.translation.unread
    assert {token for token in tokens if "=" not in token} == SWITCHES[name]
    same = {flag: value for flag, value in flags.items() if flag not in FROM_OUTSIDE and not isinstance(value, bool)}
    same.pop("gradient_checkpointing", None)  # a switch there, whatever is recomputed here
    same = {flag: value for flag, value in same.items() if flag in vars(script.script_args)}
    assert {flag: getattr(script.script_args, flag) for flag in same} == same
    assert {"height", "width", "max_train_steps", "learning_rate", "mixed_precision", "guidance_scale"} <= set(same)
    assert not [token for token in tokens if token.split("=")[0][2:] in FROM_OUTSIDE]


def test_the_tokens_of_a_preset_word_for_word() -> None:
    _, script = resolve("--preset", "full", "--dataset_name", "some/rows")
    assert script.translation.tokens == (
        "--pretrained_model_name_or_path=black-forest-labs/FLUX.1-Fill-dev "
        "--pretrained_inpaint_model_name_or_path=xiaozaa/catvton-flux-alpha --mixed_precision=bf16 --allow_tf32 "
        "--dataroot=some/rows --height=768 --width=576 --max_sequence_length=512 --train_batch_size=1 "
        "--gradient_accumulation_steps=8 --max_train_steps=4000 --learning_rate=0.0001 --lr_scheduler=cosine "
        "--lr_warmup_steps=200 --gradient_checkpointing --seed=42 --guidance_scale=1.0 --output_dir=/nowhere/out "
        "--checkpointing_steps=500 --validation_steps=500 --instance_data_dir=some/rows"
    ).split(" ")


@pytest.mark.parametrize("name", SIZES)
def test_the_settings_of_a_run_are_the_presets(name: str) -> None:
    args, script = resolve("--preset", name)
    flags = values_of(name)
    # A script recomputes every block, or none.
    script_has = {"gradient_checkpointing": True, "compile_blocks": False} if name == "h100" else {}
    assert {flag: getattr(args, flag) for flag in flags} == flags | script_has
    assert (args.height, args.width) == SIZES[name]
    assert args.dataroot == script.script_args.instance_data_dir == wrapper.HUB_DATASET
    assert args.train_base_model is False and args.lora_alpha is None and args.lora_target_modules == "all"
    assert args.output_dir == script.script_args.output_dir == "/nowhere/out"


def test_embedded_and_the_users_flags_win() -> None:
    args, script = resolve("--preset", "low_vram", "--embedded", "--learning_rate", "3e-4", "--lora_rank=6")
    assert (args.height, args.width, args.mixed_precision, args.quantize_base) == (128, 96, "no", None)
    assert script.script_args.pretrained_model_name_or_path == args.pretrained_model_name_or_path == str(TINY_FLUX_FILL)
    assert script.script_args.learning_rate == args.learning_rate == 3e-4
    assert args.lora_rank == 6 and script.script_args.lora_rank == 8  # its default: nobody reads it
    assert args.use_8bit_adam is script.script_args.use_8bit_adam is False
    assert args.gradient_checkpointing is script.script_args.gradient_checkpointing is False


def test_what_a_user_types_for_the_script_alone_is_handed_on() -> None:
    typed = ["--dropout_prob", "0.25", "--scale_lr"]
    args, script = resolve("--preset", "full", *typed)
    assert script.translation.tokens[-4:-1] == typed
    assert (script.script_args.dropout_prob, script.script_args.scale_lr) == (0.25, True)
    assert args.dropout_prob == 0.25


# ---- wrong use


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--dropout_prop", "0.1"], "unknown argument --dropout_prop: did you mean --dropout_prob?"),
        (["--lerning_rate=1"], "unknown argument --lerning_rate: did you mean --learning_rate?"),
        (["--garment_loss_weight", "2"], "--garment_loss_weight does nothing here: this --upstream script does not kn"),
        (["--optimizer", "Muon"], "--optimizer muon does nothing here: this --upstream script does not know it"),
        (["--use_captions"], "--use_captions does nothing here: this --upstream script does not know it"),
        (["--lora_rank", "0"], "--lora_rank: 0 is not at least 1"),
        (["--prodigy_decouple="], "--prodigy_decouple does nothing here: this --upstream script never looks at it"),
        (["--train_data_list", "x"], "--train_data_list does nothing here: it is decided by what --upstream is driven"),
        (["--train_base_model"], "--train_base_model does nothing here: it is decided by what --upstream is driven"),
        (["--resume=latest"], "unknown argument --resume: did you mean"),
        (["--dropout_prob", "much"], "argument --dropout_prob: invalid float value: 'much'"),
    ],
)
def test_a_typed_flag_that_would_do_nothing_is_wrong_use(
    typed: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--embedded", "--upstream", str(SCRIPT), "--output_dir", str(tmp_path / "out"), *typed]
    try:
        code = wrapper.main(argv)
    except SystemExit as stopped:  # the trainer's own parser
        code = int(stopped.code or 0)
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_a_preset_of_ones_own_loses_is_listed_and_the_run_goes_on(tmp_path: Path) -> None:
    text = "flags: {garment_loss_weight: 2.0, use_captions: true, learning_rate: 1.0e-3, logging_steps: 5}"
    args, script = resolve("--preset", preset(tmp_path, text))
    assert sorted(script.translation.lost) == ["--garment_loss_weight 2.0", "--logging_steps 5", "--use_captions True"]
    assert args.learning_rate == 1e-3
    notes = [line for line in script.notes() if "unknown to it and without effect" in line]
    assert len(notes) == 1
    assert all(flag in notes[0] for flag in script.translation.lost)


# ---- single flags


def parser(*flags: tuple[str, dict[str, Any]]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(allow_abbrev=False)
    for flag, settings in flags:
        made.add_argument(flag, **settings)
    return made


@pytest.mark.parametrize(
    ("action", "value", "tokens"),
    [
        ({"type": float}, 0.5, ["--flag=0.5"]),
        ({"type": int}, 0, ["--flag=0"]),
        ({}, None, []),
        ({}, "-1 and more", ["--flag=-1 and more"]),
        ({"action": "store_true"}, True, ["--flag"]),
        ({"action": "store_true"}, False, []),
        ({"action": "store_false"}, False, ["--flag"]),
        ({"action": "store_false"}, True, []),
        ({"action": argparse.BooleanOptionalAction}, True, ["--flag"]),
        ({"action": argparse.BooleanOptionalAction}, False, ["--no-flag"]),
    ],
)
def test_a_value_is_typed_as_the_flag_wants_it(action: dict[str, Any], value: Any, tokens: list[str]) -> None:
    theirs = parser(("--flag", action))
    assert tokens_of(theirs._option_string_actions["--flag"], value) == tokens
    assert theirs.parse_args(tokens).flag == value


def test_a_flag_with_a_short_name_gets_its_long_one() -> None:
    theirs = argparse.ArgumentParser()
    theirs.add_argument("-r", "--rate", type=float)
    assert tokens_of(theirs._actions[-1], 2.0) == ["--rate=2.0"]


def test_only_what_is_given_is_explicit() -> None:
    ours = parser(("--a", {"type": int, "default": 7}), ("--b", {"required": True}), ("--c", {"action": "store_true"}))
    assert explicit(ours, ["--a", "7", "--other", "x"]) == ({"a": 7}, ["--other", "x"])
    assert explicit(ours, ["--c"]) == ({"c": True}, [])
    assert [action.dest for action in ours._actions if action.required] == ["b"]


def test_flags_are_handed_on_lost_or_unread() -> None:
    theirs = parser(*((f"--{name}", {"type": int}) for name in ("both", "mute", "theirs")))
    read, outside = frozenset({"both", "theirs"}), frozenset({"outside"})
    preset = {"both": 1, "mute": 2, "ours": 3, "outside": 4}
    found = translate(theirs, preset, {"both": 5}, ["--theirs", "6"], read, outside)
    assert found.tokens == ["--both=5", "--mute=2", "--theirs", "6"]
    assert found.settings == {"both": 5, "mute": 2, "ours": 3, "outside": 4}
    assert (found.lost, found.unread) == (["--ours 3"], ["--mute 2"])
    assert translate(theirs, preset, {}, [], None, outside).unread == []
    with pytest.raises(UnknownFlagError, match=r"^--ours does nothing here: this --upstream script does not know it$"):
        translate(theirs, {}, {"ours": 3}, [], read, outside)
    with pytest.raises(UnknownFlagError, match=r"^--mute does nothing here: this --upstream script never looks at it$"):
        translate(theirs, {}, {"mute": 3}, [], read, outside)
    with pytest.raises(UnknownFlagError, match=r"^--theirs does nothing here: this --upstream script never looks at i"):
        translate(theirs, {}, {}, ["--theirs", "3"], {"both"}, outside)
    assert translate(theirs, {}, {"outside": 3}, [], read, outside).tokens == []


def test_a_run_holds_what_the_script_has_and_what_is_seen_to_without_it() -> None:
    ours = parser(("--height", {"default": 1}), ("--lora_rank", {"default": 16}), ("--caption_dropout", {"default": 0}))
    script_args = argparse.Namespace(height=5, lora_rank=99, mixed_precision=None, own=3)
    settings = vars(settings_of(ours, {"lora_rank": 4}, script_args))
    expected = {"height": 5, "lora_rank": 4, "caption_dropout": 0, "own": 3}
    assert {name: settings[name] for name in expected} == expected
    assert (settings["mixed_precision"], settings["train_base_model"]) == ("no", False)
    assert settings_of(ours, {}, script_args).lora_rank == 16
