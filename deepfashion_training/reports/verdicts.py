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


def verdict(changes: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """What ``changes`` say of one garment type: ``{figure: {"people", "mean", "ci", "better"}}`` of ``metrics.json``.

    Names every decisive figure whose difference chance does not explain.
    """
    decisive = {figure_of(name).label: changes[name] for name in DECISIVE if name in changes}
    moved = {side: [label for label, change in decisive.items() if change["better"] == side] for side in SIDES}
    texts = [f"{word} by {', '.join(moved[side])}" for side, word in SIDES.items() if moved[side]]
    if texts:
        tone = "" if len(texts) == 2 else "good" if moved["lora"] else "bad"
        return Verdict("; ".join(texts), tone)
    if all(change["mean"] == 0 and change["ci"] in (None, [0, 0]) for change in decisive.values()):
        return Verdict("no difference", "")
    people = max(change["people"] for change in decisive.values())
    if people < FEWEST_FOR_VERDICT:
        return Verdict(f"too few people ({people}) to say", "")
    return Verdict("no clear difference", "")


def comparison_table(facts: Mapping[str, Any]) -> list[str]:
    """Lines of a table for the terminal: decisive figures by garment type, and a verdict on each.

    ``facts`` is what ``metrics.json`` holds. Changes of errors are in percent of the base's.
    """
    models, base = facts["models"], facts["models"]["base"]
    figures = [figure_of(name) for name in DECISIVE if name in base["all"]]
    rows = [["", "n", *(f"{figure.label}, {figure.better} is better" for figure in figures), ""]]
    for kind, found in base.items():
        row = [kind, str(found["n"])]
        for figure in figures:
            before, after = found[figure.name], models.get("lora", {}).get(kind, {}).get(figure.name)
            if after is None:
                row.append(figure.written(before))
                continue
            # A percentage of an error means something, of a similarity it does not.
            share = after / before - 1 if figure.better == "lower" and before else math.nan
            change = f"{share:+.0%}" if math.isfinite(share) else figure.signed(after - before)
            row.append(f"{figure.written(before)} -> {figure.written(after)} ({change})")
        changes = facts["difference"].get(kind)
        rows.append([*row, verdict(changes).text if changes else ""])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
