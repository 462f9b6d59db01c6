"""From finished batches to the prepared folder: data files, rejected rows, and the rows that the report shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepfashion_training.data.sampling import unit_hash
from deepfashion_training.data.schema import (
    NOTES,
    PAIR_COLUMNS,
    PROVENANCE_COLUMNS,
    QUARANTINE,
    QUARANTINE_COLUMNS,
    UNPAIRED,
    UNPAIRED_COLUMNS,
    features_of,
)
from deepfashion_training.images.pictures import open_picture, upright
from deepfashion_training.preparation.batch import thumbnail
from deepfashion_training.preparation.pair_writer import PairWriter
from deepfashion_training.preparation.selection import Row

#: Rows of a data file: about 100 MB at 512x768.
SHARD_ROWS = 1000
#: How many pairs of each type, worst pairs and rejects the report shows at most: it stays below 3 MB.
SHOWN_PAIRS, SHOWN_WORST, SHOWN_REJECTS = 12, 12, 24
#: Columns of a finished batch that are small enough to hold those of all rows at once.
_SMALL_COLUMNS = [*PROVENANCE_COLUMNS, "cloth_type", *(name for name in NOTES if name != "thumbnail")]


def writing_options(schema: pa.Schema) -> dict[str, Any]:
    """How pyarrow writes rows with pictures: these are compressed already, and no two of them are the same."""
    texts = [column.name for column in schema if pa.types.is_string(column.type)]
    return {"compression": "none", "use_dictionary": texts, "write_statistics": texts}


def read_notes(files: Iterable[Path]) -> list[Row]:
    """The small columns of all batches, in the order of the files and of the rows in them."""
    return [row for file in files for row in _read(file, _SMALL_COLUMNS)]


def _read(file: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """Rows of a finished batch. Read ahead and by threads, pyarrow would keep ten times as much memory."""
    with pq.ParquetFile(file, pre_buffer=False) as batch:
        return batch.read(columns, use_threads=False).to_pylist()


def write_rows(
    folder: Path, files: Iterable[Path], notes: Sequence[Row], seed: int, pictures: PairWriter | None = None
) -> dict[str, list[Row]]:
    """Write ``data/*.parquet``, ``quarantine.parquet`` and ``unpaired.parquet``; returns what the report shows.

    With ``pictures`` that gets the pairs in place of ``data``. ``notes`` are those of ``read_notes(files)`` with the
    final outcomes. The result has, with pictures, ``samples`` (random pairs of each type), ``worst`` (pairs least alike
    in colour) and ``rejects``.
    """
    if pictures is None:
        (folder / "data").mkdir()
    chosen = _chosen_to_show(notes, seed)
    shown: dict[str, list[Row]] = {name: [] for name in chosen}
    remaining = zip(notes, _files_of(notes), strict=True)
    # Of datasets, which then knows the columns of pictures.
    pairs = features_of(PAIR_COLUMNS).arrow_schema
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(pq.ParquetWriter(folder / name, features_of(columns).arrow_schema))
            for name, columns in ((QUARANTINE, QUARANTINE_COLUMNS), (UNPAIRED, UNPAIRED_COLUMNS))
        }
        for file in files:
            by_file: dict[str, list[Row]] = defaultdict(list)
            for stored in _read(file):
                note, name = next(remaining)
                row = stored | note
                if name in (QUARANTINE, UNPAIRED):
                    row["thumbnail"] = row["thumbnail"] or _thumbnail(row)
                by_file[name].append(row)
                for section, rows in shown.items():
                    if _identity(row) in chosen[section]:
                        rows.append(row)
            by_file.pop("", None)
            for name, rows in by_file.items():
                if pictures is not None and name not in writers:
                    for row in rows:
                        pictures.write(row, row["split"])
                    continue
                if name not in writers:
                    writer = pq.ParquetWriter(folder / name, pairs, **writing_options(pairs))
                    writers[name] = stack.enter_context(writer)
                writers[name].write_table(pa.Table.from_pylist(rows, schema=writers[name].schema))
    if pictures is not None:
        pictures.close(seed)
    shown["worst"].sort(key=lambda row: row["likeness"])
    shown["rejects"].sort(key=lambda row: row["reason"])
    return shown


def _files_of(notes: Sequence[Row]) -> Iterator[str]:
    """The file that each row goes to; none (``""``) for mined rows that are no pairs."""
    totals = Counter(row["split"] for row in notes if row["outcome"] == "pair")
    written: Counter[str] = Counter()
    for row in notes:
        split = row["split"]
        if row["outcome"] == "pair":
            shards = -(-totals[split] // SHARD_ROWS)
            yield f"data/{split}-{written[split] // SHARD_ROWS:05d}-of-{shards:05d}.parquet"
            written[split] += 1
        elif row["mined"]:
            yield ""
        else:
            yield QUARANTINE if row["outcome"] == "quarantined" else UNPAIRED


def _thumbnail(row: Row) -> dict[str, object] | None:
    """The thumbnail of a pair that was rejected when all rows were known."""
    if row["image"] is None:
        return None
    return thumbnail(upright(open_picture(row["image"]["bytes"])), row["source_row"])


def _identity(row: Row) -> tuple[int, bool]:
    return row["source_row"], row["mined"]


def _chosen_to_show(notes: Sequence[Row], seed: int) -> dict[str, set[tuple[int, bool]]]:
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
    chosen = {
        "samples": [row for rows in by_type.values() for row in some(rows, SHOWN_PAIRS)],
        "worst": sorted(pairs, key=lambda row: row["likeness"])[:SHOWN_WORST],
        "rejects": [row for rows in by_reason.values() for row in some(rows, each)][:SHOWN_REJECTS],
    }
    return {name: {_identity(row) for row in rows} for name, rows in chosen.items()}
