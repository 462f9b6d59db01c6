"""What a saved picture says of how it was made, and how it gets onto the disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import noise
from PIL import Image, PngImagePlugin

from deepfashion_training.inference.records import differences, read_record, save_picture


def test_a_png_gives_its_record_back(tmp_path):
    record = {"steps": 3, "prompt": "Kleid für 5 €, 裙", "scale": 0.1, "lora": None}
    save_picture(noise(40, 30), tmp_path / "new" / "a.PNG", record)
    assert read_record(tmp_path / "new" / "a.PNG") == record
    assert Image.open(tmp_path / "new" / "a.PNG").tobytes() == noise(40, 30).tobytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.PNG"]
    assert differences(record, record) == [] and differences({"a": (1, 2)}, {"a": [1, 2]}) == []
    assert differences(record, {**record, "steps": 4, "more": 1}) == ["more", "steps"]


def test_webp_keeps_every_pixel_and_jpeg_comes_near(tmp_path):
    for name, largest in (("a.webp", 0), ("a.jpg", 30), ("a.JPEG", 30)):
        photo = Image.linear_gradient("L").convert("RGB")
        save_picture(photo, tmp_path / name, {})
        apart = np.abs(np.asarray(Image.open(tmp_path / name), int) - np.asarray(photo, int))
        assert apart.max() <= largest
        assert read_record(tmp_path / name) is None


def test_files_that_are_no_record(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("tryon", "{not json")
    noise(40, 40).save(tmp_path / "bad.png", pnginfo=text)
    text = PngImagePlugin.PngInfo()
    text.add_text("tryon", json.dumps([1]))
    noise(40, 40).save(tmp_path / "list.png", pnginfo=text)
    noise(40, 40).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no")
    for name in ("bad.png", "list.png", "plain.png", "text.png", "none.png"):
        assert read_record(tmp_path / name) is None


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_picture_that_could_not_be_saved(error, tmp_path, monkeypatch):
    def fail(self, fp, *args, **more):
        Path(fp).write_bytes(b"half")
        raise error

    (tmp_path / "a.png").write_bytes(b"before")
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(type(error)):
        save_picture(noise(40, 40), tmp_path / "a.png", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"before"
