"""What the differences of an evaluation say in words: the same words on the page, in the terminal and on the card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepfashion_training.reports.figures import DECISIVE, FEWEST_FOR_VERDICT, figure_of

#: Which model a difference favours, and what that makes of the LoRA.
SIDES = {"lora": "better", "base": "worse"}


@dataclass(frozen=True)
class Verdict:
    """Whether the LoRA is better, in words; ``tone`` is ``good``, ``bad`` or, where it is neither or both, empty."""

    text: str
    tone: str


def decisive(figures: Mapping[str, Any]) -> list[str]:
    """Names of the figures that a verdict is made of, among those that are there."""
    return [name for name in DECISIVE if name in figures]


def verdict(changes: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """What ``changes`` say of one garment type: ``{figure: {"people", "mean", "ci", "better"}}`` of ``metrics.json``.

    Every decisive figure that chance does not explain is named. Where there is none: equal pictures make no difference,
    under ``FEWEST_FOR_VERDICT`` people nobody can say, and otherwise no difference is clear.
    """
    names = decisive(changes)
    moved = {side: [figure_of(name).label for name in names if changes[name]["better"] == side] for side in SIDES}
    told = [f"{word} by {', '.join(moved[side])}" for side, word in SIDES.items() if moved[side]]
    if told:
        tone = "" if len(told) == 2 else "good" if moved["lora"] else "bad"
        return Verdict("; ".join(told), tone)
    if all(changes[name]["mean"] == 0 and changes[name]["ci"] in (None, [0, 0]) for name in names):
        return Verdict("no difference", "")
    people = max(changes[name]["people"] for name in names)
    if people < FEWEST_FOR_VERDICT:
        return Verdict(f"too few people ({people}) to say", "")
    return Verdict("no clear difference", "")


def comparison_table(facts: Mapping[str, Any]) -> list[str]:
    """Lines of a table for the terminal: decisive figures by garment type, and a verdict on each.

    ``facts`` is what ``metrics.json`` holds. Changes of errors are in percent of the base's.
    """
    models, base = facts["models"], facts["models"]["base"]
    figures = [figure_of(name) for name in decisive(next(iter(base.values())))]
    rows = [["", "n", *(f"{figure.label}, {figure.better} is better" for figure in figures), ""]]
    for kind, found in base.items():
        row = [kind, str(found["n"])]
        for figure in figures:
            before, after = found[figure.name], models.get("lora", {}).get(kind, {}).get(figure.name)
            row.append(figure.written(before))
            if after is not None:
                # A share of an error means something, a share of a similarity does not.
                share = figure.better == "lower" and before not in (None, 0) and math.isfinite(after / before)
                change = f"{after / before - 1:+.0%}" if share else figure.signed(after - before) if before else ""
                row[-1] += f" -> {figure.written(after)}" + (f" ({change})" if change else "")
        changes = facts["difference"].get(kind)
        rows.append([*row, verdict(changes).text if changes else ""])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
