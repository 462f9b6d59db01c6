"""The rows of a dataset under canonical names: texts in memory, pictures read in batches and not kept."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from deepfashion_training.data.picture_cells import picture_roots, stored_bytes, undecoded
from deepfashion_training.images.pictures import PictureError

PICTURES = ("image", "mask", "cloth")


class SourceRows:
    """Rows of all ``splits``, one after another, numbered from 0.

    ``columns`` maps canonical names (see ``pairs.schema``) to the dataset's. A pickled copy reads the same rows in
    another process. Raises ``ValueError``, naming ``source``, for a picture column that holds something else.
    """

    def __init__(self, splits: Mapping[str, datasets.Dataset], columns: Mapping[str, str], source: str) -> None:
        wanted = list(dict.fromkeys(columns.values()))
        parts = [split.select_columns(wanted) for split in splits.values()]
        if odd := [name for name, part in zip(splits, parts, strict=True) if part.features != parts[0].features]:
            raise ValueError(f"{source}: split {odd[0]} has columns of other types than {next(iter(splits))}")
        rows = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
        self.splits = tuple(splits)
        self._pictures = {name: column for name, column in columns.items() if name in PICTURES}
        self._texts = {name: column for name, column in columns.items() if name not in PICTURES}
        self._rows = rows.with_format(None)
        self._length = len(rows)
        self._roots = picture_roots(source)
        # Pickled, it is a list of files. Opened for each batch and closed after it, their memory-mapped pages do not
        # add up to the size of the dataset.
        self._stored = pickle.dumps(undecoded(rows, list(self._pictures.values()), source))

    def __len__(self) -> int:
        return self._length

    @property
    def has_cloth(self) -> bool:
        """Whether the rows bring a garment picture."""
        return "cloth" in self._pictures

    @property
    def stored_size(self) -> int:
        """Bytes of the files that hold the rows; 0 where they are in memory."""
        files = {Path(file["filename"]) for file in pickle.loads(self._stored).cache_files}  # our own bytes
        return sum(file.stat().st_size for file in files)

    def texts(self) -> dict[str, list[Any]]:
        """Every column that holds no picture, by canonical name."""
        columns = list(dict.fromkeys(self._texts.values()))
        cells = self._rows.select_columns(columns)[:]
        values = {column: _class_names(self._rows.features[column], cells[column]) for column in columns}
        return {name: values[column] for name, column in self._texts.items()}

    def pictures(self, rows: Sequence[int]) -> dict[str, list[bytes | str]]:
        """The stored bytes of ``rows`` in each picture column, by canonical name; a ``str`` says why there are none."""
        stored = pickle.loads(self._stored)  # bytes of this object's own making
        cells = stored[list(rows)]
        return {
            name: [_bytes_or_reason(cell, self._roots) for cell in cells[column]]
            for name, column in self._pictures.items()
        }


def _class_names(feature: Any, values: list[Any]) -> list[Any]:
    if isinstance(feature, datasets.ClassLabel):
        return [None if value is None else feature.int2str(value) for value in values]
    return values


def _bytes_or_reason(cell: Any, roots: Sequence[Path]) -> bytes | str:
    try:
        return stored_bytes(cell, roots)
    except PictureError as error:
        return str(error)
