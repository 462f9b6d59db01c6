"""Habits of scripts as their source shows them, and the arguments that are changed because of them."""

from __future__ import annotations

import ast
import textwrap
from argparse import Namespace
from pathlib import Path

import pytest

from deepfashion_training.upstream.driven_run import NEVER
from deepfashion_training.upstream.quirks import QUIRKS, quirks_of, settle
from deepfashion_training.upstream.source import read_source

STAND_INS = Path(__file__).parent / "stand_ins"
SCRIPT = STAND_INS / "catvton_flux" / "train_flux_inpaint.py"

#: For every quirk a piece of source that has it and one that looks alike and has not.
EXAMPLES = {
    "global args": ("def f(a): return args.x", "def f(args): return args.x"),
    "data flags": ('p.add_argument("--instance_data_dir")', 'p.add_argument("--data_dir")'),
    "pair lists": ('p.add_argument("--train_verification_list")', 'p.add_argument("--train_data_list")'),
    "row order": ("DataLoader(d, shuffle=False)", "DataLoader(d, shuffle=True)"),
    "loader workers": ("DataLoader(d, shuffle=True)", "DataLoader(d, num_workers=args.n)"),
    "trainable weights": ("def f(args): return args.train_base_model", "def f(args): return args.train_lora"),
    "precision of what is trained": ("model.to(device, dtype=half)", "batch.to(dtype=half)\nmodel.to(device)"),
    "validation in bf16": ("pipe(image=i, mask_image=m)", "prepare(image=i, mask=m)"),
    "validation steps": ("if step % args.validation_steps == 1: f()", "if step % args.validation_steps == 0: f()"),
    "validation pictures": ("pipe(num_inference_steps=28)", "pipe(num_inference_steps=args.num_inference_steps)"),
    "checkpoints": ("shutil.rmtree(old)\naccelerator.save_state(new)", "accelerator.save_state(new)\nshutil.rmtree(o)"),
    "noise of several ranks": ("set_seed(args.seed)", "set_seed(args.seed, device_specific=True)"),
    "secrets": ("a.init_trackers('x', config=vars(args))", "a.init_trackers('x', config={'lr': 1})"),
    "last save": ("pipeline.save_pretrained(o)\na.end_training()", "a.end_training()"),
    "printing": ("print('trains', name)", "logger.info('trains', name)"),
}


def seen(text: str) -> set[str]:
    return {quirk.name for quirk in quirks_of([ast.parse(textwrap.dedent(text))])}


def test_there_is_an_example_of_every_quirk() -> None:
    assert [quirk.name for quirk in QUIRKS] == list(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_quirk_is_seen_where_it_is_and_nowhere_else(name: str) -> None:
    quirky, plain = EXAMPLES[name]
    assert name in seen(quirky)
    assert name not in seen(plain)


@pytest.mark.parametrize(
    ("text", "quirky"),
    [
        ("def f(): return args", True),
        ("def f(*args): return args", False),
        ("def f(*, args): return args", False),
        ("def f():\n    args = 1\n    return args", False),
        ("def main(args):\n    def inner(): return args.x", False),
        ("args = 1\nprint(args)", False),
        ("def f(a): return a.args", False),
    ],
)
def test_a_global_is_told_from_a_name_of_ones_own(text: str, quirky: bool) -> None:
    assert ("global args" in seen(text)) is quirky


@pytest.mark.parametrize(
    ("text", "quirky"),
    [
        ("torch.utils.data.DataLoader(d)", True),
        ("DataLoader(d, sampler=s)", False),
        ("DataLoader(d, batch_sampler=s)", False),
        ("DataLoader(d, shuffle=args.shuffle)", True),
    ],
)
def test_rows_in_order_are_told_from_shuffled_ones(text: str, quirky: bool) -> None:
    assert ("row order" in seen(text)) is quirky


def test_the_stand_in_has_them_all_and_our_own_trainer_few() -> None:
    trees = list(read_source(SCRIPT).trees.values())
    assert [quirk.name for quirk in quirks_of(trees)] == list(EXAMPLES)
    ours = read_source(Path(__file__).resolve().parents[1] / "train_flux_inpaint.py")
    few = {quirk.name for quirk in quirks_of(list(ours.trees.values()))}
    assert not few & {"global args", "data flags", "pair lists", "validation steps", "checkpoints", "printing"}
    assert quirks_of([ast.parse("")]) == []


def test_every_quirk_is_told_in_one_line() -> None:
    for quirk in QUIRKS:
        assert "\n" not in quirk.habit + quirk.mended and quirk.habit and quirk.mended


# ---- the arguments that a script gets


def settled(text: str = "if step % args.validation_steps == 1: f()", **arguments: object) -> Namespace:
    usual = {"validation_steps": 7, "checkpointing_steps": 5, "max_grad_norm": 0.5, "checkpoints_total_limit": 3}
    args = Namespace(**{**usual, **arguments})
    settle(args, [ast.parse(text)])
    return args


def test_arguments_that_mean_something_stay() -> None:
    args = settled()
    assert (args.validation_steps, args.checkpointing_steps, args.max_grad_norm) == (7, 5, 0.5)
    assert args.train_base_model is True
    assert args.checkpoints_total_limit is None
    assert len({args.train_data_list, args.train_verification_list, args.validation_data_list}) == 3


@pytest.mark.parametrize(
    ("remainder", "steps", "expected"),
    [
        *((1, steps, expected) for steps, expected in ((0, {1}), (1, {2}), (2, {2}), (9, {9}))),
        *((0, steps, expected) for steps, expected in ((0, {NEVER}), (1, {1}), (9, {9}))),
    ],
)
def test_validation_comes_when_it_is_wanted(remainder: int, steps: int, expected: set[int]) -> None:
    text = f"if step % args.validation_steps == {remainder}: f()"
    given = settled(text, validation_steps=steps).validation_steps
    assert {given} == expected
    drawn = [step for step in range(1, 30) if step % given == remainder]
    assert bool(drawn) is (steps != 0)


def test_zeros_that_would_divide_or_stand_still_are_never_and_no_limit() -> None:
    args = settled(checkpointing_steps=0, max_grad_norm=0.0)
    assert not any(step % args.checkpointing_steps == 0 for step in (1, 10, 10**9))
    assert args.max_grad_norm == float("inf")
