"""Files and folders that are written completely or not at all.

What is being written has a hidden name beside its final one, which begins with ``SAVING``. It is flushed to the disk
and renamed when it is complete. A folder that is being replaced or deleted has a name that begins with ``REMOVING``.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
from safetensors import SafetensorError

SAVING, REMOVING = ".saving-", ".removing-"


@contextlib.contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """A path to write a file or a folder to. It takes the place of ``final`` when the block ends without an error.

    Nothing is at that path yet, and it ends like ``final``, so that a file's format can follow from its name. After an
    error it is deleted and ``final`` is what it was. Raises ``OSError`` naming ``final`` when the disk refuses.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f"{SAVING}{os.getpid()}-{final.name}")
    for left in final.parent.glob(f"{SAVING}*-{glob.escape(final.name)}"):
        number = left.name.removeprefix(SAVING).partition("-")[0]
        if left == draft or (number.isdigit() and not psutil.pid_exists(int(number))):  # of a process that was killed
            _delete(left)
    try:
        yield draft
        put_in_place(draft, final)
    except (OSError, SafetensorError) as error:  # the second is how safetensors reports a full disk
        reason = getattr(error, "strerror", None) or error
        raise OSError(getattr(error, "errno", None) or errno.EIO, f"{final} could not be written: {reason}") from error
    finally:
        _delete(draft)


def put_in_place(draft: Path, final: Path) -> None:
    """Flush the file or folder ``draft`` and rename it to ``final``, whether or not there is one already."""
    for path in [draft, *draft.rglob("*")]:
        sync(path)
    if final.is_dir():
        aside = _set_aside(final)
        draft.rename(final)
        shutil.rmtree(aside)
    else:
        draft.replace(final)
    sync(final.parent)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a whole file (text as UTF-8) as ``replacing`` does."""
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def remove(folder: Path) -> None:
    """Delete a folder. At no moment is half of it there under its name."""
    shutil.rmtree(_set_aside(folder))


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"{REMOVING}{folder.name}")
    _delete(aside)
    return folder.rename(aside)


def clear_leftovers(folder: Path) -> None:
    """Delete what a process that was killed was writing to ``folder`` or deleting there."""
    for path in [*folder.glob(f"{SAVING}*"), *folder.glob(f"{REMOVING}*")]:
        _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on the disk and not only in the system's memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some network file systems cannot flush folders
            raise
    finally:
        os.close(handle)
