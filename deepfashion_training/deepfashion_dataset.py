"""DeepFashionDataset: documented garment/person rows to the sample dict that upstream scripts read."""

from __future__ import annotations

import atexit
import bisect
import contextlib
import functools
import hashlib
import itertools
import json
import logging
import operator
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
from torch.utils.data import Dataset

from deepfashion_training.data import sampling
from deepfashion_training.data.documented_rows import DocumentedRows
from deepfashion_training.data.schema import check_documented
from deepfashion_training.data.sources import open_splits
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.layout import TORCH_RESIZES, ResizeMode, pair_tensors
from deepfashion_training.images.pictures import PictureError

logger = logging.getLogger(__name__)

#: Other names of a validation split.
_LIKE_VALIDATION = re.compile(r"(val|valid|validate|validation|dev|eval|evaluation)([_\-.\d].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class DatasetOptions:
    """What a ``DeepFashionDataset`` needs to know beyond the five arguments that upstream scripts pass."""

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
    """Whether ``sampling_weights`` gives every garment type that is there the same mass."""
    cloth_type_shares: tuple[float, ...] | None = None
    """In its place: the shares of upper, lower and full body, each from 0, in what ``sampling_weights`` draws."""
    final_cloth_type_shares: tuple[float, ...] | None = None
    """The same of ``final_sampling_weights``."""
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


class TooManyBadRowsError(ValueError):
    """More rows are unreadable than ``max_bad_rows`` allows. The message is one line."""


class BadRowLedger:
    """Rows that could not be used and why, written by any process, read by all.

    A JSON-lines file: ``file``, which the ranks of a run on one machine then share, or one in a temporary directory.
    Each entry is a single write to a file opened for appending, so entries of several processes do not mix. Pickled
    copies write to the same file. The process that made a temporary directory removes it.
    """

    def __init__(self, file: Path | None = None) -> None:
        if file is None:
            folder = tempfile.mkdtemp(prefix="bad_rows_")
            file = Path(folder, "bad_rows.jsonl")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)  # not in worker processes
        self._file = file

    def record(self, row: int, reason: str) -> None:
        """Note that ``row`` was unusable for ``reason``."""
        entry = {"row": row, "reason": reason[:400]}  # short, so that it fits into one write
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as ledger:
            ledger.write(json.dumps(entry) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """One entry per row in ascending order, whichever process met it and however often."""
        if not self._file.exists():
            return []
        by_row: dict[int, dict[str, Any]] = {}
        for line in self._file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a process was killed while it wrote this line
                entry = json.loads(line)
                by_row.setdefault(entry["row"], entry)
        return [by_row[row] for row in sorted(by_row)]


class DeepFashionDataset(Dataset[dict[str, Any]]):
    """Garment/person rows in the documented schema as samples for FLUX-Fill training, map-style.

    Takes the place of an upstream script's ``VitonHDTestDataset``.

    Args:
        dataroot_path: A Hub id, or a folder: of parquet files, written by ``save_to_disk``, or of pairs in files (see
            ``data.pair_folders``).
        phase: ``"train"`` reads the train split; ``"test"`` the validation split, or, where the data has none, the
            part of the train split that phase ``"train"`` then leaves out (by ``pid`` where there is one).
        order: ``"unpaired"`` gives every person the garment (and its caption) of another row of the same type.
        size: (height, width) of one half of the sample, in pixels.
        data_list: Accepted and ignored. Upstream scripts name a file of VITON-HD pairs here.
        options: Everything else; bound beforehand with ``functools.partial``.

    Rows are checked as they are read, since decoding all of them takes long. ``dataset[i]`` of an unreadable row is the
    sample of the next good row of the same garment type, which depends on ``i`` alone, not on workers or reading order.
    The bad row is written to a ledger that all worker processes share, and ``TooManyBadRowsError`` stops the run when
    more than ``max_bad_rows`` of all rows are in it.

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
        self.source, self.phase, self.order, self.options = str(dataroot_path), phase, order, options
        self.height, self.width = size
        split, self.split, derived = self._choose_split()
        self._data = DocumentedRows(split, self.source, options.cache_dir)
        self._rows = self._choose_rows(derived)  # of each sample: row number in the split
        self._types = [self._data.types[row] for row in self._rows]
        if phase == "train":
            _check_shares(options, self._types, self.source)
        self._garment_rows = self._rows
        if order == "unpaired":
            groups = [self._data.group(row) for row in self._rows]
            partners = sampling.unpaired_partners(self._types, groups, options.split_seed)
            self._garment_rows = [self._rows[partner] for partner in partners]
        shared = options.ledger_dir
        self._ledger = BadRowLedger(Path(shared, f"bad_rows-{self.phase}.jsonl") if shared else None)

    def _choose_split(self) -> tuple[datasets.Dataset, str, bool]:
        """The split to read, its name, and whether a part of it is held out because there is no validation split."""
        options = self.options
        splits = open_splits(
            self.source, check_columns=check_documented, revision=options.revision, cache_dir=options.cache_dir
        )
        derived = options.validation_split not in splits
        named = options.validation_split != DatasetOptions.validation_split
        unread = [name for name in splits if _LIKE_VALIDATION.fullmatch(name) and name != options.train_split]
        if derived and not named and unread:
            raise ValueError(
                f"{self.source} has no split 'validation', and a split {unread[0]!r} that would not be read: "
                f"rename it, or name it with --validation_split {unread[0]}"
            )
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
        missing = f"{self.source} has no split {options.validation_split!r}"
        try:
            held_out = sampling.held_out(groups, options.validation_fraction, options.split_seed)
        except ValueError as error:
            raise ValueError(
                f"{missing}, and none can be held out of the {len(data)} row(s) of {self.split!r}, which are of one "
                "person: add rows of another person (pid), or validate on the same rows with --validation_split "
                f"{self.split}"
            ) from error
        logger.info("%s: %d rows of %r are held out by pid, else by row", missing, sum(held_out), self.split)
        return [row for row, out in enumerate(held_out) if out == (self.phase == "test")]

    def check_masks(self) -> None:
        """Raise ``ValueError`` when a sample of the rows has masks that are none: ``DocumentedRows.check_masks``."""
        self._data.check_masks(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The tensors of ``pair_tensors``, and texts. ``IndexError`` as of a list."""
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
            photo, mask = self._data.pictures(row, "image", "mask")
            reading = garment_row
            (cloth,) = self._data.pictures(garment_row, "cloth")
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

    # What trainers look for by name, so that any other dataset works as well.

    @property
    def skipped_rows(self) -> list[dict[str, Any]]:
        """Unreadable rows met so far by any worker: ``row`` (number in the split) and ``reason``.

        Without ``ledger_dir`` each rank has its own list.
        """
        return self._ledger.entries()

    def captions(self) -> list[str]:
        """Caption of every sample in order; no picture is read."""
        return [self._data.caption(row) for row in self._garment_rows]

    def cloth_types(self) -> list[int]:
        """Garment type (1 upper, 2 lower, 3 full body) of every sample in order; no picture is read."""
        return list(self._types)

    def sampling_weights(self) -> list[float] | None:
        """A weight per sample that gives each garment type its share, or ``None`` for plain shuffling."""
        if shares := self.options.cloth_type_shares:
            return sampling.type_weights(self._types, _by_type(shares))
        equal = dict.fromkeys(self._types, 1.0)
        return sampling.type_weights(self._types, equal) if self.options.balance_cloth_types else None

    def final_sampling_weights(self) -> list[float] | None:
        """The weights at the end of a run whose mixture of garment types moves, else ``None``."""
        shares = self.options.final_cloth_type_shares
        return sampling.type_weights(self._types, _by_type(shares)) if shares else None

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
            "fingerprint": self.fingerprint,
            "bad_rows": self.skipped_rows,
            "options": {**asdict(self.options), "cloth_types": list(self.options.cloth_types)},
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """A SHA-256 over the stored bytes of all pictures, captions and types, in order.

        It is the same for the same rows in whatever form they are stored, which no hash of files is, and differs when a
        single byte does. It reads everything, once, at about the speed of the disk.
        """
        digest = hashlib.sha256()
        for row, caption, cloth_type in zip(self._rows, self.captions(), self._types, strict=True):
            for part in (*self._data.stored_bytes(row), caption.encode(), str(cloth_type).encode()):
                # The length first, so that no byte can move from one part to the next unseen.
                digest.update(len(part).to_bytes(8, "big"))
                digest.update(part)
        return digest.hexdigest()

    def content_key(self) -> str:
        """Changes with anything that a sample's tensors and texts are made of, and with nothing else."""
        made_of = (self.fingerprint, self._rows, self._garment_rows, self.options.resize_mode, TORCH_RESIZES)
        return hashlib.sha256(repr(made_of).encode()).hexdigest()


class MixedDataset(Dataset[dict[str, Any]]):
    """Several ``DeepFashionDataset`` one after the other, as one for the trainer.

    Args:
        parts: The datasets, of one phase.
        weights: Share of the samples drawn from each part, above 0 and not all in all 1; None for as many as its rows.
        options: Shares of garment types in what is drawn of all parts together; all else is the parts' own.

    Ranks share a ledger of bad rows for each part. Raises ``ValueError`` for a share of a type without rows.
    """

    def __init__(
        self,
        parts: Sequence[DeepFashionDataset],
        weights: Sequence[float] | None = None,
        options: DatasetOptions = DatasetOptions(),
    ) -> None:
        self.parts, self.weights = list(parts), None if weights is None else list(weights)
        self.options = options
        if self.parts[0].phase == "train":
            _check_shares(options, self.cloth_types(), "all --dataset_name together")
        self._ends = list(itertools.accumulate(map(len, self.parts)))
        for number, part in enumerate(self.parts[1:], start=2):
            if shared := part.options.ledger_dir:
                part._ledger = BadRowLedger(Path(shared, f"bad_rows-{part.phase}-{number}.jsonl"))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample as of the part that it lies in. ``IndexError`` as of a list."""
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"sample {place} of {len(self)}")
        place %= len(self)
        part = bisect.bisect_right(self._ends, place)
        return self.parts[part][place - self._ends[part]]  # counted from the part's end

    def check_masks(self) -> None:
        """As of each part."""
        for part in self.parts:
            part.check_masks()

    @property
    def skipped_rows(self) -> list[dict[str, Any]]:
        """Unreadable rows of all parts, each with its ``source``."""
        return [{"source": part.source, **row} for part in self.parts for row in part.skipped_rows]

    def captions(self) -> list[str]:
        """Caption of every sample in order."""
        return [caption for part in self.parts for caption in part.captions()]

    def cloth_types(self) -> list[int]:
        """Garment type of every sample in order."""
        return [kind for part in self.parts for kind in part.cloth_types()]

    def sampling_weights(self) -> list[float] | None:
        """A weight per sample, summing to 1: within a part its own, between parts ``weights``.

        With shares of types in ``options`` both hold among the rows of a type. ``None`` for plain shuffling, where
        neither parts nor types are weighted.
        """
        if shares := self.options.cloth_type_shares:
            return self._by_shares(shares)
        own = [part.sampling_weights() for part in self.parts]
        if self.weights is None and all(weights is None for weights in own):
            return None
        return self._of_parts(own)

    def final_sampling_weights(self) -> list[float] | None:
        """As of one dataset."""
        shares = self.options.final_cloth_type_shares
        return self._by_shares(shares) if shares else None

    def _by_shares(self, shares: Sequence[float]) -> list[float]:
        rows = self._of_parts([None] * len(self.parts))
        return sampling.type_weights(self.cloth_types(), _by_type(shares), rows)

    def _of_parts(self, own: Sequence[list[float] | None]) -> list[float]:
        """Weights of all rows, summing to 1, of those of each part; None where its rows weigh alike."""
        shares = self.weights or [float(len(part)) for part in self.parts]
        within = [weights or [1 / len(part)] * len(part) for weights, part in zip(own, self.parts, strict=True)]
        return [share / sum(shares) * each for share, of_part in zip(shares, within, strict=True) for each in of_part]

    def summary(self) -> dict[str, Any]:
        """What a run report says about this data, ready for JSON: ``parts`` has that of each."""
        parts = [part.summary() for part in self.parts]
        sizes = Counter(self.cloth_types())
        return {
            "source": " + ".join(part.source for part in self.parts),
            "split": " + ".join(dict.fromkeys(part["split"] for part in parts)),
            "phase": parts[0]["phase"],
            "order": parts[0]["order"],
            "rows": len(self),
            "by_type": {name: sizes[number] for number, name in TYPE_NAMES.items()},
            "weights": self.weights,
            "fingerprint": hashlib.sha256(repr([part["fingerprint"] for part in parts]).encode()).hexdigest(),
            "bad_rows": self.skipped_rows,
            "options": {**parts[0]["options"], **_shares_of(self.options)},
            "parts": parts,
        }

    def content_key(self) -> str:
        """Changes with that of any part, and with their order."""
        return hashlib.sha256(repr([part.content_key() for part in self.parts]).encode()).hexdigest()


def mixed_dataset(
    dataroot_path: str,
    phase: Literal["train", "test"] = "train",
    order: Literal["paired", "unpaired"] = "paired",
    size: tuple[int, int] = (768, 576),
    data_list: str | None = None,
    *,
    sources: Sequence[str],
    options: DatasetOptions,
    weights: Sequence[float] | None = None,
) -> MixedDataset:
    """What takes the place of ``DeepFashionDataset`` for several ``sources``; ``dataroot_path`` is one of them.

    A number of rows in ``options`` is that of all sources together, which give as many each. Errors as of
    ``DeepFashionDataset``.
    """
    parts = []
    for place in range(len(sources)):
        limits: dict[str, Any] = {
            name: None if count is None else max(1, count * (place + 1) // len(sources) - count * place // len(sources))
            for name in ("max_train_samples", "max_validation_samples")
            for count in [getattr(options, name)]
        }
        own = replace(options, **limits | dict.fromkeys(_shares_of(options)))
        parts.append(DeepFashionDataset(sources[place], phase, order, size, data_list, options=own))
    return MixedDataset(parts, weights, options)


def _by_type(shares: Sequence[float]) -> dict[int, float]:
    """Shares of upper, lower and full body by their numbers."""
    return dict(zip(TYPE_NAMES, shares, strict=True))


def _shares_of(options: DatasetOptions) -> dict[str, Any]:
    """The options of shares of garment types, by their names."""
    return {name: getattr(options, name) for name in ("cloth_type_shares", "final_cloth_type_shares")}


def _check_shares(options: DatasetOptions, types: Iterable[int], source: str) -> None:
    """Raise ``ValueError`` where a garment type has a share and no rows among ``types``."""
    there = set(types)
    for name, shares in _shares_of(options).items():
        missing = {kind for kind, share in _by_type(shares or (0, 0, 0)).items() if share} - there
        if missing:
            raise ValueError(
                f"--{name} gives {_named(missing)} a share, and {source} has no such row to train on: name the types "
                "that are there with --cloth_types, or give it 0"
            )


def _named(cloth_types: Iterable[int]) -> str:
    return ", ".join(TYPE_NAMES[number] for number in sorted(cloth_types)) or "none"
