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
from training_run.not_data import is_left_behind

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def step_of(folder: Path) -> int | None:
    """Step of a folder named ``checkpoint-<step>``; None for any other name."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(found[1]) if found else None


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoint folders, earliest step first; other names that begin alike are not checkpoints."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and step_of(path) is not None]
    return sorted(found, key=lambda path: step_of(path) or 0)


def _listing(folder: Path) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 of every file below ``folder``, apart from the manifest and what other programs left there."""
    found: dict[str, dict[str, int | str]] = {}
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    for path in sorted(path for path in files if not is_left_behind(path, folder)):
        digest = hashlib.sha256()
        with path.open("rb") as source:
            while block := source.read(2**20):
                digest.update(block)
        found[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    return found


def seal(folder: Path) -> None:
    """Write the manifest of every file below ``folder``, which makes it complete."""
    write_file(folder / MANIFEST, json.dumps({"files": _listing(folder)}, indent=2) + "\n")


def verify(folder: Path) -> None:
    """Raise ``ValueError`` unless every file of the manifest is there, whole, and nothing else is."""
    try:
        wanted = dict(json.loads((folder / MANIFEST).read_text("utf-8"))["files"])
        there = _listing(folder)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{folder} has no readable {MANIFEST}, so it is no whole checkpoint") from error
    if wrong := sorted(name for name in wanted | there if wanted.get(name) != there.get(name)):
        state = "is missing" if wrong[0] not in there else "is damaged, or was not written with this checkpoint"
        raise ValueError(f"{folder / wrong[0]} {state}")


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder`` that ``verify`` finds whole, or None; the log names damaged ones."""
    for path in reversed(checkpoints_in(folder)):
        try:
            verify(path)
        except ValueError as error:
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
        advice = f"{error.strerror}; make room, or keep fewer with --checkpoints_total_limit; then continue with "
        raise OSError(error.errno, f"{advice}--resume_from_checkpoint latest") from error


def prune(newest: Path, limit: int | None) -> None:
    """Delete the earliest checkpoints beside ``newest`` until ``limit`` are left; None keeps all."""
    others = [path for path in checkpoints_in(newest.parent) if path != newest]
    for path in others[: max(0, len(others) + 1 - limit)] if limit else []:
        remove(path)
