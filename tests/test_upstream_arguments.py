"""Our presets and flags in the words of a script's own parser: what is handed on, lost or refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.upstream import script as upstream
from deepfashion_training.upstream.arguments import FROM_OUTSIDE, UnknownFlagError, settings_of, tokens_of, translate

SCRIPT = Path(__file__).parent / "scripts" / "catvton_flux" / "train_flux_inpaint.py"
SIZES = {"quick_test": (512, 384), "full": (768, 576), "h100": (768, 576), "low_vram": (512, 384)}


def resolve(*argv: object) -> tuple[argparse.Namespace, upstream.DrivenScript]:
    args, script = wrapper.resolve([*map(str, argv), f"--upstream={SCRIPT}", "--output_dir=/nowhere/out"])
    assert isinstance(script, upstream.DrivenScript)
    return args, script


# ---- the presets that come with the project


@pytest.mark.parametrize("name", SIZES)
def test_every_preset_holds_in_the_script(name: str) -> None:
    args, script = resolve("--preset", name, "--dataset_name", "some/rows")
    flags = wrapper.load_preset(name).values(wrapper.build_parser())
    # A script compiles or it does not, and recomputes every block or none.
    assert script.translation.lost == (["--compile_blocks True"] if name == "h100" else [])
    script_has = {"gradient_checkpointing": True, "compile_blocks": False} if name == "h100" else {}
    assert {flag: getattr(args, flag) for flag in flags} == flags | script_has
    assert (script.script_args.height, script.script_args.width) == SIZES[name]
    both = vars(script.script_args).keys() & flags.keys() - FROM_OUTSIDE - script_has.keys()
    assert {flag: getattr(script.script_args, flag) for flag in both} == {flag: flags[flag] for flag in both}
    assert {"height", "width", "max_train_steps", "learning_rate", "mixed_precision", "guidance_scale"} <= both
    assert args.dataroot == script.script_args.instance_data_dir == "some/rows"
    assert args.train_base_model is False and args.lora_alpha is None and args.lora_target_modules == "all"
    assert args.output_dir == script.script_args.output_dir == "/nowhere/out"
    assert not [token for token in script.translation.tokens if token.split("=")[0][2:] in FROM_OUTSIDE]


def test_embedded_and_the_users_flags_win() -> None:
    typed = ["--learning_rate", "3e-4", "--lora_rank=6", "--dropout_prob", "0.25", "--scale_lr"]
    args, script = resolve("--preset", "low_vram", "--embedded", *typed)
    assert (args.height, args.width, args.mixed_precision, args.quantize_base) == (128, 96, "no", None)
    assert script.script_args.pretrained_model_name_or_path == args.pretrained_model_name_or_path == str(TINY_FLUX_FILL)
    assert script.script_args.learning_rate == args.learning_rate == 3e-4
    assert args.lora_rank == 6 and script.script_args.lora_rank == 8  # its default: nobody reads it
    assert args.use_8bit_adam is script.script_args.use_8bit_adam is False
    assert args.gradient_checkpointing is script.script_args.gradient_checkpointing is False
    assert (script.script_args.dropout_prob, script.script_args.scale_lr) == (0.25, True)


# ---- wrong use


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["--dropout_prop", "0.1"], "--dropout_prop: did you mean --dropout_prob?"),
        (["--lerning_rate=1"], "--lerning_rate: did you mean --learning_rate?"),
        (["--garment_loss_weight", "2"], "--garment_loss_weight 2.0 does nothing here"),
        (["--optimizer", "Muon"], "--optimizer muon does nothing here"),
        (["--lora_rank", "0"], "--lora_rank"),
        (["--train_data_list", "x"], "--train_data_list does nothing here"),
        (["--train_base_model"], "--train_base_model does nothing here"),
        (["--dropout_prob", "much"], "--dropout_prob"),
    ],
)
def test_a_typed_flag_that_would_do_nothing_is_wrong_use(
    typed: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--embedded", "--upstream", str(SCRIPT), "--output_dir", str(tmp_path / "out"), *typed]
    try:
        code = wrapper.main(argv)
    except SystemExit as stopped:  # the trainer's own parser
        code = int(stopped.code or 0)
    error = capsys.readouterr().err
    assert code == 2 and named in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_a_preset_of_ones_own_loses_is_listed_and_the_run_goes_on(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("flags: {garment_loss_weight: 2.0, learning_rate: 1.0e-3, logging_steps: 5}", encoding="utf-8")
    args, script = resolve("--preset", preset)
    assert sorted(script.translation.lost) == ["--garment_loss_weight 2.0", "--logging_steps 5"]
    assert args.learning_rate == 1e-3
    assert all(flag in "\n".join(script.notes()) for flag in script.translation.lost)


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


def test_flags_are_handed_on_lost_or_refused() -> None:
    theirs = parser(*((f"--{name}", {"type": int}) for name in ("both", "theirs", "train_data_list")))
    preset, typed = {"both": 1, "ours": 3, "lora_rank": 4}, {"both": 5}
    found = translate(theirs, preset, typed, ["--theirs", "6"], adapter=True)
    assert found.tokens == ["--both=5", "--theirs", "6"]
    assert found.settings == {"both": 5, "ours": 3, "lora_rank": 4}
    assert found.lost == ["--ours 3"]
    assert translate(theirs, preset, typed, [], adapter=False).lost == ["--ours 3", "--lora_rank 4"]
    assert translate(theirs, {}, {"lora_rank": 4}, [], adapter=True).tokens == []
    with pytest.raises(UnknownFlagError, match="--ours 3 does nothing here"):
        translate(theirs, {}, {"ours": 3}, [], adapter=True)
    with pytest.raises(UnknownFlagError, match="--train_data_list does nothing here"):
        translate(theirs, {}, {}, ["--train_data_list", "3"], adapter=True)


def test_a_run_holds_what_the_script_has_and_what_needs_no_script() -> None:
    ours = parser(("--height", {"default": 1}), ("--lora_rank", {"default": 16}), ("--caption_dropout", {"default": 0}))
    script_args = argparse.Namespace(height=5, lora_rank=99, mixed_precision=None, own=3)
    settings = vars(settings_of(ours, {"lora_rank": 4}, script_args))
    expected = {"height": 5, "lora_rank": 4, "caption_dropout": 0, "own": 3}
    assert {name: settings[name] for name in expected} == expected
    assert (settings["mixed_precision"], settings["train_base_model"]) == ("no", False)
    assert settings_of(ours, {}, script_args).lora_rank == 16
