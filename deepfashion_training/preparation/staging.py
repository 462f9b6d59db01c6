"""The folder that a preparation works in until its result is complete, beside the folder that it makes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import filelock

#: Files whose content decides what a batch becomes: batches made by other code are not mixed in.
_CODE = ("images", "preparation", "garment_types.py", "data/near_duplicates.py", "models/human_parser.py")


class BusyError(ValueError):
    """Another process prepares into the same folder."""


class Staging:
    """``.<name>.preparing`` beside ``target``: finished batches, then the result, which is moved in one step.

    A context manager that holds a lock, so that two processes do not work on the same folder. ``wait`` tells whether
    to wait for the other; ``BusyError`` otherwise.
    """

    def __init__(self, target: Path, wait: bool = False) -> None:
        self.target = target
        self.folder = target.with_name(f".{target.name}.preparing")
        # Beside the target, so that whoever can write there sees the same lock.
        self._lock = filelock.FileLock(f"{self.folder}.lock", timeout=-1 if wait else 0)

    def __enter__(self) -> Staging:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise BusyError(
                f"another process is preparing {self.target}: wait for it, or choose another folder"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        # A process that waits for the removed file is let in later, finds the work done, and leaves it as it is.
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def open(self, key: str) -> bool:
        """Make the folder ready for batches under ``key``; whether it holds finished ones of an earlier run.

        What another preparation (other rows, settings or code) left there is removed.
        """
        state = self.folder / "state.json"
        wanted = {"key": key, "code": code_digest()}
        if _read(state) == wanted:
            return any(self.batches.glob("*.parquet"))
        shutil.rmtree(self.folder, ignore_errors=True)
        self.batches.mkdir(parents=True)
        draft = state.with_suffix(".tmp")
        draft.write_text(json.dumps(wanted), encoding="utf-8")
        draft.replace(state)
        return False

    def tidy(self, key: str) -> None:
        """Remove what a run that was killed just after it had put the result of ``key`` in its place left here."""
        state = _read(self.folder / "state.json")
        if isinstance(state, dict) and state.get("key") == key:
            shutil.rmtree(self.folder)

    @property
    def batches(self) -> Path:
        """Where finished batches are."""
        return self.folder / "batches"

    def batch(self, number: int) -> Path:
        """File of batch ``number``; it is there once the batch is done."""
        return self.batches / f"{number:06d}.parquet"

    def new_result(self) -> Path:
        """An empty folder for the result."""
        result = self.folder / "result"
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
        return result

    def publish(self, result: Path) -> None:
        """Put ``result`` in the place of the target, which is absent, empty or an earlier result, and tidy up."""
        earlier = self.folder / "earlier"
        shutil.rmtree(earlier, ignore_errors=True)
        if self.target.is_dir() and any(self.target.iterdir()):
            self.target.replace(earlier)
        result.replace(self.target)
        shutil.rmtree(self.folder)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def code_digest() -> str:
    """A name for the code that makes pairs."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.blake2b(digest_size=16)
    for entry in _CODE:
        place = package / entry
        for file in [place] if place.is_file() else sorted(place.glob("*.py")):
            digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
