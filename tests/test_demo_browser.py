"""The demo's page in a real Chromium: examples of every type, uploads that are refused, the brush, both widths."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepfashion_training.inference.records import read_record

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)
pytest.importorskip("gradio", reason="the demo needs gradio: pip install -r requirements-demo.txt")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -r requirements-dev.txt")

pytestmark = [pytest.mark.browser, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[1]
#: Milliseconds: the machine may be busy with other tests.
PATIENCE = 60_000
#: Places of the galleries: a person, a garment, and the value of its type.
EXAMPLES = {"upper": (0, 1, "1"), "lower": (2, 4, "2"), "full": (5, 7, "3")}


@dataclass
class Server:
    """The real command in a process of its own; ``temporary`` is where it keeps uploads and results."""

    process: subprocess.Popen[str]
    url: str
    temporary: Path
    errors: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serving(folder: Path, *flags: str) -> Iterator[Server]:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "deepfashion_training.demo",
        "--embedded",
        "--port",
        str(port),
        "--num_inference_steps",
        "2",
    ]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout and process.stderr
        server = Server(process, f"http://127.0.0.1:{port}", folder)
        reader = threading.Thread(target=lambda: server.errors.extend(process.stderr or ()))
        reader.start()
        try:
            line = process.stdout.readline()  # comes once the page is served, or is empty when the command has ended
            assert line.startswith(server.url), "".join(server.errors)
            yield server
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            reader.join()


@pytest.fixture(scope="module")
def server(save_random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    lora = save_random_lora("--height", "128", "--width", "96", name="bold")
    with serving(tmp_path_factory.mktemp("demo") / "temporary", "--lora", str(lora.parent)) as running:
        yield running
        # The last test's end: Ctrl-C ends cleanly and leaves no uploads behind.
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=180) == 130  # long: the machine may be busy
        assert not any(running.temporary.iterdir())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@contextlib.contextmanager
def opened(browser: Any, server: Server, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """The page; at its end nothing was asked of another machine, refused, or complained of on the console."""
    seen: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    own = (f"{server.url}/", "data:", f"blob:{server.url}/")
    page.on("request", lambda request: request.url.startswith(own) or seen.append(f"request {request.url}"))
    page.on("response", lambda answer: answer.status < 400 or seen.append(f"{answer.status} {answer.url}"))
    # Gradio itself warns after every upload ("Method not implemented."), so only errors count.
    page.on("console", lambda said: said.type != "error" or seen.append(f"console {said.text}"))
    page.on("pageerror", lambda error: seen.append(f"error {error}"))
    page.goto(server.url)
    page.wait_for_selector("#people img")
    page.wait_for_selector("#canvas canvas", state="attached")
    yield page
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert not seen, "\n".join(seen)
    context.close()


def wait_for_mask(page: Any, before: str | None) -> None:
    """Until the canvas has loaded another mask than the ``before``-th."""
    wanted = "before => (document.querySelector('#canvas canvas').dataset.loads ?? null) !== before"
    page.wait_for_function(wanted, arg=before)


def loads(page: Any) -> str | None:
    return page.get_attribute("#canvas canvas", "data-loads")


def pick(page: Any, name: str) -> None:
    """An example person and an example garment of the type, with the mask for them."""
    person, garment, cloth_type = EXAMPLES[name]
    before = loads(page)
    page.locator("#people img").nth(person).click()
    wait_for_mask(page, before)
    before, changes = loads(page), page.locator("#type input:checked").input_value() != cloth_type
    page.locator("#garments img").nth(garment).click()
    page.wait_for_selector("#garment img")
    if changes:
        wait_for_mask(page, before)
    assert page.locator("#type input:checked").input_value() == cloth_type


def dress(page: Any) -> str:
    """Press the button; the line on what was drawn."""
    shown = "[...document.querySelectorAll('#base-result img, #lora-result img')].map(one => one.src).join()"
    before = page.evaluate(shown)
    page.click("#run")
    # Every result lies in a folder of its own. The line may be the same as before, to the tenth of a second.
    page.wait_for_function(f"before => {{ const now = {shown}; return now && now !== before }}", arg=before)
    page.wait_for_selector("#status p:has-text('Done in')")
    return page.inner_text("#status")


def refused(page: Any, message: str) -> None:
    """Press the button; a message is shown."""
    page.click("#run")
    told(page, message)


def told(page: Any, message: str) -> None:
    """A message is shown, and goes by itself."""
    shown = page.locator("[data-testid=toast-body]", has_text=message)
    shown.wait_for()
    shown.wait_for(state="detached")


def results(page: Any) -> list[str]:
    """Addresses of the pictures that are shown, once they are loaded."""
    shown = page.locator("#base-result img, #lora-result img")
    playwright.expect(shown).to_have_count(2)
    page.wait_for_function(
        "[...document.querySelectorAll('#base-result img, #lora-result img')].every(one => one.naturalWidth === 288)"
    )
    return [one.get_attribute("src") for one in shown.all()]


def download(page: Any, name: str, folder: Path) -> Path:
    with page.expect_download() as started:
        page.locator(f"#{name}-result").get_by_role("button", name="Download").click()
    file = folder / started.value.suggested_filename
    started.value.save_as(file)
    return file


def still_works(page: Any, name: str = "upper") -> None:
    pick(page, name)
    dress(page)
    results(page)


def test_examples_of_every_type_are_drawn_with_base_and_lora(browser: Any, server: Server, tmp_path: Path) -> None:
    with opened(browser, server) as page:
        shown = []
        for number, name in enumerate(EXAMPLES, start=1):
            pick(page, name)
            assert "seed 0, 2 steps" in dress(page)
            shown += results(page)
            record = read_record(download(page, "lora", tmp_path))
            assert record and record["garment_type"] == number and "bold" in record["lora"]
        assert len(set(shown)) == 6
        base = download(page, "base", tmp_path)
        assert read_record(base)["lora"] is None
        with Image.open(base) as picture:
            assert picture.size == (288, 384)


def test_a_second_garment_is_put_on(browser: Any, server: Server, tmp_path: Path) -> None:
    """In a fold of its own; without it the page is as it was."""
    with opened(browser, server) as page:
        pick(page, "upper")
        dress(page)
        before = results(page)
        page.locator("#more button").first.click()
        page.set_input_files("#second input[type=file]", next(server.temporary.glob("*/examples/garment-7.jpg")))
        page.wait_for_selector("#second img")
        dress(page)
        assert results(page) != before
        record = read_record(download(page, "lora", tmp_path))
        assert record and (record["garment_type"], record["garment_type_2"]) == (1, 2)


def test_uploads_that_cannot_be_used_are_refused_and_the_page_lives_on(
    browser: Any, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("this is no picture")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    with opened(browser, server) as page:
        for name, message in (("text", "not readable as a picture"), ("huge", "above the limit")):
            page.set_input_files("#person input[type=file]", tmp_path / f"{name}.png")
            told(page, message)
            page.get_by_role("button", name="Clear").first.click()
        still_works(page)


def test_what_is_missing_is_said(browser: Any, server: Server) -> None:
    with opened(browser, server) as page:
        refused(page, "a person and a garment are needed")
        before = loads(page)
        page.locator("#people img").nth(1).click()
        wait_for_mask(page, before)
        refused(page, "a person and a garment are needed")
        pick(page, "lower")
        page.locator("#canvas button").click()
        refused(page, "is empty")
        before = loads(page)  # before the click: the mask may be there at once
        page.click("#make")
        wait_for_mask(page, before)
        dress(page)
        results(page)


def test_the_painted_mask_is_the_one_that_is_used(browser: Any, server: Server, tmp_path: Path) -> None:
    """A stroke across an empty mask: pixels far from it are the photo's, those under it are not."""
    with opened(browser, server) as page:
        pick(page, "upper")
        page.locator("#canvas button").click()
        canvas = page.locator("#canvas canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()

        def stroke(row: float) -> None:
            page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + row * box["height"])
            page.mouse.down()
            page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + row * box["height"], steps=4)
            page.mouse.up()

        stroke(0.5)
        stroke(0.9)
        page.get_by_label("Erase").check()
        page.locator("#canvas [type=range]").fill("80")
        stroke(0.9)
        dress(page)
        results(page)
        photo = server.temporary.glob("*/examples/person-0.jpg")
        with Image.open(next(photo)) as before, Image.open(download(page, "base", tmp_path)) as after:
            changed = np.abs(np.asarray(before, int) - np.asarray(after, int)).max(axis=2) > 0
        rows, columns = np.nonzero(changed)
        assert changed[192, 100:190].mean() > 0.9
        assert 160 < rows.min() < 192 < rows.max() < 225
        assert 60 < columns.min() < 100 and 190 < columns.max() < 230


def test_an_uploaded_photo_is_used(browser: Any, server: Server, tmp_path: Path) -> None:
    shutil.copy(next(server.temporary.glob("*/examples/person-0.jpg")), tmp_path / "mine.jpg")
    with opened(browser, server) as page:
        pick(page, "full")
        before = loads(page)
        page.set_input_files("#person input[type=file]", tmp_path / "mine.jpg")
        wait_for_mask(page, before)
        dress(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_fits_and_works(browser: Any, server: Server, scheme: str) -> None:
    with opened(browser, server, width=390, scheme=scheme) as page:
        still_works(page, "lower")
