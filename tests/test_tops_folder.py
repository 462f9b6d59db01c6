"""The VITON-HD folder of drawn tops: what the trainer reads of it, and that it repeats itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train_flux_inpaint as tfi
from deepfashion_training.embedded.make import tops_folder
from deepfashion_training.embedded.make.tops_folder import repainted_type, top_specs, write_tops_folder
from deepfashion_training.garment_types import FULL, LOWER, UPPER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tops") / "it"
    write_tops_folder(made, rows=3)
    return made


def test_the_trainer_reads_it(folder: Path) -> None:
    train = tfi.VitonHDTestDataset(str(folder), "train", size=(128, 96))
    assert [person for person, _ in train.pairs] == [f"00000{n}{m}.jpg" for n in range(3) for m in ("", "m")]
    test = tfi.VitonHDTestDataset(str(folder), "test")
    assert [person for person, _ in test.pairs] == [f"{n:06d}.jpg" for n in range(3, 19)]
    spec = next(spec for spec in top_specs(3) if repainted_type(spec) == UPPER)
    drawing = spec.draw((128, 96))
    flat, lies = spec.draw_garment((128, 96))
    sample = train[2 * spec.index]
    drawn = np.concatenate([np.asarray(flat), np.asarray(drawing.photo)], axis=1)
    stored = (sample["image"].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(stored - drawn).mean() < 3  # JPEG
    assert np.array_equal(sample["inpaint_mask"][0, :, 96:].numpy() == 1, drawing.agnostic[UPPER])
    assert (sample["cloth_mask"][0].numpy() == lies).mean() > 0.99


def test_mirror_images_are_mirrored_in_all_parts(folder: Path) -> None:
    train = tfi.VitonHDTestDataset(str(folder), "train", size=(128, 96))
    plain, mirrored = train[2], train[3]
    assert torch.equal(plain["inpaint_mask"][..., 96:].flip(2), mirrored["inpaint_mask"][..., 96:])
    for half in (slice(0, 96), slice(96, None)):
        assert (plain["image"][..., half].flip(2) - mirrored["image"][..., half]).abs().mean() < 0.03


def test_two_rows_in_five_repaint_other_clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = list(top_specs(1000))
    kinds = [repainted_type(spec) for spec in specs]
    assert 150 < kinds.count(LOWER) < 250 and 150 < kinds.count(FULL) < 250
    monkeypatch.setattr(tops_folder, "ELSEWHERE", 1.0)
    write_tops_folder(tmp_path / "it", rows=1)
    repainted = repainted_type(specs[0])
    drawing = replace(specs[0], cloth_type=repainted).draw((128, 96))
    sample = tfi.VitonHDTestDataset(str(tmp_path / "it"), "train", size=(128, 96))[0]
    assert np.array_equal(sample["inpaint_mask"][0, :, 96:].numpy() == 1, drawing.agnostic[repainted])
    flat, _ = specs[0].draw_garment((128, 96))
    assert np.abs((sample["cloth_pure"].permute(1, 2, 0).numpy() + 1) * 127.5 - np.asarray(flat)).mean() < 3


def test_same_arguments_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_tops_folder(tmp_path / "again", rows=3, num_proc=2)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 2 + 4 * (6 + 16)
    assert all((folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
