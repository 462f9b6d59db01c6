"""Figures of an evaluation on rows made by hand, and what a photo, a mask and a garment's area become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from deepfashion_training.evaluation import results
from deepfashion_training.evaluation.cases import Cases
from deepfashion_training.evaluation.distribution import frechet_distance
from deepfashion_training.evaluation.draw_cases import Setting, draw_missing, setting, share_of
from deepfashion_training.evaluation.measure_cases import (
    FEWEST_FOR_VERDICT,
    Measured,
    differences,
    read_result,
    summarise,
)
from deepfashion_training.images.layout import Box
from deepfashion_training.images.pictures import PictureError

#: As many people as a verdict needs, in pictures 0, 1, 2...
PEOPLE = [f"pid {number}" for number in range(FEWEST_FOR_VERDICT)]


def measured(
    values: dict[str, Sequence[dict[str, float]]],
    *,
    groups: Sequence[str] = PEOPLE,
    types: Sequence[str] | None = None,
    guidance: float = 1.0,
    unpaired: bool = False,
) -> Measured:
    """Figures by model, a dictionary for each picture."""
    looks: Any = dict.fromkeys(values)
    found = Measured(Setting(Path("nowhere"), guidance, unpaired, looks), Any)  # type: ignore[arg-type]
    found.instruments = SimpleNamespace(distances=(), dino=None)  # type: ignore[assignment]
    for model, pictures in values.items():
        for number, figures in enumerate(pictures):
            kind = types[number] if types else "lower"
            facts = {"row": number, "name": f"row-{number}", "garment": "", "type": kind, "group": groups[number]}
            found.rows.append({**facts, "model": model, "guidance_scale": guidance, "figures": figures})
    count = len(next(iter(values.values())))
    found.cases = [
        SimpleNamespace(row=number, type_name=types[number] if types else "lower", cloth_type=2)  # type: ignore[misc]
        for number in range(count)
    ]
    return found


def of(name: str, *values: float) -> list[dict[str, float]]:
    return [{name: value} for value in values]


# ---- means


def test_means_and_counts_are_by_type_and_in_all() -> None:
    one = measured({"base": of("ssim", 0.2, 0.4, 0.9)}, types=["upper", "upper", "full"])
    found = summarise([one], seed=0, rounds=100)["base"]
    assert set(found) == {"upper", "full", "all"}
    assert found["upper"]["n"] == 2 and found["upper"]["ssim"] == pytest.approx(0.3)
    assert found["full"] == {"n": 1, "ssim": 0.9, "ssim_ci": None}  # one person
    assert found["all"]["n"] == 3 and found["all"]["ssim"] == pytest.approx(0.5)
    low, high = found["all"]["ssim_ci"]
    assert 0.2 <= low < 0.5 < high <= 0.9


def test_infinite_figures_are_counted_out() -> None:
    found = summarise([measured({"base": of("psnr", math.inf, 20, 30), "lora": of("psnr", *[math.inf] * 3)})], 0, 100)
    base, lora = found["base"]["lower"], found["lora"]["lower"]
    assert (base["n"], base["psnr_n"], base["psnr"]) == (3, 2, 25)
    assert (lora["n"], lora["psnr_n"], lora["psnr"]) == (3, 0, None) and "psnr_ci" not in lora


def test_intervals_are_over_people_not_pictures() -> None:
    pictures = of("ssim", *[0.0] * 5, *[1.0] * 5)
    people = measured({"base": pictures}, groups=["one"] * 5 + ["two"] * 5)
    alone = measured({"base": pictures})
    by_people, by_picture = (summarise([one], 0, 1000)["base"]["all"]["ssim_ci"] for one in (people, alone))
    assert by_people == [0.0, 1.0]  # each of the two may be drawn twice
    assert 0.1 < by_picture[0] < by_picture[1] < 0.9


def test_unpaired_pictures_that_are_fewer_are_counted() -> None:
    paired = measured({"base": of("drift", 1, 2, 3)})
    unpaired = measured({"base": of("drift_unpaired", 5, 7)}, unpaired=True)
    found = summarise([paired, unpaired], 0, 100)["base"]["all"]
    assert (found["n"], found["drift"], found["drift_unpaired"], found["drift_unpaired_n"]) == (3, 2, 6, 2)
    assert "drift_n" not in found


def test_distances_are_of_the_types_own_pictures() -> None:
    draw = torch.Generator().manual_seed(0)
    one = measured({"base": of("ssim", *[0.5] * 5)}, types=["upper"] * 4 + ["full"])
    one.features = {name: torch.randn(5, 3, generator=draw) for name in ("base", "truth")}
    found = summarise([one], 0, 100)["base"]
    expected = frechet_distance(one.features["truth"][:4], one.features["base"][:4])
    assert found["upper"]["fd_dinov2"] == expected != found["all"]["fd_dinov2"]
    assert "fd_dinov2" not in found["full"]  # one picture is no distribution


# ---- differences


def change(base: Sequence[float], lora: Sequence[float], name: str = "ssim", groups: Sequence[str] = PEOPLE) -> Any:
    both = measured({"base": of(name, *base), "lora": of(name, *lora)}, groups=groups)
    return differences([both], 0, 200).get("all", {}).get(name)


@pytest.mark.parametrize(("name", "better"), [("ssim", "lora"), ("ciede2000_masked", "base"), ("drift", "base")])
def test_a_difference_on_one_side_of_0_has_a_better_side(name: str, better: str) -> None:
    count = len(PEOPLE)
    base, lora = [0.1] * count, [0.2 + number / 100 for number in range(count)]
    up, down = change(base, lora, name), change(lora, base, name)
    assert up["mean"] == pytest.approx(0.1 + (count - 1) / 200) and up["mean"] == -down["mean"]
    assert 0.1 < up["ci"][0] < up["mean"] < up["ci"][1]
    assert up["better"] == better and {up["better"], down["better"]} == {"base", "lora"}
    assert up["n"] == up["people"] == count


def test_a_difference_that_chance_makes_has_none() -> None:
    found = change([0.5] * len(PEOPLE), [0.4, 0.6] * (len(PEOPLE) // 2))
    assert found["ci"][0] < 0 < found["ci"][1] and found["better"] is None


def test_few_people_have_no_verdict_however_many_pictures_of_them() -> None:
    count = 3 * FEWEST_FOR_VERDICT
    few = [f"pid {number % (FEWEST_FOR_VERDICT - 1)}" for number in range(count)]
    enough = [f"pid {number % FEWEST_FOR_VERDICT}" for number in range(count)]
    assert change([0.0] * count, [1.0] * count, groups=few)["better"] is None
    found = change([0.0] * count, [1.0] * count, groups=enough)
    assert found["better"] == "lora" and (found["n"], found["people"]) == (count, FEWEST_FOR_VERDICT)


def test_infinite_figures_of_both_are_no_difference_and_of_one_do_not_count() -> None:
    found = change([math.inf, 20, math.inf], [math.inf, 26, 30], "psnr")
    assert (found["n"], found["mean"]) == (2, 3)  # 0 and 6
    assert change([math.inf], [30], "psnr") is None


def test_only_cases_of_both_models_are_compared() -> None:
    both = measured({"base": of("ssim", 0.1, 0.2), "lora": of("ssim", 0.3)})
    assert differences([both], 0, 100)["all"]["ssim"]["n"] == 1


# ---- best and worst


def test_cases_are_in_the_order_of_what_the_lora_gained() -> None:
    values = {"base": of("ciede2000_masked", 5, 5, 5, 5), "lora": of("ciede2000_masked", 6, 2, 5, 2)}
    assert [case.row for case in results._ordered(measured(values), "ciede2000_masked")] == [1, 3, 2, 0]
    values = {"base": of("dino", 0.5, 0.5, 0.5), "lora": of("dino", 0.4, 0.9, 0.6)}
    assert [case.row for case in results._ordered(measured(values), "dino")] == [1, 2, 0]


def test_without_a_lora_cases_are_in_the_order_of_the_figure() -> None:
    assert [case.row for case in results._ordered(measured({"base": of("dino", 0.2, 0.9, 0.4)}), "dino")] == [1, 2, 0]
    one = measured({"base": of("ciede2000_masked", 2, 9, 4)})
    assert [case.row for case in results._ordered(one, "ciede2000_masked")] == [0, 2, 1]


@pytest.mark.parametrize(("name", "best"), [("dino", 30.0), ("ciede2000_masked", 1.0)])
def test_the_best_guidance_is_the_loras_by_the_figures_direction(name: str, best: float) -> None:
    sweep = [
        measured({"base": of(name, *base), "lora": of(name, *lora)}, guidance=guidance)
        for guidance, base, lora in ((1.0, (9, 9), (0.2, 0.3)), (3.5, (0, 0), (0.3, 0.4)), (30.0, (5, 5), (0.4, 0.5)))
    ]
    assert results.best_of(sweep) == (best, name, "lora")


def test_dino_decides_where_it_was_measured() -> None:
    assert results.criterion(measured({"base": [{"ciede2000_masked": 1, "dino": 0.5}]})) == "dino"
    assert results.criterion(measured({"base": [{"ssim": 1, "ciede2000_masked": 1}]})) == "ciede2000_masked"


# ---- cases


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
    truth = cases.truth(cases.cases[0])
    assert cases.box(cases.cases[0]) == Box(*box)
    assert tuple(truth.photo.shape) == (3, box[3], box[2])
    expected = np.asarray(given.resize((box[2], box[3]), Image.Resampling.LANCZOS), np.float32) / 255
    assert np.allclose(truth.photo.permute(1, 2, 0).numpy(), expected)
    assert truth.mask[0, :32].sum() == 0 and truth.mask[0, 32:].all()
    assert not truth.area_known and torch.equal(truth.garment_area, truth.mask)


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
    case = cases.cases[0]
    assert cases.box(case) == Box(0, 0, 48, 64)
    truth = cases.truth(case)
    expected = np.asarray(upright.resize((48, 64), Image.Resampling.LANCZOS), np.float32) / 255
    assert np.allclose(truth.photo.permute(1, 2, 0).numpy(), expected)
    assert truth.mask[0, :32].sum() == 0 and truth.mask[0, 32:].all()


def test_the_garments_own_area_is_what_the_parse_says_of_it_within_the_mask(rows: Rows, tmp_path: Path) -> None:
    parse = np.zeros((96, 72), np.uint8)
    parse[30:80, 20:50] = 6  # trousers
    parse[10:30, 20:50] = 4  # upper clothes
    rows.add(photo(72, 96), box_mask(72, 96, (10, 20, 60, 70)), parse=Image.fromarray(parse))
    rows.add(photo(72, 96), box_mask(72, 96, (10, 20, 60, 70)), parse=None)
    cases = rows.cases(tmp_path, size=(96, 72))
    assert cases.has_parse and cases.area_source == "the column parse of the data"
    known, unknown = (cases.truth(case) for case in cases.cases)
    expected = np.zeros((96, 72), np.float32)
    expected[30:70, 20:50] = 1
    assert known.area_known and np.array_equal(known.garment_area[0].numpy(), expected)
    assert not unknown.area_known and torch.equal(unknown.garment_area, unknown.mask)


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
        cases.truth(cases.cases[0])


def test_people_of_a_type_who_are_too_few_get_no_garment_of_their_own(rows: Rows, tmp_path: Path) -> None:
    for pid in ("a", "a", "a", "b"):
        rows.add(photo(72, 96), box_mask(72, 96, (10, 20, 60, 70)), pid=pid)
    cases = rows.cases(tmp_path)
    wearing = cases.of(unpaired=True)
    assert len(cases.of(unpaired=False)) == 4 and len(wearing) == 2  # b gets one of a's, one a gets b's
    groups = [row["pid"] for row in rows.rows]
    assert all(groups[case.partner] != groups[case.row] for case in wearing)


# ---- pictures on disk


def test_a_picture_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    truth: Any = SimpleNamespace(photo=torch.zeros(3, 20, 10))
    with pytest.raises(PictureError, match="it was not drawn"):
        read_result(tmp_path / "a.png", truth)
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    with pytest.raises(PictureError, match=r"a\.png has 20x10 pixels, of another size"):
        read_result(tmp_path / "a.png", truth)
    photo(10, 20).save(tmp_path / "a.png")
    assert read_result(tmp_path / "a.png", truth).shape == (3, 20, 10)
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[60:200] = bytes(140)  # whole at both ends, and broken between them
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PictureError, match=r"a\.png cannot be read .*: delete it, and give the command again"):
        read_result(tmp_path / "a.png", truth)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_processes(batch_size: int, rows: Rows, tmp_path: Path) -> None:
    for pid in "abcdefg":
        rows.add(photo(72, 96), box_mask(72, 96, (10, 20, 60, 70)), pid=pid)
    cases = rows.cases(tmp_path)
    alone = share_of(cases, False, batch_size, 0, 1)
    shared = [share_of(cases, False, batch_size, rank, 3) for rank in range(3)]
    assert sorted((batch for share in shared for batch in share), key=lambda batch: batch[0].row) == alone
    assert [case.row for batch in alone for case in batch] == list(range(7))


def test_the_model_is_asked_for_when_a_picture_is_about_to_be_drawn(rows: Rows, tmp_path: Path) -> None:
    rows.add(photo(72, 96), box_mask(72, 96, (0, 0, 0, 0)))  # nothing can be drawn of it
    cases = rows.cases(tmp_path / "data")
    told: list[int] = []

    def model() -> Any:
        raise AssertionError("a model was loaded")

    nothing: Any = None
    settings = [setting(tmp_path / "out", 1.0, False, {"base": nothing, "lora": nothing})]
    draw_missing(model, nothing, cases, settings, seed=0, batch_size=1, drawn=told.append)
    assert told == [1, 1]
