"""The rows that the small base learns from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train_flux_inpaint as tfi
from deepfashion_training.embedded.make import top_rows
from deepfashion_training.embedded.make.top_rows import (
    drawn_person,
    garment_elsewhere,
    part_of,
    repainted_type,
    seen_from,
    top_specs,
    without_garment,
    write_tops_folder,
)
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


def test_a_usual_row_is_one_of_the_wardrobe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for share in ("WITHOUT_GARMENT", "PLAIN_INPAINTING", "WHOLE", "ELSEWHERE"):
        monkeypatch.setattr(top_rows, share, 0.0)
    write_tops_folder(tmp_path / "it", rows=1)
    (spec,) = top_specs(1)
    drawing = spec.draw((128, 96))
    flat, lies = spec.draw_garment((128, 96))
    sample = tfi.VitonHDTestDataset(str(tmp_path / "it"), "train", size=(128, 96))[0]
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


def test_some_rows_repaint_other_clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = list(top_specs(1000))
    kinds = [repainted_type(spec) for spec in specs]
    for kind in (LOWER, FULL):
        assert kinds.count(kind) == pytest.approx(1000 * top_rows.PLAIN_INPAINTING / 2, rel=0.35)
    monkeypatch.setattr(top_rows, "PLAIN_INPAINTING", 1.0)
    monkeypatch.setattr(top_rows, "WITHOUT_GARMENT", 0.0)
    monkeypatch.setattr(top_rows, "ELSEWHERE", 0.0)
    monkeypatch.setattr(top_rows, "WHOLE", 0.0)
    write_tops_folder(tmp_path / "it", rows=1)
    repainted = repainted_type(specs[0])
    drawing = replace(specs[0], cloth_type=repainted).draw((128, 96))
    sample = tfi.VitonHDTestDataset(str(tmp_path / "it"), "train", size=(128, 96))[0]
    assert np.array_equal(sample["inpaint_mask"][0, :, 96:].numpy() == 1, drawing.agnostic[repainted])
    flat, _ = specs[0].draw_garment((128, 96))
    assert np.abs((sample["cloth_pure"].permute(1, 2, 0).numpy() + 1) * 127.5 - np.asarray(flat)).mean() < 3


def test_some_rows_have_no_garment_beside_other_clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [row for row in map(without_garment, top_specs(1000)) if row]
    assert len(found) == pytest.approx(1000 * top_rows.WITHOUT_GARMENT, rel=0.3)
    kinds = [row.cloth_type for row in found]
    assert kinds.count(FULL) + kinds.count(LOWER) == len(found) and 0.55 < kinds.count(FULL) / len(found) < 0.75
    monkeypatch.setattr(top_rows, "WITHOUT_GARMENT", 1.0)
    monkeypatch.setattr(top_rows, "ELSEWHERE", 0.0)
    monkeypatch.setattr(top_rows, "WHOLE", 0.0)
    write_tops_folder(tmp_path / "it", rows=4)
    train = tfi.VitonHDTestDataset(str(tmp_path / "it"), "train", size=(128, 96))
    parts = 0
    for spec, sample in zip(top_specs(4), list(train)[::2], strict=True):
        shown = without_garment(spec)
        assert shown is not None
        drawing = shown.draw((128, 96))
        area = drawing.agnostic[shown.cloth_type]
        photo = (sample["image"][..., 96:].permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(photo - np.asarray(drawing.photo)).mean() < 3  # JPEG
        assert np.array_equal(sample["inpaint_mask"][0, :, 96:].numpy() == 1, part_of(spec, area))
        assert (sample["cloth_pure"] == 1).all()
        parts += not np.array_equal(part_of(spec, area), area)
    assert 0 < parts < 4


def test_rectangles_lie_around_what_is_worn_in_half_of_the_rows() -> None:
    area = np.zeros((128, 96), bool)
    area[50:60, 20:70] = True
    made = [part_of(spec, area) for spec in top_specs(200)]
    other = [mask for mask in made if mask is not area]
    assert 80 < len(other) < 120
    for mask in other:
        rows, columns = np.nonzero(mask)
        assert mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        assert (mask & area).any() and np.ptp(rows) < 0.8 * 128 and np.ptp(columns) < 0.8 * 96


def test_people_and_garments_of_a_row_are_drawn_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for share, value in {"WITHOUT_GARMENT": 0.0, "WHOLE": 1.0, "ELSEWHERE": 1.0}.items():
        monkeypatch.setattr(top_rows, share, value)
    write_tops_folder(tmp_path / "it", rows=1)
    (spec,) = top_specs(1)
    photo, area = drawn_person(replace(spec, cloth_type=repainted_type(spec)))
    flat, _ = garment_elsewhere(spec, *spec.draw_garment((128, 96)))
    sample = tfi.VitonHDTestDataset(str(tmp_path / "it"), "train", size=(128, 96))[0]
    drawn = np.concatenate([np.asarray(flat), np.asarray(photo)], axis=1)
    assert np.abs((sample["image"].permute(1, 2, 0).numpy() + 1) * 127.5 - drawn).mean() < 3  # JPEG
    assert np.array_equal(sample["inpaint_mask"][0, :, 96:].numpy() == 1, area)


def test_most_people_are_drawn_whole_and_of_half_of_these_a_part_is_shown() -> None:
    specs = list(top_specs(600))
    seen = np.array([seen_from(spec) for spec in specs])
    whole, elsewhere = top_rows.WHOLE, top_rows.ELSEWHERE
    assert (abs(seen.mean(axis=0) - (whole, whole * elsewhere, elsewhere)) < 0.06).all()
    areas: dict[tuple[bool, bool], list[np.ndarray]] = {}
    for spec in specs[:40]:
        photo, area = drawn_person(spec)
        assert photo.size == (96, 128) and area.shape == (128, 96) and area.mean() > 0.02
        areas.setdefault(seen_from(spec)[:2], []).append(area)
    usual, far, near = (areas[key] for key in ((False, False), (True, False), (True, True)))
    assert np.mean(far) < 0.6 * np.mean(usual)
    assert np.mean(far) < np.mean(near)
    assert np.ptp([np.mean(np.nonzero(area), axis=1) for area in near], axis=0).min() > 10
    for spec in specs[:12]:
        flat, lies = spec.draw_garment((128, 96))
        ground, there = garment_elsewhere(spec, flat, lies)
        assert ground.size == flat.size and 0.3 < there.sum() / lies.sum() < 1.02
        assert np.asarray(ground)[~there].mean() > 250  # the garment is where the mask says


def test_same_arguments_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_tops_folder(tmp_path / "again", rows=3)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 2 + 4 * (6 + 16)
    assert all((folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
