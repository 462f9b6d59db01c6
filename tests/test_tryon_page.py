"""The demo's page without a browser: masks to the canvas and back, what it draws, what it refuses."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs gradio: pip install -r requirements-demo.txt")

import gradio as gr

from deepfashion_training import demo as command
from deepfashion_training.embedded import DRAWN_PARSER
from deepfashion_training.inference import tryon_page
from deepfashion_training.inference.choice import choose
from deepfashion_training.inference.dress import dress, mask_of_type
from deepfashion_training.inference.picture_files import read_picture, without_exif
from deepfashion_training.inference.records import read_record
from deepfashion_training.inference.tryon_page import EXAMPLE_SIZE, TryOnPage, build, draw_examples
from deepfashion_training.models.human_parser import load_human_parser

STEPS = 2


@pytest.fixture(scope="module")
def lora(save_random_lora: Callable[..., Path]) -> Path:
    """Folder of a LoRA of the small model, with random B."""
    return save_random_lora("--height", "128", "--width", "96", name="bold").parent


@pytest.fixture(scope="module")
def page(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> TryOnPage:
    choice = choose(command.build_parser().parse_args(["--embedded", "--lora", str(lora)]))
    model = choice.load([choice.recipe.prompt_of()])
    return TryOnPage(choice, model, load_human_parser(str(DRAWN_PARSER)), tmp_path_factory.mktemp("server") / "results")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[Any]], list[list[Any]]]:
    return draw_examples(tmp_path_factory.mktemp("examples"))


def field(path: Path | str) -> dict[str, Any]:
    """A picture as the browser sends it."""
    return {"path": str(path), "url": None, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture
def asked(page: TryOnPage, examples: Any) -> dict[str, Any]:
    """What the browser sends to draw the first person in a skirt or trousers, by the names of ``TryOnPage.dress``."""
    person, garment = examples[0][0][0], examples[1][3][0]
    numbers = {"seed": 7, "steps": STEPS, "guidance": 1.5, "lora_scale": 0.5, "repaint": True}
    return {"person": person, "garment": garment, "canvas": page.make_mask(person, 2), "cloth_type": 2, **numbers}


def run(page: TryOnPage, asked: dict[str, Any], **changes: Any) -> tuple[str, str, str | None]:
    return page.dress(*{**asked, **changes}.values(), progress=lambda *_, **__: None)


def pixels(path: Path | str | None) -> np.ndarray:
    assert path is not None
    with Image.open(path) as picture:
        return np.asarray(picture)


def png(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()


def test_examples_show_every_type_and_are_the_same_at_every_start(
    examples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people, garments = examples
    monkeypatch.setattr(tryon_page, "EXAMPLE_GARMENTS", 0)
    again, _ = draw_examples(tmp_path)
    assert len(people) == 6 and [cloth_type for _, cloth_type in garments] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [Path(one).read_bytes() for (one,) in people[:2]] == [Path(one).read_bytes() for (one,) in again[:2]]
    assert len({Path(one[0]).read_bytes() for one in people + garments}) == 15
    for one in people + garments:
        assert pixels(one[0]).shape[:2] == EXAMPLE_SIZE


# ----------------------------------------------------------------------------------------------------------- mask


def test_the_mask_comes_back_as_it_was_shown() -> None:
    draw = np.random.default_rng(1)
    photo = Image.fromarray(draw.integers(0, 255, (384, 288, 3), np.uint8))
    mask = np.zeros((384, 288), np.uint8)
    mask[100:300, 50:200] = 1
    mask[draw.integers(100, 300, 60), draw.integers(50, 200, 60)] = 0
    np.testing.assert_array_equal(tryon_page.mask_of(tryon_page.to_browser("me", photo, mask), "me", photo), mask)


def test_the_mask_of_a_large_photo_comes_back_within_the_canvas_pixels() -> None:
    photo = Image.new("RGB", (1500, 3000))
    mask = np.zeros((3000, 1500), np.uint8)
    mask[900:2100, 300:1200] = 1
    assert tryon_page.canvas_size(photo) == (512, 1024)
    back = tryon_page.mask_of(tryon_page.to_browser("me", photo, mask), "me", photo)
    rows, columns = np.nonzero(back)
    assert np.abs(np.array([rows.min(), rows.max(), columns.min(), columns.max()]) - [900, 2099, 300, 1199]).max() <= 3


def canvas_value(layer: Image.Image, person: str = "me") -> str:
    return json.dumps({"person": person, "mask": "data:image/png;base64," + base64.b64encode(png(layer)).decode()})


def test_masks_that_cannot_be_used_are_refused() -> None:
    photo = Image.new("RGB", (60, 80), "white")
    photo.paste((60, 20, 20), (20, 10, 40, 70))
    empty = Image.new("RGBA", (60, 80))
    whole = Image.new("RGBA", (60, 80), (255, 255, 255, 255))
    for value, message in [
        *((value, "has no mask yet") for value in ("", "{", "{}")),
        ('{"person": "me", "mask": "data:image/png;base64,AAAA"}', "has no mask yet"),
        (canvas_value(Image.new("1", (2_000, 2_000))), "has no mask yet"),
        (canvas_value(whole.resize((61, 80))), "has no mask yet"),
        (canvas_value(whole, person="other"), "has no mask yet"),
        (canvas_value(empty), "is empty"),
        (canvas_value(whole), "covers the whole photo"),
    ]:
        with pytest.raises(ValueError, match=message):
            tryon_page.mask_of(value, "me", photo)


def test_the_mask_is_the_one_of_the_training_policy(page: TryOnPage, examples: Any) -> None:
    person = examples[0][3][0]
    photo = without_exif(read_picture(person, "the person"))
    for cloth_type in (1, 2):
        painted = tryon_page.mask_of(page.make_mask(person, cloth_type), person, photo)
        np.testing.assert_array_equal(painted, mask_of_type(photo, cloth_type, page.parser))
    assert page.make_mask(None, 1) == ""


def test_a_photo_without_a_person_can_be_painted_by_hand(
    page: TryOnPage, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The drawn parser knows no pictures without people, and sees one in any wall.
    monkeypatch.setattr(page.parser, "parse", lambda photos: [np.zeros((400, 300), np.uint8)])
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: said.append(text))
    grey = Image.new("RGB", (300, 400), (120, 120, 120))
    grey.save(tmp_path / "wall.png")
    wall = str(tmp_path / "wall.png")
    canvas = page.make_mask(wall, 2)
    assert len(said) == 1 and "finds no person" in said[0]
    with pytest.raises(ValueError, match="is empty"):
        run(page, asked, person=wall, canvas=canvas)
    painted = np.zeros((400, 300), np.uint8)
    painted[100:300, 100:200] = 1
    by_hand = tryon_page.to_browser(json.loads(canvas)["person"], grey, painted)
    assert pixels(run(page, asked, person=wall, canvas=by_hand)[1]).shape == (400, 300, 3)


# ---------------------------------------------------------------------------------------------------------- drawing


def test_a_run_draws_base_and_lora_from_the_same_noise(
    page: TryOnPage, asked: dict[str, Any], examples: Any, lora: Path
) -> None:
    text, base, with_lora = run(page, asked)
    assert "seed 7, 2 steps, guidance 1.5, LoRA scale 0.5" in text and with_lora is not None
    photo = without_exif(read_picture(asked["person"], "the person"))
    cloth = read_picture(asked["garment"], "the garment")
    mask = tryon_page.mask_of(asked["canvas"], asked["person"], photo)
    prompt = page.choice.recipe.prompt_of()
    changes = {"num_inference_steps": STEPS, "guidance_scale": 1.5}
    for file, how in ((base, {"loras": {}}), (with_lora, {"scales": [0.5]})):
        made = dress(page.model, photo, cloth, mask, page.choice.drawing(**changes, **how), prompt, 7)
        np.testing.assert_array_equal(pixels(file), np.asarray(made[0]))
    assert not np.array_equal(pixels(base), pixels(with_lora))

    records = [read_record(Path(file)) for file in (base, with_lora)]
    assert [record["lora_scale"] for record in records] == [1.0, 0.5]
    assert records[0]["lora"] is records[0]["lora_sha256"] is None and records[1]["lora"].startswith(str(lora))
    for record in records:
        facts = ("seed", "num_inference_steps", "guidance_scale", "garment_type", "repaint")
        assert [record[name] for name in facts] == [7, STEPS, 1.5, 2, True]
        assert set(record["pictures"]) == {"person", "garment"} and "painted" in record["mask"]


def test_each_lora_has_a_slider(page: TryOnPage, asked: dict[str, Any], lora: Path, save_random_lora: Any) -> None:
    second = save_random_lora("--use_captions", name="second", seed=5)
    words = f"--embedded --lora {lora} --lora {second} --lora_scale 0.125".split()
    choice = choose(command.build_parser().parse_args(words))
    sliders = [one for one in tryon_page._numbers(choice, 0) if one.label.startswith("Scale of")]
    assert [(one.label, one.value) for one in sliders] == [("Scale of bold", 1.0), ("Scale of second", 0.125)]
    assert all(one.value / one.step == pytest.approx(round(one.value / one.step)) for one in sliders)
    both = TryOnPage(choice, choice.load([choice.recipe.prompt_of()]), page.parser, page.folder)
    # In Gradio's order: what it puts in for itself stands before the other scales.
    text, _, drawn = both.dress(*asked.values(), None, 2, lambda *_, **__: None, 0.25)
    assert "LoRA scale 0.5 and 0.25" in text and read_record(Path(drawn))["lora_scale"] == [0.5, 0.25]
    *_, without = both.dress(*asked.values(), None, 2, lambda *_, **__: None, 0)
    assert np.array_equal(pixels(without), pixels(run(page, asked)[2])) and not np.array_equal(
        pixels(drawn), pixels(without)
    )


def test_scale_zero_is_the_base_and_repaint_keeps_the_photo(page: TryOnPage, asked: dict[str, Any]) -> None:
    corner, folders = pixels(asked["person"])[:20, :20], set()
    for repaint in (True, False):
        _, base, with_lora = run(page, asked, steps=1, lora_scale=0, repaint=repaint)
        np.testing.assert_array_equal(pixels(base), pixels(with_lora))
        assert np.array_equal(pixels(base)[:20, :20], corner) == repaint
        folders.add(Path(base).parent.name)
    assert len(folders) == 2 and min(map(len, folders)) >= 32  # which other users cannot guess


def test_without_a_lora_there_is_the_base_alone(page: TryOnPage, asked: dict[str, Any], tmp_path: Path) -> None:
    choice = choose(command.build_parser().parse_args(["--embedded"]))
    bare = TryOnPage(choice, page.model, page.parser, tmp_path)
    text, base, with_lora = run(bare, asked, lora_scale=1.0)
    assert "LoRA" not in text and Path(base).is_file() and with_lora is None


def test_a_second_garment_is_drawn_over_the_first(page: TryOnPage, asked: dict[str, Any], examples: Any) -> None:
    person, second = asked["person"], examples[1][0][0]
    files = run(page, {**asked, "second": second, "second_type": 1})[1:]
    photo, first = without_exif(read_picture(person, "the person")), run(page, asked)[1:]
    mask = mask_of_type(photo, 1, page.parser)
    for file, below in zip(files, first, strict=True):
        how = page.choice.drawing([0.5], num_inference_steps=STEPS, guidance_scale=1.5)
        how = how if file == files[1] else page.choice.drawing(num_inference_steps=STEPS, guidance_scale=1.5, loras={})
        with Image.open(str(below)) as seen:
            made, _ = dress(page.model, seen, read_picture(second, "g"), mask, how, page.choice.recipe.prompt_of(), 7)
        np.testing.assert_array_equal(pixels(file), np.asarray(made))
        record = read_record(Path(str(file)))
        assert record is not None and record["garment_type_2"] == 1 and "garment_2" in record["pictures"]


def test_the_line_says_that_a_part_was_drawn(page: TryOnPage, asked: dict[str, Any], tmp_path: Path) -> None:
    with Image.open(asked["person"]) as photo:
        wide = Image.new("RGB", (2000, photo.height), photo.getpixel((2, 2)))
        wide.paste(photo, (700, 0))
    wide.save(tmp_path / "wide.png")
    person = str(tmp_path / "wide.png")
    text, base, _ = run(page, asked, person=person, canvas=page.make_mask(person, 2))
    record = read_record(Path(base))
    assert record is not None and 600 < record["crop"][0] < 900 and "of the 2000x384 photo" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"person": None}, "a person and a garment are needed"),
        ({"garment": None}, "a person and a garment are needed"),
        ({"garment": "/gone/g.png"}, "the garment /gone/g.png: no such file"),
        ({"canvas": ""}, "no mask yet"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, Any], message: str, page: TryOnPage, asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        run(page, asked, **changes)


# ------------------------------------------------------------------------------------------------------------ Gradio


def test_events_wait_in_one_queue_and_take_uploads_only(
    page: TryOnPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio.context import LocalContext

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "mine.png").write_bytes(png(Image.new("RGB", (40, 40))))

    async def built() -> Any:  # without a running loop Gradio makes several and never closes them
        blocks = build(page, tmp_path / "examples", 0, 20)
        ours = [one for one in blocks.fns.values() if one.concurrency_id == "models"]
        assert len(ours) == 2 and all(one.concurrency_limit == 1 for one in ours)
        make_mask = next(one for one in ours if len(one.inputs) == 2)
        LocalContext.blocks.set(blocks)
        blocks.has_launched = True  # before that Gradio trusts every path
        value, _ = await blocks.preprocess_data(make_mask, [field(tmp_path / "mine.png"), 1], None)
        assert value == str(tmp_path / "mine.png")  # the file itself, not decoded and saved again
        (tmp_path / "mine.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")  # which Gradio cannot open
        value, _ = await blocks.preprocess_data(make_mask, [field(tmp_path / "mine.heic"), 1], None)
        assert value == str(tmp_path / "mine.heic")
        for path in ("/etc/passwd", str(tmp_path / ".." / "x.png")):
            with pytest.raises(gr.exceptions.InvalidPathError):
                await blocks.preprocess_data(make_mask, [field(path), 1], None)
        run = next(one for one in ours if len(one.inputs) > 2)
        good = [field(tmp_path / "mine.png"), field(tmp_path / "mine.png"), "", 1, 7, 2, 1.5, 0.5, True, None, 2]
        for place, bad in ((3, "hat"), (4, -1), (5, 0), (5, 10**6), (6, 101), (7, 2.5)):
            with pytest.raises(gr.Error):
                await blocks.preprocess_data(run, [*good[:place], bad, *good[place + 1 :]], None)

    asyncio.run(built())
