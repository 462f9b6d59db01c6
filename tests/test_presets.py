"""The presets as data: every value gives its reason, and every flag exists."""

import re
from pathlib import Path

import pytest
import yaml

from deepfashion_training.cli import load_preset
from deepfashion_training.run_arguments import build_parser

ROOT = Path(__file__).resolve().parents[1]
PRESETS = {path.stem: path for path in sorted((ROOT / "deepfashion_training" / "presets").glob("*.yaml"))}


def load(name: str) -> dict:
    return yaml.safe_load(PRESETS[name].read_text())


def test_the_presets_are_these() -> None:
    assert set(PRESETS) == {"quick_test", "full", "h100", "low_vram", "embedded"}


@pytest.mark.parametrize("name", PRESETS)
def test_shape(name: str) -> None:
    preset = load(name)
    assert list(preset) == ["about", "needs", "flags", *(["smaller"] if name == "low_vram" else [])]
    assert isinstance(preset["about"], str) and "\n" not in preset["about"]
    assert list(preset["needs"]) == ["gpu_memory_gib", "disk_gib"]
    assert all(type(value) in (int, float) and value >= 0 for value in preset["needs"].values())
    assert "output_dir" not in preset["flags"]
    for flag, value in preset["flags"].items():
        assert re.fullmatch(r"[a-z0-9_]+", flag)
        assert value is None or type(value) in (int, float, bool, str), (flag, value)
        # 1e-4 is a string to YAML, no and off are booleans: both would reach the parser as something else.
        assert not (isinstance(value, str) and re.fullmatch(r"[\d.e+-]+", value)), (flag, value)
    assert preset["flags"]["mixed_precision"] in ("no", "bf16", "fp16")


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_says_why(name: str) -> None:
    lines = [line for line in PRESETS[name].read_text().splitlines() if line.startswith("  ")]
    preset = load(name)
    # Nothing hides in a nested or folded value.
    assert len(lines) == sum(len(preset.get(key, ())) for key in ("needs", "flags", "smaller"))
    for line in lines:
        assert re.fullmatch(r"  ([a-z0-9_]+: \S+|- {[a-z0-9_:, ]+})  # \S.{3,}", line), line


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_fit_the_model(name: str) -> None:
    flags = load(name)["flags"]
    assert flags["height"] % 16 == 0 and flags["width"] % 16 == 0  # VAE 8 x packing 2
    assert flags["height"] * 3 == flags["width"] * 4
    for step in load(name).get("smaller", ()):
        assert step.get("height", 64) % 16 == 0 and step.get("width", 48) % 16 == 0
        assert step.get("height", 4) * 3 == step.get("width", 3) * 4
    assert "lora_alpha" not in flags  # the trainer takes the rank, also where the user changes that
    assert flags["validation_steps"] == flags["checkpointing_steps"]
    assert flags["max_train_steps"] % flags["checkpointing_steps"] == 0


def test_what_a_preset_asks_for_is_what_its_card_shows() -> None:
    shown = {"h100": 81559, "full": 46068, "quick_test": 32607, "low_vram": 24564}  # MiB: H100, L40S, 5090, 4090
    for name, mib in shown.items():
        assert load(name)["needs"]["gpu_memory_gib"] <= mib / 1024


@pytest.mark.parametrize("name", ["quick_test", "full", "h100", "low_vram"])
def test_real_presets_draw_as_many_pairs_as_they_say(name: str) -> None:
    preset = load(name)
    flags = preset["flags"]
    draws = flags["train_batch_size"] * flags["gradient_accumulation_steps"] * flags["max_train_steps"]
    said = {"quick_test": 2_400, "full": 32_000, "h100": 40_000, "low_vram": 32_000}
    assert draws == said[name]
    if name != "quick_test":
        assert f"{draws:,} pairs" in preset["about"]


@pytest.mark.parametrize("name", ["quick_test", "full", "h100", "low_vram"])
def test_embedded_over_any_preset_needs_no_gpu(name: str) -> None:
    flags = {**load(name)["flags"], **load("embedded")["flags"]}
    assert flags["quantize_base"] is None  # null: the flag is dropped
    assert not flags["use_8bit_adam"] and not flags["gradient_checkpointing"] and not flags["compile_blocks"]
    assert (flags["height"], flags["width"], flags["max_sequence_length"]) == (128, 96, 8)
    assert flags["lr_warmup_steps"] < flags["max_train_steps"] <= 600


@pytest.mark.parametrize("name", PRESETS)
def test_every_flag_is_known_and_takes_its_value(name: str) -> None:
    values = load_preset(name).values(build_parser(), ("output_dir", "preset", "embedded"))
    assert list(values) == list(load(name)["flags"])
    assert {flag for flag, value in values.items() if value is None} == {
        flag for flag, value in load(name)["flags"].items() if value is None
    }
    preset = load_preset(name)
    assert [preset.values(build_parser(), (), step) for step in preset.smaller] == load(name).get("smaller", [])


def test_each_smaller_step_is_smaller() -> None:
    """Latents are cached first, which changes no result; then the size goes down, never up."""
    steps = load("low_vram")["smaller"]
    assert steps[0] == {"cache_latents": True} and all(step.keys() == {"height", "width"} for step in steps[1:])
    heights = [load("low_vram")["flags"]["height"], *(step["height"] for step in steps[1:])]
    assert heights == sorted(set(heights), reverse=True)
