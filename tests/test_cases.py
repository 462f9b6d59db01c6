"""The cases of an evaluation: what a photo, a mask and a garment's area become, and who gets whose garment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from deepfashion_training.evaluation.cases import Cases
from deepfashion_training.images.layout import Box
from deepfashion_training.images.pictures import PictureError


class Rows:
    """Rows in the documented schema, written to a folder."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, photo: Image.Image, mask: Image.Image, cloth_type: int = 2, **more: Any) -> None:
        cloth = Image.new("RGB", (30, 40), (10, 20, 200))
        self.rows.append(
            {"image": photo, "cloth": cloth, "mask": mask, "caption": "", "cloth_type": cloth_type, **more}
        )

    def cases(self, folder: Path, size: tuple[int, int] = (64, 48), **more: Any) -> Cases:
        columns = {name: [row[name] for row in self.rows] for name in self.rows[0]}
        features = {name: datasets.Image() for name in ("image", "cloth", "mask", "parse") if name in columns}
        saved = datasets.Dataset.from_dict(columns)
        for name, feature in features.items():
            saved = saved.cast_column(name, feature)
        datasets.DatasetDict({"test": saved}).save_to_disk(str(folder))
        return Cases(str(folder), "test", size, **more)


def photo(width: int, height: int) -> Image.Image:
    """Noise, red on the upper half."""
    levels = np.random.default_rng(0).integers(0, 60, (height, width, 3), dtype=np.uint8)
    levels[: height // 2, :, 0] = 250
    return Image.fromarray(levels)


def box_mask(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.mark.parametrize(
    ("mode", "size", "box"),
    [("pad", (96, 72), (0, 0, 48, 64)), ("pad", (96, 36), (12, 0, 24, 64)), ("stretch", (96, 36), (0, 0, 48, 64))],
)
def test_the_truth_is_the_photo_without_padding(
    mode: str, size: tuple[int, int], box: tuple[int, int, int, int], rows: Rows, tmp_path: Path
) -> None:
    height, width = size
    given = photo(width, height)
    rows.add(given, box_mask(width, height, (0, height // 2, width, height)))
    cases = rows.cases(tmp_path, resize_mode=mode)
    truth = cases.truth(cases.paired[0])
    assert cases.sample(cases.paired[0])[1] == Box(*box)
    assert np.allclose(truth.photo, given.resize((box[2], box[3]), Image.Resampling.LANCZOS), rtol=0, atol=1)
    assert not truth.mask[:32].any() and truth.mask[32:].all()
    assert not truth.area_known and np.array_equal(truth.garment_area, truth.mask)


def test_a_photo_with_an_exif_rotation_is_upright(rows: Rows, tmp_path: Path) -> None:
    upright = photo(72, 96)
    stored = upright.transpose(Image.Transpose.ROTATE_90)  # which orientation 6 turns back
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as turned:
        turned.load()
    rows.add(turned, box_mask(72, 96, (0, 48, 72, 96)))
    (tmp_path / "data").mkdir()
    cases = rows.cases(tmp_path / "data")
    case = cases.paired[0]
    assert cases.sample(case)[1] == Box(0, 0, 48, 64)
    truth = cases.truth(case)
    assert np.allclose(truth.photo, upright.resize((48, 64), Image.Resampling.LANCZOS), rtol=0, atol=1)
    assert not truth.mask[:32].any() and truth.mask[32:].all()


def test_the_garments_own_area_is_what_the_parse_says_of_it_within_the_mask(rows: Rows, tmp_path: Path) -> None:
    parse = np.zeros((96, 72), np.uint8)
    parse[30:80, 20:50] = 6  # trousers
    parse[10:30, 20:50] = 4  # upper clothes
    rows.add(photo(72, 96), box_mask(72, 96, (10, 20, 60, 70)), parse=Image.fromarray(parse))
    rows.add(photo(72, 96), box_mask(72, 96, (10, 20, 60, 70)), parse=None)
    cases = rows.cases(tmp_path, size=(96, 72))
    assert cases.has_parse
    known, unknown = (cases.truth(case) for case in cases.paired)
    expected = np.zeros((96, 72), bool)
    expected[30:70, 20:50] = True
    assert known.area_known and np.array_equal(known.garment_area, expected)
    assert not unknown.area_known and np.array_equal(unknown.garment_area, unknown.mask)


@pytest.mark.parametrize(
    ("size", "box", "said"),
    [
        ((96, 72), (0, 0, 0, 0), "mask is empty"),
        ((96, 72), (0, 0, 72, 96), "mask covers the whole photo"),
        ((480, 360), (0, 0, 1, 1), "mask is empty in the pair's size"),
        ((480, 360), (0, 0, 360, 479), "mask covers the whole photo in the pair's size"),
        ((480, 50), (0, 0, 50, 250), "so narrow that it has 7x64 pixels in the pair"),
    ],
)
def test_what_cannot_be_measured_is_said(
    size: tuple[int, int], box: tuple[int, int, int, int], said: str, rows: Rows, tmp_path: Path
) -> None:
    height, width = size
    rows.add(photo(width, height), box_mask(width, height, box))
    cases = rows.cases(tmp_path)
    with pytest.raises(PictureError, match=said):
        cases.truth(cases.paired[0])


def test_people_of_a_type_who_are_too_few_get_no_garment_of_their_own(rows: Rows, tmp_path: Path) -> None:
    for pid in ("a", "a", "a", "b"):
        rows.add(photo(72, 96), box_mask(72, 96, (10, 20, 60, 70)), pid=pid)
    cases = rows.cases(tmp_path)
    wearing = cases.unpaired
    assert len(cases.paired) == 4 and len(wearing) == 2  # b gets one of a's, one a gets b's
    groups = [row["pid"] for row in rows.rows]
    assert all(groups[case.garment_row] != groups[case.row] for case in wearing)


def test_a_label_map_of_another_size_is_brought_to_the_photos(rows: Rows, tmp_path: Path) -> None:
    parse = np.zeros((48, 36), np.uint8)
    parse[15:40, 10:25] = 6
    rows.add(photo(72, 96), box_mask(72, 96, (10, 20, 60, 70)), parse=Image.fromarray(parse))
    rows.add(photo(72, 96), box_mask(72, 96, (10, 20, 60, 70)), parse=Image.fromarray(parse[:36]))
    cases = rows.cases(tmp_path / "rows", (96, 72))
    area = cases.truth(cases.paired[0]).garment_area
    assert area[30:70, 20:50].all() and area.sum() == 40 * 30
    with pytest.raises(PictureError, match="aspect"):
        cases.truth(cases.paired[1])
