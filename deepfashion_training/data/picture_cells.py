"""Picture cells of a dataset, undecoded: the bytes that a row stores, or those of the file that it names."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import constants

from deepfashion_training.images.pictures import PictureError

#: Arrow types besides ``Image`` that can hold a picture: its bytes, or the path of its file.
_PICTURE_VALUES = ("binary", "large_binary", "string", "large_string")


def undecoded(split: datasets.Dataset, columns: Sequence[str], source: str) -> datasets.Dataset:
    """The picture ``columns`` of ``split`` as ``{"bytes", "path"}``, kept from being decoded.

    Raises ``ValueError``, naming ``source``, for a column that holds something else.
    """
    pictures = split.select_columns(list(columns)).with_format(None)
    for column in columns:
        feature = pictures.features[column]
        stored_as_value = isinstance(feature, datasets.Value) and feature.dtype in _PICTURE_VALUES
        stored_as_struct = isinstance(feature, dict) and "bytes" in feature
        if not (isinstance(feature, datasets.Image) or stored_as_value or stored_as_struct):
            raise ValueError(f"column {column!r} of {source} holds {feature}: pictures are needed")
        pictures = pictures.cast_column(column, datasets.Image(decode=False))
    return pictures


def picture_roots(source: str, cache_dir: str | None = None) -> tuple[Path, ...]:
    """Folders that picture files of ``source`` may lie in: its own, or the caches of a Hub dataset."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return (folder.resolve(),)
    caches = (cache_dir, datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
    return tuple(Path(cache).expanduser().resolve() for cache in caches if cache)


def stored_bytes(cell: dict[str, Any] | None, roots: Sequence[Path]) -> bytes:
    """The bytes of a picture cell; those of its file where it holds a path only, which may begin at the first root.

    Raises ``PictureError`` for a cell without either, and for a file that cannot be read, is no regular one or, once
    links and ``..`` are resolved, lies outside of ``roots``: a dataset must not read what else is on this machine.
    """
    if cell is not None and cell["bytes"]:
        return cell["bytes"]
    if cell is not None and cell["bytes"] is None and cell["path"]:
        return _read(cell["path"], roots)
    raise PictureError("missing: the row holds no bytes")


def _read(name: str, roots: Sequence[Path]) -> bytes:
    try:
        path = (roots[0] / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links (before Python 3.13), a zero byte
        raise PictureError(f"the file {name!r}: {error}") from error
    if not any(path.is_relative_to(root) for root in roots):
        raise PictureError(f"the file {name!r} leaves the data root {roots[0]}")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe may never end
            raise PictureError(f"the file {name!r} is a folder, pipe or device")
        return path.read_bytes()
    except OSError as error:
        raise PictureError(f"{error.strerror or error}: {name!r}") from error
