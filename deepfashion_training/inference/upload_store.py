"""Pictures that people chose, kept on the server under random names: a browser never names a file by its path."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from deepfashion_training.inference.result_files import read_picture

#: Longest file name that a message repeats.
_SHOWN = 60


@dataclass(frozen=True)
class Picked:
    """A picture on the server, and the ``name`` that people know it by."""

    path: Path
    name: str

    def read(self, what: str) -> Image.Image:
        """The picture as it is stored, see ``read_picture``; ``ValueError`` names it by ``name``, never by ``path``."""
        try:
            return read_picture(self.path, what)
        except ValueError as error:
            raise ValueError(str(error).replace(str(self.path), self.name)) from error


class Shelf:
    """Pictures by random names; the ``room`` newest uploads are kept, and all that the page itself brings."""

    def __init__(self, room: int = 500) -> None:
        self.room = room
        self._kept: dict[str, Picked] = {}
        self._uploads: OrderedDict[str, Picked] = OrderedDict()
        self._lock = threading.Lock()  # the page's functions run in threads

    def put(self, picked: Picked, *, keep: bool = False) -> str:
        """Keep ``picked``; returns its name. With ``keep`` it never has to make room."""
        name = secrets.token_urlsafe(12)
        with self._lock:
            if keep:
                self._kept[name] = picked
            else:
                self._uploads[name] = picked
                while len(self._uploads) > self.room:
                    self._uploads.popitem(last=False)
        return name

    def get(self, name: object, what: str) -> Picked:
        """The picture of that name; ``ValueError`` where there is none, ``what`` (such as ``person``) is missing."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"no {what} yet: upload a picture or pick one of the examples")
        with self._lock:
            found = self._kept.get(name) or self._uploads.get(name)
        if found is None or not found.path.is_file():
            raise ValueError(f"the server no longer has the picture of the {what}: choose it again")
        return found


def uploaded(payload: object, folder: Path, what: str) -> Picked:
    """The file of an upload as the page's file field sends it, ``{"path": ..., "orig_name": ...}``.

    What the browser sends can be forged: ``ValueError`` for anything that is not a file under ``folder``, where the
    server puts what people upload. ``what`` is ``person`` or ``garment``. The picture is not opened here.
    """
    path = payload.get("path") if isinstance(payload, Mapping) else None
    if not isinstance(path, str) or not path:
        raise ValueError(f"no {what} yet: upload a picture or pick one of the examples")
    assert isinstance(payload, Mapping)
    if not inside(path, folder) or not Path(path).is_file():
        raise ValueError(f"this is no picture of the {what} that was uploaded here: upload it again")
    return Picked(Path(path).resolve(), shown_name(payload.get("orig_name")))


def inside(path: str, folder: Path) -> bool:
    """Whether ``path``, once links and ``..`` are resolved, lies under ``folder``."""
    try:
        return Path(path).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a null byte, a loop of links (before Python 3.13)
        return False


def shown_name(name: Any) -> str:
    """The name of a file that somebody uploads, without folders and control characters, cut where it is long."""
    plain = "".join(sign for sign in str(name or "") if sign.isprintable()).replace("\\", "/").rpartition("/")[2]
    return (plain if len(plain) <= _SHOWN else f"{plain[: _SHOWN - 1]}…") or "picture"
