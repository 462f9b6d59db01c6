"""Files and folders that are written completely or not at all.

What is being written has a hidden name beside its final one, which begins with ``SAVING``. It is flushed to the disk
and renamed when it is complete. A folder that is being replaced or deleted has a name that begins with ``REMOVING``.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
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
    except (OSError, SafetensorError) as error:
        _delete(draft)
        refused = _of_the_disk(error, draft)
        if refused is None:
            raise
        raise OSError(refused.errno, f"{final} could not be written: {refused.strerror}") from error
    except BaseException:
        _delete(draft)
        raise


def put_in_place(draft: Path, final: Path) -> None:
    """Flush the file or folder ``draft`` and rename it to ``final``, whether or not there is one already."""
    for path in [draft, *draft.rglob("*")]:
        sync(path)
    if final.is_dir():  # a file is replaced by the rename itself
        with _set_aside(final):
            draft.rename(final)
    else:
        draft.replace(final)
    sync(final.parent)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a whole file (text as UTF-8) as ``replacing`` does."""
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def remove(folder: Path) -> None:
    """Delete a folder. At no moment is half of it there under its name."""
    with _set_aside(folder):
        pass


@contextlib.contextmanager
def _set_aside(folder: Path) -> Iterator[None]:
    """Rename ``folder`` for the block, delete it after that, and give it its name back after an error."""
    aside = folder.with_name(f"{REMOVING}{folder.name}")
    _delete(aside)
    folder.rename(aside)
    try:
        yield
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside)


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
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network file systems
            raise
    finally:
        os.close(handle)


def _of_the_disk(error: Exception, draft: Path) -> OSError | None:
    """``error`` as an ``OSError`` where it comes from writing ``draft``; None for an error of something else.

    safetensors reports the system's error in words: "... (os error 28)".
    """
    if isinstance(error, OSError):
        elsewhere = error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(draft)
        return None if elsewhere or error.errno is None else error
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error))
