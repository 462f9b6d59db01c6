"""Plots for pages: inline SVG whose text stays text, readable on light and on dark.

Axes and letters take the colour of the text around them (``currentColor``); bars have middle tones. The same numbers
give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

#: Middle tones with at least 3:1 contrast on white and on #16181d, told apart by the colour-blind too.
COLOURS = ("#4f83cc", "#d9772b", "#3d9970", "#b565a7", "#8a7f6d", "#b8972e")

#: Stands for the text's colour while matplotlib draws, which knows only real colours. Used for nothing else.
_TEXT = "#123457"

_WIDTH, _BAR, _FRAME = 5.4, 0.27, 0.62  # inches: figure, one bar with its gap, title and margins
_LONGEST = 26  # characters of a bar's name


def bar_chart(counts: Mapping[str, int], title: str, colour: str = COLOURS[0]) -> Markup:
    """Horizontal bars in the order of ``counts``, each with its name and number, as an ``<svg>`` element."""
    return grouped_bars({name: {title: count} for name, count in counts.items()}, title, colours=(colour,))


def grouped_bars(
    counts: Mapping[str, Mapping[str, int]], title: str, colours: Sequence[str] = COLOURS, stacked: bool = True
) -> Markup:
    """Bars of several series as an ``<svg>`` element: ``counts[bar][series]``, stacked or side by side.

    Series that a bar lacks count 0. A legend names them where there is more than one. Numbers stand beside the bars: a
    stacked bar's is its sum.
    """
    series = list(dict.fromkeys(name for row in counts.values() for name in row))
    thick = 0.72 if stacked or len(series) < 2 else 0.8 / len(series)
    rows = len(counts) * (1 if stacked else max(1, len(series) * 0.75))
    with _style():
        figure = Figure(figsize=(_WIDTH, _FRAME + _BAR * max(1, rows) + 0.25 * (len(series) > 1)), layout="constrained")
        axes = figure.add_subplot()
        starts = [0] * len(counts)
        for place, name in enumerate(series):
            lengths = [row.get(name, 0) for row in counts.values()]
            shift = 0.0 if stacked else (place - (len(series) - 1) / 2) * thick
            bars = axes.barh(
                [row + shift for row in range(len(counts))],
                lengths,
                thick,
                left=starts if stacked else None,
                color=colours[place % len(colours)],
                label=_plain(name),
                clip_on=False,
            )
            if stacked:
                starts = [start + length for start, length in zip(starts, lengths, strict=True)]
            if not stacked or place == len(series) - 1:
                labels = starts if stacked else lengths
                axes.bar_label(bars, [f"{value:,}" for value in labels], padding=3, color=_TEXT)
        _dress(axes, list(counts), title)
        if len(series) > 1:
            figure.legend(loc="outside lower left", ncols=4, frameon=False, labelcolor=_TEXT)
        return _svg(figure, title)


def _dress(axes: Axes, names: Sequence[str], title: str) -> None:
    axes.set_title(_plain(title), loc="left", color=_TEXT, fontweight="bold")
    axes.set_yticks(range(len(names)), [_shortened(name) for name in names], color=_TEXT)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)  # first bar on top
    axes.margins(x=0.12)  # room for the numbers
    axes.set_xlim(left=0)
    axes.xaxis.set_visible(False)
    axes.tick_params(axis="y", length=0, colors=_TEXT)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(_TEXT)


def _svg(figure: Figure, title: str) -> Markup:
    sink = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(sink, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = sink.getvalue().decode("utf-8")
    svg = svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
    svg = re.sub(r"<(metadata|defs)>.*?</\1>\s*", "", svg, flags=re.DOTALL)  # its style would hold for the whole page
    svg = re.sub(r'(<\w+) id="[^"]*"', r"\1", svg)  # ids would come twice in a page of several plots
    # The size comes from the page.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "", 1)
    label = Markup.escape(title)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip())


@contextmanager
def _style() -> Iterator[None]:
    settings = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.0,
        "axes.titlesize": 10.0,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "text.parse_math": False,
    }
    with mpl.rc_context(settings):
        yield


def _shortened(name: str) -> str:
    plain = _plain(name)
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"


def _plain(text: str) -> str:
    """``text`` without what XML forbids and without line breaks; matplotlib escapes the rest."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
