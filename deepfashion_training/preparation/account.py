"""The account of a preparation: how many rows became what, what to be warned of, and the lines that say so."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.quality import REASONS, UNPAIRED_REASONS
from deepfashion_training.preparation.selection import SPLITS, Row
from deepfashion_training.reports.pairs_report import LEAK_TOLERANCE

#: Flags that make pairs of rows that have been rejected for a reason.
_FIXES = {"same_photo_share": "raise --max_same_photo_share", "garment_too_small": "lower --min_garment_px"}


def summary(rows: list[Row], rows_in: int) -> dict[str, Any]:
    """The counts of ``report.json``; asserts that every row that came in is accounted for, and no pid twice.

    A mined row that is not a pair counts nowhere: the row that it was mined from does.
    """
    pairs = [row for row in rows if row["outcome"] == "pair"]
    source_rows = [row for row in rows if not row["mined"]]
    outcomes = Counter(row["outcome"] for row in source_rows)
    assert rows_in == outcomes["pair"] + outcomes["quarantined"] + outcomes["unpaired"], (rows_in, outcomes)
    splits = defaultdict(set)
    for row in pairs:
        splits[row["pid"]].add(row["split"])
    assert all(len(where) == 1 for where in splits.values()), "a person is in two splits"
    by_type = Counter((row["split"], TYPE_NAMES[row["cloth_type"]]) for row in pairs)
    # Pairs outside of training with the very garment picture that a pair of the train split has.
    trained = {row["garment_digest"] for row in pairs if row["split"] == "train"}
    shared = sum(row["split"] != "train" and row["garment_digest"] in trained for row in pairs)
    return {
        "rows_in": rows_in,
        "pairs": outcomes["pair"],
        "mined": sum(row["mined"] for row in pairs),
        "unpaired": outcomes["unpaired"],
        "unpaired_reasons": _counts(row["reason"] for row in source_rows if row["outcome"] == "unpaired"),
        "quarantined": _counts(row["reason"] for row in source_rows if row["outcome"] == "quarantined"),
        "by_source": _counts(row["garment_source"] for row in pairs),
        "by_split": _counts(row["split"] for row in pairs),
        "pids": _counts(next(iter(where)) for where in splits.values()),
        "by_type": {name: sum(by_type[split, name] for split in SPLITS) for name in TYPE_NAMES.values()},
        "by_category": _counts(row["category"] for row in pairs),
        "by_view": _counts(row["view"] for row in pairs),
        "by_split_and_type": {split: {name: by_type[split, name] for name in TYPE_NAMES.values()} for split in SPLITS},
        "by_mask": _counts(row["mask_how"] for row in pairs),
        "inverted_masks": sum(row["mask_inverted"] for row in pairs),
        "shared_garments": shared,
        "near_duplicates": sum(row["reason"] == "near_duplicate" for row in rows),
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
    if facts["shared_garments"]:
        lines.append(
            f"{facts['shared_garments']} pairs of validation and test have a garment picture that a pair of the train "
            "split has"
        )
    lines += [f"no {name}-body pairs at all" for name, count in facts["by_type"].items() if count == 0]
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
    """Why no row became a pair: each reason with its count, an example, and the fix where a flag has one."""
    counts = Counter(row["reason"] for row in rows)
    examples = {row["reason"]: row["detail"] for row in reversed(rows)}
    parts = []
    for reason, count in counts.most_common():
        notes = "; ".join(filter(None, (examples[reason], _FIXES.get(reason))))
        parts.append(f"{reason} {count}" + (f" ({notes})" if notes else ""))
    return ", ".join(parts)


def closing_lines(folder: Path, facts: Mapping[str, Any], *, made: bool = True) -> str:
    """What came out, in lines for people."""

    def listed(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"

    lines = [
        f"{'prepared' if made else 'already prepared'}: {folder}",
        f"rows      {facts['rows_in']} = {facts['pairs']} pairs + {sum(facts['quarantined'].values())} quarantined"
        f" + {facts['unpaired']} unpaired" + (f"; {facts['mined']} pairs mined" if facts["mined"] else ""),
        f"types     {listed(facts['by_type'])}",
        f"garments  {listed(facts['by_source'])}",
        f"splits    {listed(facts['by_split'])}",
    ]
    for outcome, counts, sentences in (
        ("quarantined", facts["quarantined"], REASONS),
        ("unpaired", facts["unpaired_reasons"], UNPAIRED_REASONS),
    ):
        lines += [f"          {count} {outcome}: {sentences[reason]}" for reason, count in counts.items()]
    for policy, leak in facts["leak_score"].items():
        lines.append(
            f"leak      {policy}: {leak['accuracy']:.0%} of {leak['type']} categories told from the mask alone, "
            f"chance {leak['chance']:.0%}"
        )
    if not facts["leak_score"]:
        lines.append("leak      not measured: too few people wear each category")
    lines += [f"warning   {line}" for line in facts["warnings"]]
    return "\n".join([*lines, f"look at   {folder / 'report.html'}", f"train     --dataset_name {folder}", ""])
