"""The command `tryon` as a user types it: what is refused, in which words, and what is left behind."""

from __future__ import annotations

import os
import shutil

import pytest
from conftest import pieces, pixels, stop_after
from PIL import Image, ImageOps

from deepfashion_training import tryon
from deepfashion_training.inference import dress as dressing
from deepfashion_training.inference.records import read_record


def test_a_result_that_is_there_is_replaced_only_on_request(wardrobe_copy, tryon_run, tryon_refused, tmp_path):
    for name in ("o.png", "q-mask.png", "r-1.png"):
        (tmp_path / name).write_bytes(b"mine")
    flags = pieces(wardrobe_copy)
    assert tryon_refused(*flags, "--output", tmp_path / "o.png") == (
        f"tryon: --output {tmp_path / 'o.png'} exists: name another, or replace it with --overwrite\n"
    )
    assert "q-mask.png exists" in tryon_refused(*flags, "--save_mask", "--output", tmp_path / "q.png")
    assert "r-1.png exists" in tryon_refused(*flags, "--num_images", 3, "--output", tmp_path / "r.png")
    assert all((tmp_path / name).read_bytes() == b"mine" for name in ("o.png", "q-mask.png", "r-1.png"))
    tryon_run(*flags, "--save_mask", "--overwrite", "--output", tmp_path / "q.png")
    assert (pixels(tmp_path / "q-mask.png") == pixels(wardrobe_copy / "lower-mask.png")).all()


def test_what_is_read_is_never_replaced(wardrobe_copy, tryon_refused):
    before = {path: path.read_bytes() for path in wardrobe_copy.iterdir()}
    flags = [*pieces(wardrobe_copy), "--overwrite", "--output"]
    for what in ("person", "garment", "mask"):
        assert f"would replace the {what} that is read" in tryon_refused(*flags, wardrobe_copy / f"lower-{what}.png")
    assert "would replace the mask that is read" in tryon_refused("--save_mask", *flags, wardrobe_copy / "lower.png")
    (wardrobe_copy / "link.png").symlink_to(wardrobe_copy / "lower-person.png")
    assert "would replace the person that is read" in tryon_refused(*flags, wardrobe_copy / "link.png")
    assert {path: path.read_bytes() for path in before} == before


def test_outputs_that_cannot_be(wardrobe, tryon_refused, tryon_misused, tmp_path):
    flags = [*pieces(wardrobe), "--output"]
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    assert "cannot be written to" in tryon_refused(*flags, tmp_path / "file" / "o.png")
    assert "cannot be written to" in tryon_refused(*flags, "/proc/nothing/o.png")
    assert "would replace a folder" in tryon_refused(*flags, tmp_path / "folder.png", "--overwrite")
    assert "too long" in tryon_refused(*flags, tmp_path / ("x" * 300 + ".png"))
    for name in ("o.bmp", "o.gif", "o.txt", "o.PDF"):
        assert "pictures end in .png, .jpg, .jpeg, .webp" in tryon_misused(*flags, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_photo_of_an_extreme_aspect(wardrobe, tryon_refused, tryon_run, tmp_path):
    Image.new("RGB", (17_000, 40), (9, 9, 9)).save(tmp_path / "x-person.png")
    mask = Image.new("L", (17_000, 40), 0)
    mask.paste(255, (4000, 10, 4003, 30))
    mask.save(tmp_path / "x-mask.png")
    shutil.copy(wardrobe / "lower-garment.png", tmp_path / "x-garment.png")
    message = tryon_run(*pieces(tmp_path, "x"), "--output", tmp_path / "o.png", code=1)
    assert f"the mask {tmp_path / 'x-mask.png'}: it covers " in message
    mask.paste(255, (4000, 10, 9000, 30))
    mask.save(tmp_path / "x-mask.png")
    tryon_run(*pieces(tmp_path, "x"), "--output", tmp_path / "o.png")
    with Image.open(tmp_path / "o.png") as result:
        assert result.size == (17_000, 40)


def test_pictures_that_cannot_be_read(wardrobe, tryon_refused, tryon_run, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    flags = pieces(wardrobe)
    for what, at in (("person", 1), ("garment", 3), ("mask", 5)):
        bad = list(flags)
        bad[at] = tmp_path / "text.png"
        message = tryon_run(*bad, "--output", tmp_path / "o", code=1)
        assert f"the {what} {tmp_path / 'text.png'}: not readable as a picture" in message
        bad[at] = tmp_path / "none.png"
        assert f"--{what} {tmp_path / 'none.png'}: no such file" in tryon_refused(*bad, "--output", tmp_path / "o")
    ImageOps.invert(Image.open(flags[5]).convert("L")).save(tmp_path / "white.png")
    flags[5] = tmp_path / "white.png"
    message = tryon_run(*flags, "--output", tmp_path / "o", code=1)
    assert f"tryon: the mask {tmp_path / 'white.png'}: it is white" in message
    assert not (tmp_path / "o").exists()


def test_models_that_cannot_be_had(wardrobe, tryon_refused, tmp_path):
    flags = [*pieces(wardrobe), "--output", tmp_path / "o.png"]
    assert "--lora_scale 2 scales nothing" in tryon_refused(*flags, "--lora_scale", 2)
    assert f"LoRA {tmp_path / 'none'}: " in tryon_refused(*flags, "--lora", tmp_path / "none")
    assert "--parser" in tryon_refused(*flags[:4], "--garment_type", "full", *flags[6:], "--parser", tmp_path / "none")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--output"),
        (["--output", "o.png"], "--person and --garment are needed, or --batch"),
        (["--output", "o.png", "--person", "p"], "--person and --garment are needed"),
        (["--output", "o.png", "--person", "p", "--garment", "g"], "--mask or --garment_type is needed"),
        (["--output", "o.png", "--garment_type", "shoes"], "'shoes'"),
        ("--output o.png --person p --garment g --mask m --parser x".split(), "--parser does nothing with --mask"),
        (["--output", "o", "--batch", "t.csv", "--person", "p"], "--batch names its pictures itself"),
        (["--output", "o.png", "--batch", "t.csv"], "--output o.png: --batch writes into a folder"),
        (["--output", "o.png", "--lora-scale", "2"], "unknown argument --lora-scale: did you mean --lora_scale?"),
        (["--ouput", "o.png"], "unknown argument --ouput: did you mean --output?"),
        (["--output=o.png", "--garmenttype=full"], "unknown argument --garmenttype: did you mean --garment_type?"),
        (["--output", "o.png", "stray"], "unknown argument stray"),
        (["--output", "o.png", "--num_images", "0"], "0 is not from 1 to 10000"),
        (["--output", "o.png", "--num_images", "9" * 400], "is not from 1 to 10000"),
    ],
)
def test_wrong_use(flags, message, tryon_misused):
    assert message in tryon_misused(*flags)


def test_values_may_begin_with_hyphens(wardrobe, tryon_run, tmp_path):
    tryon_run(*pieces(wardrobe), "--prompt", "--a coat", "--output", tmp_path / "b.png")
    assert read_record(tmp_path / "b.png")["prompt"] == "--a coat"


def test_an_error_inside_shows_its_traceback_on_request(wardrobe, tryon_run, tmp_path, monkeypatch, capsys):
    def fail(*args, **more):
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(dressing, "dress", fail)
    flags = [*pieces(wardrobe), "--output", tmp_path / "o.png"]
    message = tryon_run(*flags, code=1)
    assert message.endswith("tryon: RuntimeError: out of cheese (--debug shows the traceback)\n")
    assert tryon.main([*map(str, flags), "--embedded", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_stopped_between_two_pictures(wardrobe, tryon_run, tmp_path, monkeypatch):
    stop_after(1, monkeypatch)
    message = tryon_run(*pieces(wardrobe), "--num_images", 3, "--output", tmp_path / "o.png", code=130)
    assert "tryon: stopped; pictures that are complete stay" in message
    assert [path.name for path in tmp_path.iterdir()] == ["o-0.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_does_not_hang(wardrobe, tryon_refused, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    flags = [*pieces(wardrobe)[2:], "--output", tmp_path / "o.png"]
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        assert f"--person {path}: " in tryon_refused("--person", path, *flags)
