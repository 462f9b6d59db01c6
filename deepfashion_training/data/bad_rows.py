"""The ledger of unreadable rows, shared by the processes that read a dataset."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any


class TooManyBadRowsError(ValueError):
    """More rows are unreadable than ``max_bad_rows`` allows. The message is one line."""


class BadRowLedger:
    """Rows that could not be used and why, written by any process, read by all.

    A JSON-lines file: ``file``, which the ranks of a run on one machine then share, or one in a temporary directory.
    Each entry is a single write to a file opened for appending, so entries of several processes do not mix. Pickled
    copies write to the same file. The process that made a temporary directory removes it.
    """

    def __init__(self, file: Path | None = None) -> None:
        if file is None:
            folder = tempfile.mkdtemp(prefix="bad_rows_")
            file = Path(folder, "bad_rows.jsonl")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)  # not in worker processes
        self._file = file

    def record(self, row: int, reason: str) -> None:
        """Note that ``row`` was unusable for ``reason``."""
        entry = {"row": row, "reason": reason[:400]}  # short, so that it fits into one write
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as ledger:
            ledger.write(json.dumps(entry) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """One entry per row in ascending order, whichever process met it and however often."""
        if not self._file.exists():
            return []
        by_row: dict[int, dict[str, Any]] = {}
        for line in self._file.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            by_row.setdefault(entry["row"], entry)
        return [by_row[row] for row in sorted(by_row)]
