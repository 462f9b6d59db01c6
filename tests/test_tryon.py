"""The command `tryon` as a user types it: what is drawn, what is kept, and what is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import icc
import numpy as np
import pytest
import torch
from conftest import ROOT, TYPES, pieces, pixels
from PIL import ExifTags, Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import train_flux_inpaint as tfi
from deepfashion_training.images.paste import feathered, seam_of
from deepfashion_training.inference.choice import ModelChoice
from deepfashion_training.inference.records import read_record

#: The bound for one picture of the embedded model on two cores. Held here against processor seconds, which do not grow
#: when something else is running.
MOST_SECONDS = 30.0


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("how", ["--mask", "--garment_type"])
def test_each_type_with_a_mask_and_with_the_parser(kind, how, wardrobe, tryon_run, tmp_path):
    """Only the area that was to be repainted changes, and it does change."""
    flags = pieces(wardrobe, kind)
    flags = flags if how == "--mask" else [*flags[:4], "--garment_type", kind]
    output = tryon_run(*flags, "--save_mask", "--output", tmp_path / "o.png")
    assert output.startswith(f"{tmp_path / 'o-mask.png'}\n{tmp_path / 'o.png'}\n")
    before, after = pixels(wardrobe / f"{kind}-person.png"), pixels(tmp_path / "o.png")
    mask = pixels(tmp_path / "o-mask.png")[..., 0]
    assert after.shape == before.shape == (256, 192, 3) and set(np.unique(mask)) == {0, 255}
    if how == "--mask":
        assert (mask == pixels(wardrobe / f"{kind}-mask.png")[..., 0]).all()
    changed = np.abs(after - before).max(axis=-1)
    assert (changed[feathered(mask > 0, seam_of((256, 192))) == 0] == 0).all()
    assert (changed[mask > 0] > 0).mean() > 0.8


@pytest.mark.long
def test_a_real_process_is_fast_enough_and_says_what_it_does(wardrobe, tmp_path):
    flags = ["--person", wardrobe / "full-person.png", "--garment", wardrobe / "full-garment.png"]
    flags += ["--garment_type", "full", "--embedded", "--output", tmp_path / "o.png"]
    began = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "deepfashion_training.tryon", *map(str, flags)], capture_output=True, text=True, cwd=ROOT
    )
    ended = os.times()
    spent = ended.children_user + ended.children_system - began.children_user - began.children_system
    assert 1 < spent < MOST_SECONDS
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'o.png'}\n"
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines] == ["base", "LoRA", "drawing", "repaint", "masks"]
    assert lines[2] == "drawing   128x96 (height x width), 1 steps, guidance 1, seed 0"
    assert lines[3].startswith("repaint   on")
    assert [path.name for path in tmp_path.iterdir()] == ["o.png"]


def test_help_needs_no_heavy_library():
    code = (
        "import sys\nfrom deepfashion_training import tryon\n"
        "try:\n    tryon.main(['--help'])\nexcept SystemExit as stopped:\n    assert stopped.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'datasets'} & set(sys.modules)\n"
        "sys.stderr.write(','.join(sorted(heavy)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""
    for flag in ("--person", "--garment_type", "--lora_scale", "--num_images", "--repaint, --no-repaint", "--batch"):
        assert flag in done.stdout


@pytest.mark.parametrize("size", [(333, 250), (192, 256), (97, 401)])
def test_the_result_has_the_persons_own_size(size, wardrobe, tryon_run, tmp_path):
    for what in ("person", "mask"):
        filter_ = Image.Resampling.NEAREST if what == "mask" else Image.Resampling.LANCZOS
        with Image.open(wardrobe / f"upper-{what}.png") as picture:
            picture.resize(size, filter_).save(tmp_path / f"upper-{what}.png")
    shutil.copy(wardrobe / "upper-garment.png", tmp_path)
    for flag in ("--repaint", "--no-repaint"):
        tryon_run(*pieces(tmp_path, "upper"), flag, "--output", tmp_path / f"o{flag}.png")
        with Image.open(tmp_path / f"o{flag}.png") as result:
            assert (result.size, result.mode) == (size, "RGB")


def test_a_photo_that_its_exif_turns(wardrobe, tryon_run, tmp_path):
    """The photo stored a quarter turned gives the same picture as the upright one, and carries no EXIF on."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    with Image.open(wardrobe / "lower-person.png") as photo:
        photo.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    flags = pieces(wardrobe)
    tryon_run(*flags, "--output", tmp_path / "a.png")
    tryon_run("--person", tmp_path / "turned.png", *flags[2:], "--output", tmp_path / "b.png")
    assert (pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")).all()
    with Image.open(tmp_path / "b.png") as result:
        assert result.size == (192, 256) and ExifTags.Base.Orientation not in result.getexif()


def test_pictures_with_transparency(wardrobe, tryon_run, tmp_path):
    """Over white, as everywhere in the project: the same as if they had been saved so."""
    for what in ("person", "garment"):
        with Image.open(wardrobe / f"lower-{what}.png") as picture:
            clear = picture.convert("RGBA")
        clear.paste((9, 9, 9, 0), (0, 0, 60, 60))
        clear.save(tmp_path / f"clear-{what}.png")
        white = Image.new("RGB", clear.size, (255, 255, 255))
        white.paste(clear, mask=clear)
        white.save(tmp_path / f"white-{what}.png")
    for name in ("clear", "white"):
        shutil.copy(wardrobe / "lower-mask.png", tmp_path / f"{name}-mask.png")
        tryon_run(*pieces(tmp_path, name), "--output", tmp_path / f"{name}.png")
    assert (pixels(tmp_path / "clear.png") == pixels(tmp_path / "white.png")).all()


def test_no_repaint_shows_all_that_the_model_drew(wardrobe, tryon_run, tmp_path):
    output = tryon_run(*pieces(wardrobe), "--no-repaint", "--save_pair", "--output", tmp_path / "o.png")
    assert "repaint   off" in output
    before, after = pixels(wardrobe / "lower-person.png"), pixels(tmp_path / "o.png")
    mask = pixels(wardrobe / "lower-mask.png")[..., 0] > 0
    assert (np.abs(after - before).max(axis=-1)[feathered(mask, 1) == 0] > 0).mean() > 0.5
    with Image.open(tmp_path / "o-pair.png") as pair:
        assert pair.size == (192, 128)
        half = pair.crop((96, 0, 192, 128)).resize((192, 256), Image.Resampling.LANCZOS)
    assert (np.asarray(half, int) == after).all()


def test_several_pictures_are_those_of_their_seeds(wardrobe, tryon_run, tmp_path):
    output = tryon_run(
        *pieces(wardrobe), "--num_images", 3, "--seed", 7, "--save_pair", "--output", tmp_path / "n" / "o.png"
    )
    names = [f"o-{seed}{kind}.png" for seed in (7, 8, 9) for kind in ("-pair", "")]
    assert output.splitlines()[:6] == [str(tmp_path / "n" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "n").iterdir()) == sorted(names)
    tryon_run(*pieces(wardrobe), "--seed", 8, "--output", tmp_path / "single.png")
    drawn = [pixels(tmp_path / "n" / f"o-{seed}.png") for seed in (7, 8, 9)]
    assert (drawn[1] == pixels(tmp_path / "single.png")).all()
    assert (drawn[0] != drawn[1]).any() and (drawn[1] != drawn[2]).any()
    for seed in (7, 8, 9):
        records = [read_record(tmp_path / "n" / f"o-{seed}{kind}.png") for kind in ("", "-pair")]
        assert records[0] == records[1] and records[0]["seed"] == seed


def test_the_largest_seeds(wardrobe, tryon_run, tmp_path):
    tryon_run(*pieces(wardrobe), "--seed", 2**63 - 1, "--num_images", 2, "--output", tmp_path / "o.png")
    first, second = (pixels(tmp_path / f"o-{2**63 - 1 + i}.png") for i in (0, 1))
    assert (first != second).any()


def test_a_folder_as_output(wardrobe, tryon_run, tmp_path):
    tryon_run(*pieces(wardrobe), "--output", tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["lower-person-lower-garment.png"]
    (tmp_path / "a.dir").mkdir()
    tryon_run(*pieces(wardrobe), "--output", tmp_path / "a.dir")
    assert len(list((tmp_path / "a.dir").iterdir())) == 1


def test_other_forms_of_output(wardrobe, tryon_run, tmp_path):
    for name in ("o.JPG", "o.webp", "o.png"):
        tryon_run(*pieces(wardrobe), "--output", tmp_path / name)
    with Image.open(tmp_path / "o.JPG") as jpeg, Image.open(tmp_path / "o.webp") as webp:
        assert (jpeg.format, webp.format) == ("JPEG", "WEBP")
    assert (pixels(tmp_path / "o.webp") == pixels(tmp_path / "o.png")).all()
    assert np.abs(pixels(tmp_path / "o.JPG") - pixels(tmp_path / "o.png")).mean() < 5


# ---------------------------------------------------------------------------------------------------------------- LoRAs


def test_a_zero_lora_is_the_base_bit_for_bit(tryon_loras, wardrobe, tryon_run, tmp_path):
    same = ["--height", 128, "--width", 96, "--guidance_scale", 1, "--prompt", "a garment"]
    for flag in ("--repaint", "--no-repaint"):
        for name, model in (("base", ["--embedded"]), ("zero", ["--lora", tryon_loras["zero"]])):
            tryon_run(*pieces(wardrobe), *model, *same, flag, "--save_pair", "--output", tmp_path / f"{name}{flag}.png")
        for end in (".png", "-pair.png"):
            files = [tmp_path / f"{name}{flag}{end}" for name in ("base", "zero")]
            assert (pixels(files[0]) == pixels(files[1])).all()
    scaled = [*pieces(wardrobe), "--lora", tryon_loras["lora"], *same, "--no-repaint", "--lora_scale"]
    tryon_run(*scaled, 0, "--output", tmp_path / "off.png")
    assert (pixels(tmp_path / "off.png") == pixels(tmp_path / "base--no-repaint.png")).all()
    tryon_run(*scaled, 1, "--output", tmp_path / "on.png")
    assert (pixels(tmp_path / "on.png") != pixels(tmp_path / "off.png")).any()


def test_two_loras_draw_what_one_with_the_sum_of_their_updates_draws(
    tryon_loras, save_random_lora, wardrobe, tryon_run, tmp_path
):
    """Other ranks, other layers, a scale of its own; a batch tells one second LoRA from another."""
    first = tryon_loras["lora"] / "pytorch_lora_weights.safetensors"
    second = save_random_lora(*"--lora_target_modules attention --lora_rank 8 --lora_alpha 2".split(), seed=9, size=0.4)
    weights, other = load_file(first), load_file(second)
    scale = 0.125 * 2 / 8
    for name, tensor in other.items():
        down = ".lora_A." in name
        weights[name] = torch.cat([weights[name], tensor if down else scale * tensor], 0 if down else 1)
    with safe_open(first, "pt") as file:
        said = {key: value for key, value in file.metadata().items() if key != "lora_adapter_metadata"}
    save_file(weights, tmp_path / "sum.safetensors", said)
    drawn = {}
    for name, words in {
        "both": ["--lora", first, "--lora_scale", 1, "--lora", second, "--lora_scale", 0.125],
        "sum": ["--lora", tmp_path / "sum.safetensors"],
        "first": ["--lora", first],
    }.items():
        said = tryon_run(*pieces(wardrobe), *words, "--output", tmp_path / f"{name}.png")
        drawn[name] = pixels(tmp_path / f"{name}.png").astype(int)
    assert np.abs(drawn["both"] - drawn["sum"]).max() <= 1 < np.abs(drawn["both"] - drawn["first"]).max()
    record = read_record(tmp_path / "both.png")
    assert record["lora"] == [str(first), str(second)] and record["lora_scale"] == [1.0, 0.125]
    assert len(set(record["lora_sha256"])) == 2


def test_a_lora_draws_as_it_was_trained_and_the_picture_says_so(
    tryon_loras, wardrobe, tryon_run, tiny_flux_fill, tmp_path
):
    output = tryon_run(*pieces(wardrobe), "--lora", tryon_loras["lora"], "--save_pair", "--output", tmp_path / "o.png")
    assert "drawing   64x48 (height x width), 2 steps, guidance 3.5, seed 0" in output
    assert (
        f"LoRA      {tryon_loras['lora']}/pytorch_lora_weights.safetensors, scale 1" in output and "note" not in output
    )
    with Image.open(tmp_path / "o-pair.png") as pair:
        assert pair.size == (96, 64)
    record = read_record(tmp_path / "o.png")
    wanted = {
        "size": [64, 48],
        "guidance_scale": 3.5,
        "prompt": "a pair of pictures",
        "num_inference_steps": 2,
        "lora_scale": 1.0,
    }
    wanted |= {"transformer": str(tiny_flux_fill), "repaint": True, "seed": 0, "parser": None, "use_captions": False}
    assert {name: record[name] for name in wanted} == wanted
    # Said by flags, the same is drawn.
    same = "--height 64 --width 48 --guidance_scale 3.5 --base".split()
    tryon_run(
        *pieces(wardrobe), "--lora", tryon_loras["lora"], *same, tiny_flux_fill, "--output", tmp_path / "flags.png"
    )
    assert (pixels(tmp_path / "flags.png") == pixels(tmp_path / "o.png")).all()


def test_what_a_user_may_not_have_meant_is_said(tryon_loras, wardrobe, tryon_run, tmp_path, monkeypatch):
    """Before the model is loaded."""

    def fail(*args, **more):
        raise ValueError("that was enough")

    monkeypatch.setattr(ModelChoice, "load", fail)

    def notes(*flags: object) -> list[str]:
        output = tryon_run(*pieces(wardrobe), *flags, "--output", tmp_path / "o.png", code=1)
        assert output.endswith("tryon: that was enough\n")
        return [line.removeprefix("note      ") for line in output.splitlines() if line.startswith("note ")]

    assert notes() == []
    for flags, message in (
        (["--caption", "blue"], "captions are not used"),
        (["--caption", "blue", "--lora", tryon_loras["lora"]], "captions are not used"),
    ):
        (note,) = notes(*flags)
        assert message in note
    with Image.open(wardrobe / "lower-person.png") as photo:
        photo.save(tmp_path / "wide.png", icc_profile=icc.rgb_profile("Adobe RGB"))
    (note,) = notes("--person", tmp_path / "wide.png")
    assert "wide.png" in note and "Adobe RGB" in note and "sRGB" in note


def test_a_lora_that_draws_nothing_finite(tryon_loras, wardrobe, tryon_run, tmp_path):
    weights = load_file(tryon_loras["lora"] / tfi.LORA_FILE)
    for value, message in ((torch.nan, "finite numbers"), (1e30, "the LoRA at scale 1 draws values that are not")):
        bad = tmp_path / "x.safetensors"
        save_file({name: torch.full_like(tensor, value) for name, tensor in weights.items()}, bad)
        flags = [*pieces(wardrobe), "--lora", bad, "--embedded", "--output", tmp_path / "o" / "o.png"]
        assert message in tryon_run(*flags, code=1)
    assert not (tmp_path / "o").exists()
