"""The models and settings that `tryon` and the page choose from flags and from what a LoRA says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deepfashion_training.cli import FlagParser, WrongUseError
from deepfashion_training.inference.choice import ModelChoice, add_drawing_flags, add_model_flags, choose
from deepfashion_training.inference.dress import DrawingSettings


@pytest.fixture(scope="module")
def trained(save_random_lora) -> Path:
    """A LoRA as the trainer saves it: 64x48, guidance 3.5, a prompt of its own, captions."""
    own = "--height 64 --width 48 --guidance_scale 3.5 --instance_prompt mine --use_captions --max_sequence_length 96"
    return save_random_lora(*own.split())


@pytest.fixture
def lora_with(trained, tmp_path) -> Callable[..., Path]:
    """The same LoRA with other metadata; None takes one away."""

    def make(**changes: str | None) -> Path:
        with safe_open(trained, "pt") as file:
            said = {**file.metadata(), **changes}
        path = tmp_path / "changed.safetensors"
        save_file(load_file(trained), path, {name: value for name, value in said.items() if value is not None})
        return path

    return make


def chosen(*flags: object) -> ModelChoice:
    parser = FlagParser("tryon", "")
    add_model_flags(parser)
    add_drawing_flags(parser)
    return choose(parser.parse_args([str(flag) for flag in flags]))


def refused(*flags: object) -> str:
    with pytest.raises(ValueError) as error:
        chosen(*flags)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_size_prompt_and_guidance_are_the_loras(trained, tiny_flux_fill):
    choice = chosen("--lora", trained)
    recipe = choice.recipe
    assert (recipe.height, recipe.width, recipe.prompt, recipe.guidance_scale) == (64, 48, "mine", 3.5)
    assert recipe.use_captions and recipe.max_sequence_length == 96 and choice.notes == []
    assert chosen("--lora", trained.parent).described() == choice.described()
    look = choice.drawing(num_inference_steps=7, repaint=False)
    assert look == DrawingSettings((64, 48), 7, 3.5, {"lora": 1.0}, False, "stretch")
    described = choice.described()
    assert described["lora"] == str(trained) and len(described["lora_sha256"]) == 64
    assert json.loads(json.dumps(described)) == described


def test_steps_and_resizing_are_the_loras(trained, lora_with, save_random_lora, tiny_flux_fill):
    """The trainer alone stretches pictures; it judges by 28 steps unless told otherwise, as the bare base draws."""
    look = chosen("--lora", trained).drawing()
    assert (look.num_inference_steps, look.resize_mode) == (28, "stretch")
    look = chosen("--lora", save_random_lora("--num_inference_steps", "3"), "--resize_mode", "pad").drawing()
    assert (look.num_inference_steps, look.resize_mode) == (3, "pad")
    assert (
        chosen("--lora", lora_with(num_inference_steps="3"), "--num_inference_steps", 9).drawing().num_inference_steps
        == 9
    )
    assert (
        chosen("--embedded").drawing().num_inference_steps == 1
        and chosen("--base", tiny_flux_fill).drawing().num_inference_steps == 28
    )
    earlier = lora_with(num_inference_steps=None, resize_mode=None)
    (note,) = chosen("--lora", earlier).notes
    assert "num_inference_steps, resize_mode" in note
    assert chosen("--lora", earlier).drawing().resize_mode == "pad"


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("num_inference_steps", "0", "3"),
        ("height", "tall", "64"),
        ("width", "1024x", "48"),
        ("width", "-48", "48"),
        ("guidance_scale", "nan", "2"),
        ("guidance_scale", "3,5", "2"),
        ("resize_mode", "crop", "pad"),
    ],
)
def test_metadata_that_no_flag_would_take_and_the_flag_in_its_place(name, value, right, lora_with, trained):
    path = lora_with(**{name: value})
    said = refused("--lora", path)
    assert all(word in said for word in (str(path), name, value, f"--{name}"))
    assert str(getattr(chosen("--lora", path, f"--{name}", right).recipe, name)).removesuffix(".0") == right


def test_metadata_without_a_flag(lora_with):
    for name, value in (("use_captions", "perhaps"), ("max_sequence_length", "0")):
        assert f"{name} '{value}'" in refused("--lora", lora_with(**{name: value}))


def test_metadata_of_another_tool_are_not_ours(trained, tmp_path):
    foreign = {"transformer": "some", "height": "tall", "num_inference_steps": "many", "prompt": "mine"}
    save_file(load_file(trained), tmp_path / "foreign.safetensors", foreign)
    choice = chosen("--lora", tmp_path / "foreign.safetensors", "--embedded")
    assert choice.recipe == chosen("--embedded").recipe and "prompt" in choice.notes[-1]


def test_flags_win(trained):
    choice = chosen(*f"--lora {trained} --height 128 --width 96 --prompt other --guidance_scale 1".split())
    recipe = choice.recipe
    assert (recipe.height, recipe.width, recipe.prompt, recipe.guidance_scale) == (128, 96, "other", 1.0)


def test_another_base(trained, tiny_flux_fill, tmp_path):
    shutil.copytree(tiny_flux_fill / "transformer", tmp_path / "mine")
    choice = chosen("--lora", trained, "--base", tmp_path / "mine")
    assert choice.recipe.transformer == str(tmp_path / "mine") and choice.recipe.pipeline == str(tiny_flux_fill)


def test_a_lora_that_says_little(trained, lora_with, tiny_flux_fill):
    """Nothing is said to be known of it, least of all the base that is taken where nobody says."""
    path = lora_with(transformer=None, base_model=None, height=None, width=None, prompt=None, guidance_scale=None)
    choice = chosen("--lora", path, "--base", tiny_flux_fill)
    (note,) = choice.notes
    assert "transformer, height, width, prompt, guidance_scale " in note
    assert (choice.recipe.height, choice.recipe.guidance_scale) == (768, 30.0)
    (note,) = chosen("--lora", lora_with(prompt=None)).notes
    assert "does not say its prompt" in note


def test_a_lora_without_metadata_draws_at_the_small_models_own_size(trained, tmp_path):
    save_file(load_file(trained), tmp_path / "silent.safetensors")
    recipe = chosen("--lora", tmp_path / "silent.safetensors", "--embedded").recipe
    assert (recipe.height, recipe.width, recipe.guidance_scale, recipe.max_sequence_length) == (128, 96, 1.0, 8)
    recipe = chosen("--lora", trained, "--embedded").recipe
    assert (recipe.height, recipe.width, recipe.guidance_scale, recipe.max_sequence_length) == (64, 48, 3.5, 96)


def test_a_base_as_pipeline_folder_as_transformer_folder_and_by_relative_path(tiny_flux_fill, monkeypatch):
    whole = chosen("--base", tiny_flux_fill)
    assert whole.recipe.pipeline == whole.recipe.transformer == str(tiny_flux_fill)
    parts = chosen("--base", tiny_flux_fill / "transformer", "--pipeline", tiny_flux_fill)
    assert parts.recipe.transformer == str(tiny_flux_fill / "transformer")
    monkeypatch.chdir(tiny_flux_fill.parent)
    assert chosen("--base", "tiny_flux_fill").described() == whole.described()
    embedded = chosen("--embedded")
    assert embedded.described() == whole.described() and (embedded.recipe.height, embedded.recipe.width) == (128, 96)


def test_models_that_cannot_be_had(trained, lora_with, tiny_flux_fill, tmp_path):
    gone = tmp_path / "none"
    assert refused("--base", gone, "--pipeline", tiny_flux_fill) == f"--base {gone}: no such folder"
    assert f"{tmp_path} holds no FluxTransformer2DModel" in refused("--base", tmp_path, "--pipeline", tiny_flux_fill)
    assert "holds no FluxTransformer2DModel" in refused("--embedded", "--base", tiny_flux_fill / "vae")
    assert f"--pipeline {tmp_path} is no diffusers pipeline" in refused("--embedded", "--pipeline", tmp_path)
    assert str(tmp_path / "none") in refused("--lora", tmp_path / "none")
    assert str(tmp_path / "pytorch_lora_weights.safetensors") in refused("--lora", tmp_path)
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "empty.safetensors").touch()
    for name in ("text", "empty"):
        assert "is not a safetensors file" in refused("--lora", tmp_path / f"{name}.safetensors")
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    assert "is not a LoRA of a FLUX transformer" in refused("--lora", tmp_path / "other.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is needed")
def test_a_machine_without_a_gpu():
    assert refused() == "no CUDA GPU is visible, and a 12B model needs one: add --embedded to try it on this machine"
    assert "--offload needs a CUDA GPU" in refused("--embedded", "--offload")
    assert "--quantize_base nf4 needs a CUDA GPU" in refused("--embedded", "--quantize_base", "nf4")


def test_a_base_that_is_gone_is_to_be_named(lora_with, tiny_flux_fill):
    """The LoRA of another machine: its base lay in a folder there."""
    path = lora_with(transformer="/gone/net", base_model="/gone/pipe")
    for flags, gone in (([], "/gone/"), (["--base", tiny_flux_fill / "transformer"], "/gone/pipe")):
        assert gone in refused("--lora", path, *flags)
    for flags in (["--base", tiny_flux_fill], ["--embedded"]):
        choice = chosen("--lora", path, *flags)
        assert choice.recipe.transformer == choice.recipe.pipeline == str(tiny_flux_fill)


def test_a_lora_for_another_size_of_model(trained, lora_with, tiny_flux_fill, tmp_path):
    weights = {name: torch.cat([tensor, tensor], -1) for name, tensor in load_file(trained).items() if "lora_A" in name}
    weights |= {name: tensor for name, tensor in load_file(trained).items() if "lora_B" in name}
    with safe_open(trained, "pt") as file:
        save_file(weights, tmp_path / "wide.safetensors", file.metadata())
    assert "the LoRA is for another transformer than" in refused("--lora", tmp_path / "wide.safetensors")


def test_a_scale_without_a_lora_is_refused(trained):
    assert refused("--embedded", "--lora_scale", "0.5").startswith("--lora_scale 0.5 scales nothing")
    assert chosen("--embedded", "--lora_scale", "1").loras == ()
    choice = chosen("--lora", trained, "--lora_scale", "-0.5")
    assert choice.drawing(num_inference_steps=1).loras == {"lora": -0.5} and choice.described()["lora_scale"] == -0.5


def test_two_loras(trained, lora_with, save_random_lora, tmp_path):
    """Size, prompt and guidance by the first that says them, steps by the one that says fewest; records name all."""
    turbo = tmp_path / "turbo.safetensors"
    save_file(load_file(trained), turbo, {"num_inference_steps": "8", "height": "1024"})  # of another tool
    words = "--lora {} --lora_scale 1 --lora {} --lora_scale 0.125"
    for first, second in ((trained, turbo), (turbo, trained)):
        choice = chosen(*words.format(first, second).split())
        recipe = choice.recipe
        assert (recipe.height, recipe.prompt, recipe.guidance_scale, recipe.num_inference_steps) == (64, "mine", 3.5, 8)
        described = choice.described()
        assert described["lora"] == [str(first), str(second)] and described["lora_scale"] == [1.0, 0.125]
        assert choice.drawing().loras == {"lora": 1.0, "lora_2": 0.125}
        assert choice.record(choice.drawing([2, 3]))["lora_scale"] == [2, 3]
        assert any(f"num_inference_steps is 8: the LoRAs say 28 by {trained}" in note for note in choice.notes) == (
            first == trained
        )
    assert described["lora_sha256"] == chosen("--lora", turbo, "--lora", trained).described()["lora_sha256"]
    assert chosen("--lora", trained, "--lora", turbo, "--num_inference_steps", 4).recipe.num_inference_steps == 4
    other = chosen("--lora", trained, "--lora", lora_with(height="128")).notes
    assert any(note.startswith("height is 64") for note in other)
    doras = [save_random_lora("--use_dora", seed=seed) for seed in (1, 2)]
    assert str(doras[1]) in refused("--lora", doras[0], "--lora", doras[1])


def test_which_scale_is_whose(trained):
    assert chosen("--lora_scale", 0.5, "--lora", trained).scales == (0.5,)
    assert chosen("--lora", trained, "--lora", trained, "--lora_scale", 0.5).scales == (1.0, 0.5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_scale", "2", "--lora", "a", "--lora", "b"], "--lora_scale 2 comes before any --lora"),
        (["--lora", "a", "--lora_scale", "1", "--lora_scale", "2"], "--lora a has two scales"),
        (["--lora_scale", "1", "--lora", "a", "--lora_scale", "2"], "--lora a has two scales"),
        (["--lora_scale", "1", "--lora_scale", "2"], "has two scales"),
        (["--num_inference_steps", "0"], "0 is not from 1 to 1000"),
        (["--num_inference_steps", "9" * 400], "is not from 1 to 1000"),
        (["--height", "100"], "100 is not from 16 to 4096 and a multiple of 16"),
        (["--width", "100000"], "is not from 16 to 4096"),
        (["--guidance_scale", "-1"], "-1 is not at least 0"),
        (["--guidance_scale", "inf"], "inf is not a finite number"),
        (["--lora_scale", "nan"], "nan is not a finite number"),
        (["--seed", "-1"], "-1 is not from 0"),
        (["--seed", "1.5"], "invalid int value: '1.5'"),
        (["--quantize_base", "fp4"], "'fp4'"),
    ],
)
def test_numbers_out_of_range(flags, message):
    with pytest.raises(WrongUseError) as refused:
        chosen(*flags)
    assert message in str(refused.value)
