"""DeepFashionDataset: documented garment/person rows to the sample dict that upstream scripts read."""

from __future__ import annotations

import hashlib
import logging
import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
from torch.utils.data import Dataset

from deepfashion_training.data import sampling
from deepfashion_training.data.bad_rows import BadRowLedger, TooManyBadRowsError
from deepfashion_training.data.documented_rows import DocumentedRows
from deepfashion_training.data.schema import check_documented
from deepfashion_training.data.sources import open_splits
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.layout import RESIZE_MODES, ResizeMode, pair_tensors
from deepfashion_training.images.pictures import PictureError

__all__ = ["DatasetOptions", "DeepFashionDataset", "TooManyBadRowsError"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetOptions:
    """What a ``DeepFashionDataset`` needs to know beyond the five arguments that upstream scripts pass.

    Raises ``ValueError`` for a value out of range.
    """

    train_split: str = "train"
    validation_split: str = "validation"
    validation_fraction: float = 0.05
    """Share of the groups (people, else rows) held out of the train split where the data has no validation split."""
    split_seed: int = 0
    """Decides the derived split, the subsets below and unpaired partners."""
    max_train_samples: int | None = None
    """Use this many rows, of all garment types in proportion and at least one of each."""
    max_validation_samples: int | None = None
    cloth_types: tuple[int, ...] = (1, 2, 3)
    """Garment types to keep: 1 upper, 2 lower, 3 full body."""
    balance_cloth_types: bool = False
    """Whether ``sampling_weights`` gives every garment type the same mass."""
    resize_mode: ResizeMode = "pad"
    """``pad`` keeps the aspect with the picture's background colour, ``stretch`` fills the frame."""
    max_bad_rows: float = 0.01
    """Share of unreadable rows above which reading stops."""
    revision: str | None = None
    """Revision of a Hub dataset."""
    cache_dir: str | None = None
    """Where ``datasets`` keeps its files."""
    ledger_dir: str | None = None
    """Folder in which the ranks of a run share the ledger of unreadable rows; each keeps its own where None."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction {self.validation_fraction}: use a share between 0 and 1")
        for name in ("max_train_samples", "max_validation_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: use 1 or more, or leave it out for all rows")
        if not self.cloth_types or not set(self.cloth_types) <= set(TYPE_NAMES):
            raise ValueError(f"cloth_types {self.cloth_types}: use one or more of {tuple(TYPE_NAMES)}")
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode {self.resize_mode!r}: use {' or '.join(RESIZE_MODES)}")
        if not 0 <= self.max_bad_rows <= 1:
            raise ValueError(f"max_bad_rows {self.max_bad_rows}: use a share from 0 to 1, such as 0.01 for 1%")


class DeepFashionDataset(Dataset[dict[str, Any]]):
    """Garment/person rows in the documented schema as samples for FLUX-Fill training, map-style.

    Takes the place of an upstream script's ``VitonHDTestDataset``; ``options`` is bound beforehand with
    ``functools.partial``.

    Args:
        dataroot_path: A Hub id, a local folder of parquet files, or a folder written by ``save_to_disk``.
        phase: ``"train"`` reads the train split; ``"test"`` the validation split, or, where the data has none, the
            part of the train split that phase ``"train"`` then leaves out (by ``pid`` where there is one).
        order: ``"unpaired"`` gives every person the garment (and its caption) of another row of the same type.
        size: (height, width) of one half of the sample, in pixels.
        data_list: Accepted and ignored. Upstream scripts name a file of VITON-HD pairs here; in this data the
            split decides which rows there are.
        options: Everything else.

    ``captions``, ``cloth_types``, ``sampling_weights``, ``summary`` and ``skipped_rows`` are for trainers, which
    look for them by name, so that any other dataset works as well.

    Rows are checked as they are read, since decoding all of them takes long. An unreadable row is never replaced by an
    invented picture, and never silently. ``dataset[i]`` of a bad row is the sample of the next good row of the same
    garment type, which depends on ``i`` alone, not on workers or reading order. The bad row is written to a ledger that
    all worker processes share, and ``TooManyBadRowsError`` stops the run when more than ``max_bad_rows`` of all rows
    are in it.

    Raises ``ValueError``, one line, for a wrong source, column, ``cloth_type`` or choice of rows, before any picture is
    read.
    """

    def __init__(
        self,
        dataroot_path: str,
        phase: Literal["train", "test"] = "train",
        order: Literal["paired", "unpaired"] = "paired",
        size: tuple[int, int] = (768, 576),
        data_list: str | None = None,
        *,
        options: DatasetOptions = DatasetOptions(),
    ) -> None:
        if phase not in ("train", "test"):
            raise ValueError(f"phase {phase!r}: use 'train' or 'test'")
        if order not in ("paired", "unpaired"):
            raise ValueError(f"order {order!r}: use 'paired' or 'unpaired'")
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size {size}: use (height, width) in pixels")
        self.source, self.phase, self.order, self.options = str(dataroot_path), phase, order, options
        self.height, self.width = size
        split, self.split, derived = self._choose_split()
        self._data = DocumentedRows(split, self.source, options.cache_dir)
        self._rows = self._choose_rows(derived)
        self._types = [self._data.types[row] for row in self._rows]
        self._garment_rows = self._choose_garments()
        shared = options.ledger_dir
        self._ledger = BadRowLedger(Path(shared, f"bad_rows-{self.phase}.jsonl") if shared else None)
        self._fingerprint: str | None = None

    # ---- which rows -------------------------------------------------------------------------------------------

    def _choose_split(self) -> tuple[datasets.Dataset, str, bool]:
        """The split to read, its name, and whether a part of it is held out because there is no validation split."""
        options = self.options
        splits = open_splits(
            self.source,
            check_columns=lambda found: check_documented(found, self.source),
            revision=options.revision,
            cache_dir=options.cache_dir,
        )
        derived = options.validation_split not in splits
        named = options.validation_split != DatasetOptions.validation_split
        wanted = options.train_split
        if self.phase == "test" and (named or not derived):
            wanted = options.validation_split
        if wanted not in splits:
            raise ValueError(f"{self.source} has no split {wanted!r}, only {', '.join(splits)}: name one of them")
        return splits[wanted], wanted, derived

    def _choose_rows(self, derived: bool) -> list[int]:
        """Row numbers in the split, ascending: one side of a derived split, the wanted types, the wanted count."""
        options, types = self.options, self._data.types
        side = self._derived_side() if derived else range(len(types))
        rows = [row for row in side if types[row] in options.cloth_types]
        if not rows:
            raise ValueError(
                f"no row of the chosen garment types ({_named(options.cloth_types)}) for phase {self.phase!r} in split "
                f"{self.split!r} of {self.source}, which has {_named({types[row] for row in side})}"
            )
        count = options.max_train_samples if self.phase == "train" else options.max_validation_samples
        if count is None:
            return rows
        chosen = sampling.stratified_subset([types[row] for row in rows], count, options.split_seed)
        return [rows[position] for position in chosen]

    def _derived_side(self) -> list[int]:
        """Rows of this phase's side of the train/validation split that the data itself does not have."""
        options, data = self.options, self._data
        groups = [data.group(row) for row in range(len(data))]
        try:
            held_out = sampling.held_out(groups, options.validation_fraction, options.split_seed)
        except ValueError as error:
            raise ValueError(f"{self.source} has no split {options.validation_split!r}: {error}") from error
        logger.info(
            "%s has no split %r: %d of the %d rows of %r are held out by pid, else by row",
            self.source,
            options.validation_split,
            sum(held_out),
            len(held_out),
            self.split,
        )
        return [row for row, out in enumerate(held_out) if out == (self.phase == "test")]

    def _choose_garments(self) -> list[int]:
        """For each sample the row whose garment it shows."""
        if self.order == "paired":
            return self._rows
        groups = [self._data.group(row) for row in self._rows]
        partners = sampling.unpaired_partners(self._types, groups, self.options.split_seed)
        return [self._rows[partner] for partner in partners]

    def check_masks(self) -> None:
        """Raise ``ValueError`` when a sample of the rows has masks that are none: ``DocumentedRows.check_masks``."""
        self._data.check_masks(self._rows)

    # ---- samples ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample at ``index``: the keys of the sample dict, as ``pair_tensors`` describes, and texts.

        Raises ``IndexError`` like a list and ``TooManyBadRowsError``, see the class.
        """
        start = operator.index(index)
        if not -len(self) <= start < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        start %= len(self)
        for position in (*range(start, len(self)), *range(start)):
            if self._types[position] == self._types[start] and (sample := self._sample(position)) is not None:
                return sample
        raise self._too_many("no row of that garment type is left to read")

    def _sample(self, position: int) -> dict[str, Any] | None:
        """The sample at ``position``; None, after noting it, where one of its pictures cannot be used."""
        row, garment_row = self._rows[position], self._garment_rows[position]
        reading = row
        try:
            photo, mask = self._data.pictures(row, ("image", "mask"))
            reading = garment_row
            cloth = self._data.picture(garment_row, "cloth")
            reading = row
            tensors = pair_tensors(photo, cloth, mask, (self.height, self.width), self.options.resize_mode)
        except PictureError as error:
            self._skip(reading, str(error))
            return None
        return {
            **tensors,
            "c_name": self._data.name(garment_row, "garment_view"),
            "im_name": self._data.name(row, "view"),
            "caption_cloth": self._data.caption(garment_row),
            "cloth_type": self._types[position],
        }

    # ---- bad rows ---------------------------------------------------------------------------------------------

    @property
    def skipped_rows(self) -> list[dict[str, Any]]:
        """Unreadable rows met so far by any worker: ``row`` (number in the split) and ``reason``.

        Without ``ledger_dir`` each rank has its own list.
        """
        return self._ledger.entries()

    def _skip(self, row: int, reason: str) -> None:
        """Note a bad row; raises when there are too many of them by now."""
        if row not in {entry["row"] for entry in self._ledger.entries()}:
            logger.warning("row %d of %s skipped: %s", row, self.source, reason)
            self._ledger.record(row, reason)
        limit = self.options.max_bad_rows * len(self)
        if len(self._ledger.entries()) > limit:
            raise self._too_many(f"max_bad_rows {self.options.max_bad_rows:g} allows {limit:g}")

    def _too_many(self, why: str) -> TooManyBadRowsError:
        entries = self._ledger.entries()
        first = "; ".join(f"row {entry['row']}: {entry['reason']}" for entry in entries[:5])
        return TooManyBadRowsError(
            f"{len(entries)} of {len(self)} rows ({len(entries) / len(self):.1%}) of {self.source}, split "
            f"{self.split!r}, are unreadable and {why}: {first}. Fix or remove them, or raise --max_bad_rows."
        )

    # ---- what trainers ask for --------------------------------------------------------------------------------

    def captions(self) -> list[str]:
        """Caption of every sample in order; no picture is read."""
        return [self._data.caption(row) for row in self._garment_rows]

    def cloth_types(self) -> list[int]:
        """Garment type (1 upper, 2 lower, 3 full body) of every sample in order; no picture is read."""
        return list(self._types)

    def sampling_weights(self) -> list[float] | None:
        """A weight per sample that gives each garment type the same mass, or ``None`` for plain shuffling."""
        return sampling.balancing_weights(self._types) if self.options.balance_cloth_types else None

    def summary(self) -> dict[str, Any]:
        """What a run report says about this data, ready for JSON."""
        sizes = Counter(self._types)
        return {
            "source": self.source,
            "revision": self.options.revision,
            "split": self.split,
            "phase": self.phase,
            "order": self.order,
            "rows": len(self),
            "by_type": {name: sizes[number] for number, name in TYPE_NAMES.items()},
            "fingerprint": self.fingerprint(),
            "bad_rows": self.skipped_rows,
            "options": {**asdict(self.options), "cloth_types": list(self.options.cloth_types)},
        }

    def fingerprint(self) -> str:
        """A SHA-256 over the stored bytes of all pictures, captions and types, in order.

        It is the same for the same rows in whatever form they are stored, which no hash of files is, and differs when a
        single byte does. It reads everything once, at about the speed of the disk, and is kept for the next call.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for row, caption, cloth_type in zip(self._rows, self.captions(), self._types, strict=True):
                for part in (*self._data.stored_bytes(row), caption.encode(), str(cloth_type).encode()):
                    # The length first, so that no byte can move from one part to the next unseen.
                    digest.update(len(part).to_bytes(8, "big"))
                    digest.update(part)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def content_key(self) -> str:
        """Changes with anything that a sample's tensors and texts are made of, and with nothing else."""
        made_of = (self.fingerprint(), self._rows, self._garment_rows, self.options.resize_mode)
        return hashlib.sha256(repr(made_of).encode()).hexdigest()


def _named(cloth_types: Iterable[int]) -> str:
    return ", ".join(TYPE_NAMES[number] for number in sorted(cloth_types)) or "none"
