"""Plots: what their SVG says and how long its bars are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from deepfashion_training.reports.plots import COLOURS, bar_chart, grouped_bars

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def bars(svg: str, colour: str) -> list[tuple[float, float]]:
    """Left and right end of each filled shape of a colour, in points."""
    ends = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if f"fill: {colour}" in path.get("style", ""):
            x = [float(number) for number in re.findall(r"[ML] ([\d.]+)", path.get("d", ""))]
            ends.append((min(x), max(x)))
    return ends


def test_bars_are_as_long_as_their_counts_and_named() -> None:
    svg = bar_chart({"upper": 400, "lower": 100, "full": 0}, "Pairs by type")
    lengths = [right - left for left, right in bars(svg, COLOURS[0])]
    assert lengths == pytest.approx([lengths[0], lengths[0] / 4, 0], abs=0.01)
    assert lengths[0] > 100
    assert texts(svg) == ["upper", "lower", "full", "400", "100", "0", "Pairs by type"]


def test_stacked_bars_follow_one_another_and_show_their_sum() -> None:
    svg = grouped_bars({"upper": {"train": 300, "test": 100}, "lower": {"train": 1000}}, "Types")
    (_, end), (_, lower_end), *legend = bars(svg, COLOURS[0])
    (start, test_end), (lower_start, lower_test_end), *_ = bars(svg, COLOURS[1])
    assert len(legend) == 1  # the swatch
    assert start == pytest.approx(end)
    assert lower_start == pytest.approx(lower_end) == pytest.approx(lower_test_end)
    assert {"400", "1,000", "train", "test"} <= set(texts(svg))
    assert test_end < lower_end


def test_grouped_bars_stand_side_by_side_with_a_number_each() -> None:
    svg = grouped_bars({"ssim": {"base": 3, "lora": 4}}, "Metrics", stacked=False)
    (left, _), _swatch = bars(svg, COLOURS[0])
    (other, _), _swatch = bars(svg, COLOURS[1])
    assert left == pytest.approx(other)
    assert {"3", "4", "base", "lora"} <= set(texts(svg))


def test_same_numbers_give_the_same_bytes_without_a_date() -> None:
    svg = bar_chart({"a": 1}, "A")
    assert svg == bar_chart({"a": 1}, "A")
    assert "metadata" not in svg
    assert not re.search(r"\b20\d\d-", svg)


def test_nothing_reaches_beyond_the_plot() -> None:
    """No style that would hold for the whole page, no id that another plot has too, no fixed colour of text."""
    svg = grouped_bars({"a": {"x": 1, "y": 2}}, "A")
    assert "<style" not in svg
    assert " id=" not in svg
    assert "url(" not in svg
    root = ElementTree.fromstring(svg)
    assert root.get("width") is None
    assert root.get("viewBox")
    assert all("fill: currentColor" in text.get("style", "") for text in root.iter(f"{SVG}text"))


def test_hostile_names_are_text() -> None:
    hostile = '<script>alert("1")</script>'
    svg = bar_chart({hostile: 1, "$\\frac{a}": 2, "a\nb\x00": 3, "w" * 500: 4, '<g id="x">': 5}, hostile)
    names = texts(svg)
    assert "<script" not in svg
    assert names[:3] == [hostile[:25] + "…", "$\\frac{a}", "a b "]
    assert names[3] == "w" * 25 + "…"
    assert '<g id="x">' in names
    assert ElementTree.fromstring(svg).get("aria-label") == hostile


def test_no_counts_is_an_empty_plot() -> None:
    assert texts(bar_chart({}, "Nothing")) == ["Nothing"]
