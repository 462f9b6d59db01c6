"""Replacing attributes for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_ABSENT = object()


@contextlib.contextmanager
def patched(target: Any, *, create: bool = False, **replacements: Any) -> Iterator[None]:
    """Replace attributes of a module or class while the block runs, and put the originals back however it ends.

    Raises ``AttributeError``, and replaces nothing, for a name that is not there; with ``create`` it is added instead
    and deleted afterwards. A failure while replacing, or while putting one original back, leaves no other replaced.
    """
    for name in replacements:
        if not create:
            getattr(target, name)
    with contextlib.ExitStack() as restore:
        for name, replacement in replacements.items():
            restore.callback(_put_back, target, name, vars(target).get(name, _ABSENT))
            setattr(target, name, replacement)
        yield


def _put_back(target: Any, name: str, original: Any) -> None:
    """Set what ``target`` itself held, so that a static method stays one; delete what was inherited or absent."""
    if original is not _ABSENT:
        setattr(target, name, original)
    elif name in vars(target):
        delattr(target, name)
