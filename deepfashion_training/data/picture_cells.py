"""Picture cells of a dataset, undecoded: the bytes that a row stores, or those of the file that it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from deepfashion_training.pairs.pictures import PictureError

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


def stored_bytes(cell: dict[str, Any] | None) -> bytes:
    """The bytes of a picture cell; those of its file where it holds a path only.

    Raises ``PictureError`` for a cell without either, or whose file cannot be read.
    """
    if cell is not None and cell["bytes"]:
        return cell["bytes"]
    if cell is not None and cell["bytes"] is None and cell["path"]:
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise PictureError(f"{error.strerror or error}: {error.filename}") from error
    raise PictureError("missing: the row holds no bytes")
