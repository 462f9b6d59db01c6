"""From finished batches to the prepared folder: data files, rejected rows, and the rows that the report shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deepfashion_training.data.sampling import unit_hash
from deepfashion_training.data.schema import (
    NOTES,
    PAIR_COLUMNS,
    PROVENANCE_COLUMNS,
    QUARANTINE_COLUMNS,
    UNPAIRED_COLUMNS,
    features_of,
)
from deepfashion_training.data.shards import ShardWriter
from deepfashion_training.images.pictures import open_picture, upright
from deepfashion_training.preparation.batch import thumbnail
from deepfashion_training.preparation.selection import SPLITS, Row

#: About 100 MB a file at 512x768, and 10 MB in memory.
SHARD_ROWS, GROUP_ROWS = 1000, 100
#: How many pairs of each type, worst pairs and rejects the report shows at most: it stays below 3 MB.
SHOWN_PAIRS, SHOWN_WORST, SHOWN_REJECTS = 12, 12, 24
#: Columns of a finished batch that are small enough to hold those of all rows at once.
_SMALL_COLUMNS = [*PROVENANCE_COLUMNS, "cloth_type", *(name for name in NOTES if name != "thumbnail")]


@dataclass
class Shown:
    """Rows for the report, pictures included: random pairs of each type, the pairs least alike in colour, rejects."""

    samples: list[Row] = field(default_factory=list)
    worst: list[Row] = field(default_factory=list)
    rejects: list[Row] = field(default_factory=list)


def read_notes(files: Iterable[Path]) -> list[Row]:
    """The small columns of all batches, in the order of the files and of the rows in them."""
    return [row for file in files for row in _read(file, _SMALL_COLUMNS)]


def _read(file: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """Rows of a finished batch. Read ahead and by threads, pyarrow would keep ten times as much memory."""
    with pq.ParquetFile(file, pre_buffer=False) as batch:
        return batch.read(columns, use_threads=False).to_pylist()


def write_rows(folder: Path, files: Iterable[Path], notes: Sequence[Row], seed: int) -> Shown:
    """Write ``data/*.parquet``, ``quarantine.parquet`` and ``unpaired.parquet``; returns what the report shows.

    ``notes`` are those of ``read_notes(files)`` with the final outcomes.
    """
    (folder / "data").mkdir()
    totals = Counter(row["split"] for row in notes if row["outcome"] == "pair")
    schema = features_of(PAIR_COLUMNS).arrow_schema
    sizes = {"shard_rows": SHARD_ROWS, "group_rows": GROUP_ROWS}
    shown, remaining = Shown(), iter(notes)
    samples, worst, rejects = _chosen_to_show(notes, seed)
    with ExitStack() as stack:
        pair_files = {
            split: stack.enter_context(closing(ShardWriter(folder / "data", split, totals[split], schema, **sizes)))
            for split in SPLITS
        }
        reject_files = {
            outcome: stack.enter_context(pq.ParquetWriter(folder / name, features_of(columns).arrow_schema))
            for outcome, name, columns in (
                ("quarantined", "quarantine.parquet", QUARANTINE_COLUMNS),
                ("unpaired", "unpaired.parquet", UNPAIRED_COLUMNS),
            )
        }
        for file in files:
            batch = [row | next(remaining) for row in _read(file)]
            for split, pair_file in pair_files.items():
                pairs = [row for row in batch if row["outcome"] == "pair" and row["split"] == split]
                pair_file.add(pa.Table.from_pylist(pairs, schema=schema))
            for outcome, reject_file in reject_files.items():
                rejected = [row for row in batch if row["outcome"] == outcome and not row["mined"]]
                for row in rejected:
                    row["thumbnail"] = row["thumbnail"] or _thumbnail(row)
                if rejected:
                    reject_file.write_table(pa.Table.from_pylist(rejected, schema=reject_file.schema))
            shown.samples += [row for row in batch if _identity(row) in samples]
            shown.worst += [row for row in batch if _identity(row) in worst]
            shown.rejects += [row for row in batch if _identity(row) in rejects]
    shown.worst.sort(key=lambda row: row["likeness"])
    shown.rejects.sort(key=lambda row: row["reason"])
    return shown


def _thumbnail(row: Row) -> dict[str, object] | None:
    """The thumbnail of a pair that was rejected when all rows were known."""
    if row["image"] is None:
        return None
    picture = open_picture(row["image"]["bytes"])
    return thumbnail(upright(picture), row["source_row"])


def _identity(row: Row) -> tuple[int, bool]:
    return row["source_row"], row["mined"]


def _chosen_to_show(notes: Sequence[Row], seed: int) -> list[set[tuple[int, bool]]]:
    """Random pairs of each type, the pairs least alike in colour, and random rejects of every reason."""
    by_type: dict[int, list[Row]] = defaultdict(list)
    by_reason: dict[str, list[Row]] = defaultdict(list)
    for row in notes:
        if row["outcome"] == "pair":
            by_type[row["cloth_type"]].append(row)
        elif row["outcome"] == "quarantined" and not row["mined"]:
            by_reason[row["reason"]].append(row)

    def some(rows: list[Row], count: int) -> list[Row]:
        return sorted(rows, key=lambda row: unit_hash(seed, row["source_row"]))[:count]

    pairs = [row for rows in by_type.values() for row in rows]
    each = max(1, SHOWN_REJECTS // max(1, len(by_reason)))
    chosen = (
        [row for rows in by_type.values() for row in some(rows, SHOWN_PAIRS)],
        sorted(pairs, key=lambda row: row["likeness"])[:SHOWN_WORST],
        [row for rows in by_reason.values() for row in some(rows, each)][:SHOWN_REJECTS],
    )
    return [{_identity(row) for row in rows} for rows in chosen]
