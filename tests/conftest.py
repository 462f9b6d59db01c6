"""What several test files share: the small FLUX-Fill, a drawn VITON-HD folder, and arguments of a small run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports a Hugging Face library
# Before torch is imported: threads that spin while they wait make a step 15 times slower on a core that is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 128, 96
TRAIN_ROWS, TEST_ROWS = 8, 3
#: Where a drawn garment mask and a drawn agnostic mask are white: left, top, right, bottom.
GARMENT_BOX, MASK_BOX = (16, 24, 80, 112), (24, 40, 72, 100)


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
    """Folder of the small FLUX-Fill pipeline with random weights."""
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
        return [
            *("--pretrained_model_name_or_path", str(tiny_flux_fill)),
            *("--pretrained_inpaint_model_name_or_path", str(tiny_flux_fill)),
            *("--dataroot", str(viton_root), "--output_dir", str(tmp_path_factory.mktemp("run") / "out")),
            *f"--height {HEIGHT} --width {WIDTH} --max_sequence_length 96 --dataloader_num_workers 0".split(),
            *"--lora_rank 4 --train_batch_size 2 --num_inference_steps 2 --num_validation_images 2".split(),
            *map(str, more),
        ]

    return flags


@pytest.fixture(scope="session")
def tiny_args(tiny_flags: Callable[..., list[str]]) -> Callable[..., argparse.Namespace]:
    """``tiny_flags`` as the trainer parses them."""

    def parsed(*more: object) -> argparse.Namespace:
        import train_flux_inpaint

        return train_flux_inpaint.parse_args(tiny_flags(*more))

    return parsed


def forget_accelerator() -> None:
    """Let the next ``Accelerator`` choose its own settings: accelerate keeps the first one's for the process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def accelerator() -> Iterator[Any]:
    """An ``Accelerator`` of one CPU process, forgotten after the test."""
    from accelerate import Accelerator

    forget_accelerator()
    yield Accelerator(cpu=True)
    forget_accelerator()
