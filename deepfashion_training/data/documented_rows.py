"""The rows of one split in the documented schema: texts and types in memory, pictures read one row at a time."""

from __future__ import annotations

import logging
import random
import shlex
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image

from deepfashion_training.data.schema import PAIR_COLUMNS, PARSES
from deepfashion_training.data.source_rows import MISSING, SourceRows
from deepfashion_training.garment_types import parse_cloth_type
from deepfashion_training.images.mask_check import mask_fault
from deepfashion_training.images.masks import align_mask, mask_of_parse, read_parse
from deepfashion_training.images.pictures import MIN_SIDE, PictureError, open_picture

logger = logging.getLogger(__name__)

#: How many masks are checked before training, and the share of them that may look wrong: what looks like an inverted
#: mask can be an unusual picture, or a rare mistake.
CHECKED_MASKS, MOST_FAULTS = 64, 0.1


class DocumentedRows:
    """Rows of ``split``, numbered from 0 as they are stored; ``cache_dir`` is where ``datasets`` keeps its files.

    Raises ``ValueError``, naming ``source`` and the column or row, for a picture column that holds something else, an
    unknown ``cloth_type`` and a caption that is no text. That no column is missing has been checked before.
    """

    def __init__(self, split: datasets.Dataset, source: str, cache_dir: str | None = None) -> None:
        self._source = source
        columns = {name: name for name in (*PAIR_COLUMNS, *PARSES) if name in split.column_names}
        #: The column with label maps, where there is one.
        self.parse_column = next((name for name in PARSES if name in columns), None)
        self._has_mask = "mask" in columns
        self._rows = SourceRows([split], columns, source, cache_dir)
        self._texts = self._rows.texts()
        self.types = []
        for row, caption in enumerate(self._texts["caption"]):
            if not (caption is None or isinstance(caption, str)):
                raise ValueError(f"caption in row {row} of {source} is {caption!r}: a text is needed")
            try:
                self.types.append(parse_cloth_type(self._texts["cloth_type"][row], caption or ""))
            except ValueError as error:
                raise ValueError(f"cloth_type in row {row} of {source}: {error}") from None

    def __len__(self) -> int:
        return len(self.types)

    def group(self, row: int) -> str:
        """Who is in the picture; a group of its own for a row that does not say."""
        pid = self.provenance(row, "pid")
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
        pid, variant, seen_from = (self.provenance(row, column) for column in ("pid", "variant", view))
        seen = "_".join(str(value) for value in (variant, seen_from) if value is not None)
        return "/".join(part for part in ("" if pid is None else str(pid), seen, f"row-{row}") if part)

    def pictures(self, row: int, *columns: str) -> list[Image.Image]:
        """The decoded pictures in ``columns`` of one row; ``PictureError`` names the first broken one.

        Where the data has no masks, they are made from the label maps.
        """
        stored, decoded = self._rows.pictures([row], columns), []
        for column in columns:
            if column == "mask" and not self._has_mask:
                if (parse := self.parse(row)) is None:
                    raise PictureError(f"label map: {MISSING}")
                decoded.append(Image.fromarray(mask_of_parse(parse, self.types[row]) * np.uint8(255)))
                continue
            try:
                decoded.append(open_picture(stored[column][0], min_side=MIN_SIDE))
            except PictureError as error:
                raise PictureError(f"{column}: {error}") from error
        return decoded

    def parse(self, row: int, size: tuple[int, int] | None = None) -> np.ndarray | None:
        """The map ``[h, w]`` of the 18 ATR labels of one row, in the photo's ``size`` (w, h); None where it has none.

        Raises ``PictureError`` for one that cannot be used.
        """
        if self.parse_column is None:
            return None
        ((stored,),) = self._rows.pictures([row], [self.parse_column]).values()
        return None if stored == MISSING else read_parse(stored, size, lip=self.parse_column == "parse_lip")

    def stored_bytes(self, row: int) -> list[bytes]:
        """What is stored for ``image``, ``cloth`` and ``mask``; nothing (``b""``) where it cannot be read.

        Where the data has no masks, the label map takes the mask's place.
        """
        columns = ("image", "cloth", "mask" if self._has_mask else self.parse_column or "")
        return [b"" if isinstance(cell, str) else cell for (cell,) in self._rows.pictures([row], columns).values()]

    def check_masks(self, rows: Sequence[int]) -> None:
        """Check a sample of the masks of ``rows``; unreadable rows are left to whoever reads all rows.

        Raises ``ValueError``, with the first row and what its mask looks like, when more than ``MOST_FAULTS`` of them
        cannot be masks; fewer are named in a warning.
        """
        sample = sorted(random.Random(0).sample(list(rows), min(len(rows), CHECKED_MASKS)))
        faults = []
        for row in sample:
            try:
                photo, mask = self.pictures(row, "image", "mask")
                upright, decoded = align_mask(photo, mask)
            except PictureError:
                continue
            if fault := mask_fault(upright, mask, decoded):
                faults.append(f"row {row}: {fault}")
        if len(faults) > MOST_FAULTS * len(sample):
            raise ValueError(
                f"{self._source}: {len(faults)} of {len(sample)} checked masks cannot be masks, such as that of "
                f"{faults[0]}. prepare inverts masks where needed and leaves out rows that have none: "
                f"python -m deepfashion_training.prepare --dataset_name {shlex.quote(self._source)} --output_dir OUT"
            )
        for described in faults:
            logger.warning("%s: %s", self._source, described)
