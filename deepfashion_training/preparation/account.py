"""The account of a preparation: how many rows became what, what to be warned of, and the lines that say so."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.quality import FIXES, REASONS, UNPAIRED_REASONS
from deepfashion_training.preparation.pair_writer import QUALITY
from deepfashion_training.preparation.selection import SPLITS, Row
from deepfashion_training.reports.pairs_report import LEAK_TOLERANCE


def summary(rows: list[Row], rows_in: int) -> dict[str, Any]:
    """The counts of ``report.json``; asserts that every row that came in is accounted for, and no pid twice.

    A mined row that is not a pair counts nowhere: the row that it was mined from does.
    """
    pairs = [row for row in rows if row["outcome"] == "pair"]
    source_rows = [row for row in rows if not row["mined"]]
    outcomes = Counter(row["outcome"] for row in source_rows)
    assert rows_in == outcomes["pair"] + outcomes["quarantined"] + outcomes["unpaired"], (rows_in, outcomes)
    split_of = {row["pid"]: row["split"] for row in pairs}
    assert all(split_of[row["pid"]] == row["split"] for row in pairs), "a person is in two splits"
    by_type = Counter((row["split"], TYPE_NAMES[row["cloth_type"]]) for row in pairs)
    return {
        "rows_in": rows_in,
        "pairs": outcomes["pair"],
        "mined": sum(row["mined"] for row in pairs),
        "unpaired": outcomes["unpaired"],
        "unpaired_reasons": _counts(row["reason"] for row in source_rows if row["outcome"] == "unpaired"),
        "quarantined": _counts(row["reason"] for row in source_rows if row["outcome"] == "quarantined"),
        "by_source": _counts(row["garment_source"] for row in pairs),
        "by_split": _counts(row["split"] for row in pairs),
        "pids": _counts(split_of.values()),
        "by_type": {name: sum(by_type[split, name] for split in SPLITS) for name in TYPE_NAMES.values()},
        "by_category": _counts(row["category"] for row in pairs),
        "by_split_and_type": {split: {name: by_type[split, name] for name in TYPE_NAMES.values()} for split in SPLITS},
        "by_mask": _counts(row["mask_how"] for row in pairs),
        "inverted_masks": sum(row["mask_inverted"] for row in pairs),
        "unknown_categories": _counts(row["category"] for row in rows if row["reason"] == "unknown_category"),
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def warnings(facts: Mapping[str, Any]) -> list[str]:
    """What a person should know before training on these pairs."""
    lines = []
    for split, types in facts["by_split_and_type"].items():
        absent = [name for name, count in types.items() if count == 0 and facts["by_type"][name]]
        if absent and (split == "train" or facts["settings"][f"{split}_share"]):
            lines.append(f"no {', '.join(absent)} pairs in the {split} split: add rows or raise its share")
    lines += [f"no {name}-body pairs at all" for name, count in facts["by_type"].items() if count == 0]
    if facts["unknown_categories"]:
        lines.append(
            f"left out: {listed(facts['unknown_categories'])}: name their types with --category_type NAME=TYPE"
        )
    rejected = sum(facts["quarantined"].values())
    if rejected > 0.2 * facts["rows_in"]:
        lines.append(f"{rejected / facts['rows_in']:.0%} of the rows are quarantined: look at why before training")
    leak = facts["leak_score"].get(facts["mask_policy"])
    if leak is not None and leak["accuracy"] - leak["chance"] > LEAK_TOLERANCE:
        lines.append(
            f"the masks tell {leak['type']} categories at {leak['accuracy']:.0%}, chance {leak['chance']:.0%}: "
            "a LoRA trained on them may keep the form of what is worn"
        )
    return lines


def why_none(rows: list[Row]) -> str:
    """Why no row became a pair: each reason with its count, the details of one row, and the flag that lets it pass."""
    about = REASONS | UNPAIRED_REASONS
    details = {row["reason"]: row["detail"] or about[row["reason"]].rstrip(".") for row in reversed(rows)}
    fixes = {reason: f"; see {FIXES[reason]}" if reason in FIXES else "" for reason in details}
    counts = _counts(row["reason"] for row in rows)
    return ", ".join(f"{reason} {count} ({details[reason]}{fixes[reason]})" for reason, count in counts.items())


def listed(counts: Mapping[str, int]) -> str:
    """Counts in one line, ``none`` where all are 0."""
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"


def closing_lines(folder: Path, facts: Mapping[str, Any], *, made: bool = True) -> str:
    """What came out, in lines for people."""
    leaks = [
        f"{policy} {leak['accuracy']:.0%} of {leak['type']} categories (chance {leak['chance']:.0%})"
        for policy, leak in facts["leak_score"].items()
    ]
    return "\n".join(
        [
            f"{'prepared' if made else 'already prepared'}: {folder}",
            f"rows      {facts['rows_in']} = {facts['pairs']} pairs + {sum(facts['quarantined'].values())} quarantined"
            f" + {facts['unpaired']} unpaired" + (f"; {facts['mined']} pairs mined" if facts["mined"] else ""),
            f"types     {listed(facts['by_type'])}",
            f"garments  {listed(facts['by_source'])}",
            f"splits    {listed(facts['by_split'])}",
            f"left out  {listed(facts['quarantined'] | facts['unpaired_reasons'])}",
            f"leak      told from the mask alone: {', '.join(leaks) or 'not measured, too few people'}",
            *(
                [f"pictures  {rewritten} were no upright RGB JPEG and are JPEG of quality {QUALITY} now"]
                if (rewritten := facts.get("rewritten_pictures"))
                else []
            ),
            *(f"warning   {line}" for line in facts["warnings"]),
            f"look at   {folder / 'report.html'}",
            f"train     --dataset_name {shlex.quote(str(folder))}\n",
        ]
    )
