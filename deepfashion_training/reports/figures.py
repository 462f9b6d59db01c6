"""The figures of an evaluation: what each is called, which way is better, and what their differences say in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

#: Ending of a figure's name when the garment is another person's, so that there is no truth.
UNPAIRED = "_unpaired"
#: Below this number of pictures a Fréchet distance says more about the number than about the model.
FEWEST_FOR_SETS = 500
#: With fewer people nothing is called better or worse: by Student's t, a 95% bootstrap interval of the mean of 10
#: values misses one time in 10, of 5 values one time in 6.5.
FEWEST_FOR_VERDICT = 10
#: The figures that a verdict is made of: colour, form, what a network sees of the garment.
DECISIVE = ("ciede2000_masked", "ssim_masked", "dino")
#: What a difference says: which model it favours, or that both do as well, and what that makes of the LoRA.
SIDES = {"lora": "better", "base": "worse", "neither": "kept"}


@dataclass(frozen=True)
class Figure:
    """A figure by its name in ``metrics.json``; ``says`` is what it measures, its unit and its range, in one line.

    A difference whose whole interval lies within ``margin`` to both sides of 0 is none that matters: what was there is
    kept. ``best`` is the value of a perfect result.
    """

    name: str
    label: str
    better: Literal["higher", "lower"]
    digits: int
    says: str
    margin: float | None = None
    best: float = 0.0

    @property
    def heading(self) -> str:
        """The label with an arrow up where higher is better, down where lower is."""
        return f"{self.label} {'↑' if self.better == 'higher' else '↓'}"

    def written(self, value: float | None) -> str:
        """``value`` with this figure's digits; a hyphen for None, which stands for "not measured"."""
        return "-" if value is None else f"{value:.{self.digits}f}"

    def signed(self, change: float) -> str:
        """A change with its sign; one that rounds to 0 has none."""
        shown = round(change, self.digits)
        return f"{shown:+.{self.digits}f}" if shown else self.written(0.0)

    def side(self, low: float, high: float) -> str | None:
        """The key of ``SIDES`` for an interval of LoRA minus base; None where chance may explain the difference."""
        if self.margin is not None and -self.margin <= low and high <= self.margin:
            return "neither"
        if low > 0 or high < 0:
            return "lora" if (low > 0) == (self.better == "higher") else "base"
        return None

    def interval(self, ends: list[float] | None, sign: bool = False) -> str:
        """``low to high``; nothing for None."""
        return " to ".join(self.signed(end) if sign else self.written(end) for end in ends or ())


# Of the margins, 1 CIEDE2000 is a difference in colour that is just noticeable, and 0.02 SSIM is near what JPEG of
# quality 90 takes from a drawn photo of 176x132 pixels (0.018); that of DINO similarity is a judgement.
# fmt: off
_LISTED = (
    Figure("ssim", "SSIM", "higher", 3, "structural similarity to the photo, at most 1", margin=0.02, best=1),
    Figure(
        "ssim_masked", "SSIM in the mask", "higher", 3, "structural similarity in the repainted area, at most 1",
        margin=0.02, best=1,
    ),
    Figure("psnr", "PSNR", "higher", 2, "peak signal-to-noise ratio over the picture, in dB"),
    Figure("psnr_masked", "PSNR in the mask", "higher", 2, "peak signal-to-noise ratio in the repainted area, in dB"),
    Figure("ciede2000_masked", "CIEDE2000", "lower", 2, "mean colour difference on the garment, 0 to 100", margin=1),
    Figure("drift", "Drift", "lower", 2, "mean change outside the mask, in 8-bit levels from 0 to 255"),
    Figure(
        "dino", "DINO similarity", "higher", 3, "cosine of the garment areas' DINOv2 features, -1 to 1",
        margin=0.02, best=1,
    ),
    Figure("fd_dinov2", "FD-DINOv2", "lower", 1, "Fréchet distance of the results' and the photos' DINOv2 features"),
    Figure("kd_dinov2", "KD-DINOv2", "lower", 3, "kernel distance of the results' and the photos' DINOv2 features"),
    Figure("lpips", "LPIPS", "lower", 3, "difference to the photo in the features of SqueezeNet, 0 for none"),
    Figure("fid", "FID", "lower", 2, "Fréchet distance of Inception features, by clean-fid"),
    Figure("kid", "KID x1000", "lower", 2, "kernel distance of Inception features x 1000, by clean-fid"),
)
# fmt: on

#: Every figure by its name, in the order in which tables show them.
FIGURES: dict[str, Figure] = {figure.name: figure for figure in _LISTED}


def figure_of(name: str) -> Figure:
    """The figure ``name`` of ``metrics.json``, which may end in ``_unpaired``."""
    known = FIGURES[name.removesuffix(UNPAIRED)]
    return replace(known, name=name, label=f"{known.label}, unpaired") if name.endswith(UNPAIRED) else known


def figures_in(facts: Mapping[str, Any]) -> list[Figure]:
    """The figures that ``facts``, which is what ``metrics.json`` holds, has of any picture, in the order of tables."""
    found = {name for kinds in facts["models"].values() for figures in kinds.values() for name in figures}
    names = [name + ending for name in FIGURES for ending in ("", UNPAIRED)]
    return [figure_of(name) for name in names if name in found]


def verdict(changes: Mapping[str, Mapping[str, Any]]) -> str:
    """What ``changes`` say of one garment type: ``{figure: {"people", "better", ...}}`` of ``metrics.json``.

    ``better``, ``worse`` or both, with every decisive figure of which that is so; ``kept`` where none is and all stay
    within their margins; else that nothing is clear.
    """
    decisive = {figure_of(name).label: changes[name] for name in DECISIVE if name in changes}
    moved = {side: [label for label, change in decisive.items() if change["better"] == side] for side in SIDES}
    if moved["lora"] or moved["base"]:
        return "; ".join(f"{SIDES[side]} by {', '.join(moved[side])}" for side in ("lora", "base") if moved[side])
    if len(moved["neither"]) == len(decisive):
        return SIDES["neither"]
    people = max(change["people"] for change in decisive.values())
    return "no clear difference" if people >= FEWEST_FOR_VERDICT else f"too few people ({people}) to say"


def margins() -> str:
    """What ``kept`` means, in words."""
    known = (FIGURES[name] for name in DECISIVE)
    return ", ".join(f"{figure.margin:g} {figure.label}" for figure in known)


def _compared(figure: Figure, values: list[float]) -> str:
    """A figure of base and LoRA and the change: in percent where lower is better, as there 0 is perfect."""
    text = " -> ".join(map(figure.written, values))
    if len(values) < 2:
        return text
    change = values[1] - values[0]
    in_percent = figure.better == "lower" and values[0]
    return f"{text} ({f'{change / values[0]:+.0%}' if in_percent else figure.signed(change)})"


def comparison_table(facts: Mapping[str, Any]) -> list[str]:
    """Lines of a table for the terminal: decisive figures by garment type, and a verdict on each.

    ``facts`` is what ``metrics.json`` holds.
    """
    models, base = facts["models"], facts["models"]["base"]
    figures = [figure_of(name) for name in DECISIVE if name in base["all"]]
    rows = [["", "n", *(f"{figure.label}, {figure.better} is better" for figure in figures), ""]]
    for kind, found in base.items():
        values = [_compared(figure, [kinds[kind][figure.name] for kinds in models.values()]) for figure in figures]
        changes = facts["difference"].get(kind)
        rows.append([kind, str(found["n"]), *values, verdict(changes) if changes else ""])
    return _aligned(rows)


def published_rows(facts: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """What was measured above what others have published, as cells by garment type: a heading, then a row each.

    The last cell says where a row comes from.
    """
    published = facts.get("published", {"tables": {}, "columns": []})
    figures = [figure_of(name) for name in published["columns"]]
    heading = ["", "size", *(figure.heading for figure in figures), "from"]
    size, found = f"{facts['settings']['height']}x{facts['settings']['width']}", {}
    for kind, theirs in published["tables"].items():
        ours = [
            [model, size, *(figure.written(kinds[kind].get(figure.name)) for figure in figures), "measured here"]
            for model, kinds in facts["models"].items()
        ]
        others = [
            [row["method"], row["size"], *(figure.written(row[figure.name]) for figure in figures), row["source"]]
            for row in theirs
        ]
        found[kind] = [heading, *ours, *others]
    return found


def published_table(facts: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal: ``published_rows``, and what has to be known beside them; none for other data."""
    if "published" not in facts:
        return []
    lines = []
    for kind, rows in published_rows(facts).items():
        other = f" ({facts['published']['lists'][kind]})" if kind in facts["published"]["lists"] else ""
        heading = f"{facts['published']['dataset']}, {kind}, beside published figures{other}"
        lines += ["", heading, *_aligned(rows)]
    return [*lines, "", *(f"note      {note}" for note in facts["published"]["notes"])]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Lines of cells in columns."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
