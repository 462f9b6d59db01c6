"""Our presets and flags in the words of a script's own parser: what is handed on, lost or refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from deepfashion_training import run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.upstream.arguments import settings_of, words_of
from deepfashion_training.upstream.script import Script

SCRIPT = Path(__file__).parent / "scripts" / "catvton_flux" / "train_flux_inpaint.py"
SIZES = {"quick_test": (512, 384), "full": (768, 576), "h100": (768, 576), "low_vram": (512, 384)}


def resolve(*argv: object) -> tuple[argparse.Namespace, Script]:
    args, script = run_arguments.parse([*map(str, argv), f"--upstream={SCRIPT}", "--output_dir=/nowhere/out"])
    assert isinstance(script, Script) and script.gets_lora
    return args, script


# ---- the presets that come with the project


@pytest.mark.parametrize("name", SIZES)
def test_every_preset_holds_in_the_script(name: str) -> None:
    args, script = resolve("--preset", name, "--dataset_name", "some/rows")
    flags = run_arguments.load_preset(name).values(run_arguments.build_parser())
    # A script compiles or it does not, and recomputes every block or none.
    compiles = name in ("full", "h100")
    assert ("--compile_blocks True" in script.notes[-1]) == compiles
    assert ("--activation_memory_budget" in script.notes[-1]) == (name == "full")
    script_has = {"gradient_checkpointing": True} | ({"compile_blocks": False} if compiles else {})
    script_has |= {"activation_memory_budget": 1.0} if name == "full" else {}
    assert {flag: getattr(args, flag) for flag in flags} == flags | script_has
    assert (args.height, args.width) == SIZES[name]
    assert args.dataroot == args.instance_data_dir == "some/rows"
    assert args.train_base_model is False and args.lora_alpha is None and args.lora_target_modules == "all"
    assert args.output_dir == "/nowhere/out"


def test_embedded_and_the_users_flags_win() -> None:
    typed = ["--learning_rate", "3e-4", "--lora_rank=6", "--dropout_prob", "0.25", "--scale_lr"]
    args, _ = resolve("--preset", "low_vram", "--embedded", *typed)
    assert (args.height, args.width, args.mixed_precision, args.quantize_base) == (128, 96, "no", None)
    assert args.pretrained_model_name_or_path == str(TINY_FLUX_FILL)
    assert (args.learning_rate, args.lora_rank, args.use_8bit_adam, args.gradient_checkpointing) == (3e-4, 6, 0, 0)
    assert (args.dropout_prob, args.scale_lr) == (0.25, True)


# ---- wrong use


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["--dropout_prop", "0.1"], "--dropout_prop: did you mean --dropout_prob?"),
        (["--lerning_rate=1"], "--lerning_rate: did you mean --learning_rate?"),
        (["--garment_loss_weight", "2"], "--garment_loss_weight 2.0 does nothing here"),
        (["--ema_decay", "0.9"], "--ema_decay 0.9 does nothing here"),
        (["--prior_loss_weight", "1"], "--prior_loss_weight 1.0 does nothing here"),
        (["--timestep_shift", "tokens"], "--timestep_shift tokens does nothing here"),
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
    assert args.learning_rate == 1e-3
    assert script.notes[-1].endswith(": --garment_loss_weight 2.0, --logging_steps 5")


# ---- single flags


def parser(*flags: tuple[str, dict[str, Any]]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(allow_abbrev=False)
    for flag, settings in flags:
        made.add_argument(flag, **settings)
    return made


@pytest.mark.parametrize(
    ("action", "value", "words"),
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
def test_a_value_is_typed_as_the_flag_wants_it(action: dict[str, Any], value: Any, words: list[str]) -> None:
    theirs = parser(("--flag", action))
    assert words_of(theirs._option_string_actions["--flag"], value) == words
    assert theirs.parse_args(words).flag == value


def test_a_run_holds_what_the_script_has_and_what_needs_no_script() -> None:
    ours = parser(("--height", {"default": 1}), ("--lora_rank", {"default": 16}), ("--caption_dropout", {"default": 0}))
    script_args = argparse.Namespace(height=5, lora_rank=99, mixed_precision=None, own=3)
    settings = vars(settings_of(ours, {"lora_rank": 4, "height": 7}, script_args))
    expected = {"height": 5, "lora_rank": 4, "caption_dropout": 0, "own": 3}
    assert {name: settings[name] for name in expected} == expected
    assert (settings["mixed_precision"], settings["train_base_model"]) == ("no", False)
    assert settings_of(ours, {}, script_args).lora_rank == 16
