"""Files that are no data: what other programs leave beside it, and pointers of git-lfs in its place."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from training_run.lock import LOCK

#: Files and folders, in lower case, that file managers, servers and notebooks leave wherever they look. macOS puts
#: ``._photo.png`` beside ``photo.png`` on disks of other systems, Office ``~$photo.png``. A killed run leaves its lock.
_LEFT_BEHIND = {
    *".ds_store .ipynb_checkpoints .localized .directory thumbs.db ehthumbs.db desktop.ini @eadir __macosx".split(),
    LOCK,
}
#: How every pointer begins, and where it says the size of the file that it stands for (git-lfs, docs/spec.md). A
#: pointer has less than 1,024 bytes.
_POINTER = re.compile(rb"version https://(?:git-lfs\.github|hawser\.github)\.com/spec/v1\r?\n(?:.*\n)*?size (\d+)")


def is_left_behind(path: PurePath, below: PurePath | None = None) -> bool:
    """Whether another program left ``path``, or a folder of it under ``below``; nobody misses what is so called."""
    return any(name.startswith(("._", "~$")) or name.lower() in _LEFT_BEHIND for name in _names(path, below))


def is_no_data(path: PurePath, below: PurePath | None = None) -> bool:
    """Whether ``path``, or a folder of it under ``below``, is hidden or ``is_left_behind``."""
    return any(name.startswith(".") for name in _names(path, below)) or is_left_behind(path, below)


def _names(path: PurePath, below: PurePath | None) -> tuple[str, ...]:
    return (path.name,) if below is None else path.relative_to(below).parts


def pointer_fault(stored: bytes) -> str | None:
    """What to say of the content of a file that is a git-lfs pointer; None for any other, and the first KiB will do."""
    found = _POINTER.match(stored[:1024])
    if found is None:
        return None
    return f"a git-lfs pointer to {int(found[1]):,} bytes that were never fetched: run `git lfs pull` in its repository"


def why_damaged(path: Path) -> str | None:
    """What is in the place of the binary file at ``path``: see ``what_else``."""
    with path.open("rb") as file:
        return what_else(file.read(1024))


def what_else(stored: bytes) -> str | None:
    """What these are in the place of a binary file's bytes: a git-lfs pointer, nothing or a web page; None for else."""
    if not stored:
        return "empty: it was cut short when it was copied or downloaded"
    head = stored[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in head and head.startswith(b"<"):
        return "an SVG drawing, which has no pixels: save it as PNG"
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return (
            "a web page (an HTML page, such as a login or an error) that was saved in its place: download the file "
            "itself, on the Hub from /resolve/ and not from /blob/"
        )
    return pointer_fault(stored)


def check_no_pointer(path: Path) -> None:
    """Raise ``ValueError``, one line, when the file at ``path`` is a git-lfs pointer. Other files are not judged."""
    with path.open("rb") as file:
        fault = pointer_fault(file.read(1024))
    if fault:
        raise ValueError(f"{path} is {fault}")
