"""What several test files share: the small FLUX-Fill and LoRAs of it, drawn pictures and folders, small runs."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a Hugging Face library
# Before torch is imported: threads that spin while they wait make a step 15 times slower on a core that is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import contextlib
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 128, 96
TRAIN_ROWS, TEST_ROWS = 8, 3
#: Where a drawn garment mask and a drawn agnostic mask are white: left, top, right, bottom.
GARMENT_BOX, MASK_BOX = (16, 24, 80, 112), (24, 40, 72, 100)
#: Names of the garment types as users give them.
TYPES = ("upper", "lower", "full")


#: Files that take longest. They come first, so that no process is left with one of them at the end.
LONGEST = (
    "train_deepfashion_lora evaluate demo_browser prepare driven_run train_flux_inpaint_run tryon launcher "
    "train_flux_inpaint_loss publish fill benchmark_train_step parser tryon_batch quality batch presets"
).split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def draw_viton(root: Path, train_rows: int, test_rows: int) -> None:
    """A VITON-HD folder of flat colours: person ``i`` is (200, 10 i, 50), garment ``i`` is (10 i, 100, 250).

    Pictures are PNG under a .jpg name, so that colours stay exact. The lists pair person ``i`` with garment ``i + 1``.
    """
    for phase, rows in (("train", train_rows), ("test", test_rows)):
        for folder in ("image", "cloth", "cloth-mask", "agnostic-mask"):
            (root / phase / folder).mkdir(parents=True)
        for i in range(rows):
            name = f"{i:03d}_00"
            Image.new("RGB", (WIDTH, HEIGHT), (200, 10 * i, 50)).save(root / phase / "image" / f"{name}.jpg", "PNG")
            Image.new("RGB", (WIDTH, HEIGHT), (10 * i, 100, 250)).save(root / phase / "cloth" / f"{name}.jpg", "PNG")
            for folder, file, box in (
                ("cloth-mask", f"{name}.jpg", GARMENT_BOX),
                ("agnostic-mask", f"{name}_mask.png", MASK_BOX),
            ):
                mask = Image.new("L", (WIDTH, HEIGHT), 0)
                mask.paste(255, box)
                mask.save(root / phase / folder / file, "PNG")
        lines = [f"{i:03d}_00.jpg {(i + 1) % rows:03d}_00.jpg\n" for i in range(rows)]
        (root / f"{phase}_pairs.txt").write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_flux_fill() -> Path:
    """Folder of the small FLUX-Fill pipeline."""
    return ROOT / "deepfashion_training" / "embedded" / "tiny_flux_fill"


@pytest.fixture(scope="session")
def viton_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VITON-HD folder of 8 training and 3 test rows, for reading only."""
    root = tmp_path_factory.mktemp("viton")
    draw_viton(root, TRAIN_ROWS, TEST_ROWS)
    return root


@pytest.fixture
def viton_copy(tmp_path: Path) -> Path:
    """A VITON-HD folder of 3 training rows and 1 test row that a test may spoil."""
    draw_viton(tmp_path / "viton", 3, 1)
    return tmp_path / "viton"


@pytest.fixture(scope="session")
def tiny_flags(
    tiny_flux_fill: Path, viton_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[str]]:
    """Command line of a small run into a new folder; the flags given come last and so win."""

    def flags(*more: object) -> list[str]:
        words = list(map(str, more))
        lora = [] if "--train_base_model" in words else ["--lora_rank", "4"]
        pictures = [] if "--validation_steps 0" in " ".join(words) else ["--num_validation_images", "2"]
        return [
            *("--pretrained_model_name_or_path", str(tiny_flux_fill)),
            *("--pretrained_inpaint_model_name_or_path", str(tiny_flux_fill)),
            *("--dataroot", str(viton_root), "--output_dir", str(tmp_path_factory.mktemp("run") / "out")),
            *f"--height {HEIGHT} --width {WIDTH} --max_sequence_length 96 --dataloader_num_workers 0".split(),
            *("--train_batch_size", "2", "--num_inference_steps", "2", *lora, *pictures),
            *words,
        ]

    return flags


@pytest.fixture(scope="session")
def tiny_args(tiny_flags: Callable[..., list[str]]) -> Callable[..., argparse.Namespace]:
    """``tiny_flags`` as the trainer parses them."""

    def parsed(*more: object) -> argparse.Namespace:
        import train_flux_inpaint

        return train_flux_inpaint.parse_args(tiny_flags(*more))

    return parsed


@contextlib.contextmanager
def writing(file: Path) -> Iterator[int]:
    """Another process, by its number, that writes the folder of the lock ``file``."""
    words = "import sys, time; from pathlib import Path; from training_run.lock import only_writer\n"
    words += "with only_writer(Path(), file=Path(sys.argv[1]), patience=0): print(flush=True); time.sleep(600)"
    command, environment = [sys.executable, "-c", words, str(file)], {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process.pid
        process.kill()


def forget_accelerator() -> None:
    """Let the next ``Accelerator`` choose its own settings: accelerate keeps the first one's for the process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    """No test finds the precision of one before it."""
    yield
    if "accelerate.state" in sys.modules:
        forget_accelerator()


@pytest.fixture
def accelerator() -> Iterator[Any]:
    """An ``Accelerator`` of one CPU process, forgotten after the test."""
    from accelerate import Accelerator

    forget_accelerator()
    yield Accelerator(cpu=True)
    forget_accelerator()


@pytest.fixture
def bitsandbytes_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bitsandbytes' kernels for the CPU. The project refuses it there, because nobody would wait for them."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from training_run import guards

    monkeypatch.setattr(guards, "check_package", lambda *_: None)
    # With AVX512 it would pack weights anew when it first draws, in a form that it cannot train over.
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    return bitsandbytes


# ----------------------------------------------------------------------------------------------- LoRAs and pictures


@pytest.fixture(scope="session")
def save_random_lora(tiny_flux_fill: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a LoRA of the small model in a new folder ``name``; returns its file. Flags are the trainer's.

    Every trained weight is what training begins with plus ``size`` times noise, so that 0 leaves the model as it is.
    """

    def save(*flags: str, size: float = 0.1, seed: int = 3, name: str = "lora") -> Path:
        import torch
        from diffusers import FluxTransformer2DModel

        import train_flux_inpaint as trainer

        models = ["--pretrained_model_name_or_path", "--pretrained_inpaint_model_name_or_path"]
        named = [part for model in models for part in (model, str(tiny_flux_fill))]
        args = trainer.parse_args(["--dataroot", "data", *named, "--lora_rank", "4", *flags])
        transformer = FluxTransformer2DModel.from_pretrained(tiny_flux_fill, subfolder="transformer")
        torch.manual_seed(seed)
        for parameter in trainer.make_trainable(transformer, args):
            parameter.data += size * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp("saved") / name
        folder.mkdir()
        return Path(trainer.save_lora(transformer, args, folder))

    return save


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, channels), np.uint8))


def box_mask(size: tuple[int, int] = (60, 80), box: tuple[int, int, int, int] = (20, 20, 40, 60)) -> Image.Image:
    """White within ``box`` (left, top, right, bottom) on black; ``size`` is (width, height)."""
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def turned(picture: Image.Image, path: Path) -> Path:
    """Stored a quarter turned, with the EXIF tag that turns it back: how phones write upright photos."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return path


def spoiled(name: str, folder: Path) -> Path:
    """A file of the given name that is no picture to use."""
    path = folder / name
    photo = noise(400, 300)
    whole = io.BytesIO()
    photo.save(whole, "JPEG")
    if name == "text.png":
        path.write_text("I am no picture")
    elif name == "half.jpg":
        path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    elif name == "huge.png":
        Image.new("1", (20_000, 20_000)).save(path)
    elif name == "large.png":
        Image.new("1", (10_000, 9_500)).save(path)
    elif name == "thin.png":
        Image.new("L", (10, 10_000)).save(path)
    elif name == "empty.png":
        path.touch()
    elif name == "folder.png":
        path.mkdir()
    elif name == "pipe.png":
        os.mkfifo(path)
    elif name == "dangling.png":
        path.symlink_to(folder / "nothing.png")
    elif name == "vector.eps":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n")
    return path


# ------------------------------------------------------------------------------------------------ the command tryon


@pytest.fixture(scope="session")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each type <type>-person.png, -garment.png and -mask.png of 256x192 (height x width), for reading only."""
    from deepfashion_training.embedded.rows import documented_specs

    folder = tmp_path_factory.mktemp("wardrobe")
    for kind, spec in zip(TYPES, documented_specs(3, 5), strict=True):
        drawing = spec.draw((256, 192))
        drawing.photo.save(folder / f"{kind}-person.png")
        spec.draw_garment((256, 192))[0].save(folder / f"{kind}-garment.png")
        mask = drawing.agnostic[spec.cloth_type].astype(np.uint8) * np.uint8(255)
        Image.fromarray(mask).save(folder / f"{kind}-mask.png")
    return folder


@pytest.fixture
def wardrobe_copy(wardrobe: Path, tmp_path: Path) -> Path:
    """A copy of the wardrobe that a test may spoil."""
    return Path(shutil.copytree(wardrobe, tmp_path / "copy"))


@pytest.fixture(scope="session")
def tryon_loras(save_random_lora: Callable[..., Path]) -> dict[str, Path]:
    """Folders of LoRAs trained at 64x48 with guidance 3.5: one of zeros, one that changes things."""
    own = "--height 64 --width 48 --guidance_scale 3.5 --max_sequence_length 8 --num_inference_steps 2".split()
    own += ["--instance_prompt"]
    sizes = {"zero": 0.0, "lora": 0.1}
    return {name: save_random_lora(*own, "a pair of pictures", size=size).parent for name, size in sizes.items()}


@pytest.fixture(scope="session")
def loaded_models() -> dict[object, Any]:
    """What ``tryon_run`` has loaded, by what it was loaded for."""
    return {}


@pytest.fixture
def tryon_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, loaded_models: dict[object, Any]
) -> Callable[..., str]:
    """Runs ``tryon``, 2 steps of the embedded model unless flags say otherwise; returns stdout and stderr.

    A model that an earlier run has loaded is used again; tests/test_fill.py shows that it draws as a fresh one does.
    """
    from deepfashion_training import tryon
    from deepfashion_training.inference.choice import ModelChoice

    load = ModelChoice.load

    def load_once(choice: ModelChoice, prompts: Iterable[str]) -> Any:
        prompts = tuple(prompts)
        key = (choice.recipe, tuple(lora.sha256 for lora in choice.loras), frozenset(prompts))
        if key not in loaded_models:
            loaded_models[key] = load(choice, prompts)
        return loaded_models[key]

    monkeypatch.setattr(ModelChoice, "load", load_once)

    def run(*flags: object, code: int = 0, steps: int = 2) -> str:
        words = tuple(map(str, flags))
        base = [] if "--lora" in words or "--base" in words else ["--embedded"]
        assert tryon.main([*words, *base, "--num_inference_steps", str(steps)]) == code
        said = capsys.readouterr()
        if code:
            assert said.err.splitlines()[-1].startswith("tryon: ") and "Traceback" not in said.err
        return said.out + said.err

    return run


@pytest.fixture
def tryon_refused(tryon_run: Callable[..., str]) -> Callable[..., str]:
    """Runs ``tryon``, which fails before it draws: one line on stderr."""

    def refused(*flags: object) -> str:
        message = tryon_run(*flags, code=1)
        assert message.startswith("tryon: ") and message.count("\n") == 1
        return message

    return refused


@pytest.fixture
def tryon_misused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs ``tryon``, which ends with exit code 2 and one line."""
    from deepfashion_training import tryon

    def misused(*flags: object) -> str:
        assert tryon.main([str(flag) for flag in flags]) == 2
        message = capsys.readouterr().err
        assert message.startswith("tryon: ") and message.count("\n") == 1
        return message

    return misused


def pieces(folder: Path, kind: str = "lower") -> list[object]:
    """Flags of the pictures of one type, with their mask."""
    named = {what: folder / f"{kind}-{what}.png" for what in ("person", "garment", "mask")}
    return [part for what, path in named.items() for part in (f"--{what}", path)]


def pixels(path: Path) -> np.ndarray:
    """RGB values as int [H, W, 3]."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), int)


def stop_after(pictures: int, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    """Let the picture after so many ones end in Ctrl-C, or in ``error``."""
    from deepfashion_training.inference import dress as dressing

    real, drawn = dressing.dress, []

    def counted(*args, **more):
        if len(drawn) == pictures:
            raise error or KeyboardInterrupt
        drawn.append(1)
        return real(*args, **more)

    monkeypatch.setattr(dressing, "dress", counted)
