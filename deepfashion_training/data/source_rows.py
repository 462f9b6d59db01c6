"""The rows of a dataset under the names that this project uses, and their pictures as stored bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import constants

from deepfashion_training.data.schema import PARSES
from deepfashion_training.images.pictures import PictureError
from training_run.hub import local_path

#: Columns that hold pictures.
PICTURES = ("image", "cloth", "mask", *PARSES)
#: What is said of a cell without a picture.
MISSING = "missing: the row holds no bytes"
#: Arrow types besides ``Image`` that can hold a picture: its bytes, or the path of its file.
_PICTURE_VALUES = ("binary", "large_binary", "string", "large_string")


class SourceRows:
    """Rows of all ``splits``, one after another, numbered from 0.

    ``columns`` maps names (see ``data.schema``) to the dataset's, ``cache_dir`` is where ``datasets`` keeps its files.
    A pickled copy reads the same rows in another process. Raises ``ValueError``, naming ``source``, for a picture
    column that holds something else.
    """

    def __init__(
        self, splits: Sequence[datasets.Dataset], columns: Mapping[str, str], source: str, cache_dir: str | None = None
    ) -> None:
        wanted = list(dict.fromkeys(columns.values()))
        self._rows = datasets.concatenate_datasets([split.select_columns(wanted) for split in splits]).with_format(None)
        self._pictures = {name: column for name, column in columns.items() if name in PICTURES}
        self._texts = {name: column for name, column in columns.items() if name not in PICTURES}
        self._stored = undecoded(self._rows, list(self._pictures.values()), source)
        self._roots = picture_roots(source, cache_dir)

    def texts(self) -> dict[str, list[Any]]:
        """Every column that holds no picture; class labels by their names, where they have one."""
        # Selecting first keeps Arrow from touching a single picture.
        cells = self._rows.select_columns(list(dict.fromkeys(self._texts.values())))[:]
        for column, values in cells.items():
            feature = self._rows.features[column]
            if isinstance(feature, datasets.ClassLabel):
                names = dict(enumerate(feature.names))
                cells[column] = [names.get(value, value) for value in values]
        return {name: cells[column] for name, column in self._texts.items()}

    def pictures(self, rows: Sequence[int], names: Collection[str] = PICTURES) -> dict[str, list[bytes | str]]:
        """The stored bytes of ``rows`` in those of ``names`` that there are; a ``str`` says why there are none."""
        cells = self._stored[list(rows)]
        columns = {name: column for name, column in self._pictures.items() if name in names}
        return {name: [self._bytes(cell) for cell in cells[column]] for name, column in columns.items()}

    def _bytes(self, cell: Any) -> bytes | str:
        try:
            return stored_bytes(cell, self._roots)
        except PictureError as error:
            return str(error)


def undecoded(split: datasets.Dataset, columns: Sequence[str], source: str) -> datasets.Dataset:
    """The picture ``columns`` of ``split`` as ``{"bytes", "path"}``, without decoding them.

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
    folder = local_path(source)
    if folder.is_dir():
        return (folder.resolve(),)
    caches = (cache_dir, datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
    return tuple(local_path(cache).resolve() for cache in caches if cache)


def stored_bytes(cell: dict[str, Any] | None, roots: Sequence[Path]) -> bytes:
    """The bytes of a picture cell; those of its file where it holds a path only, relative to the first root.

    Raises ``PictureError`` for a cell without either, and for a file that cannot be read or, once links and ``..`` are
    resolved, lies outside of ``roots``: a dataset must not read what else is on this machine.
    """
    if cell is not None and cell["bytes"]:
        return cell["bytes"]
    if cell is None or cell["bytes"] is not None or not cell["path"]:
        raise PictureError(MISSING)
    name = cell["path"]
    try:
        path = (roots[0] / name).resolve()
        inside = any(path.is_relative_to(root) for root in roots)
        stored = path.read_bytes() if inside and path.is_file() else None  # reading a pipe may never end
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a zero byte
        raise PictureError(f"the file {name!r}: {error}") from error
    if stored is None:
        problem = "is no file" if inside else f"leaves the data root {roots[0]}"
        raise PictureError(f"the file {name!r} {problem}")
    return stored
