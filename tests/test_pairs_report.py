"""The report of a preparation: read as HTML, and opened in a browser."""

from __future__ import annotations

import base64
import functools
import io
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepfashion_training.reports.page import picture_uri
from deepfashion_training.reports.pairs_report import SECTIONS, write_pairs_report

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x onerror='alert(2)'> \"quoted\" " + "w" * 400
VOID = {"meta", "link", "img", "br", "path"}


class Page(HTMLParser):
    """What a page holds: its tags with attributes, its text, and the text of each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self._open: list[str] = []
        self._section = ""
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_data(" ")
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.sections[self._section] = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.handle_data(" ")
        assert self._open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._section:
            self.sections[self._section] += data

    def words(self, section: str) -> str:
        return " ".join(self.sections[section].split())

    def classes(self) -> Counter[str]:
        return Counter(name for _, attrs in self.tags for name in (attrs.get("class") or "").split())


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "source": "acme/wardrobe",
        "rows_in": 4100,
        "pairs": 4000,
        "mined": 0,
        "unpaired": 60,
        "unpaired_reasons": {"no_garment_picture": 50, "reason_from_the_future": 10},
        "quarantined": {"mask_empty": 30, "another_new_reason": 10},
        "by_type": {"upper": 2500, "lower": 600, "full": 900},
        "by_category": {"Tees_Tanks": 2500, "Shorts": 600, "Dresses": 900},
        "by_source": {"flat": 1000, "cross_view": 3000},
        "by_split": {"train": 3600, "validation": 200, "test": 200},
        "by_split_and_type": {
            "train": {"upper": 2300, "lower": 500, "full": 800},
            "validation": {"upper": 100, "lower": 50, "full": 50},
            "test": {"upper": 100, "lower": 50, "full": 50},
        },
        "by_mask": {"named": 3000, "restricted": 1000},
        "inverted_masks": 3,
        "unknown_categories": {"Kimonos": 7},
        "leak_score": {
            "as_is": {
                "accuracy": 0.91,
                "chance": 0.4,
                "type": "lower",
                "by_type": {"lower": {"accuracy": 0.91, "chance": 0.4, "rows": 600}},
            },
            "agnostic": {
                "accuracy": 0.43,
                "chance": 0.4,
                "type": "lower",
                "by_type": {
                    "lower": {"accuracy": 0.43, "chance": 0.4, "rows": 600},
                    "full": {"accuracy": 0.75, "chance": 0.6, "rows": 900},
                },
            },
        },
        "mask_policy": "agnostic",
        "parser": None,
        "parser_revision": None,
        "warnings": ["Few lower-body pairs in test."],
        "settings": {"num_proc": 2, "limit": None, "garment_sources": ["flat", "cross_view"]},
        "versions": {"datasets": "5.2.0"},
        "pids": {"train": 900, "validation": 50, "test": 50},
        **changes,
    }


def stored(picture: Image.Image) -> dict[str, Any]:
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return {"bytes": sink.getvalue(), "path": None}


def pair(cloth_type: int = 1, **changes: Any) -> dict[str, Any]:
    mask = Image.new("L", (300, 400), 0)
    mask.paste(255, (100, 100, 200, 300))
    return {
        "image": stored(Image.new("RGB", (300, 400), (200, 180, 160))),
        "mask": stored(mask),
        "cloth": stored(Image.new("RGB", (500, 300), (20, 120, 220))),
        "caption": "a blue shirt",
        "pid": "id_00000012",
        "variant": "01",
        "view": "front",
        "source_row": 7,
        "garment_source": "cross_view",
        "garment_view": "front",
        "likeness": 0.25,
        "cloth_type": cloth_type,
        "split": "train",
        **changes,
    }


def reject(**changes: Any) -> dict[str, Any]:
    return {
        "thumbnail": stored(Image.new("RGB", (30, 40), (90, 90, 90))),
        "pid": "id_00000099",
        "variant": "01",
        "view": "back",
        "source_row": 9,
        "reason": "mask_empty",
        "detail": "0 of 49152 pixels",
        **changes,
    }


def written(tmp_path: Path, changes: dict[str, Any] | None = None, **pictures: Any) -> Page:
    file = tmp_path / "report.html"
    shown = {"samples": [], "worst": [], "rejects": [], **pictures}
    write_pairs_report(file, facts(**(changes or {})), shown["samples"], shown["worst"], shown["rejects"])
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]  # no draft is left
    return Page(file.read_text(encoding="utf-8"))


def test_all_sections_are_there_in_order_and_reached_from_the_top(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert list(page.sections) == list(SECTIONS)
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS]


def test_headline_is_an_equation(tmp_path: Path) -> None:
    headline = written(tmp_path).words("headline")
    assert "4,100 rows in = 4,000 pairs + 40 quarantined + 60 unpaired" in headline
    assert "add up" not in headline


def test_mined_pairs_come_besides_the_rows(tmp_path: Path) -> None:
    headline = written(tmp_path, {"mined": 25}).words("headline")
    assert "4,100 rows in = 4,000 pairs" in headline
    assert "besides, 25 lower-body pairs mined" in headline


def test_warnings_and_unknown_categories_are_listed_or_none(tmp_path: Path) -> None:
    warned = written(tmp_path).words("warnings")
    assert "Few lower-body pairs in test." in warned
    assert "Kimonos 7" in warned
    assert written(tmp_path, {"warnings": [], "unknown_categories": {}}).words("warnings") == "Warnings None."


def test_counts_are_tables_largest_first(tmp_path: Path) -> None:
    counts = written(tmp_path).words("counts")
    for text in ("lower 500 50 50 600", "cross view 3,000", "Tees_Tanks 2,500"):
        assert text in counts
    assert counts.index("Tees_Tanks") < counts.index("Dresses") < counts.index("Shorts")


def test_reasons_have_sentences_and_new_ones_their_name(tmp_path: Path) -> None:
    page = written(tmp_path, rejects=[reject(reason="another_new_reason"), reject(thumbnail=None)])
    assert "The mask is empty, so there is nothing to repaint. mask_empty 30" in page.words("quarantined")
    assert "another new reason 10" in page.words("quarantined")
    assert "no picture" in page.words("quarantined")
    assert "No other photo of this outfit shows the garment from a fitting view. no_garment_picture 50" in page.words(
        "unpaired"
    )
    assert "reason from the future 10" in page.words("unpaired")


def test_leak_scores_are_judged_against_chance(tmp_path: Path) -> None:
    leak = written(tmp_path).words("leak")
    assert "as_is lower 600 91.0% 40.0% shows the form" in leak
    assert "agnostic (used) lower 600 43.0% 40.0% hides the form" in leak
    assert "agnostic (used) full 900 75.0% 60.0% shows the form" in leak
    assert "Not measured" in written(tmp_path, {"leak_score": {}}).words("leak")


def test_the_parser_is_named(tmp_path: Path) -> None:
    page = written(tmp_path, {"parser": "acme/parser", "parser_revision": "f00d"})
    assert "acme/parser at f00d" in page.words("headline")


def test_pairs_by_type_worst_pairs_and_rejects_are_shown(tmp_path: Path) -> None:
    samples = [pair(cloth_type) for cloth_type in (1, 3) for _ in range(2)]
    page = written(tmp_path, samples=samples, worst=[pair(2)], rejects=[reject()] * 3)
    assert (page.classes()["pair"], page.classes()["reject"]) == (5, 3)
    assert sum(tag == "img" for tag, _ in page.tags) == 5 * 4 + 3
    assert "Lower body No pair of this type." in page.words("samples")
    assert "lower · train · garment cross view, front view · score 0.25" in page.words("worst")


def test_strings_of_the_data_are_text_and_load_nothing(tmp_path: Path) -> None:
    hostile_facts = {
        "source": HOSTILE,
        "warnings": [HOSTILE],
        "by_category": {HOSTILE: 4000},
        "unknown_categories": {HOSTILE: 1},
        "quarantined": {HOSTILE: 40},
        "unpaired_reasons": {HOSTILE: 60},
        "parser": HOSTILE,
        "parser_revision": HOSTILE,
    }
    shown = pair(caption=HOSTILE, pid=HOSTILE, garment_source=HOSTILE, garment_view="x" + HOSTILE, split=HOSTILE)
    bad = reject(pid=HOSTILE, reason=HOSTILE, detail=HOSTILE)
    page = written(tmp_path, hostile_facts, samples=[shown], worst=[shown], rejects=[bad])
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert HOSTILE in page.words("samples")
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "xlink:href", "action", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "@import" not in html
    assert "url(" not in html
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_pictures_are_small_jpegs() -> None:
    photo = picture_uri(Image.new("RGB", (1000, 2000), (10, 200, 30)))
    assert photo.startswith("data:image/jpeg;base64,")
    assert opened(photo).size == (96, 192)
    assert opened(picture_uri(Image.new("RGBA", (5000, 1), (0, 0, 0, 0)))).size == (5000, 1)
    assert opened(picture_uri(Image.new("RGB", (1, 5000)))).size == (1, 192)


def test_a_tile_shows_person_mask_garment_and_the_pair_as_trained(tmp_path: Path) -> None:
    page = written(tmp_path, samples=[pair()])
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert [attrs["alt"] for attrs in images] == ["person", "area to repaint", "garment", "pair as trained"]
    person, masked, garment, trained = (np.asarray(opened(attrs["src"] or "")).astype(int) for attrs in images)
    assert (person.shape, masked.shape, garment.shape, trained.shape) == (
        (192, 144, 3),
        (192, 144, 3),
        (192, 320, 3),
        (192, 288, 3),
    )
    centre = np.s_[90:100, 65:75]
    assert np.abs(person[centre] - (200, 180, 160)).max() < 4
    # 55% photo and 45% tint (224, 38, 140)
    assert np.abs(masked[centre] - (211, 116, 151)).max() < 4
    assert np.abs(trained[:, 144:][centre] - 127).max() < 4
    assert np.abs(trained[10:20, 154:164] - (200, 180, 160)).max() < 4
    assert np.abs(trained[90:100, 65:75] - (20, 120, 220)).max() < 4


def test_a_failed_page_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("old", encoding="utf-8")
    broken = facts()
    del broken["by_source"]
    with pytest.raises(Exception, match="by_source"):
        write_pairs_report(file, broken, [], [], [])
    assert file.read_text(encoding="utf-8") == "old"


@functools.lru_cache(maxsize=1)
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium: apt-get install chromium")


@pytest.mark.browser
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_every_section_and_asks_for_nothing(tmp_path: Path, width: int) -> None:
    """Chromium without a network opens the page, and JavaScript from outside it measures what it lays out."""
    shown = pair(caption=HOSTILE, pid=HOSTILE)
    written(tmp_path, samples=[shown] * 3, worst=[shown], rejects=[reject(detail=HOSTILE)])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    probe = """<script>addEventListener("load", () => {
      const low = [...document.querySelectorAll("section")].filter(one => one.offsetHeight > 40).map(one => one.id);
      const loaded = performance.getEntriesByType("resource").filter(one => !one.name.startsWith("data:")).length;
      document.documentElement.dataset.seen = [low.join(), loaded, document.documentElement.scrollWidth].join(" ");
    });</script>"""
    # The page itself forbids scripts: the probed copy allows this one, and still nothing from elsewhere.
    probed = html.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    probed = probed.replace("</body>", f"{probe}</body>")
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    command = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--hide-scrollbars"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9", "--disable-extensions"]
    command += ["--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=5000", "--dump-dom"]
    for name in ("report.html", "probed.html"):
        done = subprocess.run(
            [*command, (tmp_path / name).as_uri()], capture_output=True, text=True, timeout=60, check=True
        )
        # alert() of a hostile string, a blocked request and a broken style all come as console lines.
        assert not [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stderr
    sections, requests, wide = seen[1].split(" ")
    assert sections.split(",") == list(SECTIONS)
    assert requests == "0"
    assert int(wide) <= width  # nothing sticks out, whatever long words the data has
