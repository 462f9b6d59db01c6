"""The command `tryon` as a user types it: what is drawn, what is kept, what is refused, and what is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file

import train_flux_inpaint as tfi
from deepfashion_training import tryon
from deepfashion_training.dressing import dress as dressing
from deepfashion_training.dressing.choice import Choice
from deepfashion_training.dressing.records import made_from
from deepfashion_training.embedded.drawing import draw_flat
from deepfashion_training.embedded.rows import documented_specs
from deepfashion_training.pairs.paste import feathered, seam_of

ROOT = Path(__file__).resolve().parents[1]
TYPES = ("upper", "lower", "full")
#: The bound for one picture of the embedded model on two cores. Held here against processor seconds, which do not grow
#: when something else is running; benchmarks/tryon.py has the time on the wall.
MOST_SECONDS = 30.0


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory) -> Path:
    """For each type <type>-person.png, -garment.png and -mask.png of 256x192 (height x width), for reading only."""
    folder = tmp_path_factory.mktemp("wardrobe")
    for kind, spec in zip(TYPES, documented_specs(3, 5), strict=True):
        drawing = spec.draw((256, 192))
        drawing.photo.save(folder / f"{kind}-person.png")
        flat, _ = draw_flat(spec.garment(), drawing.person.gender, (256, 192), drawing.outfit.inner)
        flat.save(folder / f"{kind}-garment.png")
        mask = drawing.agnostic[spec.cloth_type].astype(np.uint8) * np.uint8(255)
        Image.fromarray(mask).save(folder / f"{kind}-mask.png")
    return folder


@pytest.fixture
def shop(wardrobe, tmp_path) -> Path:
    """A copy of the wardrobe that a test may spoil."""
    return Path(shutil.copytree(wardrobe, tmp_path / "shop"))


@pytest.fixture(scope="module")
def loras(tiny_flux_fill, tmp_path_factory) -> dict[str, Path]:
    """LoRAs as the trainer saves them, trained at 64x48 with guidance 3.5: one of zeros, one that changes things."""
    found = {}
    for name, size in (("zero", 0.0), ("lora", 0.1)):
        models = ["--pretrained_model_name_or_path", "--pretrained_inpaint_model_name_or_path"]
        named = [part for model in models for part in (model, str(tiny_flux_fill))]
        own = "--height 64 --width 48 --guidance_scale 3.5 --max_sequence_length 128 --lora_rank 4".split()
        args = tfi.parse_args(["--dataroot", "data", *named, *own, "--instance_prompt", "a pair of pictures"])
        transformer = FluxTransformer2DModel.from_pretrained(tiny_flux_fill, subfolder="transformer")
        torch.manual_seed(1)
        for parameter in tfi.make_trainable(transformer, args):
            parameter.data += size * torch.randn_like(parameter) * (parameter == 0)
        found[name] = tfi.save_lora(transformer, args, tmp_path_factory.mktemp(name)).parent
    return found


@pytest.fixture
def run(capsys) -> Callable[..., str]:
    """Runs the command, 2 steps of the embedded model unless flags say otherwise; returns stdout and stderr."""

    def run(*flags: object, code: int = 0, steps: int = 2) -> str:
        flags = tuple(map(str, flags))
        base = [] if "--lora" in flags or "--base" in flags else ["--embedded"]
        assert tryon.main([*flags, *base, "--steps", str(steps)]) == code
        said = capsys.readouterr()
        if code:
            assert said.err.splitlines()[-1].startswith("tryon: ") and "Traceback" not in said.err
        return said.out + said.err

    return run


@pytest.fixture
def refused(run) -> Callable[..., str]:
    """Runs the command, which fails before it draws: one line on stderr."""

    def refused(*flags: object) -> str:
        message = run(*flags, code=1)
        assert message.startswith("tryon: ") and message.count("\n") == 1
        return message

    return refused


@pytest.fixture
def misused(capsys) -> Callable[..., str]:
    """Runs the command, which ends with exit code 2 and one line."""

    def misused(*flags: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            tryon.main([str(flag) for flag in flags])
        message = capsys.readouterr().err
        assert stopped.value.code == 2 and message.startswith("tryon: ") and message.count("\n") == 1
        return message

    return misused


def pieces(folder: Path, kind: str = "lower") -> list[object]:
    """Flags of the pictures of one type, with their mask."""
    named = {what: folder / f"{kind}-{what}.png" for what in ("person", "garment", "mask")}
    return [part for what, path in named.items() for part in (f"--{what}", path)]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), int)


# --------------------------------------------------------------------------------------------------- one person


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("how", ["--mask", "--garment_type"])
def test_each_type_with_a_mask_and_with_the_parser(kind, how, wardrobe, run, tmp_path):
    """Only the area that was to be repainted changes, and it does change."""
    flags = pieces(wardrobe, kind)
    flags = flags if how == "--mask" else [*flags[:4], "--garment_type", kind]
    began = time.process_time()
    output = run(*flags, "--save_mask", "--output", tmp_path / "o.png", steps=28 if how == "--garment_type" else 2)
    assert time.process_time() - began < MOST_SECONDS
    assert output.startswith(f"{tmp_path / 'o-mask.png'}\n{tmp_path / 'o.png'}\n")
    before, after = pixels(wardrobe / f"{kind}-person.png"), pixels(tmp_path / "o.png")
    mask = pixels(tmp_path / "o-mask.png")[..., 0]
    assert after.shape == before.shape == (256, 192, 3) and set(np.unique(mask)) == {0, 255}
    if how == "--mask":
        assert (mask == pixels(wardrobe / f"{kind}-mask.png")[..., 0]).all()
    changed = np.abs(after - before).max(axis=-1)
    assert (changed[feathered(mask > 0, seam_of((256, 192))) == 0] == 0).all()
    assert (changed[mask > 0] > 20).mean() > 0.5


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
    assert lines[2] == "drawing   128x96 (height x width), 28 steps, guidance 1, seed 0"
    assert lines[3].startswith("repaint   on: beyond the feathered mask nothing changes")
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


@pytest.mark.parametrize("size", [(667, 1001), (333, 250), (192, 256), (97, 401), (400, 64)])
def test_the_result_has_the_persons_own_size(size, wardrobe, run, tmp_path):
    for what in ("person", "mask"):
        filter_ = Image.Resampling.NEAREST if what == "mask" else Image.Resampling.LANCZOS
        with Image.open(wardrobe / f"upper-{what}.png") as picture:
            picture.resize(size, filter_).save(tmp_path / f"upper-{what}.png")
    shutil.copy(wardrobe / "upper-garment.png", tmp_path)
    for flag in ("--repaint", "--no-repaint"):
        run(*pieces(tmp_path, "upper"), flag, "--output", tmp_path / f"o{flag}.png")
        with Image.open(tmp_path / f"o{flag}.png") as result:
            assert (result.size, result.mode) == (size, "RGB")


def test_a_photo_that_its_exif_turns(wardrobe, run, tmp_path):
    """The photo stored a quarter turned gives the same picture as the upright one, and carries no EXIF on."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    with Image.open(wardrobe / "lower-person.png") as photo:
        photo.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    flags = pieces(wardrobe)
    run(*flags, "--output", tmp_path / "a.png")
    run("--person", tmp_path / "turned.png", *flags[2:], "--output", tmp_path / "b.png")
    assert (pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")).all()
    with Image.open(tmp_path / "b.png") as result:
        assert result.size == (192, 256) and ExifTags.Base.Orientation not in result.getexif()


def test_pictures_with_transparency(wardrobe, run, tmp_path):
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
        run(*pieces(tmp_path, name), "--output", tmp_path / f"{name}.png")
    assert (pixels(tmp_path / "clear.png") == pixels(tmp_path / "white.png")).all()


def test_no_repaint_shows_all_that_the_model_drew(wardrobe, run, tmp_path):
    output = run(*pieces(wardrobe), "--no-repaint", "--save_pair", "--output", tmp_path / "o.png")
    assert "repaint   off: the whole picture is as the model drew it (--repaint keeps" in output
    before, after = pixels(wardrobe / "lower-person.png"), pixels(tmp_path / "o.png")
    mask = pixels(wardrobe / "lower-mask.png")[..., 0] > 0
    assert (np.abs(after - before).max(axis=-1)[feathered(mask, 1) == 0] > 0).mean() > 0.5
    with Image.open(tmp_path / "o-pair.png") as pair:
        assert pair.size == (192, 128)
        half = pair.crop((96, 0, 192, 128)).resize((192, 256), Image.Resampling.LANCZOS)
    assert (np.asarray(half, int) == after).all()


def test_several_pictures_are_those_of_their_seeds(wardrobe, run, tmp_path):
    output = run(*pieces(wardrobe), "--num_images", 3, "--seed", 7, "--save_pair", "--output", tmp_path / "n" / "o.png")
    names = [f"o-{seed}{kind}.png" for seed in (7, 8, 9) for kind in ("-pair", "")]
    assert output.splitlines()[:6] == [str(tmp_path / "n" / name) for name in names]
    assert sorted(path.name for path in (tmp_path / "n").iterdir()) == sorted(names)
    run(*pieces(wardrobe), "--seed", 8, "--output", tmp_path / "single.png")
    drawn = [pixels(tmp_path / "n" / f"o-{seed}.png") for seed in (7, 8, 9)]
    assert (drawn[1] == pixels(tmp_path / "single.png")).all()
    assert (drawn[0] != drawn[1]).any() and (drawn[1] != drawn[2]).any()
    for seed in (7, 8, 9):
        records = [made_from(tmp_path / "n" / f"o-{seed}{kind}.png") for kind in ("", "-pair")]
        assert records[0] == records[1] and records[0]["seed"] == seed


def test_the_largest_seeds(wardrobe, run, tmp_path):
    run(*pieces(wardrobe), "--seed", 2**63 - 1, "--num_images", 2, "--output", tmp_path / "o.png")
    first, second = (pixels(tmp_path / f"o-{2**63 - 1 + i}.png") for i in (0, 1))
    assert (first != second).any()


def test_a_folder_as_output(wardrobe, run, tmp_path):
    run(*pieces(wardrobe), "--output", tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["lower-person-lower-garment.png"]
    (tmp_path / "a.dir").mkdir()
    run(*pieces(wardrobe), "--output", tmp_path / "a.dir")
    assert len(list((tmp_path / "a.dir").iterdir())) == 1


def test_other_forms_of_output(wardrobe, run, tmp_path):
    output = run(*pieces(wardrobe), "--output", tmp_path / "o.JPG")
    assert "note      JPEG changes every pixel a little, also beyond the mask" in output
    assert "JPEG" not in run(*pieces(wardrobe), "--output", tmp_path / "o.webp")
    run(*pieces(wardrobe), "--output", tmp_path / "o.png")
    with Image.open(tmp_path / "o.JPG") as jpeg, Image.open(tmp_path / "o.webp") as webp:
        assert (jpeg.format, webp.format) == ("JPEG", "WEBP")
    assert (pixels(tmp_path / "o.webp") == pixels(tmp_path / "o.png")).all()
    assert np.abs(pixels(tmp_path / "o.JPG") - pixels(tmp_path / "o.png")).mean() < 5


# ---------------------------------------------------------------------------------------------------------- LoRAs


def test_a_zero_lora_is_the_base_bit_for_bit(loras, wardrobe, run, tmp_path):
    same = ["--height", 128, "--width", 96, "--guidance_scale", 1, "--prompt", "a garment"]
    for flag in ("--repaint", "--no-repaint"):
        for name, model in (("base", ["--embedded"]), ("zero", ["--lora", loras["zero"]])):
            run(*pieces(wardrobe), *model, *same, flag, "--save_pair", "--output", tmp_path / f"{name}{flag}.png")
        for end in (".png", "-pair.png"):
            files = [tmp_path / f"{name}{flag}{end}" for name in ("base", "zero")]
            assert (pixels(files[0]) == pixels(files[1])).all()
    scaled = [*pieces(wardrobe), "--lora", loras["lora"], *same, "--no-repaint", "--lora_scale"]
    run(*scaled, 0, "--output", tmp_path / "off.png")
    assert (pixels(tmp_path / "off.png") == pixels(tmp_path / "base--no-repaint.png")).all()
    run(*scaled, 1, "--output", tmp_path / "on.png")
    assert (pixels(tmp_path / "on.png") != pixels(tmp_path / "off.png")).any()


def test_a_lora_draws_as_it_was_trained_and_the_picture_says_so(loras, wardrobe, run, tiny_flux_fill, tmp_path):
    output = run(*pieces(wardrobe), "--lora", loras["lora"], "--save_pair", "--output", tmp_path / "o.png")
    assert "drawing   64x48 (height x width), 2 steps, guidance 3.5, seed 0" in output
    assert f"LoRA      {loras['lora']}/pytorch_lora_weights.safetensors, scale 1" in output and "note" not in output
    with Image.open(tmp_path / "o-pair.png") as pair:
        assert pair.size == (96, 64)
    record = made_from(tmp_path / "o.png")
    wanted = {"size": [64, 48], "guidance_scale": 3.5, "prompt": "a pair of pictures", "steps": 2, "lora_scale": 1.0}
    wanted |= {"transformer": str(tiny_flux_fill), "repaint": True, "seed": 0, "parser": None, "use_captions": False}
    assert {name: record[name] for name in wanted} == wanted
    # Said by flags, the same is drawn.
    same = "--height 64 --width 48 --guidance_scale 3.5 --base".split()
    run(*pieces(wardrobe), "--lora", loras["lora"], *same, tiny_flux_fill, "--output", tmp_path / "flags.png")
    assert (pixels(tmp_path / "flags.png") == pixels(tmp_path / "o.png")).all()


def test_what_a_user_may_not_have_meant_is_said(loras, wardrobe, run, tmp_path, monkeypatch):
    """Before the model is loaded."""

    def fail(*args, **more):
        raise ValueError("that was enough")

    monkeypatch.setattr(Choice, "load", fail)

    def notes(*flags: object) -> list[str]:
        output = run(*pieces(wardrobe), *flags, "--output", tmp_path / "o.png", code=1)
        assert output.endswith("tryon: that was enough\n")
        return [line.removeprefix("note      ") for line in output.splitlines() if line.startswith("note ")]

    assert notes() == []
    assert notes("--caption", "blue") == ["captions are not used: the base was trained without them"]
    assert notes("--caption", "blue", "--lora", loras["lora"]) == [
        "captions are not used: the LoRA was trained without them"
    ]
    assert notes("--parser", "somebody/parser") == ["--parser is not used: masks are given"]
    assert notes("--garment_type", "upper") == [
        "--mask says what is repainted; --garment_type only chooses in a map of garment types"
    ]
    assert notes("--lora", loras["lora"], "--height", 128, "--width", 96) == [
        "the LoRA was trained at 64x48 (height x width), and draws 128x96 here"
    ]


def test_a_lora_that_draws_nothing_finite(loras, wardrobe, run, tmp_path):
    weights = load_file(loras["lora"] / tfi.LORA_FILE)
    bad = tmp_path / "x.safetensors"
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}, bad)
    flags = [*pieces(wardrobe), "--lora", bad, "--embedded", "--output", tmp_path / "o" / "o.png"]
    assert "the LoRA at scale 1 draws values that are not finite" in run(*flags, code=1)
    assert not (tmp_path / "o").exists()


# ------------------------------------------------------------------------------------------------- what is refused


def test_a_result_that_is_there_is_replaced_only_on_request(shop, run, refused, tmp_path):
    for name in ("o.png", "q-mask.png", "r-1.png"):
        (tmp_path / name).write_bytes(b"mine")
    flags = pieces(shop)
    assert refused(*flags, "--output", tmp_path / "o.png") == (
        f"tryon: --output {tmp_path / 'o.png'} exists: name another, or replace it with --overwrite\n"
    )
    assert "q-mask.png exists" in refused(*flags, "--save_mask", "--output", tmp_path / "q.png")
    assert "r-1.png exists" in refused(*flags, "--num_images", 3, "--output", tmp_path / "r.png")
    assert all((tmp_path / name).read_bytes() == b"mine" for name in ("o.png", "q-mask.png", "r-1.png"))
    run(*flags, "--save_mask", "--overwrite", "--output", tmp_path / "q.png")
    assert (pixels(tmp_path / "q-mask.png") == pixels(shop / "lower-mask.png")).all()


def test_what_is_read_is_never_replaced(shop, refused):
    before = {path: path.read_bytes() for path in shop.iterdir()}
    flags = [*pieces(shop), "--overwrite", "--output"]
    for what in ("person", "garment", "mask"):
        assert f"would replace the {what} that is read" in refused(*flags, shop / f"lower-{what}.png")
    assert "would replace the mask that is read" in refused("--save_mask", *flags, shop / "lower.png")
    (shop / "link.png").symlink_to(shop / "lower-person.png")
    assert "would replace the person that is read" in refused(*flags, shop / "link.png")
    assert {path: path.read_bytes() for path in before} == before


def test_outputs_that_cannot_be(wardrobe, refused, misused, tmp_path):
    flags = [*pieces(wardrobe), "--output"]
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    assert "cannot be written to" in refused(*flags, tmp_path / "file" / "o.png")
    assert "cannot be written to" in refused(*flags, "/proc/nothing/o.png")
    assert "is a folder: name another" in refused(*flags, tmp_path / "folder.png", "--overwrite")
    assert "too long" in refused(*flags, tmp_path / ("x" * 230 + ".png"))
    for name in ("o.bmp", "o.gif", "o.txt", "o.PDF"):
        assert "pictures end in .png, .jpg, .jpeg, .webp" in misused(*flags, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_photo_that_a_form_cannot_hold(wardrobe, refused, run, tmp_path):
    Image.new("RGB", (17_000, 40), (9, 9, 9)).save(tmp_path / "x-person.png")
    mask = Image.new("L", (17_000, 40), 0)
    mask.paste(255, (4000, 10, 4003, 30))
    mask.save(tmp_path / "x-mask.png")
    shutil.copy(wardrobe / "lower-garment.png", tmp_path / "x-garment.png")
    message = run(*pieces(tmp_path, "x"), "--output", tmp_path / "o.png", code=1)
    assert f"the mask {tmp_path / 'x-mask.png'}: the mask is so small that nothing of it is left at 128x96" in message
    mask.paste(255, (4000, 10, 9000, 30))
    mask.save(tmp_path / "x-mask.png")
    message = run(*pieces(tmp_path, "x"), "--output", tmp_path / "o.webp", code=1)
    assert "WEBP holds no picture of 17000x40 pixels: name a .png" in message
    run(*pieces(tmp_path, "x"), "--output", tmp_path / "o.png")
    with Image.open(tmp_path / "o.png") as result:
        assert result.size == (17_000, 40)


def test_pictures_that_cannot_be_read(wardrobe, refused, run, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    flags = pieces(wardrobe)
    for what, at in (("person", 1), ("garment", 3), ("mask", 5)):
        bad = list(flags)
        bad[at] = tmp_path / "text.png"
        message = refused(*bad, "--output", tmp_path / "o")
        assert f"--{what} {tmp_path / 'text.png'}: not readable as a picture" in message
        bad[at] = tmp_path / "none.png"
        assert f"--{what} {tmp_path / 'none.png'}: no such file" in refused(*bad, "--output", tmp_path / "o")
    Image.new("L", (192, 256), 255).save(tmp_path / "white.png")
    flags[5] = tmp_path / "white.png"
    message = run(*flags, "--output", tmp_path / "o", code=1)
    assert f"tryon: the mask {tmp_path / 'white.png'}: the mask is white up to the corners" in message
    assert not (tmp_path / "o").exists()


def test_models_that_cannot_be_had(wardrobe, refused, tmp_path):
    flags = [*pieces(wardrobe), "--output", tmp_path / "o.png"]
    assert "--lora_scale 2 scales nothing" in refused(*flags, "--lora_scale", 2)
    assert f"--lora {tmp_path / 'none'}: no such file or folder" in refused(*flags, "--lora", tmp_path / "none")
    assert "--parser" in refused(*flags[:4], "--garment_type", "full", *flags[6:], "--parser", tmp_path / "none")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--output"),
        (["--output", "o.png"], "--person and --garment are needed, or --batch"),
        (["--output", "o.png", "--person", "p"], "--person and --garment are needed"),
        (["--output", "o.png", "--person", "p", "--garment", "g"], "--mask or --garment_type is needed"),
        (["--output", "o.png", "--garment_type", "shoes"], "'shoes'"),
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
def test_wrong_use(flags, message, misused):
    assert message in misused(*flags)


def test_values_may_begin_with_hyphens(wardrobe, run, tmp_path):
    run(*pieces(wardrobe), "--prompt=--seed", "--output", tmp_path / "a.png")
    assert made_from(tmp_path / "a.png")["prompt"] == "--seed"
    run(*pieces(wardrobe), "--prompt", "--a coat", "--output", tmp_path / "b.png")
    assert made_from(tmp_path / "b.png")["prompt"] == "--a coat"


def test_an_error_inside_shows_its_traceback_on_request(wardrobe, run, tmp_path, monkeypatch, capsys):
    def fail(*args, **more):
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(dressing, "dress", fail)
    flags = [*pieces(wardrobe), "--output", tmp_path / "o.png"]
    message = run(*flags, code=1)
    assert message.endswith("tryon: RuntimeError: out of cheese (--debug shows the traceback)\n")
    assert tryon.main([*map(str, flags), "--embedded", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_stopped_between_two_pictures(wardrobe, run, tmp_path, monkeypatch):
    stop_after(1, monkeypatch)
    message = run(*pieces(wardrobe), "--num_images", 3, "--output", tmp_path / "o.png", code=130)
    assert message.endswith("tryon: stopped; pictures that are complete stay\n")
    assert [path.name for path in tmp_path.iterdir()] == ["o-0.png"]


# ---------------------------------------------------------------------------------------------------------- batch


def stop_after(pictures: int, monkeypatch, error: BaseException | None = None) -> None:
    """Let the picture after so many ones end in Ctrl-C, or in ``error``."""
    real, drawn = dressing.dress, []

    def counted(*args, **more):
        if len(drawn) == pictures:
            raise error or KeyboardInterrupt
        drawn.append(1)
        return real(*args, **more)

    monkeypatch.setattr(dressing, "dress", counted)


def table(folder: Path, *rows: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join(["person,garment,mask,garment_type,caption,output", *rows]) + "\n")
    return path


@pytest.fixture
def batch(shop) -> list[object]:
    """Flags of a batch of three rows: by mask, by the row's own type, by the type of --garment_type and no name."""
    rows = ["upper-person.png,upper-garment.png,upper-mask.png,,,a.png"]
    rows += ["lower-person.png,lower-garment.png,,lower,,b.png", "full-person.png,full-garment.png,,,,"]
    return ["--batch", table(shop, *rows), "--garment_type", "full", "--output", shop / "out"]


NAMES = ["4-full-person-full-garment.png", "a.png", "b.png"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_batch_draws_what_single_runs_draw(batch, shop, run):
    output = run(*batch)
    assert output.startswith(f"3 of 3 rows drawn into {shop / 'out'}\n") and names(shop / "out") == NAMES
    run(*pieces(shop, "upper"), "--output", shop / "single.png")
    run(*pieces(shop, "lower")[:4], "--garment_type", "lower", "--output", shop / "typed.png")
    assert (pixels(shop / "single.png") == pixels(shop / "out" / "a.png")).all()
    assert (pixels(shop / "typed.png") == pixels(shop / "out" / "b.png")).all()
    again = run(*batch)
    assert again.startswith(f"all 3 rows are drawn already: {shop / 'out'}\n")


def test_a_batch_that_was_stopped_draws_only_what_is_left(batch, shop, run, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        message = run(*batch, code=130)
    assert message.endswith("tryon: stopped; the same command goes on after what is drawn\n")
    assert names(shop / "out") == ["a.png"]
    before = (shop / "out" / "a.png").stat()
    (shop / "out" / ".b.png.part").write_bytes(b"left behind by a kill")
    output = run(*batch)
    assert "going on  1 of 3 pictures are drawn already" in output and "2 of 2 rows drawn into" in output
    assert names(shop / "out") == NAMES
    after = (shop / "out" / "a.png").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_of_several_pictures_of_a_row_only_those_that_are_missing_are_drawn(batch, shop, run, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        run(*batch, "--num_images", 2, code=130)
    assert names(shop / "out") == ["a-0.png", "a-1.png", "b-0.png"]
    before = (shop / "out" / "b-0.png").stat().st_mtime_ns
    assert "going on  3 of 6 pictures" in run(*batch, "--num_images", 2)
    assert (shop / "out" / "b-0.png").stat().st_mtime_ns == before and len(names(shop / "out")) == 6


def test_pairs_and_masks_that_are_asked_for_later_are_drawn(batch, shop, run):
    run(*batch)
    output = run(*batch, "--save_pair", "--save_mask")
    assert "3 of 3 rows drawn" in output and len(names(shop / "out")) == 9
    assert "all 3 rows are drawn already" in run(*batch, "--save_pair", "--save_mask")


def test_rows_may_be_added(batch, shop, run):
    """One that needs the parser where the others brought masks, too."""
    first = "upper-person.png,upper-garment.png,upper-mask.png,,,a.png"
    table(shop, first)
    run(*batch)
    table(shop, first, "lower-person.png,lower-garment.png,,lower,,b.png")
    assert "going on  1 of 2 pictures" in run(*batch) and names(shop / "out") == ["a.png", "b.png"]
    assert made_from(shop / "out" / "a.png")["parser"] is None
    assert made_from(shop / "out" / "b.png")["parser"].endswith("drawn_parser")


def test_other_settings_are_refused_by_name(batch, shop, run, refused, loras):
    run(*batch, "--lora", loras["lora"])
    a = shop / "out" / "a.png"
    before = a.read_bytes()
    end = ": name another, or replace it with --overwrite\n"
    for flags, names_ in (
        (["--lora", loras["lora"], "--seed", 1], "seed"),
        (["--lora", loras["lora"], "--guidance_scale", 9, "--height", 128], "guidance_scale, size"),
        (["--lora", loras["lora"], "--no-repaint"], "repaint"),
        (["--lora", loras["lora"], "--lora_scale", 0.5], "lora_scale"),
        (["--lora", loras["zero"]], "lora_sha256"),
    ):
        assert refused(*batch, *flags) == f"tryon: --output {a} was made with other {names_}{end}"
    # The same LoRA in another place is the same LoRA.
    shutil.copytree(loras["lora"], shop / "moved")
    assert "all 3 rows are drawn already" in run(*batch, "--lora", shop / "moved")
    shutil.copy(shop / "full-person.png", shop / "upper-person.png")
    message = refused(*batch, "--lora", loras["lora"])
    assert message == f"tryon: --output {a} was made with other pictures{end}" and a.read_bytes() == before
    assert "3 of 3 rows drawn" in run(*batch, "--lora", loras["lora"], "--overwrite") and a.read_bytes() != before


def test_a_batch_replaces_no_strangers_picture(batch, shop, refused):
    (shop / "out").mkdir()
    shutil.copy(shop / "upper-mask.png", shop / "out" / "b.png")
    message = refused(*batch)
    assert f"--output {shop / 'out' / 'b.png'} is there and does not say how it was made" in message
    assert names(shop / "out") == ["b.png"]


def test_a_row_that_fails_does_not_stop_the_others(batch, shop, run):
    """A file whose header is good, and which ends in the middle."""
    whole = (shop / "lower-person.png").read_bytes()
    (shop / "lower-person.png").write_bytes(whole[: len(whole) // 2])
    output = run(*batch, code=1)
    assert "2 of 3 rows drawn into" in output and names(shop / "out") == [NAMES[0], "a.png"]
    why = f"b.png: the person {shop / 'lower-person.png'}: not readable as a picture"
    lines = output.splitlines()
    assert sum(line.startswith(why) for line in lines) == 1
    assert lines[-1].startswith(f"tryon: 1 of 3 rows failed, first {why}")
    assert lines[-1].endswith("mend them and give the same command again: what is drawn stays")
    (shop / "lower-person.png").write_bytes(whole)
    assert "going on  2 of 3" in run(*batch) and names(shop / "out") == NAMES


def test_a_disk_that_is_full_fails_row_by_row(batch, shop, run, monkeypatch):
    stop_after(1, monkeypatch, OSError(28, "No space left on device"))
    message = run(*batch, code=1)
    assert "2 of 3 rows failed, first b.png: [Errno 28] No space left on device" in message
    assert names(shop / "out") == ["a.png"]


def test_tables_that_are_refused(shop, refused, misused):
    def told(*rows: str, more: tuple[object, ...] = ()) -> str:
        return refused("--batch", table(shop, *rows), "--output", shop / "out", *more)

    row = "upper-person.png,upper-garment.png,upper-mask.png,,,"
    assert "line 3: output a.png is that of line 2 too" in told(f"{row}a.png", f"{row}a.png")
    message = told(f"{row}a.png", f"{row}a-pair.png", more=("--save_pair",))
    assert f"--output {shop / 'out' / 'a-pair.png'} is where two pictures would go" in message
    assert "line 2: neither mask nor garment_type" in told("upper-person.png,upper-garment.png,,,,")
    assert "has no rows" in told()
    # A picture that no row reads, and that is not of this command.
    message = refused("--batch", table(shop, f"{row}lower-mask.png"), "--output", shop)
    assert "lower-mask.png is there and does not say how it was made" in message
    assert "no such file" in refused("--batch", shop / "none.csv", "--output", shop / "out")
    assert not (shop / "out").exists()


def test_a_batch_never_writes_over_what_its_rows_read(shop, refused):
    row = "upper-person.png,upper-garment.png,upper-mask.png,,,"
    before = (shop / "upper-mask.png").read_bytes()
    flags = ["--batch", table(shop, f"{row}upper.png"), "--output", shop, "--save_mask", "--overwrite"]
    assert "would replace the mask that is read" in refused(*flags)
    assert (shop / "upper-mask.png").read_bytes() == before


def test_captions_of_a_table_that_are_not_used_are_noted(batch, shop, run):
    table(shop, "upper-person.png,upper-garment.png,upper-mask.png,,red,a.png")
    assert "note      captions are not used: the base was trained without them" in run(*batch)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_does_not_hang(wardrobe, refused, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    flags = [*pieces(wardrobe)[2:], "--output", tmp_path / "o.png"]
    assert "a pipe or device, where a picture in a file is needed" in refused("--person", tmp_path / "pipe.png", *flags)
    assert "a pipe or device" in refused("--person", "/dev/zero", *flags)
