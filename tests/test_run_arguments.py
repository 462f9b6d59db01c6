"""How a command line becomes the arguments of a run: where values come from, and which words are wrong use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from deepfashion_training import run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.cli import PRESETS
from deepfashion_training.embedded import TINY_FLUX_FILL

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--preset", "quick_test", "--embedded"]
OF_SMALL_MODEL = ((1, 10, 11), (5, 3, 3))  # its mixture of garment types, at the first step and the last


def parsed(tmp_path: Path, *argv: str):
    return run_arguments.parse([*argv, f"--output_dir={tmp_path / 'out'}"])[0]


def preset(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def mixture(args: Any) -> tuple[object, object]:
    """The shares of garment types at the first step, and at the last where they move."""
    return args.cloth_type_shares, args.final_cloth_type_shares


def test_the_users_flag_beats_the_preset_which_beats_the_trainer(tmp_path: Path) -> None:
    mine = preset(tmp_path, "flags: {learning_rate: 3.0e-4, lora_rank: 4, cloth_types: lower, use_dora: true}")
    args = parsed(tmp_path, "--preset", mine, "--lora_rank", "8", "--no-use_dora")
    assert (args.learning_rate, args.lora_rank, args.cloth_types, args.use_dora) == (3e-4, 8, "lower", False)
    assert args.max_grad_norm == 1.0
    assert parsed(tmp_path, "--preset", mine, "--cloth_types", "full,upper").cloth_types == "upper,full"


@pytest.mark.parametrize(("products", "precision"), [(True, "bf16"), (False, "no")])
def test_embedded_lies_over_the_preset_and_under_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, products: bool, precision: str
) -> None:
    monkeypatch.setattr(run_arguments, "has_bf16_products", lambda: products)
    args = parsed(tmp_path, "--preset", "low_vram", "--embedded", "--max_train_steps", "7")
    assert (args.height, args.width, args.mixed_precision, args.quantize_base) == (128, 96, precision, None)
    chosen = parsed(tmp_path, "--preset", "low_vram", "--embedded", "--mixed_precision", "no" if products else "bf16")
    assert chosen.mixed_precision != precision
    assert args.pretrained_model_name_or_path == args.pretrained_inpaint_model_name_or_path == str(TINY_FLUX_FILL)
    assert args.dataset_name == args.dataroot == str(tmp_path / "out" / "wardrobe")
    assert args.max_train_steps == 7


def test_a_preset_of_the_project_is_the_same_by_name_and_by_path(tmp_path: Path) -> None:
    by_path = os.path.relpath(PRESETS / "low_vram.yaml")
    by_name = parsed(tmp_path, "--preset", "low_vram", "--embedded")
    assert vars(parsed(tmp_path, "--preset", by_path, "--embedded")) == vars(by_name) | {"preset": by_path}
    assert run_arguments.smaller_steps(["--preset", by_path, "--embedded"]) == []


@pytest.mark.parametrize(("processes", "each"), [("1", 16), ("2", 8), ("3", 6)])
def test_processes_share_the_pairs_of_a_step_of_the_small_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str, each: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert parsed(tmp_path, *QUICK).train_batch_size == each
    assert parsed(tmp_path, *QUICK, "--train_batch_size", "6").train_batch_size == 6  # the user's is that of each
    assert parsed(tmp_path, "--preset", "h100").train_batch_size == 2


def test_the_default_dataset_is_the_one_on_the_hub(tmp_path: Path) -> None:
    args = parsed(tmp_path)
    assert args.dataset_name == args.dataroot == "SaffalPoosh/deepFashion-with-masks"
    assert parsed(tmp_path, "--dataset_name", "a/b").dataroot == "a/b"


def test_a_default_output_directory_never_is_an_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_arguments, "REPOSITORY", tmp_path)
    assert run_arguments.parse(QUICK)[0].output_dir == str(tmp_path / "outputs" / "quick_test")
    (tmp_path / "outputs" / "quick_test" / "checkpoint-5").mkdir(parents=True)
    assert run_arguments.parse(QUICK)[0].output_dir == str(tmp_path / "outputs" / "quick_test-2")
    (tmp_path / "outputs" / "quick_test-2").mkdir()
    assert run_arguments.parse(["--embedded"])[0].output_dir == str(tmp_path / "outputs" / "full-embedded")
    resumed = run_arguments.parse([*QUICK, "--resume_from_checkpoint", "latest"])[0]
    assert resumed.output_dir == str(tmp_path / "outputs" / "quick_test")


def test_a_named_checkpoint_is_continued_in_its_own_directory(tmp_path: Path) -> None:
    args = run_arguments.parse([*QUICK, "--resume_from_checkpoint", str(tmp_path / "mine" / "checkpoint-3")])[0]
    assert args.output_dir == str(tmp_path / "mine")


def test_epochs_of_the_user_beat_steps_of_the_preset(tmp_path: Path) -> None:
    args = parsed(tmp_path, *QUICK, "--num_train_epochs", "3")
    assert (args.num_train_epochs, args.max_train_steps) == (3, None)


def test_a_presets_values_make_no_flag_of_the_user_impossible(tmp_path: Path) -> None:
    for flags in ("--optimizer adamw", "--weighting_scheme none", "--validation_steps 0", "--train_base_model"):
        assert parsed(tmp_path, *QUICK, *flags.split()).muon_ns_steps == 3
    assert parsed(tmp_path, "--lr_scheduler", "constant").lr_warmup_steps == 200


def test_shares_of_types_take_the_place_of_a_presets_and_of_equal_ones(tmp_path: Path) -> None:
    args = parsed(tmp_path, *QUICK, "--cloth_type_shares", "2,1,.5")
    assert (args.cloth_type_shares, args.balance_cloth_types) == ((2, 1, 0.5), False)
    options = wrapper.dataset_options(args)
    assert (options.cloth_type_shares, options.balance_cloth_types) == ((2, 1, 0.5), False)
    args = parsed(tmp_path, *QUICK, "--balance_cloth_types", "--final_cloth_type_shares", "1,0,0")
    assert args.balance_cloth_types and wrapper.dataset_options(args).final_cloth_type_shares == (1, 0, 0)
    mine = preset(tmp_path, "flags: {cloth_type_shares: '1,2,3'}")
    assert parsed(tmp_path, "--preset", mine).cloth_type_shares == (1, 2, 3)
    args = parsed(tmp_path, "--preset", mine, "--balance_cloth_types")
    assert (args.cloth_type_shares, args.balance_cloth_types) == (None, True)


def test_a_mixture_that_the_user_begins_does_not_move_on_to_that_of_a_preset(tmp_path: Path) -> None:
    mine = ["--preset", preset(tmp_path, "flags: {cloth_type_shares: '1,2,3', final_cloth_type_shares: '3,2,1'}")]
    for words in (mine, [*mine, "--embedded"], QUICK):
        begun, final = mixture(parsed(tmp_path, *words))
        assert (begun, final) == (OF_SMALL_MODEL if words is QUICK else ((1, 2, 3), (3, 2, 1)))
        for more, found in (
            (["--cloth_type_shares", "2,1,1"], ((2, 1, 1), None)),
            (["--balance_cloth_types"], (None, None)),
            (["--final_cloth_type_shares", "0,0,1"], (begun, (0, 0, 1))),
            (["--cloth_type_shares", "2,1,1", "--final_cloth_type_shares", "0,0,1"], ((2, 1, 1), (0, 0, 1))),
        ):
            args = parsed(tmp_path, *words, *more)
            assert mixture(args) == mixture(wrapper.dataset_options(args)) == found


def test_what_the_small_models_preset_says_of_tops_goes_where_there_are_none(tmp_path: Path) -> None:
    args = parsed(tmp_path, *QUICK)
    assert mixture(args) == OF_SMALL_MODEL and args.prior_loss_weight > 0
    without = parsed(tmp_path, *QUICK, "--cloth_types", "lower,full")
    assert mixture(without) == (None, None) and without.balance_cloth_types and not without.prior_loss_weight
    some = parsed(tmp_path, *QUICK, "--cloth_types", "upper,lower")
    assert mixture(some) == (None, None) and some.prior_loss_weight == args.prior_loss_weight
    assert mixture(parsed(tmp_path, *QUICK, "--cloth_types", "full,upper,lower")) == OF_SMALL_MODEL  # all of them
    whole = parsed(tmp_path, *QUICK, "--train_base_model")
    assert mixture(whole) == OF_SMALL_MODEL and not whole.prior_loss_weight


@pytest.mark.parametrize(
    ("mine", "shares", "balanced", "prior"),
    [
        ("lora_rank: 4", OF_SMALL_MODEL, False, 1),
        ("balance_cloth_types: true", (None, None), True, 1),
        ("cloth_type_shares: '1,2,3'", ((1, 2, 3), None), False, 1),
        ("cloth_type_shares: '1,2,3', final_cloth_type_shares: null", ((1, 2, 3), None), False, 1),
        ("final_cloth_type_shares: null", (None, None), False, 1),
        ("cloth_types: 'upper,lower,full'", OF_SMALL_MODEL, False, 1),
        ("cloth_types: 'lower,full'", (None, None), False, 0),
        ("train_base_model: all", OF_SMALL_MODEL, False, 0),
    ],
)
def test_what_it_says_of_tops_gives_way_to_a_users_preset(
    tmp_path: Path, mine: str, shares: object, balanced: bool, prior: float
) -> None:
    args = parsed(tmp_path, "--preset", preset(tmp_path, f"flags: {{{mine}}}"), "--embedded")
    assert (mixture(args), args.balance_cloth_types, args.prior_loss_weight) == (shares, balanced, prior)


def test_alpha_follows_the_users_rank(tmp_path: Path) -> None:
    for preset_name in ("quick_test", "full", "h100", "low_vram"):
        assert parsed(tmp_path, "--preset", preset_name, "--lora_rank", "64").lora_alpha is None


def test_a_models_folder_is_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "fill").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    args = parsed(tmp_path, "--pretrained_model_name_or_path", "models/fill")
    assert args.pretrained_model_name_or_path == str(tmp_path / "models" / "fill")
    assert args.pretrained_inpaint_model_name_or_path == "xiaozaa/catvton-flux-alpha"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lora_rnk", "4"], "unknown argument --lora_rnk: did you mean --lora_rank?"),
        (["--cloth_type=lower"], "unknown argument --cloth_type: did you mean --cloth_types?"),
        (["stray"], "unknown argument stray"),
        (["--preset", "fulll"], "the presets are full, h100, low_vram, quick_test"),
        (["--preset", "embedded"], "--preset embedded is no preset of its own"),
        (["--preset", os.path.relpath(PRESETS / "embedded.yaml")], "type --embedded"),
        (["--cloth_types", "socks"], "unknown garment type 'socks'"),
        (["--max_train_samples", "x"], "invalid int value: 'x'"),
        (["--dataroot", "/x"], "use --dataset_name"),
        (["--output_dir"], "expected one argument"),
        (["--quick_test"], "did you mean --quick-test?"),
        (["--max_train_samples", "0"], "--max_train_samples: 0 is not at least 1"),
        (["--max_bad_rows", "9"], "--max_bad_rows: 9 is not from 0 to 1"),
        (["--embedded", "--lr_scheduler", "constant", "--lr_warmup_steps", "9"], "use constant_with_warmup"),
        (["--lora_rank", "0"], "--lora_rank: 0 is not at least 1"),
        (["--embedded", "--num_train_epochs", "3", "--max_train_steps", "5"], "--num_train_epochs does nothing"),
        (["--push_to_hub", "--embedded"], "--push_to_hub"),
        (["--push_to_hub", "--train_base_model"], "--push_to_hub uploads LoRAs"),
        (["--hub_private"], "do nothing without --push_to_hub"),
        (["--hub_model_id", "me/lora"], "do nothing without --push_to_hub"),
        (["--push_to_hu"], "did you mean --push_to_hub?"),
        (["--cloth_type_shares", "1,1"], "--cloth_type_shares"),
        (["--cloth_type_shares", "0,0,0"], "--cloth_type_shares"),
        (["--cloth_type_shares=-1,1,1"], "--cloth_type_shares"),
        (["--cloth_type_shares", "a,1,1"], "--cloth_type_shares"),
        (["--cloth_type_shares", "1,1,nan"], "--cloth_type_shares"),
        (["--cloth_type_shares", "1,1,0", "--balance_cloth_types"], "--balance_cloth_types"),
        (["--cloth_type_shares", "1,1,0", "--cloth_types", "lower"], "--cloth_types leaves it out"),
        (["--final_cloth_type_shares", "1,1,0", "--no-balance_cloth_types"], "--final_cloth_type_shares needs"),
        (["--height", "100"], "--height: 100 is not at least 16 and a multiple of 16"),
    ],
)
def test_wrong_use_exits_with_2_and_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = wrapper.main([*argv, "--check"] if argv != ["--output_dir"] else argv)
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "flag", ["output_dir: /x", "push_to_hub: true", "embedded: true", "plan: true", "dataroot: /x"]
)
def test_what_belongs_on_the_command_line_is_refused_in_a_preset(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wrapper.main(["--preset", preset(tmp_path, f"flags: {{{flag}}}"), "--check"]) == 2
    assert f"{flag.split(':')[0]} belongs on the command line" in capsys.readouterr().err
