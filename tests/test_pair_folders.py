"""Folders of picture files: what each layout gives, what is missing in one, and names that lead out of it."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from deepfashion_training.data.pair_folders import CATEGORIES, DRESSCODE, VITON_HD, place_of, read_folder
from deepfashion_training.data.schema import check_documented
from deepfashion_training.data.sources import open_splits, source_columns, source_fingerprint
from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset
from deepfashion_training.embedded.rows import documented_row, documented_specs
from deepfashion_training.embedded.wardrobe import wardrobe_features
from deepfashion_training.images.masks import mask_of_parse, repaint_mask
from deepfashion_training.images.parts import ATR_OF_LIP, LABELS
from deepfashion_training.images.pictures import PictureError

Row = dict[str, Any]
SIZE = (96, 72)


@functools.cache
def drawn(count: int = 18) -> list[Row]:
    """Drawn rows, a third of each type."""
    return [documented_row(spec, SIZE) for spec in documented_specs(count, 3)]


def of_type(kind: int) -> list[Row]:
    return [row for row in drawn() if row["cloth_type"] == kind]


def put(path: Path, stored: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stored)


def viton(root: Path, rows: list[Row], test: int, masks: bool = True) -> list[Row]:
    """A VITON-HD folder of upper-body ``rows``, the last ``test`` of which are the test split; lists name the next."""
    for number, row in enumerate(rows):
        base, name = ("train" if number < len(rows) - test else "test"), f"{number:05d}_00.jpg"
        for what in ("image", "cloth", "mask") if masks else ("image", "cloth"):
            put(root / base / place_of(VITON_HD, what, name), row[what]["bytes"])
    for split, names in (("train", range(len(rows) - test)), ("test", range(len(rows) - test, len(rows)))):
        lines = [f"{n:05d}_00.jpg {names[(k + 1) % len(names)]:05d}_00.jpg\n" for k, n in enumerate(names)]
        (root / f"{split}_pairs.txt").write_text("".join(lines), encoding="utf-8")
    return rows


def dresscode(root: Path, *, test: int = 2, masks: bool = False, unpaired: bool = True) -> dict[str, list[Row]]:
    """A DressCode folder of all drawn rows, the last ``test`` of each category for testing; returns them by split."""
    splits: dict[str, list[Row]] = {"train": [], "test": []}
    for category, kind in CATEGORIES.items():
        rows, lines = of_type(kind), {"train": [], "test": []}
        for number, row in enumerate(rows):
            split, person, garment = ("train" if number < len(rows) - test else "test"), *names_of(kind, number)
            for what, name in (("image", person), ("cloth", garment), ("parse", person), ("mask", person)):
                if what != "mask" or masks:
                    put(root / category / place_of(DRESSCODE, what, name), row[what]["bytes"])
            splits[split].append(row)
            lines[split].append((person, garment))
        crossed = [(person, lines["test"][k - 1][1]) for k, (person, _) in enumerate(lines["test"])]
        lists = {"train_pairs": lines["train"], "test_pairs_paired": lines["test"], "test_pairs_unpaired": crossed}
        for name, pairs in lists.items():
            if name != "test_pairs_unpaired" or unpaired:
                (root / category / f"{name}.txt").write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
    return splits


def names_of(kind: int, number: int) -> tuple[str, str]:
    return f"{kind:02d}{number:04d}_0.jpg", f"{kind:02d}{number:04d}_1.jpg"


def described(root: Path, rows: list[Row], kind: str = "jsonl", place: str = "train") -> list[Row]:
    """A folder of pictures with a metadata file that names them."""
    cells = []
    for number, row in enumerate(rows):
        names = {
            "file_name": f"people/{number}.jpg",
            "cloth_file_name": f"{number} (1) [a].jpg",
            "mask": f"m/{number}.png",
        }
        for what, name in zip(("image", "cloth", "mask"), names.values(), strict=True):
            put(root / place / name, row[what]["bytes"])
        kinds = (None, "upper_body", "skirt", "dresses")
        cells.append({**names, "caption": row["caption"], "cloth_type": kinds[row["cloth_type"]], "pid": row["pid"]})
    sink = io.StringIO(newline="")
    if kind == "csv":
        writer = csv.DictWriter(sink, list(cells[0]))
        writer.writeheader()
        writer.writerows(cells)
    put(root / place / f"metadata.{kind}", (sink.getvalue() or "".join(json.dumps(c) + "\n" for c in cells)).encode())
    return rows


def parquet(root: Path, **splits: list[Row]) -> Path:
    """``rows`` as parquet files: the documented form with the same pictures."""
    features = wardrobe_features("documented")
    for split, rows in splits.items():
        (root / "data").mkdir(parents=True, exist_ok=True)
        plain = datasets.Dataset.from_list(rows, features=features)
        plain.to_parquet(str(root / "data" / f"{split}-00000-of-00001.parquet"))
    return root


def samples(folder: Path, split: str = "train", **options: Any) -> list[dict[str, Any]]:
    """All samples of a split, at the drawn size."""
    chosen = DatasetOptions(train_split=split, validation_split=split, **options)
    data = DeepFashionDataset(str(folder), "train", size=SIZE, options=chosen)
    return [data[index] for index in range(len(data))]


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one["cloth_type"] == other["cloth_type"]
        for name in ("image", "im_mask", "inpaint_mask", "cloth_pure", "cloth_mask"):
            assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("split", ["train", "test"])
def test_viton_hd_gives_the_tensors_of_the_same_rows_in_parquet(tmp_path: Path, split: str) -> None:
    rows = viton(tmp_path / "viton [hd] 1", of_type(1), test=2)
    other = parquet(tmp_path / "parquet", train=rows[:-2], test=rows[-2:])
    same(samples(tmp_path / "viton [hd] 1", split), samples(other, split))


@pytest.mark.parametrize("split", ["train", "test"])
def test_dresscode_gives_the_tensors_of_the_same_rows_in_parquet(tmp_path: Path, split: str) -> None:
    splits = dresscode(tmp_path / "dresscode", masks=True)
    same(samples(tmp_path / "dresscode", split), samples(parquet(tmp_path / "parquet", **splits), split))
    assert [row["cloth_type"] for row in splits[split]] == [
        one["cloth_type"] for one in samples(tmp_path / "dresscode", split)
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("place", ["train", "."])
def test_metadata_gives_the_tensors_and_captions_of_the_same_rows_in_parquet(
    tmp_path: Path, kind: str, place: str
) -> None:
    rows = described(tmp_path / "with metadata", drawn(), kind, place)
    ours, theirs = samples(tmp_path / "with metadata"), samples(parquet(tmp_path / "parquet", train=rows))
    same(ours, theirs)
    assert [one["caption_cloth"] for one in ours] == [other["caption_cloth"] for other in theirs]


def test_masks_are_made_of_label_maps_as_prepare_makes_them(tmp_path: Path) -> None:
    splits = dresscode(tmp_path / "dresscode")
    assert "mask" not in source_columns(str(tmp_path / "dresscode"))
    for one, row in zip(samples(tmp_path / "dresscode"), splits["train"], strict=True):
        parse = np.asarray(Image.open(io.BytesIO(row["parse"]["bytes"])))
        labels = {1: (4,), 2: (5, 6), 3: (7,)}[row["cloth_type"]]
        region = np.isin(parse, labels)
        if row["cloth_type"] == 3 and region.sum() < np.isin(parse, (4, 5, 6)).sum():
            region |= np.isin(parse, (4, 5, 6))
        wanted = repaint_mask(region.view(np.uint8), row["cloth_type"], None, parse)
        assert np.array_equal(one["inpaint_mask"][0, :, SIZE[1] :].numpy(), wanted)


def test_lip_labels_become_those_of_atr(tmp_path: Path) -> None:
    rows = viton(tmp_path / "viton", of_type(1), test=2, masks=False)
    with pytest.raises(ValueError, match="image-parse-v3"):
        open_splits(str(tmp_path / "viton"), check_columns=check_documented)
    lip = {0: 0, 1: 1, 2: 2, 3: 4, 4: 5, 5: 12, 6: 9, 7: 6, 8: 9, 9: 18, 10: 19, 11: 13, 12: 16, 13: 17, 14: 14, 15: 15}
    assert all(LABELS[ATR_OF_LIP[theirs]] == LABELS[ours] for ours, theirs in lip.items() if ours != 8)  # no belt there
    masks = []
    for number, row in enumerate(rows):
        parse = np.asarray(Image.open(io.BytesIO(row["parse"]["bytes"])))
        stored = Image.fromarray(np.vectorize(lambda label: lip.get(label, 0))(parse).astype(np.uint8), "P")
        stored.putpalette(range(60))
        name = f"{number:05d}_00.jpg"
        place = tmp_path / "viton" / ("train" if number < 4 else "test") / place_of(VITON_HD, "parse_lip", name)
        place.parent.mkdir(exist_ok=True)
        stored.save(place)
        masks.append(mask_of_parse(np.where(np.isin(parse, (16, 17)), 0, np.where(parse == 8, 6, parse)), 1))
    for one, mask in zip(samples(tmp_path / "viton"), masks[:4], strict=True):
        assert np.array_equal(one["inpaint_mask"][0, :, SIZE[1] :].numpy(), mask)


def test_a_label_map_without_a_person_makes_no_mask() -> None:
    with pytest.raises(PictureError, match="person"):
        mask_of_parse(np.zeros((96, 72), np.uint8), 2)
    nobody_in_a_dress = np.asarray(Image.open(io.BytesIO(of_type(2)[0]["parse"]["bytes"])))
    assert mask_of_parse(np.where(np.isin(nobody_in_a_dress, (4, 5, 6, 7)), 0, nobody_in_a_dress), 3).any()


def test_lists_are_read_whatever_editor_saved_them(tmp_path: Path) -> None:
    root = tmp_path / "dc"
    dresscode(root, masks=True)
    before = samples(root)
    for file in root.rglob("*.txt"):
        text = "\ufeff\n" + file.read_text("utf-8").replace("\t", "  ") + "\n\n"
        file.write_bytes(text.replace("\n", "\r\n").encode())
    same(samples(root), before)


def test_common_lists_of_dresscode_say_the_category_by_its_code(tmp_path: Path) -> None:
    root = tmp_path / "dc"
    dresscode(root, masks=True)
    before = samples(root), samples(root, "test")
    for name in ("train_pairs", "test_pairs_paired", "test_pairs_unpaired"):
        lines = []
        for code, category in enumerate(CATEGORIES):
            lines += [f"{line}\t{code}" for line in (root / category / f"{name}.txt").read_text("utf-8").splitlines()]
            (root / category / f"{name}.txt").unlink()
        (root / f"{name}.txt").write_text("\n".join(reversed(lines)), encoding="utf-8")
    lists = read_folder(root)
    assert lists is not None and lists.unpaired is not None and len(lists.unpaired) == 6
    assert [one["cloth_type"] for one in samples(root)] == [one["cloth_type"] for one in before[0]]
    (root / "train_pairs.txt").write_text("010000_0.jpg 010000_1.jpg 3\n")
    with pytest.raises(ValueError, match=r"train_pairs\.txt line 1"):
        read_folder(root)


def test_masks_of_viton_hd_may_have_the_persons_name_alone_and_endings_be_capitals(tmp_path: Path) -> None:
    rows = viton(tmp_path / "a", of_type(1), test=2)
    viton(tmp_path / "b", rows, test=2)
    for mask in (tmp_path / "b").rglob("*_mask.png"):
        mask.rename(mask.with_name(mask.name.replace("_mask", "")))
    for picture in (tmp_path / "b").rglob("*.jpg"):
        picture.rename(picture.with_suffix(".JPG"))
    for file in (tmp_path / "b").glob("*.txt"):
        file.write_text(file.read_text().replace(".jpg", ".JPG"))
        (tmp_path / "b" / f"._{file.name}").write_bytes(b"\0\1")  # as macOS leaves them
    same(samples(tmp_path / "a"), samples(tmp_path / "b"))


def test_captions_are_the_tags_of_viton_hd_and_the_lines_of_dresscode(tmp_path: Path) -> None:
    viton(tmp_path / "v", of_type(1), test=2)
    tags = [{"tag_name": "item", "tag_category": "tops"}, {"tag_name": "neckLine", "tag_category": None}]
    tagged = [{"file_name": "00001_00.jpg", "tag_info": [*tags, {"tag_name": "sleeveLength", "tag_category": "long"}]}]
    (tmp_path / "v" / "train" / "vitonhd_train_tagged.json").write_text(json.dumps({"data": tagged}))
    assert [one["caption_cloth"] for one in samples(tmp_path / "v")] == ["", "long tops", "", ""]
    dresscode(tmp_path / "d", masks=True)
    (tmp_path / "d" / "lower_body" / "dc_caption.txt").write_text(f"{names_of(2, 1)[1]} a pleated skirt\n")
    captions = {one["caption_cloth"]: one["cloth_type"] for one in samples(tmp_path / "d")}
    assert captions["a pleated skirt"] == 2 and len(captions) == 2
    tagged[0]["cloth_type"] = True
    (tmp_path / "v" / "train" / "vitonhd_train_tagged.json").write_text(json.dumps({"data": tagged}))
    with pytest.raises(ValueError, match=r"00001_00\.jpg has the cloth_type True"):
        samples(tmp_path / "v")
    (tmp_path / "v" / "train" / "vitonhd_train_tagged.json").write_text("[]")
    with pytest.raises(ValueError, match=r"vitonhd_train_tagged\.json"):
        samples(tmp_path / "v")


def test_a_garment_with_blanks_in_its_name_has_its_caption(tmp_path: Path) -> None:
    dresscode(tmp_path, masks=True)
    folder = tmp_path / "lower_body"
    (folder / "images" / "020000_1.jpg").rename(folder / "images" / "my [1] skirt.jpg")
    listed = folder / "train_pairs.txt"
    listed.write_text(listed.read_text().replace("020000_1.jpg", "my [1] skirt.jpg"))
    lines = "my [1] skirt.jpg a skirt vs. it\n\n  020001_1.jpg\tblue  jeans\n020002_1.jpg\n"
    (folder / "dc_caption.txt").write_text(lines)
    found = [one["caption_cloth"] for one in samples(tmp_path, cloth_types=(2,))]
    assert found == ["a skirt vs. it", "blue jeans", "", ""]


POINTER = "version https://git-lfs.github.com/spec/v1\nsize 12\n"
Spoil = Callable[[Path], object]


def rewritten(path: str, text: str) -> Spoil:
    return lambda root: (root / path).write_text(text, encoding="utf-8")


def linked(path: str, target: str) -> Spoil:
    def spoil(root: Path) -> None:
        file, away = root / path, root.parent / target
        file.rename(away)
        file.symlink_to(away)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: (root / "train/image/00001_00.jpg").unlink(), "train/image/00001_00.jpg"),
        (lambda root: (root / "train/cloth/00002_00.jpg").unlink(), "train/cloth/00002_00.jpg"),
        (lambda root: (root / "test/agnostic-mask/00005_00_mask.png").unlink(), "agnostic-mask/00005_00_mask.png"),
        (lambda root: (root / "train_pairs.txt").unlink(), "train_pairs.txt"),
        (lambda root: (root / "test_pairs.txt").unlink(), "test_pairs.txt"),
        (rewritten("train_pairs.txt", "\n \n"), "train_pairs.txt"),
        (rewritten("train_pairs.txt", "00000_00.jpg\n"), "train_pairs.txt line 1"),
        (rewritten("train_pairs.txt", "\n../x.jpg 00000_00.jpg\n"), "line 2: '../x.jpg'"),
        (rewritten("train_pairs.txt", "/etc/passwd 00000_00.jpg\n"), "'/etc/passwd'"),
        (rewritten("train_pairs.txt", POINTER), "train_pairs.txt is a git-lfs"),
        (rewritten("train/image/00000_00.jpg", POINTER), "00000_00.jpg is a git"),
        (lambda root: (root / "train_pairs.txt").write_bytes(b"\xff\xfe0\0"), "train_pairs.txt"),
        (linked("train/image/00001_00.jpg", "away.jpg"), "00001_00.jpg"),
        (linked("train/cloth", "away"), "train/cloth"),
        (lambda root: (root / "upper_body" / "images").mkdir(parents=True), "DressCode"),
        (rewritten("metadata.csv", "file_name\n"), "metadata"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_viton_hd_folder_is_named_before_a_picture_is_read(
    tmp_path: Path, spoil: Spoil, named: str
) -> None:
    viton(tmp_path / "viton", of_type(1), test=2)
    spoil(tmp_path / "viton")
    with pytest.raises(ValueError) as error:
        open_splits(str(tmp_path / "viton"), check_columns=check_documented)
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: (root / "dresses/train_pairs.txt").unlink(), "dresses/train_pairs.txt"),
        (lambda root: (root / "dresses/label_maps").rename(root / "away"), "dresses/label_maps"),
        (lambda root: (root / "dresses/images" / names_of(3, 1)[1]).unlink(), names_of(3, 1)[1]),
        (lambda root: [file.unlink() for file in root.rglob("*.txt")], "test_pairs_paired.txt"),
    ],
)  # fmt: skip
def test_what_a_dresscode_folder_lacks_is_named(tmp_path: Path, spoil: Spoil, named: str) -> None:
    dresscode(tmp_path / "dc")
    spoil(tmp_path / "dc")
    with pytest.raises(ValueError) as error:
        open_splits(str(tmp_path / "dc"), check_columns=check_documented)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_part_of_a_folder_and_a_folder_of_lists_alone_are_told(tmp_path: Path) -> None:
    dresscode(tmp_path / "dc")
    viton(tmp_path / "viton", of_type(1), test=2)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train_pairs.txt").write_text("a.jpg b.jpg\n")
    for folder, named in (("dc/lower_body", "dc"), ("viton/train", "viton"), ("lists", "train_pairs.txt")):
        with pytest.raises(ValueError, match=named):
            open_splits(str(tmp_path / folder), check_columns=check_documented)


@pytest.mark.parametrize(
    ("kind", "text", "named"),
    [
        ("jsonl", '{"cloth": "a.jpg"}', "file_name"),
        ("jsonl", '{"file_name": "../a.jpg", "cloth": "b.jpg"}', "'../a.jpg'"),
        ("jsonl", '{"file_name": "none.jpg"}', "none.jpg"),
        ("jsonl", '{"file_name": "a.jpg", "cloth": "a.jpg"}', "mask"),
        ("jsonl", '{"file_name": "a.jpg", "cloth": "a.jpg", "mask": "a.jpg", "caption": NaN}', "caption is nan"),
        ("jsonl", '{"file_name": "a.jpg", "cloth": "a.jpg", "mask": "a.jpg", "caption": ["a"]}', "caption is ['a']"),
        ("jsonl", '{"file_name": "a.jpg", "cloth": "a.jpg", "mask": "a.jpg", "caption": "\\ud800"}', "line 1: caption"),
        ("jsonl", "[1]", "line 1"),
        ("jsonl", "\n{", "line 2"),
        ("csv", "file_name;cloth\na.jpg;a.jpg\n", "file_name;cloth"),
        ("csv", "file_name,cloth\na.jpg,a.jpg,1\n", "line 2"),
        ("csv", "file_name,cloth,caption\na.jpg,a.jpg\n", "line 2 has fewer cells"),
        ("csv", "", "metadata.csv"),
        ("csv", "file_name,cloth,mask,cloth_type\na.jpg,a.jpg,a.jpg,hat\n", "'hat'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_metadata_is_named(tmp_path: Path, kind: str, text: str, named: str) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    (tmp_path / f"metadata.{kind}").write_text(text)
    with pytest.raises(ValueError) as error:
        samples(tmp_path)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_line_separator_in_a_caption_ends_no_row(tmp_path: Path) -> None:
    described(tmp_path, drawn()[:3], "csv")
    file = tmp_path / "train" / "metadata.csv"
    file.write_text(file.read_text("utf-8").replace("The ", "The\u2028", 1), "utf-8")
    assert [one["caption_cloth"].count("\u2028") for one in samples(tmp_path)] == [1, 0, 0]


def test_two_metadata_files_for_the_same_rows_are_refused(tmp_path: Path) -> None:
    described(tmp_path, drawn()[:3], "csv")
    for other in ("metadata.jsonl", "train/metadata.jsonl"):
        (tmp_path / other).write_text("{}")
        with pytest.raises(ValueError, match=r"metadata\.csv"):
            samples(tmp_path)
        (tmp_path / other).unlink()


def test_the_fingerprint_follows_pictures_and_lists_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "dc"
    dresscode(root)
    seen = [source_fingerprint(str(root))]
    (root / "notes.txt").write_text("nothing")
    assert source_fingerprint(str(root)) == seen[0]
    picture = root / "dresses" / "images" / names_of(3, 0)[0]
    os.utime(picture, ns=(1, 1))
    seen.append(source_fingerprint(str(root)))
    file = root / "lower_body" / "test_pairs_unpaired.txt"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    seen.append(source_fingerprint(str(root)))
    assert len({*seen}) == 3
    options = DatasetOptions(validation_split="train")
    key = DeepFashionDataset(str(root), size=SIZE, options=options).content_key()
    put(root / "dresses" / place_of(DRESSCODE, "parse", names_of(3, 0)[0]), of_type(3)[1]["parse"]["bytes"])
    assert DeepFashionDataset(str(root), size=SIZE, options=options).content_key() != key


def test_a_copy_in_another_process_reads_the_same(tmp_path: Path) -> None:
    dresscode(tmp_path / "dc")
    data = DeepFashionDataset(str(tmp_path / "dc"), size=SIZE)
    same([pickle.loads(pickle.dumps(data))[1]], [data[1]])


def test_validation_people_are_held_out_of_train_and_never_those_of_the_test_list(tmp_path: Path) -> None:
    dresscode(tmp_path / "dc")
    train, held = (DeepFashionDataset(str(tmp_path / "dc"), phase, size=SIZE) for phase in ("train", "test"))
    names = [{data[k]["im_name"].split("/")[0] for k in range(len(data))} for data in (train, held)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {Path(names_of(kind, k)[0]).stem for kind in (1, 2, 3) for k in range(4)}


def test_thousands_of_rows_open_in_seconds(tmp_path: Path) -> None:
    from time import perf_counter

    names = [f"{number:05d}_00" for number in range(5_000)]
    for folder, ending in (("image", ".jpg"), ("cloth", ".jpg"), ("agnostic-mask", "_mask.png")):
        (tmp_path / "train" / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "train" / folder / f"{name}{ending}").write_bytes(b"x")
    (tmp_path / "train_pairs.txt").write_text("".join(f"{name}.jpg {name}.jpg\n" for name in names))
    begun = perf_counter()
    splits = open_splits(str(tmp_path), check_columns=check_documented)
    assert len(splits["train"]) == 5_000 and perf_counter() - begun < 3


def test_prepare_makes_the_same_masks_and_leaves_the_test_list_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from deepfashion_training import prepare

    root, out = tmp_path / "dc", tmp_path / "pairs"
    splits = dresscode(root)
    flags = ["--dataset_name", str(root), "--output_dir", str(out), "--num_proc", "1", "--min_garment_px", "16"]
    assert prepare.main(flags) == 0, capsys.readouterr().err
    same(samples(out, "test"), samples(root, "test"))
    same(samples(out), samples(root))
    assert json.loads((out / "report.json").read_text())["by_split"] == {"train": 12, "test": 6}
    assert len(splits["test"]) == 6


def test_with_a_parser_prepare_makes_the_masks_of_rows_that_have_none() -> None:
    from deepfashion_training.images.quality import Gates
    from deepfashion_training.preparation.batch import prepare_batch
    from deepfashion_training.preparation.pair_plan import Settings, make_plan

    rows = drawn()[:3]
    maps = [np.asarray(Image.open(io.BytesIO(row["parse"]["bytes"]))) for row in rows]

    class Parser:
        def parse(self, photos: list[Image.Image]) -> list[np.ndarray]:
            return [maps[[row["cloth_type"] for row in rows].index(kind)] for kind in kinds.pop(0)[: len(photos)]]

    kinds = [[row["cloth_type"]] for row in rows]
    columns = {name: [row[name]["bytes"] for row in rows] for name in ("image", "cloth")}
    texts = {"pid": ["a", "b", "c"], "cloth_type": [row["cloth_type"] for row in rows]}
    settings = Settings(parser="any", gates=Gates(min_garment_px=16))
    made = prepare_batch(make_plan(texts, settings, has_cloth=True), columns, settings, Parser())  # type: ignore[arg-type]
    for row, parse, found in zip(rows, maps, made, strict=True):
        assert found["outcome"] == "pair", found
        mask = np.asarray(Image.open(io.BytesIO(found["mask"]["bytes"]))) > 0
        assert np.array_equal(mask, mask_of_parse(parse, row["cloth_type"]) > 0)
