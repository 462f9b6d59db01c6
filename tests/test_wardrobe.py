"""The drawn wardrobe: schemas, splits, determinism, masks and colours."""

import hashlib
import io
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from accelerate import PartialState
from PIL import Image, ImageFilter

from deepfashion_training.data.schema import PAIR_COLUMNS, RAW_COLUMNS
from deepfashion_training.embedded import wardrobe
from deepfashion_training.embedded.body import FLAT_POSE, PERSON_VIEWS, Body, random_person, random_pose
from deepfashion_training.embedded.figure import draw_flat, draw_person
from deepfashion_training.embedded.garments import Garment, Outfit, caption, random_outfit
from deepfashion_training.embedded.patterns import PALETTE, PATTERN_WORDS, Pattern
from deepfashion_training.embedded.rows import documented_specs, raw_specs, split_of_pids
from deepfashion_training.embedded.wardrobe import main, wardrobe_features, write_wardrobe
from deepfashion_training.garment_types import CATEGORY_TYPES

SMALL = (128, 96)
HAIR_FACE_SHOES_BAG = (2, 9, 10, 11, 16)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    return write_wardrobe(tmp_path_factory.mktemp("documented") / "d", rows=60, seed=3, size=SMALL)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return write_wardrobe(tmp_path_factory.mktemp("hub") / "h", schema="hub", rows=50, seed=3, size=SMALL)


def load(folder, cache):
    import datasets

    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "data").iterdir())}


def plain(kind, colour="teal", **more):
    defaults = {"tee": {"sleeve": "short", "neckline": "crew"}, "dress": {"sleeve": "short", "neckline": "crew"}}
    cloth = Pattern("plain", colour, "white", "black", 0.05, 0.4)
    return Garment(kind, "Pants", **{"pattern": cloth, "cut": "straight", **defaults.get(kind, {}), **more})


TEE = plain("tee", "coral")
TROUSERS = plain("trousers", hem="ankle-length")
SHORTS = plain("shorts", "olive", hem="three-point")
SKIRT = plain("skirt", "navy", cut="a-line", hem="knee-length")


def people_in_poses(count):
    """Persons, each in one of the views in turn, with all random choices different."""
    for index in range(count):
        rng = np.random.default_rng(index)
        person = random_person(rng)
        yield rng, person, random_pose(rng, PERSON_VIEWS[index % len(PERSON_VIEWS)])


# Schema and splits -------------------------------------------------------------------------------------------------


def test_columns_are_those_of_the_schema():
    for schema, columns in (("documented", {**PAIR_COLUMNS, "parse": "image"}), ("hub", RAW_COLUMNS)):
        features = wardrobe_features(schema)
        kinds = {
            name: getattr(feature, "dtype", "").replace("PIL.Image.Image", "image")
            for name, feature in features.items()
        }
        assert list(kinds.items()) == list(columns.items())


def test_documented_schema_loads_with_pictures_decoded(documented, tmp_path):
    data = load(documented, tmp_path)
    assert list(data) == ["train", "validation", "test"]
    for split in data.values():
        assert split.column_names == [*PAIR_COLUMNS, "parse"]
    pictures = {name for name, feature in data["test"].features.items() if type(feature).__name__ == "Image"}
    assert pictures == {"image", "cloth", "mask", "parse"}
    row = data["train"][0]
    assert row["image"].size == row["cloth"].size == row["mask"].size == row["parse"].size == (96, 128)
    assert (row["image"].mode, row["cloth"].mode, row["mask"].mode, row["parse"].mode) == ("RGB", "RGB", "L", "L")
    assert row["image"].format == "JPEG"
    assert set(np.unique(row["mask"])) == {0, 255}
    assert (row["garment_source"], row["garment_view"]) == ("flat", "flat")
    for row in data["test"]:
        assert re.fullmatch(r"id_\d{8}", row["pid"]) and re.fullmatch(r"\d\d", row["variant"])
        assert row["view"] in PERSON_VIEWS and row["gender"] in ("MEN", "WOMEN")
        assert CATEGORY_TYPES[row["category"]] in (row["cloth_type"], None)
        assert set(np.unique(row["parse"])) <= set(range(18))


def test_splits_hold_a_tenth_of_the_pids_each_and_share_none(documented, tmp_path):
    data = load(documented, tmp_path)
    # 60 rows are 20 people; a tenth of those is two people, six rows.
    assert {split: len(rows) for split, rows in data.items()} == {"train": 48, "validation": 6, "test": 6}
    pids = {split: set(rows["pid"]) for split, rows in data.items()}
    assert {split: len(found) for split, found in pids.items()} == {"train": 16, "validation": 2, "test": 2}
    assert not pids["train"] & pids["validation"] and not pids["train"] & pids["test"]
    assert not pids["validation"] & pids["test"]
    assert sorted(number for rows in data.values() for number in rows["source_row"]) == list(range(60))


@pytest.mark.parametrize(("rows", "held_out"), [(30, 1), (240, 8), (8000, 267)])
def test_split_sizes_follow_from_the_number_of_pids(rows, held_out):
    counts = Counter(split_of_pids(rows, seed=5))
    assert counts["test"] == counts["validation"] == held_out
    assert sum(counts.values()) == -(-rows // 3)
    assert split_of_pids(rows, seed=5) == split_of_pids(rows, seed=5) != split_of_pids(rows, seed=6)


def test_the_wardrobe_of_embedded_is_for_learning_first(monkeypatch, tmp_path):
    monkeypatch.setattr(wardrobe, "OWN_ROWS", 300)
    wardrobe.draw_wardrobe(tmp_path / "own", PartialState())
    data = load(tmp_path / "own", tmp_path)
    # 300 rows are 100 people, 3% of those are three.
    assert {split: len(rows) for split, rows in data.items()} == {"train": 282, "validation": 9, "test": 9}
    assert all(set(Counter(rows["cloth_type"]).values()) == {len(rows) // 3} for rows in data.values())
    specs = list(documented_specs(300, wardrobe.OWN_SEED))
    for split, patterned in {"train": wardrobe.OWN_PATTERNED, "validation": 0.5, "test": 0.5}.items():
        drawn = [replace(specs[number], patterned=patterned).caption() for number in data[split]["source_row"]]
        assert data[split]["caption"] == drawn


def test_more_patterns_to_learn_from_change_training_rows_alone(tmp_path):
    usual = load(write_wardrobe(tmp_path / "a", rows=90, seed=2, size=SMALL), tmp_path)
    plain = load(write_wardrobe(tmp_path / "b", rows=90, seed=2, size=SMALL, patterned=0.0), tmp_path)
    rich = load(write_wardrobe(tmp_path / "c", rows=90, seed=2, size=SMALL, patterned=1.0), tmp_path)

    def with_pattern(rows):
        return {row["source_row"] for row in rows if re.search(r" and \w+ [\w-]+ patterns", row["caption"])}

    for split in ("validation", "test"):
        assert usual[split]["caption"] == plain[split]["caption"] == rich[split]["caption"]
    assert set() == with_pattern(plain["train"]) < with_pattern(usual["train"]) < with_pattern(rich["train"])


def test_garment_types_come_in_turn():
    assert Counter(spec.cloth_type for spec in documented_specs(61, 0)) == {1: 21, 2: 20, 3: 20}


def test_views_of_a_variant_show_one_outfit():
    outfits = defaultdict(set)
    for spec in documented_specs(90, 1):
        assert spec.cloth_type in [garment.cloth_type for garment in spec.outfit.garments]
        outfits[spec.pid, spec.variant].add(repr(spec.outfit))
    assert len(outfits) < 90
    assert all(len(worn) == 1 for worn in outfits.values())
    assert len({worn for found in outfits.values() for worn in found}) == len(outfits)


# Determinism -------------------------------------------------------------------------------------------------------


def test_same_arguments_give_the_same_bytes_on_any_number_of_processes(tmp_path):
    first = digests(write_wardrobe(tmp_path / "a", rows=30, seed=7, size=SMALL))
    again = digests(write_wardrobe(tmp_path / "b", rows=30, seed=7, size=SMALL, num_proc=2))
    assert list(first) == [f"{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")]
    assert again == first
    other = digests(write_wardrobe(tmp_path / "c", rows=30, seed=8, size=SMALL))
    assert all(other[name] != digest for name, digest in first.items())


def test_rows_are_written_in_groups(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(wardrobe, "_GROUP_ROWS", 4)
    folder = write_wardrobe(tmp_path / "d", schema="hub", rows=10, size=(64, 64)) / "data"
    file = pq.ParquetFile(folder / "train-00000-of-00001.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 4, 2]


# Masks -------------------------------------------------------------------------------------------------------------


def test_agnostic_masks_keep_face_hair_hands_shoes_and_bag():
    touched = Counter()
    for rng, person, pose in people_in_poses(30):
        person = replace(person, bag="shoulder") if person.bag is None and rng.random() < 0.3 else person
        drawing = draw_person(person, random_outfit(rng, person.gender, 1 + int(rng.integers(3))), pose, (192, 144))
        shown = np.isin(drawing.parse, HAIR_FACE_SHOES_BAG)
        assert shown.sum() > 300
        body = Body(person.gender, person.girth, pose)
        scale = 192 * pose.size
        for mask in drawing.agnostic.values():
            assert not (mask & shown).any()
            assert not (mask & drawing.keep).any()
        for side in (1, -1):
            if body.arm_behind(side):
                continue
            wrist, knuckles = body.arm(side)[2:]
            x, y = body.project(wrist + 0.7 * (knuckles - wrist)) * scale
            x += 72 + pose.shift * 144
            y += 0.045 * 192 if pose.from_top else max(0.0, 0.965 * 192 - scale * 0.995)
            if 0 <= round(y) < 192 and 0 <= round(x) < 144:
                touched[bool(drawing.agnostic[3][round(y), round(x)])] += 1
    assert touched[False] > 40 and touched[True] == 0


def test_agnostic_masks_cover_the_garment_and_a_lot_around_it():
    covered = defaultdict(list)
    for _, person, pose in people_in_poses(10):
        for outfit in (
            Outfit((TEE, TROUSERS)),
            Outfit((plain("sweater", sleeve="long", neckline="crew", ease=0.015), SHORTS)),
            Outfit((TEE, plain("leggings", hem="long", cut="slim"))),
            Outfit((plain("jumpsuit", sleeve="long", neckline="crew", cut="slim", hem="ankle-length"),)),
        ):
            drawing = draw_person(person, outfit, pose, (192, 144))
            for garment in outfit.garments:
                worn = drawing.garment_mask(garment.cloth_type) & ~drawing.keep
                mask = drawing.agnostic[garment.cloth_type]
                covered[garment.kind].append((mask & worn).sum() / worn.sum())
                assert mask.sum() > 1.05 * worn.sum(), garment.kind
                assert mask.mean() < 0.5
    assert set(covered) == {"tee", "trousers", "sweater", "shorts", "leggings", "jumpsuit"}
    for kind, shares in covered.items():
        assert np.mean(shares) >= 0.99 and min(shares) >= 0.97, (kind, min(shares))


def test_agnostic_masks_do_not_tell_what_is_worn():
    previous = None
    for _, person, pose in people_in_poses(5):
        drawings = [draw_person(person, Outfit((TEE, lower)), pose, (192, 144)) for lower in (TROUSERS, SHORTS, SKIRT)]
        drawings.append(draw_person(person, Outfit((plain("dress", cut="flared", hem="maxi"),)), pose, (192, 144)))
        for cloth_type in (1, 2, 3):
            for other in drawings[1:]:
                assert np.array_equal(drawings[0].agnostic[cloth_type], other.agnostic[cloth_type])
        assert not np.array_equal(drawings[0].parse, drawings[1].parse)
        assert previous is None or not np.array_equal(previous, drawings[0].agnostic[2])
        previous = drawings[0].agnostic[2]


def test_parse_map_labels_the_clothes_that_are_worn():
    rng, person, _ = next(people_in_poses(1))
    pose = random_pose(rng, "front")
    bare = {11, 2, 14, 15}
    dress = plain("dress", cut="a-line", hem="mini")
    worn = ((TEE, TROUSERS), (TEE, SKIRT), (dress,))
    found = [set(np.unique(draw_person(person, Outfit(garments), pose).parse)) for garments in worn]
    assert all(bare <= labels for labels in found)
    assert [sorted(labels & {4, 5, 6, 7}) for labels in found] == [[4, 6], [4, 5], [7]]
    assert {12, 13} <= found[2]


# Cloth -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in PATTERN_WORDS if kind != "print"])
def test_flat_picture_has_the_colours_of_the_garment_as_worn(kind):
    cloth = Pattern(kind, "teal", "yellow", "magenta", 0.055, 0.4)
    dress = plain("dress", cut="a-line", hem="knee-length", pattern=cloth)
    _, person, _ = next(people_in_poses(1))
    person = replace(person, bag=None)
    drawing = draw_person(person, Outfit((dress,)), FLAT_POSE)
    flat, where = draw_flat(dress, person.gender)
    worn = np.asarray(drawing.photo, float)[drawing.garment_mask(3)].mean(axis=0)
    laid = np.asarray(flat, float)[where].mean(axis=0)
    assert np.abs(worn - laid).max() < 16
    around = np.asarray(Image.fromarray(where).convert("L").filter(ImageFilter.MaxFilter(3))) == 0
    assert around.mean() > 0.4 and np.asarray(flat)[around].min() == 255  # but for soft edges, all else is white
    # Shading darkens the palette's colour, but stays near it.
    if kind == "plain":
        assert np.abs(laid - PALETTE["teal"]).max() < 26


@pytest.mark.parametrize("size", [SMALL, (384, 288)])
@pytest.mark.parametrize(("kind", "across"), [("horizontal", True), ("vertical", False)])
def test_stripes_run_the_same_way_worn_and_laid_out_also_when_small(kind, across, size):
    skirt = replace(SKIRT, hem="midi", cut="pencil", pattern=Pattern(kind, "white", "black", "red", 0.05, 0.5))
    _, person, _ = next(people_in_poses(1))
    person = replace(person, bag=None, gender="WOMEN")
    drawing = draw_person(person, Outfit((TEE, skirt)), FLAT_POSE, size)
    flat, where = draw_flat(skirt, "WOMEN", size)
    for picture, area in ((drawing.photo, drawing.garment_mask(2)), (flat, where)):
        grey = np.asarray(picture.convert("L"), float)
        rows, columns = np.flatnonzero(area.mean(axis=1) > 0.12), np.flatnonzero(area.mean(axis=0) > 0.2)
        inside = grey[rows[2] : rows[-2], columns[2] : columns[-2]]
        along_rows, along_columns = inside.mean(axis=1).std(), inside.mean(axis=0).std()
        strong, weak = (along_rows, along_columns) if across else (along_columns, along_rows)
        assert strong > 35 and strong > 2 * weak


def test_a_wide_picture_shows_the_same_person_in_its_middle():
    _, person, pose = next(people_in_poses(1))
    pose = replace(pose, shift=0.0)
    tall = draw_person(person, Outfit((TEE, TROUSERS)), pose, (512, 384))
    wide = draw_person(person, Outfit((TEE, TROUSERS)), pose, (512, 768))
    assert wide.photo.size == (768, 512) and wide.parse.shape == (512, 768)
    assert np.array_equal(wide.parse[:, 192:576], tall.parse)
    assert not wide.parse[:, :192].any()


# Raw schema --------------------------------------------------------------------------------------------------------


def test_hub_schema_is_one_split_of_the_raw_columns(hub, tmp_path):
    data = load(hub, tmp_path)
    assert list(data) == ["train"] and len(data["train"]) == 50
    assert data["train"].column_names == list(RAW_COLUMNS)
    for row in data["train"]:
        assert row["images"].mode == row["mask_overlay"].mode == "RGB" and row["mask"].mode == "L"
        assert set(np.unique(row["mask"])) == {0, 255}
        assert row["cloth_type"] in CATEGORY_TYPES and re.fullmatch(r"id_\d{8}", row["pid"])
        assert re.fullmatch(r"0[12]_(1_front|2_side|3_back|4_full|6_flat|7_additional)", row["pose"])
        # The overlay is tinted where the mask is white and nowhere else, up to JPEG noise at the edge.
        changed = np.abs(np.asarray(row["images"], int) - np.asarray(row["mask_overlay"], int)).max(axis=2) > 40
        assert (changed & (np.asarray(row["mask"]) == 0)).mean() < 0.01
    keys = [(row["pid"], row["pose"]) for row in data["train"].remove_columns(["images", "mask", "mask_overlay"])]
    assert len(set(keys)) == 50


def test_hub_masks_trace_the_named_garment_or_all_clothes_by_pid(hub):
    import pyarrow.parquet as pq

    (path,) = (hub / "data").iterdir()
    masks = pq.read_table(path, columns=["mask"]).column("mask").to_pylist()
    kinds = Counter()
    for spec, stored in zip(raw_specs(50, 3), masks, strict=True):
        mask = np.asarray(Image.open(io.BytesIO(stored["bytes"]))) > 0
        if spec.view == "flat":
            continue
        drawing = spec.draw(SMALL)
        named = np.isin(drawing.parse, {1: (4,), 2: (5, 6), 3: (7,)}[spec.cloth_type])
        union = np.isin(drawing.parse, (4, 5, 6, 7, 8, 17))
        assert np.array_equal(mask, union if spec.whole_mask else named)
        kinds[spec.whole_mask] += 1
    assert min(kinds.values()) > 5


def test_hub_rows_have_the_shares_that_prepare_must_cope_with():
    specs = list(raw_specs(3000, 0))
    assert len(specs) == 3000
    views = defaultdict(list)
    for spec in specs:
        views[spec.pid, spec.variant].append(spec.view)
    flat = np.mean(["flat" in shown for shown in views.values()])
    single = np.mean([len(shown) == 1 for shown in views.values()])
    assert 0.45 < flat < 0.55 and 0.01 < single < 0.10
    assert 0.20 < np.mean([spec.cloth_type == 2 for spec in specs]) < 0.40
    whole = {spec.pid: spec.whole_mask for spec in specs}
    assert 0.45 < np.mean(list(whole.values())) < 0.55
    assert {spec.category for spec in specs} <= set(CATEGORY_TYPES)


def test_captions_of_denim_and_suiting_name_the_garment():
    words = {1: ("jacket",), 2: ("jeans", "trousers", "skirt")}
    seen = Counter()
    for spec in raw_specs(3000, 0):
        if spec.category in ("Denim", "Suiting"):
            text = spec.caption()
            assert any(word in text for word in words[spec.cloth_type]), text
            assert ("denim" if spec.category == "Denim" else "suit") in text
            seen[spec.category, spec.cloth_type] += 1
    assert set(seen) == {("Denim", 1), ("Denim", 2), ("Suiting", 1), ("Suiting", 2)}


def test_captions_tell_what_is_drawn():
    rng = np.random.default_rng(0)
    person = replace(random_person(rng), gender="WOMEN")
    striped = replace(TEE, pattern=Pattern("horizontal", "navy", "white", "red", 0.05, 0.4))
    text = caption(person, Outfit((striped, SHORTS)), rng)
    assert "woman" in text and "short-sleeve T-shirt with navy and white horizontal stripe patterns" in text
    assert "olive three-point shorts" in text


# Command -----------------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("mine")
    assert main(["--output_dir", str(tmp_path / "d"), "--rows", "3"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "not an empty folder" in error and "--output_dir" in error
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["mine.txt"]


def test_a_run_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def draw(spec, size):
        raise RuntimeError(f"no ink\nat row {spec.index}")

    monkeypatch.setitem(wardrobe.SCHEMAS, "documented", (documented_specs, draw))
    assert main(["--output_dir", str(tmp_path / "d"), "--rows", "3"]) == 1
    assert "no ink" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_and_the_command_says_so(tmp_path, capsys):
    (tmp_path / "d").mkdir()
    assert main(["--output_dir", str(tmp_path / "d"), "--rows", "9", "--size", "64x64"]) == 0
    assert capsys.readouterr().out == (f"wrote 9 rows of 64x64 pixels in the documented schema to {tmp_path / 'd'}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert len(list((tmp_path / "d" / "data").iterdir())) == 3


@pytest.mark.parametrize("wrong", [
    ["--size", "384"], ["--size", "384x10"], ["--rows", "0"], ["--seed", "-1"], ["--schema", "raw"], ["--row", "3"],
    ["--num_proc", "0"],
])  # fmt: skip
def test_wrong_use_exits_with_2(wrong, tmp_path):
    assert main(["--output_dir", str(tmp_path / "d"), *wrong]) == 2


def test_people_in_a_studio_stand_still_before_a_bare_wall() -> None:
    for seed in range(40):
        view = PERSON_VIEWS[seed % len(PERSON_VIEWS)]
        calm, usual = (random_pose(np.random.default_rng(seed), view, calm=calm) for calm in (True, False))
        assert abs(calm.shift) <= 0.014 and abs(calm.yaw) <= max(abs(usual.yaw), 185)
        if view != "side":
            assert calm.sway == 0 and all(forward == bend == 0 for _, forward, bend in calm.legs)
            assert all(
                -5 < forearm_out < 10 or out > 37 for out, _, forearm_out, _ in calm.arms
            )  # down, or a hand on the hip
    for spec in documented_specs(12, seed=3):
        wall = np.asarray(spec.draw((128, 96)).photo)[:8, [0, 1, -2, -1]].astype(int)
        assert np.ptp(wall, axis=1).max() == 0  # lighter above, and the same from side to side


def test_importing_the_wardrobe_loads_no_heavy_library():
    code = (
        "import sys, deepfashion_training.embedded.wardrobe; print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_half_of_the_patterned_garments_are_in_plain_and_nothing_else_changes() -> None:
    specs = list(documented_specs(240, seed=1))
    patterned = [replace(spec, patterned=1.0) for spec in specs]
    plain = ("plain", "denim", "print", "block")
    before = [spec.garment() for spec in patterned]
    after = [spec.garment() for spec in specs]
    had = [one for one in before if one.pattern.kind not in plain]
    kept = [one for one in after if one.pattern.kind not in plain]
    assert 0.35 < len(kept) / len(had) < 0.65
    for one, other in zip(before, after, strict=True):
        assert other in (one, one.in_plain())
    # A row's own garment follows from the row, whatever is worn beside it.
    assert after == [spec.garment() for spec in reversed(specs)][::-1]


def test_a_folder_that_another_process_writes_is_left_to_it(tmp_path):
    target = tmp_path / "w"
    code = "import sys; from pathlib import Path; from training_run.lock import only_writer\n"
    code += f"with only_writer(Path({str(target)!r})): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(wardrobe.__file__).parents[2],
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with mock.patch("training_run.lock.PATIENCE", 0.2), pytest.raises(ValueError, match=f"process {other.pid} "):
            wardrobe.write_wardrobe(target, rows=3, size=(64, 64))
        assert [path.name for path in target.iterdir()] == [".lock"]
        other.stdin.close()
    wardrobe.write_wardrobe(target, rows=3, size=(64, 64))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w"] and not (target / ".lock").exists()
