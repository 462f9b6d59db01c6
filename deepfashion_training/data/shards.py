"""Writing a split as numbered parquet files that ``datasets.load_dataset`` finds, a row group at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def writing_options(schema: pa.Schema) -> dict[str, Any]:
    """How pyarrow writes rows with pictures: these are compressed already, and no two of them are the same."""
    texts = [column.name for column in schema if pa.types.is_string(column.type)]
    return {"compression": "none", "use_dictionary": texts, "write_statistics": texts}


class ShardWriter:
    """Streams ``total`` rows into ``folder/<split>-<k>-of-<n>.parquet``; no file when there are none.

    ``schema`` is that of ``datasets.Features.arrow_schema``, so that picture columns are known as such. A file has
    ``shard_rows`` rows and is written in row groups of ``group_rows``, which are all that is held in memory. The same
    rows give the same bytes, however they are divided among the tables that are added.
    """

    def __init__(
        self, folder: Path, split: str, total: int, schema: pa.Schema, *, shard_rows: int, group_rows: int
    ) -> None:
        count = -(-total // shard_rows)
        self._files = [folder / f"{split}-{shard:05d}-of-{count:05d}.parquet" for shard in range(count)]
        self._schema, self._shard_rows, self._group_rows = schema, shard_rows, group_rows
        self._waiting: list[pa.Table] = []
        self._written = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        """Append rows that have the columns of the schema."""
        self._waiting.append(table.select(self._schema.names).cast(self._schema))
        while sum(map(len, self._waiting)) >= self._next_group():
            self._flush(self._next_group())

    def close(self) -> None:
        """Write what is left and close the last file."""
        self._flush(sum(map(len, self._waiting)))
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _next_group(self) -> int:
        return min(self._group_rows, self._shard_rows - self._written % self._shard_rows)

    def _flush(self, rows: int) -> None:
        if rows == 0:
            return
        waiting = pa.concat_tables(self._waiting)
        if self._writer is None:
            file = self._files[self._written // self._shard_rows]
            self._writer = pq.ParquetWriter(file, self._schema, **writing_options(self._schema))
        self._writer.write_table(waiting.slice(0, rows).combine_chunks())
        self._waiting = [waiting.slice(rows)] if rows < len(waiting) else []
        self._written += rows
        if self._written % self._shard_rows == 0:
            self._writer.close()
            self._writer = None
