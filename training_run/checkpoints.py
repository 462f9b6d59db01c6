"""Checkpoint folders that are complete or absent: staged, flushed, sealed with a manifest, renamed, checked when read.

A folder being written is called ``.saving-checkpoint-<step>`` and one being deleted ``.removing-...``, names that no
reader takes for a checkpoint. Its last file is the manifest, with size and SHA-256 of every other one; the rename comes
after that, and only then may older checkpoints go.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SAVING, REMOVING = ".saving-", ".removing-"


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


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on the disk and not only in the system's memory."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network file systems have none
            raise
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is old or new, whatever happens: under a hidden name, flushed, then renamed."""
    staged = path.with_name(f".{path.name}")
    try:
        with staged.open("wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        staged.replace(path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}") from error
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _hash(path: Path) -> str:
    with path.open("rb") as source:
        digest = hashlib.sha256()
        while block := source.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def seal(folder: Path) -> None:
    """Flush every file below ``folder`` and write the manifest, which makes it complete."""
    listed = {}
    for path in _files(folder):
        sync(path)
        listed[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _hash(path)}
    for path in folder.rglob("*"):
        if path.is_dir():
            sync(path)
    write_file(folder / MANIFEST, (json.dumps({"files": listed}, indent=2) + "\n").encode())


def verify(folder: Path, beside: str = "") -> None:
    """Raise ``DamagedCheckpointError`` unless every file of the manifest is there, whole, and nothing else is.

    Files that match the pattern ``beside`` may have been added later.
    """
    try:
        _verify(folder, beside)
    except OSError as error:
        raise DamagedCheckpointError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error


def _verify(folder: Path, beside: str) -> None:
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
    if unknown := sorted(name for name in set(there) - set(wanted) if not fnmatch.fnmatch(name, beside)):
        raise DamagedCheckpointError(f"{folder / unknown[0]} was not written with this checkpoint: take it out")


def newest_whole(folder: Path, beside: str = "") -> Path | None:
    """The newest checkpoint in ``folder`` that ``verify`` finds whole, or None; the log names damaged ones."""
    for path in reversed(checkpoints_in(folder)):
        try:
            verify(path, beside)
        except DamagedCheckpointError as error:
            logger.warning("passing over %s", error)
        else:
            return path
    return None


@contextlib.contextmanager
def staged(final: Path) -> Iterator[Path]:
    """An empty folder to write a checkpoint into; it becomes ``final`` when the block ends well, else it is removed."""
    draft = final.with_name(f"{SAVING}{final.name}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        publish(draft, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise _unwritable(final, as_os_error(error)) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def as_os_error(error: Exception) -> OSError:
    """``error`` itself, or what the system said where safetensors tells of it in words: "... (os error 28)"."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error))


def _unwritable(final: Path, error: OSError) -> OSError:
    last = newest_whole(final.parent)
    kept = f"; {last} is whole" if last else "; no checkpoint was written before it"
    reason = error.strerror or str(error)
    return OSError(
        error.errno,
        f"{final.name} could not be written: {reason}{kept}. Make room, or keep fewer with "
        "--checkpoints_total_limit, and continue with --resume_from_checkpoint latest",
    )


def replace_folder(final: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a folder under a hidden name, then put it in the place of ``final``."""
    draft = final.with_name(f"{SAVING}{final.name}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        write(draft)
        for path in draft.rglob("*"):
            sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        told = as_os_error(error)
        raise OSError(told.errno, f"{final} could not be written: {told.strerror or told}") from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if final.exists():
        remove(final)
    draft.rename(final)
    sync(final.parent)


def publish(draft: Path, final: Path) -> None:
    """Seal ``draft`` and let it take the place of ``final``, whether or not there is one."""
    seal(draft)
    if final.exists():
        aside = final.with_name(f"{REMOVING}{final.name}")
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
        draft.rename(final)
        shutil.rmtree(aside)
    else:
        draft.rename(final)
    sync(final.parent)


def remove(folder: Path) -> None:
    """Delete a checkpoint; at no moment is half of one to be found under its name."""
    aside = folder.with_name(f"{REMOVING}{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def prune(newest: Path, limit: int | None) -> None:
    """Delete the earliest checkpoints beside ``newest`` until ``limit`` are left; None keeps all."""
    others = [path for path in checkpoints_in(newest.parent) if path != newest]
    for path in others[: max(0, len(others) + 1 - limit)] if limit else []:
        remove(path)


def restore_replaced(folder: Path) -> None:
    """Give back its name to a whole checkpoint that a killed run was about to replace."""
    for path in folder.glob(f"{REMOVING}*"):
        final = path.with_name(path.name.removeprefix(REMOVING))
        with contextlib.suppress(DamagedCheckpointError):
            verify(path)
            if not final.exists():
                path.rename(final)


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed run was writing or deleting."""
    for path in [*folder.glob(f"{SAVING}*"), *folder.glob(f"{REMOVING}*")]:
        shutil.rmtree(path, ignore_errors=True)
