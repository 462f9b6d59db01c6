"""The demo without a browser: what it refuses, what it draws, and what it says when something fails."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs gradio: pip install -r requirements-demo.txt")

import train_flux_inpaint as trainer
from deepfashion_training import demo as command
from deepfashion_training.embedded import DRAWN_PARSER
from deepfashion_training.inference import mask_painter as painter
from deepfashion_training.inference.choice import choose
from deepfashion_training.inference.dress import dress
from deepfashion_training.inference.page_examples import SIZE, Example, draw_examples
from deepfashion_training.inference.page_guard import MAX_BODY, UPLOAD, Guard
from deepfashion_training.inference.page_jobs import Studio, plain_name, read_number, why
from deepfashion_training.inference.page_layout import Page, build
from deepfashion_training.inference.records import made_from
from deepfashion_training.inference.result_files import upright
from deepfashion_training.inference.upload_store import Picked, Shelf, inside, shown_name, uploaded
from deepfashion_training.models.human_parser import load_human_parser

STEPS = 2


@pytest.fixture(scope="module")
def lora(save_random_lora: Callable[..., Path]) -> Path:
    """Folder of a LoRA of the small model, with random B."""
    return save_random_lora("--height", "128", "--width", "96", name="bold").parent


@pytest.fixture(scope="module")
def studio(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    args = command.build_parser().parse_args(["--embedded", "--lora", str(lora)])
    choice = choose(args)
    model = choice.load([choice.recipe.prompt_of()])
    return Studio(choice, model, load_human_parser(str(DRAWN_PARSER)), tmp_path_factory.mktemp("server") / "results")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Example], list[Example]]:
    return draw_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture
def page(studio: Studio, drawn: tuple[list[Example], list[Example]], tmp_path: Path) -> Page:
    return Page(studio, tmp_path, *drawn)


def built(page: Page, *rest: Any) -> Any:
    """``build`` while a loop runs: without one Gradio makes several and never closes them."""

    async def building() -> Any:
        return build(page, *rest)

    return asyncio.run(building())


class Steps:
    """In place of gr.Progress."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __call__(self, progress: Any, desc: str) -> None:
        self.told.append((progress, desc))


def run(page: Page, canvas: object, garment: object, cloth_type: object = 2, **changes: Any) -> list[Any]:
    """Values of the fields: note, picture and file of the base, picture and file of the LoRA."""
    numbers = {"seed": 7, "steps": STEPS, "guidance": 1.0, "scale": 1.0, "repaint": True, **changes}
    return page.run(Steps(), canvas, garment, cloth_type, *numbers.values())


def put(page: Page, data: bytes, name: str) -> dict[str, Any]:
    """A file as Gradio hands over an upload."""
    path = page.folder / f"{abs(hash(name))}" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return {"path": str(path), "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def png(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()


def example(page: Page, person: int = 0, garment: int = 3, cloth_type: int = 2) -> tuple[Any, Any]:
    """Canvas and name of the garment once examples are picked; garments 3 to 5 are for the lower body."""
    note, canvas, mask_note = page.pick_person(person, cloth_type)
    assert "info" in note and mask_note == ""
    return canvas, page.pick_garment(garment)[1]


# ------------------------------------------------------------------------------------------------------- examples


def test_examples_show_every_type_and_are_the_same_at_every_start(
    drawn: tuple[list[Example], list[Example]], tmp_path: Path
) -> None:
    people, garments = drawn
    again, _ = draw_examples(tmp_path)
    assert [one.cloth_type for one in people] == [1, 1, 2, 2, 3, 3]
    assert [one.cloth_type for one in garments] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [one.label for one in garments][2:5] == ["upper 3", "lower 1", "lower 2"]
    assert [one.picked.path.read_bytes() for one in people] == [one.picked.path.read_bytes() for one in again]
    assert len({one.picked.path.read_bytes() for one in people + garments}) == 15
    for one in people + garments:
        with Image.open(one.picked.path) as picture:
            assert picture.size == (SIZE[1], SIZE[0])


# ---------------------------------------------------------------------------------------------------------- files


def test_the_shelf_keeps_the_newest_uploads_and_all_examples(tmp_path: Path) -> None:
    shelf = Shelf(room=2)
    files = [tmp_path / str(number) for number in range(4)]
    for file in files:
        file.touch()
    names = [shelf.put(Picked(file, file.name), keep=not number) for number, file in enumerate(files)]
    assert shelf.get(names[0], "person").name == "0" and shelf.get(names[3], "person").name == "3"
    with pytest.raises(ValueError, match="no longer has the picture of the person"):
        shelf.get(names[1], "person")
    files[3].unlink()  # uploads are deleted after some hours
    with pytest.raises(ValueError, match="no longer has"):
        shelf.get(names[3], "person")
    for missing in ("", None, 3, {"path": "/etc/passwd"}):
        with pytest.raises(ValueError, match="no garment yet"):
            shelf.get(missing, "garment")


def test_an_upload_is_a_file_in_the_upload_folder_and_no_other(tmp_path: Path) -> None:
    folder, outside = tmp_path / "up", tmp_path / "upside.png"
    folder.mkdir()
    outside.write_bytes(b"x")
    (folder / "mine.png").write_bytes(b"x")
    (folder / "link.png").symlink_to(outside)
    assert uploaded({"path": str(folder / "mine.png"), "orig_name": "a/b.png"}, folder, "person").name == "b.png"
    forged = ["/etc/passwd", str(outside), f"{folder}/../upside.png", str(folder / "link.png"), str(folder), "a\0b"]
    for path in [*forged, str(folder / "none.png"), "http://127.0.0.1/x.png"]:
        with pytest.raises(ValueError, match="this is no picture of the person that was uploaded here") as caught:
            uploaded({"path": path}, folder, "person")
        assert str(tmp_path) not in str(caught.value) and "passwd" not in str(caught.value)
    for nothing in (None, [], "x", {}, {"path": None}, {"path": ""}):
        with pytest.raises(ValueError, match="no person yet"):
            uploaded(nothing, folder, "person")
    assert not inside(str(tmp_path), folder)


def test_names_of_uploads_are_shown_without_folders_and_cut() -> None:
    assert shown_name("C:\\Users\\me\\photo.png") == "photo.png"
    assert shown_name("a\n\x1b[31mb.png") == "a[31mb.png"
    assert shown_name(None) == shown_name("x/") == "picture"
    assert len(shown_name("x" * 500)) == 60


@functools.cache
def bomb() -> bytes:
    """PNG of 20,000 x 20,000 pixels of one bit."""
    return png(Image.new("1", (20_000, 20_000)))


def test_what_is_no_usable_picture_is_refused_in_words_that_name_no_path(page: Page) -> None:
    cases = [
        (b"just text", "text.png", "the person text.png: not readable as a picture"),
        (b"", "none.png", "the person none.png: the file is empty"),
        (bomb(), "bomb.png", "the person bomb.png: more than 64,000,000 pixels: shrink it"),
        (png(Image.new("RGB", (20, 900))), "thin.png", "the person thin.png: 20x900 pixels, a side under 32"),
        (png(Image.new("RGB", (90, 90)))[:-30], "half.png", "the person half.png: not readable as a picture"),
    ]
    for data, name, message in cases:
        field, note, canvas, mask_note = page.upload_person(put(page, data, name), 1)
        assert message in note and '"bad"' in note and str(page.folder) not in note
        assert field is None and "value" not in canvas and "value" not in mask_note  # these stay as they are
        assert message.replace("person", "garment") in page.upload_garment(put(page, data, name))[1]
    note = page.upload_person({"path": "/etc/passwd"}, 1)[1]
    assert "this is no picture of the person that was uploaded here" in note
    hostile = put(page, b"text", "<img src=x onerror=alert(1)>.png")
    assert "&lt;img" in page.upload_person(hostile, 1)[1]
    run_note, *results = run(page, *example(page))
    assert "done in" in run_note and results[0]


# ----------------------------------------------------------------------------------------------------------- mask


def test_the_mask_comes_back_as_it_was_shown() -> None:
    draw = np.random.default_rng(1)
    photo = Image.fromarray(draw.integers(0, 255, (384, 288, 3), np.uint8))
    mask = np.zeros((384, 288), np.uint8)
    mask[100:300, 50:200] = 1
    mask[draw.integers(100, 300, 60), draw.integers(50, 200, 60)] = 0
    value = painter.to_browser("me", photo, mask)
    assert painter.person_of(value) == "me"
    np.testing.assert_array_equal(painter.mask_of(value, photo), mask)


def test_the_mask_of_a_large_photo_comes_back_within_the_canvas_pixels() -> None:
    photo = Image.new("RGB", (1500, 3000))
    mask = np.zeros((3000, 1500), np.uint8)
    mask[900:2100, 300:1200] = 1
    assert painter.canvas_size(photo) == (512, 1024)
    back = painter.mask_of(painter.to_browser("me", photo, mask), photo)
    rows, columns = np.nonzero(back)
    assert np.abs(np.array([rows.min(), rows.max(), columns.min(), columns.max()]) - [900, 2099, 300, 1199]).max() <= 3


def canvas_value(layer: Image.Image) -> str:
    return json.dumps({"person": "x", "mask": "data:image/png;base64," + base64.b64encode(png(layer)).decode()})


def test_what_the_canvas_cannot_have_sent_is_refused() -> None:
    photo = Image.new("RGB", (60, 80), "white")
    photo.paste((60, 20, 20), (20, 10, 40, 70))
    empty = Image.new("RGBA", (60, 80))
    whole = Image.new("RGBA", (60, 80), (255, 255, 255, 255))
    for value, message in [
        ("", "the mask did not arrive"),
        (None, "the mask did not arrive"),
        ("[1]", "the mask did not arrive"),
        ('{"mask": "http://127.0.0.1/x.png"}', "the mask did not arrive"),
        ('{"mask": "data:image/png;base64,!!"}', "is no picture"),
        ('{"mask": "data:image/png;base64,AAAA"}', "is no picture"),
        ("{", "cannot be read"),
        (7, "cannot be read"),
        ("x" * 4_000_001, "cannot be read"),
        (canvas_value(Image.new("1", (2_000, 2_000))), "is no picture"),
        (canvas_value(empty.resize((61, 80))), "belongs to another photo"),
        (canvas_value(empty), "the mask is empty"),
        (canvas_value(whole), "covers the whole photo"),
    ]:
        with pytest.raises(ValueError, match=message):
            painter.mask_of(value, photo)


def test_the_mask_is_the_one_of_the_training_policy(page: Page, studio: Studio) -> None:
    canvas, _ = example(page, 3, 3, 2)
    photo = upright(page.people[3][1].picked.read("the person"))
    wanted = studio.masked(photo, 2)
    np.testing.assert_array_equal(painter.mask_of(canvas, photo), wanted)
    upper, note = page.make_mask(canvas, 1, asked=True)
    assert note == ""
    np.testing.assert_array_equal(painter.mask_of(upper, photo), studio.masked(photo, 1))
    assert not np.array_equal(studio.masked(photo, 1), wanted)


def test_making_a_mask_without_a_person(page: Page) -> None:
    canvas, note = page.make_mask("", 1, asked=True)
    assert "no person yet" in note and "value" not in canvas
    assert page.make_mask("", 1, asked=False)[1] == ""
    assert "unknown garment type" in page.make_mask(example(page)[0], "hat", asked=True)[1]


# ----------------------------------------------------------------------------------------------------------- jobs


def test_a_run_draws_base_and_lora_from_the_same_noise(page: Page, studio: Studio, lora: Path) -> None:
    canvas, garment = example(page)
    ticking = Steps()
    note, *values = page.run(ticking, canvas, garment, 2, 7, STEPS, 1.5, 0.5, True)
    assert "done in" in note and "seed 7, 2 steps, guidance 1.5, LoRA scale 0.5" in note
    base, lora_file = Path(values[0]), Path(values[2])
    assert [values[1]["value"], values[3]["value"]] == [values[0], values[2]]
    assert ticking.told == [
        (0, "starting"), ((1, 4), "base"), ((2, 4), "base"), ((3, 4), "LoRA"), ((4, 4), "LoRA")
    ]  # fmt: skip

    photo = upright(page.people[0][1].picked.read("the person"))
    cloth = page.garments[3][1].picked.read("the garment")
    mask = painter.mask_of(canvas, photo)
    prompt = studio.choice.recipe.prompt_of()
    look = studio.choice.drawing(num_inference_steps=STEPS, guidance_scale=1.5, lora_scale=0.5)
    wanted = {lora_file: look, base: studio.looks(page.order(canvas, garment, 2, 7, STEPS, 1.5, 0.5, True))["base"]}
    assert wanted[base].lora is None and wanted[base].guidance_scale == 1.5
    for file, how in wanted.items():
        made = dress(studio.model, photo, cloth, mask, how, prompt, 7).picture
        with Image.open(file) as stored:
            np.testing.assert_array_equal(np.asarray(stored), np.asarray(made))
    with Image.open(base) as one, Image.open(lora_file) as other:
        assert not np.array_equal(np.asarray(one), np.asarray(other))

    records = {file: made_from(file) for file in wanted}
    assert records[lora_file]["lora"] == "bold" and records[lora_file]["lora_scale"] == 0.5
    assert records[base]["lora"] is None and records[base]["lora_sha256"] is None
    for record in records.values():
        assert (record["seed"], record["num_inference_steps"], record["guidance_scale"], record["garment_type"]) == (
            7,
            STEPS,
            1.5,
            2,
        )
        assert set(record["pictures"]) == {"person", "garment", "mask"}
        assert str(lora.parent) not in json.dumps(record) and "/" not in record["transformer"]
    assert all("mask" not in file.name for file in studio.folder.iterdir())  # only results stay


def test_scale_zero_is_the_base_bit_for_bit(page: Page) -> None:
    _, base, _, lora, _ = run(page, *example(page), scale=0.0)
    with Image.open(base) as one, Image.open(lora) as other:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_repaint_keeps_the_photo_and_without_it_everything_is_drawn(page: Page) -> None:
    canvas, garment = example(page)
    with Image.open(page.people[0][1].picked.path) as photo:
        corner = np.asarray(photo)[:20, :20]
    for repaint in (True, False):
        with Image.open(run(page, canvas, garment, repaint=repaint)[1]) as made:
            assert np.array_equal(np.asarray(made)[:20, :20], corner) == repaint


def test_without_a_lora_there_is_the_base_alone(
    studio: Studio, drawn: tuple[list[Example], list[Example]], tmp_path: Path
) -> None:
    args = command.build_parser().parse_args(["--embedded"])
    bare = Page(Studio(choose(args), studio.model, studio.parser, tmp_path / "results"), tmp_path, *drawn)
    note, base, _, lora, file = run(bare, *example(bare))
    assert (
        "LoRA" not in note
        and Path(base).is_file()
        and lora is None
        and file["value"] is None
        and not file["interactive"]
    )
    lines = command.page_lines(bare.studio.choice, args)
    assert lines[0] == "Base tiny_flux_fill. Drawn at 96x128, shown in the photo's own size."
    texts = [str(block.value) for block in built(bare, 28, 0, lines, 20).blocks.values() if hasattr(block, "value")]
    assert any("No LoRA was given" in text for text in texts)


def test_what_is_missing_is_said(page: Page) -> None:
    canvas, garment = example(page)
    assert "no person yet: upload a picture or pick one of the examples" in run(page, "", garment)[0]
    assert "no garment yet: upload a picture or pick one of the examples" in run(page, canvas, "")[0]
    photo = Image.new("RGB", (SIZE[1], SIZE[0]))
    cleared = painter.to_browser(painter.person_of(canvas), photo, np.zeros(SIZE, np.uint8))
    assert "the mask is empty" in run(page, cleared, garment)[0]
    assert "there is no example number 99" in page.pick_garment(99)[0]
    assert "there is no example number -1" in page.pick_person(-1, 1)[0]
    for changes, message in [
        ({"seed": None}, "seed: a number from 0 is needed"),
        ({"seed": 1.5}, "seed 1.5 is not a whole number"),
        ({"seed": -1}, "seed -1 is not from 0"),
        ({"steps": 0}, "steps 0 is not from 1 to 100"),
        ({"steps": 10**6}, "steps 1e+06 is not from 1 to 100"),
        ({"guidance": float("nan")}, "guidance: a number from 0 to 100 is needed"),
        ({"scale": "2"}, "LoRA scale: a number from 0 to 2 is needed"),
        ({"scale": 2.5}, "LoRA scale 2.5 is not from 0 to 2"),
    ]:
        note, *results = run(page, canvas, garment, **changes)
        assert message in note and '"bad"' in note and results[0] is results[2] is None


def test_a_photo_without_a_person_says_so_and_can_be_painted_by_hand(
    page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The drawn parser knows no pictures without people, and sees one in any wall.
    monkeypatch.setattr(studio.parser, "parse", lambda photos: [np.zeros((400, 300), np.uint8)])
    grey = Image.new("RGB", (300, 400), (120, 120, 120))
    _, note, canvas, mask_note = page.upload_person(put(page, png(grey), "wall.png"), 2)
    assert "person: wall.png, 300x400" in note
    assert "no mask was made: the parser finds no person in the photo" in mask_note
    garment = page.pick_garment(3)[1]
    assert "the mask is empty" in run(page, canvas, garment)[0]
    painted = np.zeros((400, 300), np.uint8)
    painted[100:300, 100:200] = 1
    by_hand = painter.to_browser(painter.person_of(canvas), grey, painted)
    assert "done in" in run(page, by_hand, garment)[0]


def test_a_failing_model_says_why_and_the_next_job_runs(
    page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    canvas, garment = example(page)
    with monkeypatch.context() as patch:
        patch.setattr(studio.model, "draw", lambda *_, **__: 1 / 0)
        note, *results = run(page, canvas, garment)
    assert "ZeroDivisionError: division by zero (the server's terminal says more)" in note and results[0] is None
    assert "Traceback" in capsys.readouterr().err
    assert "done in" in run(page, canvas, garment)[0]
    assert capsys.readouterr().err == ""


def test_reasons_name_no_path_of_the_server() -> None:
    assert why(ValueError("the LoRA at scale 2 draws values that are not finite")).startswith("the LoRA at scale 2")
    assert why(FileNotFoundError(2, "No such file or directory", "/home/me/x.png")) == (
        "the server cannot read or write a file: No such file or directory"
    )
    assert why(RuntimeError("cannot open /home/me/models/x.bin: gone")).startswith("RuntimeError: cannot open …: gone")
    assert why(ValueError("upper/lower/full, 3/4")) == "upper/lower/full, 3/4"


def test_numbers() -> None:
    assert read_number(3.0, "steps", 1, 9, whole=True) == 3 and isinstance(read_number(3, "x", 1, 9), float)
    with pytest.raises(ValueError, match="x: a number from 1 to 9 is needed"):
        read_number(True, "x", 1, 9)


def test_models_go_by_their_last_name(lora: Path, tiny_flux_fill: Path) -> None:
    assert plain_name(str(lora)) == plain_name(str(lora / trainer.LORA_FILE)) == "bold"
    assert plain_name(str(tiny_flux_fill)) == "tiny_flux_fill"
    assert plain_name("xiaozaa/catvton-flux-alpha") == "xiaozaa/catvton-flux-alpha"


# ---------------------------------------------------------------------------------------------------------- guard


def ask(folder: Path, body: bytes, path: str = "/gradio_api/queue/join", method: str = "POST") -> tuple[int, Any, str]:
    """Status and headers of the answer, and what the app behind the guard read."""
    seen = bytearray()
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            seen.extend((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    parts = [body[at : at + 1_000_000] for at in range(0, len(body), 1_000_000)] or [b""]

    async def receive() -> Any:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(Guard(app, folder)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), seen.decode()


def test_the_guard_passes_on_what_names_uploads_only(tmp_path: Path) -> None:
    fine = json.dumps({"data": [{"path": str(tmp_path / "a" / "x.png")}, None, "{", 3], "fn_index": 2}).encode()
    status, headers, seen = ask(tmp_path, fine)
    assert status == 200 and seen == fine.decode()
    assert "connect-src 'self'" in headers[b"content-security-policy"].decode()
    assert ask(tmp_path, b"")[0] == 200
    assert ask(tmp_path, b"", "/", "GET")[0] == 200
    for path in ("/etc/passwd", "http://127.0.0.1/x.png", "https://huggingface.co/x", f"{tmp_path}/../x", 7):
        status, headers, seen = ask(tmp_path, json.dumps({"data": [[{"value": {"path": path}}]]}).encode())
        assert status == 400 and seen == "" and b"content-security-policy" in headers


def test_the_guard_refuses_what_cannot_be_read(tmp_path: Path) -> None:
    """Lists in lists do not hide a path, whether or not Python's parser gives up on them."""
    for depth in (0, 300, 995, 100_000):
        deep = b'{"data": [{"path": "/etc/passwd"}], "x": ' + b"[" * depth + b"1" + b"]" * depth + b"}"
        assert ask(tmp_path, deep)[0] == 400, depth
        assert ask(tmp_path, b"[" * depth + b'{"path": "/etc/passwd"}' + b"]" * depth)[0] == 400, depth
    fine = json.dumps({"path": str(tmp_path / "x.png")}).encode()
    assert ask(tmp_path, b"[" * 900 + fine + b"]" * 900)[0] == 200
    for unread in (b"no json", b'{"data": [', b"\xff\xfe{", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'):
        status, _, seen = ask(tmp_path, unread)
        assert status == 400 and seen == ""


def test_only_the_upload_route_goes_past_the_guard(tmp_path: Path) -> None:
    """It is there in this Gradio, and has a limit of its own."""
    from gradio.route_utils import API_PREFIX

    assert f"{API_PREFIX}/upload" == UPLOAD
    assert ask(tmp_path, b" " * (MAX_BODY + 1))[0] == 413
    assert ask(tmp_path, b"no json" * 1_200_000, UPLOAD)[0] == 200
    forged = json.dumps({"data": [{"path": "/etc/passwd"}]}).encode()
    for end in ("run/upload", "run/upload/", "api/upload", "call/upload", "call/v2/upload", "upload/", "x/upload"):
        assert ask(tmp_path, forged, f"/gradio_api/{end}")[0] == ask(tmp_path, forged, f"/{end}")[0] == 400
        assert ask(tmp_path, b" " * (MAX_BODY + 1), f"/gradio_api/{end}")[0] == 413
    assert ask(tmp_path, forged, "/upload")[0] == 400


# -------------------------------------------------------------------------------------------------------- command


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main(["--embedded"]) == 1
    assert capsys.readouterr().err == "demo: needs the package gradio: pip install -r requirements-demo.txt\n"


def test_an_address_that_cannot_be_served_at(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert command.main(["--embedded", "--port", str(port)]) == 1
        assert capsys.readouterr().err == f"demo: --port {port} at 127.0.0.1: address already in use; name another\n"
    assert command.main(["--embedded", "--host", "256.1.1.1"]) == 1
    assert capsys.readouterr().err == "demo: --host 256.1.1.1: no address of this name\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ports", "1"], "did you mean --port?"),
        (["--port", "0"], "0 is not from 1 to 65535"),
        (["--max_upload_mb", "0"], "0 is not at least 1"),
        (["--share"], "unknown argument --share"),
    ],
)
def test_wrong_use(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(flags)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and message in err and err.count("\n") == 1


def test_uploads_lie_in_a_folder_of_their_own_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "given"))
    with command.private_folder() as folder:
        assert folder.parent == tmp_path / "given" and folder.stat().st_mode & 0o777 == 0o700
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        (folder / "upload").touch()
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "given") and not folder.exists()
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    with command.private_folder() as folder:
        assert folder.is_dir()
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_every_event_that_uses_a_model_waits_in_one_queue(page: Page) -> None:
    functions = built(page, 28, 0, [], 20).fns.values()
    assert len(functions) == 7
    assert {(one.concurrency_id, one.concurrency_limit) for one in functions} == {("model", 1)}
    assert {one.preprocess for one in functions} == {False}
