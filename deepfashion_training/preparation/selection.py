"""Decisions that need every row: near duplicates across splits and the share of same-photo pairs."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from deepfashion_training.data.near_duplicates import near_duplicates
from deepfashion_training.data.sampling import unit_hash
from deepfashion_training.preparation.pair_plan import Settings

#: Splits from the one that gives way to the one that stays as it is.
SPLITS = ("train", "validation", "test")

Row = dict[str, Any]
"""What identifies a row, and the notes of a finished batch: ``data.schema.NOTES``."""


def select(rows: list[Row], settings: Settings) -> None:
    """Change the outcome of those ``rows`` that all rows together rule out.

    A photo that is nearly the same as one of a later split (train, validation, test in this order) is quarantined, and
    so is a pair whose garment picture comes from such a photo. Of the same-photo pairs of a split, as many as
    ``max_same_photo_share`` allows stay, chosen by hash; the others are unpaired.
    """
    _quarantine_near_duplicates(rows, settings.gates.near_duplicate_distance)
    for split in SPLITS:
        pairs = [row for row in rows if row["outcome"] == "pair" and row["split"] == split]
        _limit_same_photo(pairs, settings.max_same_photo_share, settings.seed)


def _quarantine_near_duplicates(rows: list[Row], distance: int) -> None:
    photos: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["fingerprint"] is not None and not row["mined"]:
            photos[row["split"]].append(row)
    twins: dict[int, Row] = {}  # source row -> the row that it nearly is
    for number, split in enumerate(SPLITS):
        later = [row for other in SPLITS[number + 1 :] for row in photos[other]]
        ours, theirs = ([row["fingerprint"] for row in group] for group in (photos[split], later))
        for position, other in near_duplicates(ours, theirs, distance).items():
            twins[photos[split][position]["source_row"]] = later[other]
    for row in rows:
        twin = twins.get(row["source_row"]) or twins.get(row["garment_row"])
        if row["outcome"] == "pair" and twin is not None:
            what = "the photo" if row["source_row"] in twins else f"the garment's photo (row {row['garment_row']})"
            where = f"row {twin['source_row']}, {twin['pid']}, which is in the {twin['split']} split"
            row |= {"outcome": "quarantined", "reason": "near_duplicate", "detail": f"{what} is nearly that of {where}"}


def _limit_same_photo(pairs: list[Row], share: float, seed: int) -> None:
    sources = Counter(row["garment_source"] for row in pairs)
    others = sources.total() - sources["same_photo"]
    allowed = len(pairs) if share == 1 else int(share * others / (1 - share) + 1e-9)
    same = [row for row in pairs if row["garment_source"] == "same_photo"]
    same.sort(key=lambda row: unit_hash(seed, (row["source_row"], row["mined"])))
    for row in same[allowed:]:
        row |= {"outcome": "unpaired", "reason": "same_photo_share"}
