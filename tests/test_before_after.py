"""The picture of people before and after: what lies where."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from deepfashion_training.reports.before_after import save_before_after
from deepfashion_training.reports.evaluation_report import ShownCase

COLOURS = {"garment": "red", "person": "green", "base": "blue", "lora": "yellow", "photo": "black"}


def case(kind: str, size: tuple[int, int] = (96, 128)) -> ShownCase:
    tiles = {name: Image.new("RGB", size, colour) for name, colour in COLOURS.items()}
    results = {"base": tiles["base"], "lora": tiles["lora"]}
    return ShownCase(tiles["garment"], tiles["person"], results, tiles["photo"], "a", "b", kind, {})


def colours_along(picture: Image.Image, y: int) -> list[tuple[int, ...]]:
    """The colours of a row of pixels, each run of equal ones once, without the paper."""
    row = [picture.getpixel((x, y)) for x in range(picture.width)]
    runs = [one for one, before in zip(row[1:], row, strict=False) if one != before]
    return [colour for colour in runs if colour != (255, 255, 255)]


def test_rows_are_types_and_tiles_go_from_garment_to_photo(tmp_path: Path) -> None:
    save_before_after(tmp_path / "b.png", [case("lower"), case("upper"), case("lower")])
    with Image.open(tmp_path / "b.png") as picture:
        tiles = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in COLOURS.values()]
        upper, lower = (colours_along(picture, y) for y in (200, 200 + 256 + 68))
        assert upper == tiles and lower == [*tiles, *tiles]  # upper body first, whatever the order of the cases
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]


@pytest.mark.parametrize("size", [(96, 128), (1152, 1536), (40, 640)])
def test_pictures_of_any_size_become_tiles(size: tuple[int, int], tmp_path: Path) -> None:
    save_before_after(tmp_path / "b.png", [case("full", size)])
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.height == 2 * 24 + 256 + 2 * 34
        assert len(colours_along(picture, 200)) == 5
