"""Checkpoint folders that are complete or absent: staged, flushed, sealed with a manifest, renamed, checked when read.

While it is being written it has another name (``atomic.replacing``). Its last file is the manifest, with size and
SHA-256 of every other one; the rename comes after that, and only then may older checkpoints go.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from training_run.atomic import remove, replacing, write_file

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class DamagedCheckpointError(ValueError):
    """A folder that is no whole checkpoint; the message names what is wrong with which file."""


def step_of(folder: Path) -> int | None:
    """Step of a folder named ``checkpoint-<step>``; None for any other name."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(found[1]) if found else None


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoint folders, earliest step first; other names that begin alike are not checkpoints."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and step_of(path) is not None]
    return sorted(found, key=lambda path: step_of(path) or 0)


def _hash(path: Path) -> str:
    with path.open("rb") as source:
        digest = hashlib.sha256()
        while block := source.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def seal(folder: Path) -> None:
    """Write the manifest of every file below ``folder``, which makes it complete."""
    listed = {}
    for path in _files(folder):
        listed[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _hash(path)}
    write_file(folder / MANIFEST, json.dumps({"files": listed}, indent=2) + "\n")


def verify(folder: Path) -> None:
    """Raise ``DamagedCheckpointError`` unless every file of the manifest is there, whole, and nothing else is."""
    try:
        _verify(folder)
    except OSError as error:
        raise DamagedCheckpointError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error


def _verify(folder: Path) -> None:
    if not folder.is_dir():
        raise DamagedCheckpointError(f"{folder} is not there: no complete checkpoint")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise DamagedCheckpointError(f"{folder} has no {MANIFEST}: no complete checkpoint, or one of an older version")
    try:
        listed = json.loads(manifest.read_text("utf-8"))["files"]
        wanted = {str(name): (int(facts["bytes"]), str(facts["sha256"])) for name, facts in listed.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise DamagedCheckpointError(f"{manifest} is damaged: this checkpoint cannot be trusted") from error
    there = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    for name, (size, digest) in wanted.items():
        if name not in there:
            raise DamagedCheckpointError(f"{folder / name} is missing: this checkpoint is damaged")
        found = there[name].stat().st_size
        if found != size:
            raise DamagedCheckpointError(f"{folder / name} has {found:,} bytes and not {size:,}: it is damaged")
        if _hash(there[name]) != digest:
            raise DamagedCheckpointError(f"{folder / name} is not what was written: it is damaged")
    if unknown := sorted(set(there) - set(wanted)):
        raise DamagedCheckpointError(f"{folder / unknown[0]} was not written with this checkpoint: take it out")


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder`` that ``verify`` finds whole, or None; the log names damaged ones."""
    for path in reversed(checkpoints_in(folder)):
        try:
            verify(path)
        except DamagedCheckpointError as error:
            logger.warning("skipping damaged checkpoint: %s", error)
        else:
            return path
    return None


@contextlib.contextmanager
def staged(final: Path) -> Iterator[Path]:
    """An empty folder to write a checkpoint into; it becomes ``final`` when the block ends well, else it is removed."""
    try:
        with replacing(final) as draft:
            draft.mkdir()
            yield draft
            seal(draft)
    except OSError as error:
        last = newest_whole(final.parent)
        kept = f"{last} is whole" if last else "no checkpoint was written before it"
        raise OSError(
            error.errno,
            f"{error.strerror or error}; {kept}. Make room, or keep fewer with --checkpoints_total_limit, and continue "
            "with --resume_from_checkpoint latest",
        ) from error


def prune(newest: Path, limit: int | None) -> None:
    """Delete the earliest checkpoints beside ``newest`` until ``limit`` are left; None keeps all."""
    others = [path for path in checkpoints_in(newest.parent) if path != newest]
    for path in others[: max(0, len(others) + 1 - limit)] if limit else []:
        remove(path)
