"""Files that are no data: what other programs leave beside it, and pointers of git-lfs in its place."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

#: Files and folders, in lower case, that file managers, servers and notebooks leave beside data. Names that begin with
#: a dot (``.DS_Store``, ``._photo.png``, ``.ipynb_checkpoints``) are theirs, too.
_LEFT_BEHIND = {"thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx", "$recycle.bin", "#recycle"}
#: How every pointer begins, and where it says the size of the file that it stands for (git-lfs, docs/spec.md). A
#: pointer has less than 1,024 bytes.
_POINTER = re.compile(rb"version https://(?:git-lfs\.github|hawser\.github)\.com/spec/v1\r?\n(?:.*\n)*?size (\d+)")


def is_left_behind(path: PurePath, below: PurePath | None = None) -> bool:
    """Whether another program left ``path``, or a folder of it under ``below``, beside the data."""
    names = (path if below is None else path.relative_to(below)).parts[0 if below else -1 :]
    return any(name.startswith(".") or name.lower() in _LEFT_BEHIND for name in names)


def pointer_fault(stored: bytes) -> str | None:
    """What to say of the content of a file that is a git-lfs pointer; None for any other, and the first KiB will do."""
    found = _POINTER.match(stored[:1024])
    if found is None:
        return None
    return f"a git-lfs pointer to {int(found[1]):,} bytes that were never fetched: run `git lfs pull` in its repository"


def check_no_pointer(path: Path) -> None:
    """Raise ``ValueError``, one line, when the file at ``path`` is a git-lfs pointer. Other files are not judged."""
    with path.open("rb") as file:
        fault = pointer_fault(file.read(1024))
    if fault:
        raise ValueError(f"{path} is {fault}")
