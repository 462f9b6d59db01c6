"""Photos that are larger or wider than the model's frame, through `tryon`: cropped, dressed and pasted back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import pixels, stop_after
from PIL import Image

from deepfashion_training.embedded.rows import documented_specs
from deepfashion_training.evaluation.metrics import ssim
from deepfashion_training.images.paste import feathered, seam_of
from deepfashion_training.inference.records import read_record

Save = Callable[[np.ndarray, str], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(values: np.ndarray, name: str) -> Path:
        Image.fromarray(values).save(tmp_path / name)
        return tmp_path / name

    return saved


def larger(values: np.ndarray, size: tuple[int, int], corner: tuple[int, int]) -> np.ndarray:
    """A picture [h, w, ...] of ``size`` with ``values`` at ``corner``, whose border goes on; a mask's is black."""
    around = [(at, whole - at - own) for at, whole, own in zip(corner, size, values.shape[:2], strict=True)]
    if values.ndim == 2:
        return np.pad(values, around)
    return np.pad(values, (*around, (0, 0)), mode="edge")


@pytest.mark.parametrize(
    ("size", "corner"),
    [((384, 3000), (100, 1700)), ((3000, 384), (2700, 100)), ((1024, 768), (0, 576)), ((1024, 768), (700, 0))],
    ids=["panorama", "tall", "upper right border", "left border"],
)
def test_what_lies_beyond_the_mask_stays_and_the_record_says_what_was_drawn(
    size, corner, wardrobe, save, tryon_run, tmp_path
):
    person = larger(pixels(wardrobe / "upper-person.png").astype(np.uint8), size, corner)
    mask = larger(pixels(wardrobe / "upper-mask.png")[..., 0].astype(np.uint8), size, corner)
    flags = ["--person", save(person, "p.png"), "--mask", save(mask, "m.png"), "--save_pair", "--save_mask"]
    flags += ["--garment", wardrobe / "upper-garment.png"]
    output = tryon_run(*flags, "--output", tmp_path / "o.png")
    left, top, right, bottom = read_record(tmp_path / "o.png")["crop"]
    assert f"crop      {right - left}x{bottom - top} at {left},{top} of the {size[1]}x{size[0]} photo" in output
    assert (right - left) * 4 == (bottom - top) * 3
    after = pixels(tmp_path / "o.png")
    assert after.shape == person.shape and (pixels(tmp_path / "o-mask.png")[..., 0] == mask).all()
    changed = np.abs(after - person).max(axis=2)
    assert (changed[feathered(mask, seam_of((bottom - top, right - left))) == 0] == 0).all()
    assert (changed[mask > 0] > 0).mean() > 0.8
    assert pixels(tmp_path / "o-pair.png").shape == (128, 192, 3)
    assert "crop      off" in tryon_run(*flags, "--no-crop", "--output", tmp_path / "whole.png")
    assert read_record(tmp_path / "whole.png")["crop"] is False
    assert (pixels(tmp_path / "whole.png") != after).any()


def test_a_photo_that_the_person_fills_is_drawn_as_it_was_without_a_crop(wardrobe, tryon_run, tmp_path):
    for kind in ("upper", "lower", "full"):
        flags = [
            part for what in ("person", "garment", "mask") for part in (f"--{what}", wardrobe / f"{kind}-{what}.png")
        ]
        assert "crop      " not in tryon_run(*flags, "--output", tmp_path / f"{kind}.png")
        tryon_run(*flags, "--no-crop", "--output", tmp_path / f"{kind}-whole.png")
        assert (pixels(tmp_path / f"{kind}.png") == pixels(tmp_path / f"{kind}-whole.png")).all()
        assert "crop" not in read_record(tmp_path / f"{kind}.png")


@pytest.mark.long
def test_a_small_person_in_a_large_photo_is_dressed_as_well_as_in_a_small_one(save, tryon_run, tmp_path):
    """SSIM of the garment beside the drawing, tops by the embedded base: at most 0.02 less; without a crop 0.1 less."""
    scores: dict[str, list[float]] = {"small": [], "crop": [], "no-crop": []}
    for spec in list(documented_specs(30, 991))[::3]:
        drawing = dataclasses.replace(spec, view="full").draw((256, 192))
        corner = tuple(np.random.default_rng(spec.index).integers(0, (769, 577)).tolist())
        garment = tmp_path / "garment.png"
        spec.draw_garment((256, 192))[0].save(garment)
        photo, mask = np.asarray(drawing.photo), drawing.agnostic[1].astype(np.uint8) * np.uint8(255)
        large = larger(photo, (1024, 768), corner), larger(mask, (1024, 768), corner)
        worn = drawing.garment_mask(1)
        for name, (person, area) in {"small": (photo, mask), "crop": large, "no-crop": large}.items():
            flags = ["--person", save(person, "p.png"), "--mask", save(area, "m.png"), "--garment", garment]
            flags += ["--overwrite", "--output", tmp_path / "o.png"]
            tryon_run(*flags, *(["--no-crop"] if name == "no-crop" else []), steps=1)
            drawn = pixels(tmp_path / "o.png") / 255
            if name != "small":
                drawn = drawn[corner[0] : corner[0] + 256, corner[1] : corner[1] + 192]
            scores[name].append(float(ssim(drawn, photo / 255)[1][worn].mean()))
    small, crop, whole = (np.mean(scores[name]) for name in ("small", "crop", "no-crop"))
    assert crop > small - 0.02 and whole < small - 0.1


def test_a_batch_knows_pictures_that_were_drawn_whole(wardrobe, save, tryon_run, tryon_refused, tmp_path, monkeypatch):
    for what in ("person", "mask"):
        values = pixels(wardrobe / f"lower-{what}.png").astype(np.uint8)
        save(larger(values if what == "person" else values[..., 0], (300, 1500), (20, 900)), f"{what}.png")
    Path(tmp_path / "t.csv").write_text(
        f"person,garment,mask,output\nperson.png,{wardrobe}/lower-garment.png,mask.png,a.png\n"
        f"person.png,{wardrobe}/lower-garment.png,mask.png,b.png\n"
    )
    batch = ["--batch", tmp_path / "t.csv", "--output", tmp_path / "out"]
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        tryon_run(*batch, code=130)
    assert "1 of 2 pictures are drawn already" in tryon_run(*batch)
    assert "a.png exists and was made otherwise" in tryon_refused(*batch, "--no-crop")
    tryon_run(*batch, "--no-crop", "--overwrite")
    assert "2 of 2 pictures are drawn already" in tryon_run(*batch, "--no-crop")
    assert "a.png exists and was made otherwise" in tryon_refused(*batch)


def test_a_batch_knows_that_a_later_garment_alone_was_cropped(wardrobe, save, tryon_run, tryon_refused, tmp_path):
    person = larger(pixels(wardrobe / "lower-person.png").astype(np.uint8), (300, 1500), (20, 900))
    wide = np.zeros(person.shape[:2], np.uint8)
    wide[40:280, 100:900] = 255
    save(person, "person.png")
    save(wide, "wide.png")
    save(larger(pixels(wardrobe / "lower-mask.png")[..., 0].astype(np.uint8), (300, 1500), (20, 900)), "mask.png")
    garment = wardrobe / "lower-garment.png"
    (tmp_path / "t.csv").write_text(
        f"person,garment,mask,garment_2,mask_2,output\nperson.png,{garment},wide.png,{garment},mask.png,a.png\n"
    )
    batch = ["--batch", tmp_path / "t.csv", "--output", tmp_path / "out"]
    tryon_run(*batch)
    record = read_record(tmp_path / "out" / "a.png")
    assert "crop" not in record and record["crop_2"]
    assert "1 of 1 pictures are drawn already" in tryon_run(*batch)
    assert "a.png exists and was made otherwise" in tryon_refused(*batch, "--no-crop")
