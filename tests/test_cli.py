"""What all commands share: presets read as they are written, unknown flags, and how a command ends."""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepfashion_training.cli import FlagParser, WrongUseError, describe, in_one_line, load_preset, number, run_command
from deepfashion_training.run_arguments import build_parser


def preset(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def values(folder: Path, text: str) -> dict[str, Any]:
    """The values of a preset for a training run, where --output_dir is one that belongs on the command line."""
    return load_preset(preset(folder, text)).values(build_parser(), {"output_dir"})


# ---- presets


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("flags: [1, 2]", "its keys are"),
        ("flags: {lora_rank: {a: 1}}", "its keys are"),
        ("flags: {lora_rank: [1]}", "its keys are"),
        ("just words", "its keys are"),
        ("", "its keys are"),
        ("flags: {a: [", "no valid YAML"),
        ("flags: {a b: 1}", "unknown argument --a b"),
        ("learning_rate: 1e-4", "'learning_rate' is not read"),
        ("flags: {}\nneed: {}", "'need' is not read"),
        ("flags: {seed: 1, lora_rank: 4, seed: 2}", "'seed' is there twice"),
        ("flags: {seed: 1}\nflags: {seed: 2}", "'flags' is there twice"),
        ("flags: {}\nneeds: {gpu_memory: 3}", "gpu_memory_gib and disk_gib"),
        ("flags: {}\nneeds: {gpu_memory_gib: much}", "gpu_memory_gib and disk_gib"),
        ("flags: {output_dir: /x}", "output_dir belongs on the command line"),
        ("flags: {lerning_rate: 1}", "did you mean --learning_rate?"),
        ("flags: {mixed_precision: off}", "--mixed_precision: invalid choice: 'off'"),
        ("flags: {mixed_precision: yes}", "--mixed_precision: invalid choice: 'yes'"),
        ("flags: {max_train_steps: 1:30}", "--max_train_steps: invalid int value: '1:30'"),
        ("flags: {lora_rank: 0}", "--lora_rank: 0 is not at least 1"),
    ],
)
def test_what_would_not_be_read_of_a_preset_is_wrong_use(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(WrongUseError) as refused:
        values(tmp_path, text)
    assert "mine.yaml" in str(refused.value) and named in str(refused.value)


def test_values_of_a_preset_are_read_as_they_are_written(tmp_path: Path) -> None:
    """YAML would read no as false, 010 as eight and 1e-4 as a text."""
    text = "flags: {mixed_precision: no, gradient_checkpointing: off, use_dora: yes, compile_blocks: false, "
    text += "train_base_model: true, seed: 010, learning_rate: 1e-4, instance_prompt: no, quantize_base: null, "
    text += "max_grad_norm: }"
    assert values(tmp_path, text) == {
        "mixed_precision": "no", "gradient_checkpointing": 0, "use_dora": True, "compile_blocks": False,
        "train_base_model": "attention", "seed": 10, "learning_rate": 1e-4, "instance_prompt": "no",
        "quantize_base": None, "max_grad_norm": None,
    }  # fmt: skip


def test_presets_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert load_preset("h100").gpu_memory_gib == 75
    mine = load_preset(preset(tmp_path, "flags: {}\nneeds: {disk_gib: 1.5}"))
    assert (mine.name, mine.gpu_memory_gib, mine.disk_gib) == ("mine", None, 1.5)
    with pytest.raises(WrongUseError, match="the presets are full, h100, low_vram, quick_test"):
        load_preset("fulll")


# ---- flags and endings


def parser(required: bool = True) -> FlagParser:
    made = FlagParser("tryon", "")
    made.add_argument("--person", required=required, help="photo")
    made.add_argument("--steps", type=int, default=3, help="of drawing")
    return made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--persn", "x"], "tryon: unknown argument --persn: did you mean --person?"),
        (["--persn=hf_token"], "tryon: unknown argument --persn: did you mean --person?"),
        (["--person", "x", "stray"], "tryon: unknown argument stray"),
        (["--steps", "2"], "the following arguments are required: --person"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("tryon", words, lambda words: parser().parse_args(words), "nothing was written") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "hf_token" not in error


def test_help_shows_every_default_that_says_something(capsys: pytest.CaptureFixture[str]) -> None:
    made = parser()
    made.add_argument("--seed", type=number(int, 0), default=0, help="of noise")
    made.add_argument("--repaint", action=argparse.BooleanOptionalAction, default=True, help="paste")
    made.add_argument("--offload", action=argparse.BooleanOptionalAction, default=False, help="to memory")
    made.add_argument("--prompt", help="prompt (default: the LoRA's)")
    made.print_help()
    said = " ".join(capsys.readouterr().out.split())
    for part in ("--seed N of noise (default: 0)", "paste (default: on)", "to memory --prompt VALUE", "the LoRA's)"):
        assert part in said
    assert "(required)" in said and said.count("(default") == 4  # with --steps


def test_what_is_given_is_told_from_defaults() -> None:
    assert parser(required=False).given(["--steps", "3", "--other", "x"]) == ({"steps": 3}, ["--other", "x"])
    assert parser().defaults() == {"debug": False, "person": None, "steps": 3}
    assert parser().parse_args(["--person", "--not a flag"]).person == "--not a flag"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("no such folder: x"), 1, "tryon: no such folder: x\n"),
        (KeyError("x"), 1, "tryon: KeyError: 'x' (--debug shows the traceback)\n"),
        (WrongUseError("--x is none"), 2, "tryon: --x is none (see --help)\n"),
        (KeyboardInterrupt(), 130, "\ntryon: stopped; nothing was written\n"),
    ],
)
def test_how_a_command_ends(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work(words: list[str]) -> None:
        raise error

    assert run_command("tryon", [], work, "nothing was written") == code
    assert capsys.readouterr().err == said


def test_a_workers_traceback_is_described_by_its_last_line() -> None:
    wrapped = ValueError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n x\nrow 3 is empty\n")
    assert describe(wrapped) == "row 3 is empty"


def test_a_name_that_is_no_utf_8_is_shown() -> None:
    with pytest.raises(UnicodeEncodeError) as error:
        "out/caf\udce9".encode()
    assert "out/caf? is no name in UTF-8" in describe(error.value)


def test_a_message_neither_fills_the_screen_nor_steers_the_terminal() -> None:
    line = in_one_line("\x1b[2J" + "a" * 5000 + "\nfix it")
    assert len(line) < 1300 and "\x1b" not in line and "\\x1b" in line and line.endswith("fix it")


@pytest.mark.parametrize("words", [["--dataset_name", ""], ["--output_dir="], ["--seed", "1", "--lora", ""]])
def test_an_empty_value_is_wrong_use_and_names_its_flag(words: list[str]) -> None:
    parser = FlagParser("x", "")
    for flag in ("--dataset_name", "--output_dir", "--seed", "--lora", "--caption"):
        parser.add_argument(flag)
    with pytest.raises(WrongUseError, match=f"{(words[-1] or words[-2]).rstrip('=')} is empty"):
        parser.parse_args(words)
    assert parser.parse_args(["--caption", ""]).caption == ""


# ---- what torch reads when it is loaded

#: Imports the module named first, and prints the settings of PyTorch's allocator as torch would find them.
UNTIL_TORCH = """
import importlib, os, sys

def settings():
    print({name: os.environ[name] for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF") if name in os.environ})
    sys.stdout.flush()
    os._exit(0)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            settings()

sys.meta_path.insert(0, Finder())
importlib.import_module(sys.argv[1])
settings()
"""
COMMANDS = "train_deepfashion_lora launch prepare tryon evaluate demo".split()
LOAD_TORCH = [*(f"deepfashion_training.{name}" for name in COMMANDS), "train_flux_inpaint", "benchmarks.train_step"]


def found_by_torch(module: str, **own: str) -> dict[str, str]:
    without = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    words = [sys.executable, "-c", UNTIL_TORCH, module]
    done = subprocess.run(
        words, cwd=Path(__file__).parents[1], env={**without, **own}, capture_output=True, text=True, timeout=60
    )
    return ast.literal_eval(done.stdout)


@pytest.mark.parametrize(
    "module", [*(f"deepfashion_training.{name}" for name in COMMANDS), "train_flux_inpaint", "benchmarks.train_step"]
)
def test_segments_of_gpu_memory_grow(module):
    assert found_by_torch(module) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_what_the_user_set_for_the_allocator_stays(name):
    assert found_by_torch("train_flux_inpaint", **{name: "max_split_size_mb:512"}) == {name: "max_split_size_mb:512"}
