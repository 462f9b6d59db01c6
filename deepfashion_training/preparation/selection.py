"""Decisions that need every row: near duplicates across splits, the share of same-photo pairs, the final account."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepfashion_training.data.near_duplicates import near_duplicates
from deepfashion_training.data.sampling import unit_hash
from deepfashion_training.preparation.settings import Settings

#: Splits from the one that gives way to the one that stays as it is.
SPLITS = ("train", "validation", "test")

#: Columns of a finished batch that ``select`` reads.
COLUMNS = ("outcome", "reason", "detail", "mined", "source_row", "pid", "split", "garment_source", "garment_row")


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one row of a finished batch."""

    outcome: str  # pair, quarantined or unpaired
    reason: str
    detail: str
    mined: bool
    source_row: int
    pid: str
    split: str
    garment_source: str
    garment_row: int


def select(records: Sequence[Record], fingerprints: Sequence[bytes | None], settings: Settings) -> list[Record]:
    """``records`` with what all of them together decide; ``fingerprints`` are those of their photos.

    A photo that is nearly the same as one of a later split (train, validation, test in this order) is quarantined, and
    so is a pair whose garment picture comes from such a photo. Of the same-photo pairs of a split, as many as
    ``max_same_photo_share`` allows stay, chosen by hash; the others are unpaired.
    """
    records = _without_near_duplicates(records, fingerprints, settings)
    return _within_same_photo_share(records, settings)


def _without_near_duplicates(
    records: Sequence[Record], fingerprints: Sequence[bytes | None], settings: Settings
) -> list[Record]:
    places: dict[str, list[int]] = defaultdict(list)
    for place, (record, known) in enumerate(zip(records, fingerprints, strict=True)):
        if not record.mined and known is not None:
            places[record.split].append(place)
    twins: dict[int, Record] = {}  # source row -> the row that it nearly is
    for number, split in enumerate(SPLITS):
        later = [place for other in SPLITS[number + 1 :] for place in places[other]]
        hashes = [[fingerprints[place] or b"" for place in group] for group in (places[split], later)]
        found = near_duplicates(hashes[0], hashes[1], settings.gates.near_duplicate_distance) if later else {}
        for position, other in found.items():
            twins[records[places[split][position]].source_row] = records[later[other]]
    out = []
    for record in records:
        twin = twins.get(record.source_row) or twins.get(record.garment_row)
        if record.outcome == "pair" and twin is not None:
            what = "the photo" if record.source_row in twins else f"the garment's photo (row {record.garment_row})"
            detail = f"{what} is nearly that of row {twin.source_row}, {twin.pid}, which is in the {twin.split} split"
            record = replace(record, outcome="quarantined", reason="near_duplicate", detail=detail)
        out.append(record)
    return out


def _within_same_photo_share(records: list[Record], settings: Settings) -> list[Record]:
    pairs = Counter((record.split, record.garment_source) for record in records if record.outcome == "pair")
    share = settings.max_same_photo_share
    out = list(records)
    for split in SPLITS:
        same = pairs[split, "same_photo"]
        others = sum(number for (where, _), number in pairs.items() if where == split) - same
        allowed = same if share == 1 else int(share * others / (1 - share) + 1e-9)
        if same <= allowed:
            continue
        places = [
            place
            for place, record in enumerate(out)
            if record.outcome == "pair" and record.split == split and record.garment_source == "same_photo"
        ]
        places.sort(key=lambda place: unit_hash(settings.seed, (out[place].source_row, out[place].mined)))
        for place in places[allowed:]:
            out[place] = replace(out[place], outcome="unpaired", reason="same_photo_share")
    return out


def account(records: Sequence[Record], rows_in: int) -> dict[str, Any]:
    """How many rows became what; asserts that every row that came in is accounted for, and no pid twice.

    A mined row that is not a pair counts nowhere: the row that it was mined from does.
    """
    rows = [record for record in records if not record.mined]
    outcomes = Counter(record.outcome for record in rows)
    assert rows_in == len(rows) == outcomes["pair"] + outcomes["quarantined"] + outcomes["unpaired"], (
        rows_in,
        outcomes,
    )
    splits: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.outcome == "pair":
            splits[record.pid].add(record.split)
    torn = [pid for pid, where in splits.items() if len(where) > 1]
    assert not torn, f"in two splits: {torn[:5]}"
    return {
        "rows_in": rows_in,
        "pairs": outcomes["pair"],
        "mined": sum(record.mined and record.outcome == "pair" for record in records),
        "unpaired": outcomes["unpaired"],
        "unpaired_reasons": _reasons(rows, "unpaired"),
        "quarantined": _reasons(rows, "quarantined"),
        "by_source": _counts(record.garment_source for record in records if record.outcome == "pair"),
        "by_split": _counts(record.split for record in records if record.outcome == "pair"),
        "pids": _counts(next(iter(where)) for where in splits.values()),
    }


def _reasons(rows: Sequence[Record], outcome: str) -> dict[str, int]:
    return _counts(row.reason for row in rows if row.outcome == outcome)


def _counts(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())
