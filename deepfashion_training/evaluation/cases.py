"""The cases of an evaluation: held-out people, each with their own garment and with another person's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from PIL import Image

from deepfashion_training.data import sampling
from deepfashion_training.data.documented_rows import DocumentedRows
from deepfashion_training.data.schema import check_documented
from deepfashion_training.data.sources import listed_pairs, open_splits, source_fingerprint
from deepfashion_training.evaluation.metrics import SSIM_WINDOW
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.layout import Box, ResizeMode, fit_box, pair_tensors, place_mask, place_picture
from deepfashion_training.images.masks import align_mask
from deepfashion_training.images.pictures import PictureError, upright
from deepfashion_training.images.regions import UnresolvedRegionError, garment_region
from deepfashion_training.models.human_parser import HumanParser


@dataclass(frozen=True)
class Case:
    """One picture to draw: the person of one row of the split in the garment of that row, or of another person's."""

    row: int
    garment_row: int
    cloth_type: int
    name: str
    garment_name: str
    group: str  # the person
    unpaired: bool  # the garment is another person's

    @property
    def type_name(self) -> str:
        """``upper``, ``lower`` or ``full``."""
        return TYPE_NAMES[self.cloth_type]

    @property
    def file(self) -> str:
        """Name of the case's pictures in the folder of a model."""
        return f"{self.row:06d}.png"


@dataclass(frozen=True)
class Truth:
    """The photo of a case at the size that the model draws at, without padding."""

    photo: np.ndarray  # uint8 [h, w, 3]
    mask: np.ndarray  # bool [h, w]: the area that the model fills in
    garment_area: np.ndarray  # bool [h, w]: the garment within it; all of it where that is not known
    area_known: bool


class Cases:
    """The rows of ``split`` of a documented dataset, of ``types``, at most ``limit`` of them (as many of each type).

    Garments are permuted within a type by ``seed``, or those of a VITON-HD or DressCode folder's unpaired list. Rows
    whose garment picture was cut out of the same photo are left out: a model could copy its pixels. ``size`` is
    (height, width) of one half of the pair.

    Raises ``ValueError``, one line, for data that cannot be opened or leaves nothing to evaluate.
    """

    def __init__(
        self,
        source: str,
        split: str,
        size: tuple[int, int],
        *,
        types: tuple[int, ...] = (1, 2, 3),
        limit: int | None = None,
        seed: int = 0,
        revision: str | None = None,
        resize_mode: ResizeMode = "pad",
    ) -> None:
        splits = open_splits(source, check_columns=check_documented, revision=revision)
        if split not in splits:
            raise ValueError(
                f"--dataset_name {source} has no split {split!r}, only {', '.join(splits)}: name one with --split"
            )
        self.source, self.split, self.size, self.resize_mode = source, split, size, resize_mode
        #: Finds the worn garment where the rows have no column ``parse``; may be set before cases are read.
        self.parser: HumanParser | None = None
        self.fingerprint = source_fingerprint(source, splits)
        lists = listed_pairs(source)
        #: VITON-HD's or DressCode's, where the rows are those of such a folder.
        self.layout = lists.layout if lists else ""
        unpaired = lists.unpaired if lists and split == "test" else None
        self._count = len(splits[split])
        #: After the rows of the split come the lines of its unpaired list: another person's garment each.
        rows = splits[split] if unpaired is None else datasets.concatenate_datasets([splits[split], unpaired])
        self.rows = DocumentedRows(rows, source)
        self.lists_unpaired = unpaired is not None
        #: Rows of the split by garment type and ``all``.
        self.listed = Counter(TYPE_NAMES[kind] for kind in self.rows.types[: self._count])
        self.listed["all"] = self._count
        self.has_parse = self.rows.parse_column is not None
        #: The cases of both settings. People of a type with too few to find another garment have no unpaired case.
        self.paired, self.unpaired = self._choose(types, limit, seed)
        if unpaired is not None:
            self.unpaired = self._listed_cases(rows["image"][:], types)

    def _choose(self, types: tuple[int, ...], limit: int | None, seed: int) -> tuple[list[Case], list[Case]]:
        data = self.rows
        wanted = [row for row, kind in enumerate(data.types[: self._count]) if kind in types]
        rows = [row for row in wanted if data.provenance(row, "garment_source") != "same_photo"]
        self.same_photo = len(wanted) - len(rows)
        if not rows:
            raise ValueError(
                f"--dataset_name {self.source}: split {self.split!r} has no row to evaluate on "
                f"({len(data)} rows, {self.same_photo} with garments cut out of the same photo)"
            )
        chosen = sampling.stratified_subset([data.types[row] for row in rows], limit or len(rows), seed, equally=True)
        rows = [rows[position] for position in chosen]
        people = [data.group(row) for row in rows]
        partners = sampling.unpaired_partners([data.types[row] for row in rows], people, seed)

        crossed = [
            self._case(row, rows[partner], unpaired=True)
            for row, partner, person in zip(rows, partners, people, strict=True)
            if people[partner] != person
        ]
        return [self._case(row, row, unpaired=False) for row in rows], crossed

    def _listed_cases(self, photos: Sequence[str], types: tuple[int, ...]) -> list[Case]:
        """The lines of the unpaired list whose people are among the paired cases, or in no line of that list.

        ``photos`` are the paths of all rows. A case has the row of its person, from which its noise and its file's name
        come; a further one of the same person has the row of its line.
        """
        first = {photo: row for row, photo in reversed(list(enumerate(photos[: self._count])))}
        chosen, used, cases = {case.row for case in self.paired}, set[int](), []
        for line in range(self._count, len(photos)):
            row = first.get(photos[line], line)
            if self.rows.types[line] in types and (row in chosen or row == line):
                cases.append(self._case(line if row in used else row, line, unpaired=True))
                used.add(row)
        return cases

    def _case(self, row: int, garment_row: int, *, unpaired: bool) -> Case:
        data = self.rows
        return Case(
            row=row,
            garment_row=garment_row,
            cloth_type=data.types[row],
            name=data.name(row, "view"),
            garment_name=data.name(garment_row, "garment_view"),
            group=data.group(row),
            unpaired=unpaired,
        )

    def sample(self, case: Case) -> tuple[dict[str, Any], Box]:
        """The tensors of ``pair_tensors``, and where the photo lies within its half of the pair; the rest is padding.

        Raises ``PictureError`` for a picture that cannot be used.
        """
        photo, mask = self.rows.pictures(case.row, "image", "mask")
        (garment,) = self.rows.pictures(case.garment_row, "cloth")
        shown = upright(photo)
        box = fit_box((shown.height, shown.width), self.size, self.resize_mode)
        return pair_tensors(photo, garment, mask, self.size, self.resize_mode), box

    def garment(self, case: Case) -> Image.Image:
        """The garment picture that is tried on, upright and in RGB."""
        return upright(self.rows.pictures(case.garment_row, "cloth")[0])

    def truth(self, case: Case) -> Truth:
        """The person as photographed. Raises ``PictureError`` for an unusable picture, or a mask of everything."""
        stored, given = self.rows.pictures(case.row, "image", "mask")
        photo, mask = align_mask(stored, given)
        box = fit_box((photo.height, photo.width), self.size, self.resize_mode)
        if min(box.height, box.width) < SSIM_WINDOW:
            raise PictureError(f"the photo is so narrow that it has {box.width}x{box.height} pixels in the pair")
        inside = (slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
        placed = place_mask(mask, self.size, self.resize_mode)[inside] > 0
        if not placed.any() or placed.all():
            raise PictureError(f"mask {'covers the whole photo' if placed.any() else 'is empty'} in the pair's size")
        area = self._garment_area(case, photo, mask)
        garment_area = placed if area is None else place_mask(area, self.size, self.resize_mode)[inside] > 0
        known = area is not None and bool(garment_area.any())
        levels = place_picture(photo, self.size, self.resize_mode).transpose(1, 2, 0)[inside]
        return Truth(np.ascontiguousarray(levels), placed, garment_area if known else placed, known)

    def _garment_area(self, case: Case, photo: Image.Image, mask: np.ndarray) -> np.ndarray | None:
        """Pixels of the worn garment within ``mask``, uint8 ``[h, w]``; None where they are not known.

        They come from the column ``parse`` (the 18 ATR labels), or from ``parser`` where the data has none.
        """
        parse = self.rows.parse(case.row, photo.size)
        if self.parser is not None and not self.has_parse:
            parse = self.parser.parse([photo])[0]
        if parse is None:
            return None
        try:
            return garment_region(mask, case.cloth_type, "", photo, None, parse).mask
        except UnresolvedRegionError:
            return None
