"""The rows of one split in the documented schema: texts and types in memory, pictures read one row at a time."""

from __future__ import annotations

import logging
import random
import shlex
from collections.abc import Sequence
from typing import Any

import datasets
from PIL import Image

from deepfashion_training.data.picture_cells import picture_roots, stored_bytes, undecoded
from deepfashion_training.data.schema import PROVENANCE_COLUMNS
from deepfashion_training.garment_types import parse_cloth_type
from deepfashion_training.images.mask_check import mask_fault
from deepfashion_training.images.masks import align_mask
from deepfashion_training.images.pictures import MIN_SIDE, PictureError, open_picture

logger = logging.getLogger(__name__)

PICTURE_COLUMNS = ("image", "cloth", "mask")
#: How many masks are looked at before anything expensive begins, and the share of them that may look wrong: what looks
#: like an inverted mask can be a rare picture, or a rare mistake.
MASKS_LOOKED_AT, FEW = 64, 0.1


class DocumentedRows:
    """Rows of ``split``, numbered from 0 as they are stored.

    ``datasets`` is kept from decoding pictures, so that one broken file concerns one row and not the whole batch.
    Raises ``ValueError``, naming ``source`` and the row, for a picture column that holds something else, a
    ``cloth_type`` that is none and a caption that is no text. The columns have been checked before. ``cache_dir`` is
    where ``datasets`` keeps its files, if not where it usually does.
    """

    def __init__(self, split: datasets.Dataset, source: str, cache_dir: str | None = None) -> None:
        self._source = source
        self._roots = picture_roots(source, cache_dir)
        self._pictures = undecoded(split, PICTURE_COLUMNS, source)
        texts = [name for name in ("caption", *PROVENANCE_COLUMNS) if name in split.column_names]
        # Selecting first keeps Arrow from touching a single picture.
        self._texts = split.select_columns(texts).with_format(None)[:]
        self.types = self._read_types(split)
        self._check_captions()

    def __len__(self) -> int:
        return len(self.types)

    @property
    def has_pids(self) -> bool:
        """Whether the rows say who is in the picture."""
        return "pid" in self._texts

    def group(self, row: int) -> str:
        """Who is in the picture; a group of its own for a row that does not say."""
        pid = self._texts["pid"][row] if self.has_pids else None
        return f"row {row}" if pid is None else f"pid {pid}"

    def caption(self, row: int) -> str:
        """Caption of the garment; an empty string where the row has none."""
        return self._texts["caption"][row] or ""

    def provenance(self, row: int, column: str) -> Any:
        """What ``column`` of the provenance says of a row; None where the data has no such column."""
        return self._texts[column][row] if column in self._texts else None

    def name(self, row: int, view: str) -> str:
        """A readable name such as ``id_00000001/01_1_front/row-12``, with whatever provenance there is.

        ``view`` is the provenance column to name: ``view`` of the photo or ``garment_view``.
        """
        cells = {column: self._texts[column][row] for column in ("pid", "variant", view) if column in self._texts}
        seen = "_".join(str(cells[column]) for column in ("variant", view) if cells.get(column) is not None)
        pid = "" if cells.get("pid") is None else str(cells["pid"])
        return "/".join(part for part in (pid, seen, f"row-{row}") if part)

    def picture(self, row: int, column: str) -> Image.Image:
        """The decoded picture in ``column`` (see ``PICTURE_COLUMNS``); ``PictureError`` names the column."""
        return self.pictures(row, (column,))[0]

    def pictures(self, row: int, columns: tuple[str, ...]) -> list[Image.Image]:
        """The decoded pictures in ``columns`` of one row; ``PictureError`` names the first broken one."""
        cells = self._pictures[row]
        return [self._decoded(cells[column], column) for column in columns]

    def stored_bytes(self, row: int) -> list[bytes]:
        """What is stored for each of ``PICTURE_COLUMNS``, undecoded; nothing (``b""``) where it cannot be read."""
        cells = self._pictures[row]
        stored = []
        for column in PICTURE_COLUMNS:
            try:
                stored.append(stored_bytes(cells[column], self._roots))
            except PictureError:
                stored.append(b"")
        return stored

    def check_masks(self, rows: Sequence[int]) -> None:
        """Look at a sample of the masks of ``rows``; a row that cannot be read is left for those who read them all.

        Raises ``ValueError``, with the first row and what its mask looks like, when more than ``FEW`` of them cannot be
        masks; fewer are named in a warning.
        """
        sample = sorted(random.Random(0).sample(list(rows), min(len(rows), MASKS_LOOKED_AT)))
        faults = []
        for row in sample:
            try:
                photo, mask = self.pictures(row, ("image", "mask"))
                upright, decoded = align_mask(photo, mask)
            except PictureError:
                continue
            if fault := mask_fault(upright, mask, decoded):
                faults.append(f"row {row}: {fault}")
        if len(faults) > FEW * len(sample):
            raise ValueError(
                f"{self._source}: {len(faults)} of {len(sample)} masks that were looked at cannot be masks, such as "
                f"that of {faults[0]}. prepare turns inverted masks and leaves out rows that have none: "
                f"python -m deepfashion_training.prepare --dataset_name {shlex.quote(self._source)} --output_dir OUT"
            )
        for told in faults:
            logger.warning("%s: %s", self._source, told)

    def _read_types(self, split: datasets.Dataset) -> list[int]:
        values = split.select_columns(["cloth_type"]).with_format(None)[:]["cloth_type"]
        feature = split.features["cloth_type"]
        if isinstance(feature, datasets.ClassLabel):
            values = [None if value is None else feature.int2str(value) for value in values]
        numbers = []
        for row, value in enumerate(values):
            try:
                numbers.append(parse_cloth_type(value))
            except ValueError as error:
                raise ValueError(f"cloth_type in row {row} of {self._source}: {error}") from None
        return numbers

    def _check_captions(self) -> None:
        for row, value in enumerate(self._texts["caption"]):
            if not (value is None or isinstance(value, str)):
                raise ValueError(f"caption in row {row} of {self._source} is {value!r}: a text is needed")

    def _decoded(self, cell: dict[str, Any] | None, column: str) -> Image.Image:
        try:
            return open_picture(stored_bytes(cell, self._roots), min_side=MIN_SIDE)
        except PictureError as error:
            raise PictureError(f"{column}: {error}") from error
