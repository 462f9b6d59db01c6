"""``prepare --format``: folders of VITON-HD and DressCode, read by their tools' rules, our reader and our trainer."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from deepfashion_training import prepare as command
from deepfashion_training.data.pair_folders import CATEGORIES, PLACES, read_folder
from deepfashion_training.data.sources import open_splits
from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.preparation.pair_plan import FORMATS
from deepfashion_training.preparation.pair_writer import PairWriter

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "validation", "test")
FOLDERS = ("upper_body", "lower_body", "dresses")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw rows as on the Hub: photos are JPEG, garments are cut out of them."""
    return write_wardrobe(tmp_path_factory.mktemp("raw") / "rows", "hub", 90, seed=3, size=(192, 144))


@pytest.fixture(scope="module")
def made(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pairs of the same rows in each form, by the command."""
    folder, patch = tmp_path_factory.mktemp("pairs"), pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    for form in ("parquet", "viton-hd", "dresscode"):
        flags = [] if form == "parquet" else ["--format", form]
        assert prepare(rows, folder / form, *flags) == 0
    patch.undo()
    return {form: folder / form for form in ("parquet", "viton-hd", "dresscode")}


def prepare(source: Path, output: Path, *flags: str) -> int:
    small = ["--min_garment_px=18", "--validation_share=0.15", "--test_share=0.2", "--num_proc=1", "--parser=none"]
    return command.main(["--dataset_name", str(source), "--output_dir", str(output), *small, *flags])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["viton-hd", "dresscode"])
def test_pairs_out_and_in_again_give_the_tensors_of_the_parquet(made: dict[str, Path], form: str) -> None:
    """Bit for bit: all photos and garments of these rows are JPEG, masks are PNG."""
    assert json.loads((made[form] / "report.json").read_text())["rewritten_pictures"] == 0
    for split in SPLITS:
        options = DatasetOptions(train_split=split, validation_split="validation", ledger_dir=None)
        ours, theirs = (
            DeepFashionDataset(str(made[which]), "train", size=(96, 72), options=options) for which in (form, "parquet")
        )
        assert len(ours) == len(theirs) > 0
        matched = {tuple(sample["image"].flatten()[:500].tolist()): sample for sample in theirs}
        for sample in ours:  # DressCode has them by category
            other = matched[tuple(sample["image"].flatten()[:500].tolist())]
            assert sample.keys() == other.keys()
            for name, value in sample.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value, other[name]), name
            assert (sample["cloth_type"], sample["caption_cloth"]) == (other["cloth_type"], other["caption_cloth"])
        if form == "viton-hd":  # whose lists have the order of the rows
            assert ours.fingerprint == theirs.fingerprint
        assert set(ours.cloth_types()) == set(theirs.cloth_types())


def lines(file: Path) -> list[list[str]]:
    return [line.strip().split(" ") for line in file.read_text("utf-8").splitlines()]  # as CatVTON does


def opened(file: Path, mode: str) -> Image.Image:
    with Image.open(file) as picture:
        picture.load()
        assert picture.mode == mode, file
        return picture


@pytest.mark.slow
def test_a_viton_hd_folder_is_read_by_the_rules_of_its_tools(made: dict[str, Path]) -> None:
    """Those of CatVTON (test), of IDM-VTON (train and test, with tags) and of catvton-flux."""
    folder, seen = made["viton-hd"], set()
    for phase in ("train", "test"):
        named = lines(folder / f"{phase}_pairs.txt")
        tags = json.loads((folder / phase / f"vitonhd_{phase}_tagged.json").read_text("utf-8"))
        captions = {}
        for garments in tags.values():
            for garment in garments:
                words = [tag["tag_category"] for tag in garment["tag_info"] if tag["tag_name"] == "item"]
                captions[garment["file_name"]] = words
        for person, other in named:
            photo = opened(folder / phase / "image" / person, "RGB")
            for garment in {person, other if phase == "test" else person}:
                cloth = opened(folder / phase / "cloth" / garment, "RGB")
                assert opened(folder / phase / "cloth-mask" / garment, "L").size == cloth.size
            mask = opened(folder / phase / "agnostic-mask" / person.replace(".jpg", "_mask.png"), "L")
            assert mask.size == photo.size and set(np.unique(mask)) == {0, 255}
            assert captions[person][0]
            seen.add(person)
        assert len(named) == len({person for person, _ in named}) > 0
    unpaired = lines(folder / "test_pairs.txt")
    assert all(person != garment for person, garment in unpaired)
    assert sorted(person for person, _ in unpaired) == sorted(garment for _, garment in unpaired)
    held_out = {person for person, _ in lines(folder / "validation_pairs.txt")}
    assert held_out and not held_out & seen and all((folder / "train" / "image" / name).is_file() for name in held_out)


@pytest.mark.slow
def test_a_dresscode_folder_is_read_by_the_rules_of_its_tools(made: dict[str, Path]) -> None:
    """Those of CatVTON (its lists by category, masks in agnostic_masks), IDM-VTON (dc_caption.txt) and ladi-vton."""
    folder, common = made["dresscode"], {}
    for name in ("train_pairs.txt", "test_pairs_paired.txt", "test_pairs_unpaired.txt"):
        common[name] = lines(folder / name)
        assert common[name] and {code for *_, code in common[name]} <= {"0", "1", "2"}
    for code, category in enumerate(FOLDERS):
        captions = {}
        for line in (folder / category / "dc_caption.txt").read_text("utf-8").splitlines():
            parts = line.strip().split(" ")
            captions[parts[0]] = " ".join(parts[1:])
        for name, of_all in common.items():
            named = lines(folder / category / name)
            assert [[*line, str(code)] for line in named] == [line for line in of_all if line[2] == str(code)]
            for person, garment in named:
                assert person.endswith("_0.jpg") and garment.endswith("_1.jpg") and captions[garment]
                photo = opened(folder / category / "images" / person, "RGB")
                cloth = opened(folder / category / "images" / garment, "RGB")
                mask = opened(folder / category / "agnostic_masks" / person.replace(".jpg", ".png"), "L")
                assert mask.size == photo.size
                assert opened(folder / category / "masks" / garment.replace(".jpg", ".png"), "L").size == cloth.size
                if name != "test_pairs_unpaired.txt":
                    assert person[:6] == garment[:6]


@pytest.mark.slow
def test_an_earlier_result_is_found_refused_and_replaced(
    made: dict[str, Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with parquet: the same is left alone, another form needs --overwrite, and a lost picture is made again."""
    out = Path(shutil.copytree(made["viton-hd"], tmp_path / "out"))
    picture = next((out / "train" / "image").iterdir())
    made_at = picture.stat().st_mtime_ns
    assert prepare(rows, out, "--format", "viton-hd") == 0
    assert "already prepared" in capsys.readouterr().out and picture.stat().st_mtime_ns == made_at
    for lost in (False, True):
        form = "viton-hd" if lost else "dresscode"
        if lost:
            picture.unlink()
        assert prepare(rows, out, "--format", form) == 1
        assert "--overwrite" in capsys.readouterr().err
    (out / "mine.txt").write_text("mine")
    assert prepare(rows, out, "--overwrite") == 1 and "mine.txt" in capsys.readouterr().err
    (out / "mine.txt").unlink()
    assert prepare(rows, out, "--overwrite") == 0
    assert (out / "data").is_dir() and not (out / "train").exists()
    assert not list(tmp_path.glob(".out.*"))


def stored(picture: Image.Image, form: str, **how: Any) -> dict[str, bytes]:
    sink = io.BytesIO()
    picture.save(sink, form, **how)
    return {"bytes": sink.getvalue()}


def test_what_is_no_upright_rgb_jpeg_becomes_one_and_the_rest_is_copied(tmp_path: Path) -> None:
    """Tools know no other pictures: PNG, grey and turned ones are written anew; a caption keeps to its line."""
    writer, turned = PairWriter(tmp_path, "dresscode"), Image.Exif()
    turned[0x0112] = 6  # to the right
    ramp = Image.fromarray(np.linspace(0, 255, 96 * 72).reshape(96, 72).astype(np.uint8))
    plain, mask = stored(ramp.convert("RGB"), "JPEG"), stored(Image.new("L", (72, 96), 255), "PNG")
    kinds = [
        (plain, ramp),
        (stored(ramp.convert("RGB"), "PNG"), ramp),
        (stored(ramp, "JPEG"), ramp),
        (stored(ramp.convert("RGB"), "JPEG", exif=turned), ramp.transpose(Image.Transpose.ROTATE_270)),
    ]
    for number, (image, _) in enumerate(kinds):
        row = {"image": image, "cloth": plain, "mask": mask, "cloth_type": 2, "pid": f"p{number}"}
        writer.write(row | {"caption": "a\nskirt\twith  pleats" if number else ""}, "test")
    writer.close(seed=0)
    assert writer.rewritten == 3
    place = tmp_path / "lower_body"
    assert (place / "images" / "000000_0.jpg").read_bytes() == plain["bytes"]
    for number, (_, meant) in enumerate(kinds):
        picture = opened(place / "images" / f"{number:06d}_0.jpg", "RGB")
        assert picture.format == "JPEG" and picture.size == meant.size and not picture.getexif()
        assert np.abs(np.asarray(picture, int) - np.asarray(meant.convert("RGB"), int)).mean() < 2
    assert (place / "dc_caption.txt").read_text().splitlines()[:2] == [
        "000000_1.jpg",
        "000001_1.jpg a skirt with pleats",
    ]
    assert not (tmp_path / "train_pairs.txt").exists()  # of a split that has no pairs
    assert (tmp_path / "dresses" / "test_pairs_paired.txt").read_text() == ""
    splits = open_splits(str(tmp_path), check_columns=lambda *_: None)
    assert list(splits) == ["test"] and splits["test"]["caption"][1] == "a skirt with pleats"


@pytest.mark.slow
def test_our_own_trainer_alone_trains_on_the_folder(made: dict[str, Path], tmp_path: Path, tiny_flags) -> None:
    """Without the package: ``train_flux_inpaint.py --dataroot OUT``."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_flux_inpaint.py"),
         *tiny_flags("--dataroot", made["viton-hd"], "--output_dir", tmp_path / "run", "--max_train_steps", 2)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    assert found["status"] == "done" and found["step"] == 2
    assert found["dataset"]["train"]["rows"] == len(lines(made["viton-hd"] / "train_pairs.txt"))


def test_a_type_that_is_none_is_named(tmp_path: Path) -> None:
    for place in ("image", "cloth", "agnostic-mask"):
        (tmp_path / "train" / place).mkdir(parents=True)
    for place in ("image/a.jpg", "cloth/a.jpg", "agnostic-mask/a_mask.png"):
        picture = io.BytesIO()
        Image.new("L", (8, 8)).save(picture, "PNG")
        (tmp_path / "train" / place).write_bytes(picture.getvalue())
    (tmp_path / "train_pairs.txt").write_text("a.jpg a.jpg\n")
    tags = tmp_path / "train" / "vitonhd_train_tagged.json"
    for kind, said in ((3, None), (4, "a.jpg has the cloth_type 4")):
        tags.write_text(json.dumps({"data": [{"file_name": "a.jpg", "tag_info": [], "cloth_type": kind}]}))
        if said is None:
            lists = read_folder(tmp_path)
            assert lists is not None and lists.splits["train"]["cloth_type"][:] == [3]
        else:
            with pytest.raises(ValueError, match=said):
                read_folder(tmp_path)


def test_the_flag_offers_the_layouts_that_there_are() -> None:
    assert ("parquet", *PLACES) == FORMATS and tuple(CATEGORIES) == FOLDERS
