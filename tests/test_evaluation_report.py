"""The report of an evaluation: read as HTML, and opened in a browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_pairs_report import HOSTILE, Page

from deepfashion_training.reports.evaluation_report import (
    SECTIONS,
    ShownCase,
    change_bars,
    model_labels,
    save_before_after,
    write_evaluation_report,
)
from deepfashion_training.reports.figures import figure_of

COLOURS = {"garment": "red", "person": "green", "Base": "blue", "LoRA": "yellow", "photo": "black"}


def change(mean: float, low: float, high: float, better: str | None = None, people: int = 40) -> dict[str, Any]:
    return {"n": 60, "people": people, "mean": mean, "ci": [low, high], "better": better}


def figures(ciede: float, dino: float, fd: float, psnr: float | None = 20.0, **more: Any) -> dict[str, Any]:
    found = {"ciede2000_masked": ciede, "ciede2000_masked_ci": [ciede - 1, ciede + 1], "dino": dino}
    found |= {"dino_ci": [dino - 0.01, dino + 0.01], "fd_dinov2": fd, "psnr": psnr, "dino_unpaired": 0.5}
    return {"n": 60, **found, **more}


def facts(**changes: Any) -> dict[str, Any]:
    base = {"upper": figures(10.0, 0.8, 100.0), "lower": figures(12.25, 0.7, 120.0), "full": figures(11.0, 0.6, 90.0)}
    lora = {
        "upper": figures(10.0, 0.81, 100.04),
        "lower": figures(9.125, 0.75, 110.0),
        "full": figures(12.0, 0.61, 95.0),
    }
    settings = {"lora": "/runs/skirts/pytorch_lora_weights.safetensors", "against": None, "data": "/data/pairs"}
    settings |= {"transformer": "/models/flux", "split": "test", "height": 768, "width": 576, "seed": 0}
    settings |= {"num_inference_steps": 28, "guidance_scale": 30.0, "repaint": False, "lora_scale": 1.0}
    settings |= {"garment_area": "the human parser", "cloth_types": [1, 2, 3], "limit": 180}

    return {
        "settings": settings,
        "models": {"base": {**base, "all": figures(11, 0.7, 80)}, "lora": {**lora, "all": figures(10.4, 0.72, 78)}},
        "difference": {
            "upper": {"ciede2000_masked": change(0, 0, 0), "dino": change(0.01, -0.01, 0.03)},
            "lower": {"ciede2000_masked": change(-3.125, -4, -2, "lora"), "dino": change(0.05, 0.04, 0.06, "lora")},
            "full": {"ciede2000_masked": change(1, 0.5, 1.5, "base"), "dino": change(0.01, 0.001, 0.02, None, 3)},
            "all": {"ciede2000_masked": change(-0.6, -1, 0.1), "dino": change(0.02, 0.01, 0.03, "lora")},
        },
        "left_out": {"lpips": "no torchvision: pip", "fid": "no torchvision: pip", "kid": "no weights"},
        "left_out_cases": {"id_1/row-7": "image: not readable"},
        "warnings": ["fewer than 500 pictures"],
        "versions": {"torch": "2.9"},
        **changes,
    }


def case(
    title: str = "id_00000001/01_1_front/row-1", names: str = "garment person Base LoRA photo", **more: Any
) -> Any:
    pictures = {name: Image.new("RGB", (144, 192), (200, 180, 160)) for name in names.split()}
    pictures["garment"] = Image.new("RGB", (100, 192), (20, 120, 220))
    return ShownCase(**{"title": title, "type_name": "lower", "caption": "a caption", "pictures": pictures, **more})


def written(folder: Path, given: dict[str, Any] | None = None, **shown: Any) -> Page:
    cases: dict[str, Any] = {"typical": [], "best": [case()], "worst": [case()], "unpaired": [], **shown}
    write_evaluation_report(folder / "report.html", facts() if given is None else given, cases)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def table_line(folder: Path, kind: str, heading: str) -> list[str]:
    """The cells of a figure's line in the table of a garment type: class of a number, then the text with its tags."""
    html = (folder / "report.html").read_text(encoding="utf-8")
    table = html.split(f"<h3>{kind}, ")[1].split("</table>")[0]
    line = next(line for line in table.split("<tr>") if f"<td>{heading} " in line)
    cells = re.findall(r'<td(?: class="number ?(.*?)")?>(.*?)</td>', line, re.DOTALL)
    return [" ".join(f"{style} {text}".split()) for style, text in cells]


# ---- as HTML


def test_every_section_is_there_and_linked(tmp_path: Path) -> None:
    page = written(tmp_path)
    sections = [name for name in SECTIONS if name != "published"]  # which is for the lists that papers use
    assert list(page.sections) == sections
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in sections]
    assert "<h1>skirts by garment type</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "fewer than 500 pictures" in page.words("headline")


def test_numbers_stand_where_they_belong_and_the_better_is_marked(tmp_path: Path) -> None:
    written(tmp_path)
    colour, base, lora, change_ = table_line(tmp_path, "Lower body", "CIEDE2000")
    assert colour == "CIEDE2000 ↓"
    assert base.startswith("12.25") and "11.25 to 13.25" in base
    assert lora.startswith("best 9.12") and "8.12 to 10.12" in lora
    assert change_.startswith("better -3.12 better") and "-4.00 to -2.00" in change_
    _, base, lora, change_ = table_line(tmp_path, "Full body", "CIEDE2000")
    assert base.startswith("best 11.00") and lora.startswith("12.00")
    assert change_.startswith("worse +1.00 worse")


def test_what_chance_explains_is_not_marked(tmp_path: Path) -> None:
    written(tmp_path)
    for name in ("CIEDE2000", "DINO similarity", "FD-DINOv2"):
        _, base, lora, *_ = table_line(tmp_path, "Upper body", name)
        assert "best" not in base + lora
    assert table_line(tmp_path, "Upper body", "CIEDE2000")[3].startswith("0.00")
    assert table_line(tmp_path, "Upper body", "FD-DINOv2")[3].startswith("<small")  # sets have no difference


def test_in_short_every_type_has_a_verdict(tmp_path: Path) -> None:
    page = written(tmp_path)
    words = page.words("headline")
    assert "Upper body no clear difference Lower body better by CIEDE2000, DINO similarity Full body worse by" in words
    assert "All better by DINO similarity" in words
    # In short, in the bars (which "all" has not), and in the tables.
    assert (page.classes()["better"], page.classes()["worse"]) == (2 + 2 + 3, 1 + 1 + 1)


def test_bars_are_changes_of_the_error_in_percent(tmp_path: Path) -> None:
    given = facts()
    given["difference"]["upper"]["ciede2000_masked"] = change(-0.2, -0.5, 0.1, "neither")
    bars = change_bars(given)
    assert list(bars) == ["upper", "lower", "full"]
    kept, _ = bars["upper"]
    assert (kept.word, kept.change, kept.low, kept.high) == ("kept", *map(pytest.approx, (-2, -5, 1)))
    assert kept.margin == pytest.approx(10)  # 1 of 10 CIEDE2000
    colour, dino = bars["lower"]
    assert (colour.word, colour.change) == ("better", pytest.approx(-100 * 3.125 / 12.25))
    # A similarity of 0.7 lacks 0.3: a gain of 0.05 takes a sixth of that.
    assert (dino.word, dino.change, dino.low, dino.high) == ("better", *map(pytest.approx, (-100 / 6, -20, -40 / 3)))
    words = written(tmp_path, given).words("changes")
    assert "CIEDE2000 -2% kept" in words and "DINO similarity -17% better" in words


def test_typical_cases_come_before_the_tables_and_say_how_they_are_shown(tmp_path: Path) -> None:
    words = written(tmp_path, typical=[case("row-1"), case("row-2")]).words("typical")
    assert "in the photo" in words and re.findall(r"row-\d", words) == ["row-1", "row-2"]
    assert list(SECTIONS)[:4] == ["headline", "typical", "changes", "figures"]


def test_what_is_left_out_has_its_reason(tmp_path: Path) -> None:
    words = written(tmp_path).words("left-out")
    assert "lpips no torchvision: pip" in words and "kid no weights" in words
    assert "id_1/row-7 image: not readable" in words


def test_every_figure_of_the_tables_is_explained(tmp_path: Path) -> None:
    words = written(tmp_path).words("figures")
    for name in ("ciede2000_masked", "dino", "fd_dinov2", "psnr"):
        assert f"{figure_of(name).heading} {figure_of(name).says}" in words


def test_best_and_worst_are_in_the_order_given_with_all_their_pictures(tmp_path: Path) -> None:
    best, worst = ([case(f"row-{number}") for number in numbers] for numbers in (range(10), range(29, 19, -1)))
    page = written(tmp_path, best=best, worst=worst)
    assert re.findall(r"row-\d+", page.words("best")) == [f"row-{number}" for number in range(10)]
    assert re.findall(r"row-\d+", page.words("worst")) == [f"row-{number}" for number in range(29, 19, -1)]
    assert page.words("best").count("garment person Base LoRA photo row-") == 10
    assert page.words("best").count("Lower body · a caption") == 10
    assert page.words("unpaired").endswith("None.")
    images = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 20 * 5 and all(source.startswith("data:image/jpeg;base64,") for source in images)


def test_another_lora_is_named_wherever_the_base_would_be(tmp_path: Path) -> None:
    given = facts()
    given["settings"]["against"] = "/runs/old/pytorch_lora_weights.safetensors"
    assert model_labels(given["settings"]) == {"base": "Against: old", "lora": "LoRA"}
    assert "figure Against: old LoRA difference" in written(tmp_path, given).words("figures")


def test_the_base_alone_has_no_differences(tmp_path: Path) -> None:
    given = facts(difference={})
    given["models"] = {"base": given["models"]["base"]}
    given["settings"] |= {"lora": None, "lora_scale": None}
    page = written(tmp_path, given)
    assert "difference" not in page.words("figures").split("What the figures are")[0].split("Upper body")[1]
    assert table_line(tmp_path, "Lower body", "CIEDE2000")[1].startswith("12.25")


def hostile(folder: Path) -> Page:
    given = facts(warnings=[HOSTILE], left_out={"lpips": HOSTILE}, left_out_cases={HOSTILE: HOSTILE})
    given["settings"] |= {"data": HOSTILE, "lora": f"/runs/{HOSTILE}/x/{HOSTILE}/lora.safetensors"}
    given["settings"] |= {"prompt": HOSTILE, "garment_area": HOSTILE}
    given["versions"] = {HOSTILE: HOSTILE}
    shown = case(HOSTILE, caption=HOSTILE)
    return written(folder, given, best=[shown] * 10, worst=[shown] * 3, unpaired=[shown])


def test_strings_of_the_data_are_text_and_load_nothing(tmp_path: Path) -> None:
    page = hostile(tmp_path)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    for section in ("headline", "best", "unpaired", "left-out", "settings"):
        assert HOSTILE in page.words(section)
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


# ---- before and after


def colours_along(picture: Image.Image, y: int) -> list[tuple[int, ...]]:
    """The colours of a row of pixels, each run of equal ones once, without the paper."""
    row = [picture.getpixel((x, y)) for x in range(picture.width)]
    runs = [one for one, before in zip(row[1:], row, strict=False) if one != before]
    return [colour for colour in runs if colour != (255, 255, 255)]


@pytest.mark.parametrize("size", [(96, 128), (1152, 1536), (40, 640)])
def test_rows_are_types_and_tiles_go_from_garment_to_photo(size: tuple[int, int], tmp_path: Path) -> None:
    pictures = {name: Image.new("RGB", size, colour) for name, colour in COLOURS.items()}
    cases = [case(type_name=kind, pictures=pictures) for kind in ("lower", "upper", "lower")]
    save_before_after(tmp_path / "b.png", cases)
    with Image.open(tmp_path / "b.png") as picture:
        tiles = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in COLOURS.values()]
        upper, lower = (colours_along(picture, picture.height * quarter // 4) for quarter in (1, 3))
        assert upper == tiles and lower == [*tiles, *tiles]  # upper body first, whatever the order of the cases
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("content", ["usual", "hostile"])
def test_a_browser_shows_it_whole_and_asks_for_nothing(
    content: str, width: int, scheme: Any, browser: Any, tmp_path: Path
) -> None:
    if content == "hostile":
        hostile(tmp_path)
    else:
        written(tmp_path, best=[case()] * 4)
    said: list[str] = []
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = (tmp_path / "report.html").as_uri()
    page.goto(address)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    low = "[...document.querySelectorAll('section')].filter(one => one.offsetHeight < 40).map(one => one.id)"
    assert page.evaluate(low) == []
    # They are loaded when they come into sight; decode() waits for one, and fails for a broken one.
    load = "Promise.all([...document.images].map(one => { one.loading = 'eager'; return one.decode() }))"
    page.evaluate(f"{load}.then(() => null)")
    assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
    # Text that nobody could tell from its ground, as in a style for the other scheme, would have little contrast.
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    text, ground = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in colours)
    assert abs(text - ground) > 150 and (text < ground) == (scheme == "light")
    page.close()
