"""From finished batches to the prepared folder: data files, rejects, and what the report shows."""

from __future__ import annotations

import multiprocessing
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from deepfashion_training.data.sampling import unit_hash
from deepfashion_training.data.shards import ShardWriter
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.pictures import open_picture, orientation, to_rgb, turn
from deepfashion_training.preparation import selection
from deepfashion_training.preparation.batch import thumbnail_of
from deepfashion_training.preparation.mask_leak import Leak, leak_score
from deepfashion_training.preparation.schemas import PAIR_FEATURES, QUARANTINE_FEATURES, UNPAIRED_FEATURES
from deepfashion_training.preparation.selection import SPLITS, Record
from deepfashion_training.preparation.settings import Settings
from deepfashion_training.reports.pairs_report import LEAK_TOLERANCE, ShownPair, ShownReject

#: About 100 MB a file at 512x768, and 10 MB in memory.
SHARD_ROWS, GROUP_ROWS = 1000, 100
#: Rows whose masks the leak score is measured on: a standard error of 2 to 3 points for each garment type, in seconds.
LEAK_ROWS = 2500
#: Pairs from which a process of its own, which takes seconds to start, makes the leak score faster.
_WORTH_A_PROCESS = 1000
#: What the report shows: pairs of each type, worst pairs, rejects.
SHOWN_PAIRS, SHOWN_WORST, SHOWN_REJECTS = 12, 12, 24
#: Larger than the report shows them; kept while the rows are written.
_SHOWN_SIZE = (384, 384)
_LABELS = ("cloth_type", "category", "view", "gender", "mask_how", "mask_inverted", "likeness", "garment_digest")


@dataclass
class Finished:
    """All batches: a record and the labels of each row, in the order of the files and of the rows within them."""

    files: list[Path]
    records: list[Record]
    labels: list[dict[str, Any]]
    fingerprints: list[bytes | None]


def read_finished(files: Sequence[Path]) -> Finished:
    """The small columns of all batches."""
    finished = Finished(list(files), [], [], [])
    for file in files:
        table = _read(file, [*selection.COLUMNS, *_LABELS, "fingerprint"])
        for row in table.to_pylist():
            finished.records.append(Record(**{name: _one(row[name]) for name in selection.COLUMNS}))
            finished.labels.append({name: _one(row[name]) for name in _LABELS})
            finished.fingerprints.append(row["fingerprint"])
    return finished


def _one(value: Any) -> Any:
    """``value``; a text that is there already is the same object, for few of them differ."""
    return sys.intern(value) if isinstance(value, str) else value


def _read(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A finished batch. Read ahead and by threads, pyarrow would keep ten times as much memory."""
    with pq.ParquetFile(file, pre_buffer=False) as batch:
        return batch.read(None if columns is None else list(columns), use_threads=False)


def summary(finished: Finished, rows_in: int) -> dict[str, Any]:
    """The counts of ``report.json``; asserts that every row is accounted for."""
    pairs = [
        (record, labels)
        for record, labels in zip(finished.records, finished.labels, strict=True)
        if record.outcome == "pair"
    ]

    def counts(name: str) -> dict[str, int]:
        return dict(Counter(labels[name] for _, labels in pairs).most_common())

    by_type = Counter(labels["cloth_type"] for _, labels in pairs)
    by_split_and_type = Counter((record.split, labels["cloth_type"]) for record, labels in pairs)
    return {
        **selection.account(finished.records, rows_in),
        "by_type": {name: by_type[number] for number, name in TYPE_NAMES.items()},
        "by_category": counts("category"),
        "by_view": counts("view"),
        "by_split_and_type": {
            split: {name: by_split_and_type[split, number] for number, name in TYPE_NAMES.items()} for split in SPLITS
        },
        "by_mask": counts("mask_how"),
        "inverted_masks": sum(labels["mask_inverted"] for _, labels in pairs),
        "shared_garments": _shared_garments(pairs),
        "near_duplicates": sum(record.reason == "near_duplicate" for record in finished.records),
    }


def _shared_garments(pairs: Sequence[tuple[Record, Mapping[str, Any]]]) -> int:
    """Pairs outside of training whose very garment picture is in the train split too, on another person."""
    trained = {labels["garment_digest"] for record, labels in pairs if record.split == "train"}
    return sum(record.split != "train" and labels["garment_digest"] in trained for record, labels in pairs)


def warnings(facts: Mapping[str, Any]) -> list[str]:
    """What a person should know before training on these pairs."""
    lines = []
    shares = {"train": 1.0, **{split: facts["settings"][f"{split}_share"] for split in ("validation", "test")}}
    for split, types in facts["by_split_and_type"].items():
        if shares[split] == 0:
            continue
        absent = [name for name, count in types.items() if count == 0 and facts["by_type"][name]]
        if absent:
            lines.append(f"no {', '.join(absent)} pairs in the {split} split: add rows or raise its share")
    shared = facts["shared_garments"]
    if shared:
        lines.append(f"{shared} pairs of validation and test have a garment picture that a pair of the train split has")
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


def why_none(finished: Finished) -> str:
    """Why no row became a pair: each reason with its count, an example and a mend where a flag has one."""
    counts = Counter(record.reason for record in finished.records)
    example = {record.reason: record.detail for record in reversed(finished.records)}
    mends = {"same_photo_share": "raise --max_same_photo_share", "garment_too_small": "lower --min_garment_px"}
    notes = {reason: "; ".join(filter(None, (example[reason], mends.get(reason)))) for reason in counts}
    return ", ".join(
        f"{reason} {count}" + (f" ({notes[reason]})" if notes[reason] else "") for reason, count in counts.most_common()
    )


def measure_leak(finished: Finished, settings: Settings, num_proc: int = 1) -> dict[str, Any]:
    """``leak_score`` of ``report.json``, on at most ``LEAK_ROWS`` pairs; empty where too few rows are alike.

    With many pairs and ``num_proc`` above 1 it is measured in a process of its own.
    """
    places = [place for place, record in enumerate(finished.records) if record.outcome == "pair"]
    places.sort(key=lambda place: unit_hash(settings.seed, (finished.records[place].source_row, place)))
    chosen = sorted(places[:LEAK_ROWS])
    if not chosen:
        return {}
    features = _features(finished, set(chosen))
    labels = [finished.labels[place] for place in chosen]
    told: dict[str, Any] = {
        "types": [row["cloth_type"] for row in labels],
        "genders": [row["gender"] for row in labels],
        "categories": [row["category"] for row in labels],
        "groups": [finished.records[place].pid for place in chosen],
    }
    told |= {"seed": settings.seed, "most_rows": LEAK_ROWS}
    columns = {"as_is": "features_as_is", settings.mask_policy: "features"}
    if num_proc > 1 and len(chosen) > _WORTH_A_PROCESS:
        # It imports the function's module alone, which is why that is handed over and nothing of this one.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(leak_score, features[column], **told) for column in columns.values()]
            found = [job.result() for job in jobs]
    else:
        found = [leak_score(features[column], **told) for column in columns.values()]
    return {policy: _leak_facts(leaks) for policy, leaks in zip(columns, found, strict=True) if leaks}


def _leak_facts(leaks: Mapping[str, Leak]) -> dict[str, Any]:
    """The worst type's leak, and each type's."""
    by_type = {name: leak for name, leak in leaks.items() if name != "worst"}
    worst = leaks["worst"]
    return {
        "accuracy": worst.accuracy,
        "chance": worst.chance,
        "type": next(name for name, leak in by_type.items() if leak == worst),
        "by_type": {
            name: {"accuracy": leak.accuracy, "chance": leak.chance, "rows": leak.rows, "categories": leak.categories}
            for name, leak in by_type.items()
        },
    }


def _features(finished: Finished, chosen: set[int]) -> dict[str, np.ndarray]:
    columns = ("features_as_is", "features")
    kept: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    place = 0
    for file in finished.files:
        table = _read(file, columns)
        wanted = [row for row in range(len(table)) if place + row in chosen]
        for name in columns:
            kept[name] += [np.frombuffer(cell, np.uint8) for cell in _taken(table, wanted)[name].to_pylist()]
        place += len(table)
    return {name: np.stack(rows) if rows else np.empty((0, 0), np.uint8) for name, rows in kept.items()}


@dataclass
class Shown:
    """What the report shows."""

    samples: list[ShownPair] = field(default_factory=list)
    worst: list[ShownPair] = field(default_factory=list)
    rejects: list[ShownReject] = field(default_factory=list)


def write_rows(folder: Path, finished: Finished, settings: Settings) -> Shown:
    """Write ``data/*.parquet``, ``quarantine.parquet`` and ``unpaired.parquet``; returns what the report shows."""
    (folder / "data").mkdir()
    records = finished.records
    totals = Counter(record.split for record in records if record.outcome == "pair")
    samples, worst, rejects = _chosen_to_show(finished, settings.seed)
    shown = Shown()
    with ExitStack() as stack:
        sizes = {"shard_rows": SHARD_ROWS, "group_rows": GROUP_ROWS}
        schema = PAIR_FEATURES.arrow_schema
        writers = {split: ShardWriter(folder / "data", split, totals[split], schema, **sizes) for split in SPLITS}
        for writer in writers.values():
            stack.callback(writer.close)
        others = {
            outcome: stack.enter_context(pq.ParquetWriter(folder / f"{name}.parquet", features.arrow_schema))
            for outcome, name, features in (
                ("quarantined", "quarantine", QUARANTINE_FEATURES),
                ("unpaired", "unpaired", UNPAIRED_FEATURES),
            )
        }
        for start, table in _tables(finished.files):
            here = range(start, start + len(table))
            for split, writer in writers.items():
                rows = [p - start for p in here if records[p].outcome == "pair" and records[p].split == split]
                if rows:
                    writer.add(_taken(table, rows))
            for outcome, other in others.items():
                rejected = _rejected(table, [p for p in here if records[p].outcome == outcome], records, start)
                if rejected:
                    other.write_table(pa.Table.from_pylist(rejected, schema=other.schema))
                shown.rejects += [_shown_reject(row) for row in rejected if row["place"] in rejects]
            for place in here:
                if place in samples or place in worst:
                    pair = _shown_pair(table.slice(place - start, 1).to_pylist()[0])
                    shown.samples += [pair] if place in samples else []
                    shown.worst += [pair] if place in worst else []
    shown.worst.sort(key=lambda pair: pair.score)
    shown.rejects.sort(key=lambda reject: reject.reason)
    return shown


def _tables(files: Sequence[Path]) -> Iterator[tuple[int, pa.Table]]:
    """The batches, each with the place of its first row."""
    start = 0
    for file in files:
        table = _read(file)
        yield start, table
        start += len(table)


def _taken(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    return table.take(pa.array(rows, pa.int64()))


def _rejected(table: pa.Table, places: Sequence[int], records: Sequence[Record], start: int) -> list[dict[str, Any]]:
    """Rows that become no pairs, with the reason that was found last. A mined row counts nowhere."""
    places = [place for place in places if not records[place].mined]
    rows = _taken(table, [place - start for place in places]).to_pylist()
    for row, place in zip(rows, places, strict=True):
        record, thumbnail = records[place], row["thumbnail"]
        row |= {"reason": record.reason, "detail": record.detail, "place": place}
        if thumbnail is None and row["image"] is not None:
            thumbnail = thumbnail_of(_decoded(row["image"]["bytes"]))
        row["thumbnail"] = None if thumbnail is None else {"bytes": thumbnail, "path": f"row-{row['source_row']}.jpg"}
    return rows


def _chosen_to_show(finished: Finished, seed: int) -> tuple[set[int], set[int], set[int]]:
    """Places of random pairs of each type, of the pairs least alike in colour, and of rejects of every reason."""
    by_type: dict[int, list[int]] = defaultdict(list)
    by_reason: dict[str, list[int]] = defaultdict(list)
    for place, (record, labels) in enumerate(zip(finished.records, finished.labels, strict=True)):
        if record.outcome == "pair":
            by_type[labels["cloth_type"]].append(place)
        elif record.outcome == "quarantined" and not record.mined:
            by_reason[record.reason].append(place)

    def some(places: list[int], count: int) -> list[int]:
        return sorted(places, key=lambda place: unit_hash(seed, finished.records[place].source_row))[:count]

    samples = {place for places in by_type.values() for place in some(places, SHOWN_PAIRS)}
    pairs = [place for places in by_type.values() for place in places]
    worst = set(sorted(pairs, key=lambda place: finished.labels[place]["likeness"])[:SHOWN_WORST])
    each = max(1, SHOWN_REJECTS // max(1, len(by_reason)))
    return samples, worst, {place for places in by_reason.values() for place in some(places, each)}


def _shown_pair(row: Mapping[str, Any]) -> ShownPair:
    person, garment = (_decoded(row[name]["bytes"]) for name in ("image", "cloth"))
    mask = open_picture(row["mask"]["bytes"])
    mask.thumbnail(_SHOWN_SIZE)
    return ShownPair(
        person=person,
        mask=mask,
        garment=garment,
        caption=row["caption"],
        title=f"{row['pid']} / {row['variant']} {row['view']}, row {row['source_row']}",
        source=row["garment_source"],
        garment_view=row["garment_view"],
        score=row["likeness"],
        cloth_type=row["cloth_type"],
        split=row["split"],
    )


def _decoded(stored: bytes) -> Image.Image:
    picture = open_picture(stored)
    upright = turn(to_rgb(picture), orientation(picture))
    upright.thumbnail(_SHOWN_SIZE)
    return upright


def _shown_reject(row: Mapping[str, Any]) -> ShownReject:
    picture = row["thumbnail"]
    return ShownReject(
        picture=None if picture is None else open_picture(picture["bytes"]),
        title=f"{row['pid']} / {row['variant']} {row['view']}, row {row['source_row']}",
        reason=row["reason"],
        detail=row["detail"],
    )
