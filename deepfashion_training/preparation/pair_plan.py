"""The plan of a preparation: its settings, what each row is, and the batches to work through.

A plan is made from the rows' texts alone, before any picture is read.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from deepfashion_training.data.sampling import split_of, unit_hash
from deepfashion_training.data.schema import INPUT_COLUMNS
from deepfashion_training.garment_types import TYPE_NAMES, UnknownCategoryError, coded_type, type_of
from deepfashion_training.images.masks import MaskPolicy
from deepfashion_training.images.quality import Gates
from deepfashion_training.preparation.garment_views import SOURCES, VIEWS, parse_pose

MaskPolarity = Literal["auto", "white", "black"]
MASK_POLARITIES: tuple[str, ...] = get_args(MaskPolarity)

#: How pairs are written: as parquet, or in a layout of ``data/pair_folders.py``, which takes its time to import.
FORMATS = ("parquet", "viton-hd", "dresscode")

#: Raised when finished results of earlier code should be made again.
VERSION = 3

#: Rows of a batch: some seconds of work, so that a killed run loses little and the bar moves; some ten MB.
BATCH_ROWS = 64


@dataclass(frozen=True)
class Settings:
    """Everything besides the rows that decides what comes out. Raises ``ValueError`` for values out of range."""

    columns: dict[str, str] = field(default_factory=dict)
    """Input name -> column, where a column has another name."""
    category_types: dict[str, int] = field(default_factory=dict)
    """Category -> garment type, before the table's."""
    garment_sources: tuple[str, ...] = SOURCES
    """Where a garment picture may come from, best first."""
    same_photo_in_evaluation: bool = False
    """Whether validation and test may have same-photo pairs, which a model can solve by copying pixels."""
    max_same_photo_share: float = 0.25
    """Largest share of same-photo pairs in a split."""
    mask_policy: MaskPolicy = "agnostic"
    mask_polarity: MaskPolarity = "auto"
    """The colour that means repaint; ``auto`` looks at the picture's border."""
    parser: str | None = None
    """Human parsing model: Hub id or folder."""
    parser_revision: str | None = None
    mine_lower_body: bool = False
    """Whether rows labelled as tops give lower-body pairs too; needs the parser."""
    validation_share: float = 0.05
    """Share of the people."""
    test_share: float = 0.05
    seed: int = 0
    limit: int | None = None
    """Take this many rows: whole people, garment types in turn."""
    gates: Gates = field(default_factory=Gates)

    def __post_init__(self) -> None:
        for flag, names, known in (
            ("column", self.columns, INPUT_COLUMNS),
            ("garment_sources", self.garment_sources, SOURCES),
        ):
            if unknown := [name for name in names if name not in known]:
                raise ValueError(f"--{flag}: unknown name {unknown[0]!r}: choose from {', '.join(known)}")
        if not 0 <= self.max_same_photo_share <= 1:
            raise ValueError(f"max_same_photo_share {self.max_same_photo_share}: a share between 0 and 1")
        if min(self.validation_share, self.test_share) < 0 or self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share} and test_share {self.test_share}: use shares of 0 or more "
                "that leave something for training"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit {self.limit}: 1 or more")
        if self.mine_lower_body and self.parser is None:
            raise ValueError("mine_lower_body needs to see where the trousers are: pass a parser")

    def as_json(self) -> dict[str, Any]:
        """The settings in plain types, for ``report.json`` and the key."""
        return {**asdict(self), "garment_sources": list(self.garment_sources), "version": VERSION}

    def key(self, source: str, fingerprint: str) -> str:
        """The same for the same settings on the same rows, and for nothing else."""
        content = json.dumps([self.as_json(), source, fingerprint], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


class PlannedRow(NamedTuple):
    """What the texts of a row say. ``reason`` is empty unless they already rule it out."""

    source_row: int
    pid: str
    variant: str
    view: str
    gender: str
    category: str
    caption: str
    cloth_type: int  # 0 where it is not known
    split: str
    reason: str = ""
    detail: str = ""

    @property
    def outfit(self) -> tuple[str, str, str, str]:
        """Rows with the same outfit show the same garment in the same colour."""
        return self.gender, self.category, self.pid, self.variant


def named_values(text: str | None) -> dict[str, str]:
    """``{"image": "photo", "mask": "area"}`` of ``"image=photo,mask=area"``; empty for ``None`` and for no text.

    Raises ``ValueError`` for a part of another form.
    """
    pairs = [part.strip().partition("=") for part in (text or "").split(",") if part.strip()]
    for name, _, value in pairs:
        if not (name and value):
            raise ValueError(f"{text!r}: {name!r} is not NAME=VALUE, such as image=photo")
    return {name.strip(): value.strip() for name, _, value in pairs}


def make_plan(
    texts: Mapping[str, Sequence[Any]],
    settings: Settings,
    *,
    has_cloth: bool = False,
    kept: Sequence[str] | None = None,
) -> list[PlannedRow]:
    """Plan rows whose ``texts`` are given by input name, in the order of the source.

    With ``has_cloth`` the rows bring a garment picture, so neither person nor view has to be known. ``kept`` are the
    splits that a list puts the rows in: what others test on stays out of training, and only a split that is missing
    is taken from ``train``.

    Raises ``ValueError`` when no row at all has a known garment type, and for one whose number is 0.
    """
    cells = (dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True))
    rows = [_planned(row, text, settings, has_cloth) for row, text in enumerate(cells)]
    if kept is not None:
        there = {name for name in kept if name in ("validation", "test")}
        validation, test = (
            0.0 if name in there else share
            for name, share in (("validation", settings.validation_share), ("test", settings.test_share))
        )
        rows = [
            row._replace(split=name if name in there else split_of(row.pid, validation, test, settings.seed))
            for row, name in zip(rows, kept, strict=True)
        ]
    if settings.limit is not None:
        rows = _limited(rows, settings.limit, settings.seed)
    unknown = Counter(row.category for row in rows if row.reason == "unknown_category")
    if unknown and all(row.cloth_type == 0 for row in rows):
        names = ", ".join(f"{name} ({number})" for name, number in unknown.most_common(20))
        raise ValueError(f"no row has a known category; found {names}: name their types with --category_type NAME=TYPE")
    return rows


def _planned(row: int, texts: Mapping[str, Any], settings: Settings, has_cloth: bool) -> PlannedRow:
    cells = {name: "" if value is None else str(value) for name, value in texts.items()}
    pid, category, caption, gender = (cells.get(name, "") for name in ("pid", "category", "caption", "gender"))
    variant, view = cells.get("variant", ""), cells.get("view", "").lower()
    problem = ("", "")
    if not view and cells.get("pose"):
        try:
            variant, view = parse_pose(cells["pose"])
        except ValueError as error:
            problem = ("unknown_pose", str(error))
    if view not in VIEWS and not problem[0]:
        problem = ("unknown_pose", f"unknown view {view!r}: known are {', '.join(VIEWS)}")
    if not pid:
        pid, problem = f"row {row}", ("no_pid", "the row does not say who is in the photo")
    if has_cloth:
        problem = ("", "")
    try:
        cloth_type = coded_type(texts.get("cloth_type"), settings.category_types) or 0
    except ValueError as error:
        fix = "or name another column: --column cloth_type=NAME"
        raise ValueError(f"cloth_type in row {row}: {error}, {fix}") from None
    if cloth_type == 0:  # on the Hub, cloth_type is the category
        category = category or cells.get("cloth_type", "")
        try:
            cloth_type = type_of(category, caption, settings.category_types) or 0
            if cloth_type == 0:
                problem = ("undecided_type", f"{category}: the caption does not say which garment: {caption[:200]!r}")
        except UnknownCategoryError as error:
            problem = ("unknown_category", str(error))
    split = split_of(pid, settings.validation_share, settings.test_share, settings.seed)
    return PlannedRow(row, pid, variant, view, gender, category, caption, cloth_type, split, *problem)


def _limited(rows: list[PlannedRow], limit: int, seed: int) -> list[PlannedRow]:
    """``limit`` of ``rows``: whole people in the order of their hashes (the last perhaps in part), types in turn."""
    people: dict[int, dict[str, list[PlannedRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        people[row.cloth_type][row.pid].append(row)
    waiting = {
        kind: sorted(by_pid.items(), key=lambda item: unit_hash(seed + 1, item[0]), reverse=True)
        for kind, by_pid in people.items()
    }
    chosen: list[PlannedRow] = []
    while len(chosen) < limit and any(waiting.values()):
        for kind in (*TYPE_NAMES, 0):
            if waiting.get(kind):
                chosen += waiting[kind].pop()[1]
    return sorted(chosen[:limit])


def batches_of(rows: Sequence[PlannedRow]) -> list[list[PlannedRow]]:
    """Batches of at most ``BATCH_ROWS``: whole outfits in the order of their first rows, rows of one lying together.

    Only an outfit of more than ``BATCH_ROWS`` photos is cut.
    """
    outfits: dict[tuple[str, ...], list[PlannedRow]] = defaultdict(list)
    for row in rows:
        outfits[row.outfit].append(row)
    batches: list[list[PlannedRow]] = []
    for outfit in outfits.values():
        for start in range(0, len(outfit), BATCH_ROWS):
            part = outfit[start : start + BATCH_ROWS]
            if not batches or len(batches[-1]) + len(part) > BATCH_ROWS:
                batches.append([])
            batches[-1] += part
    return batches
