"""The plan of a preparation: what each row is, which rows belong together, and the batches to work through.

It is made from the rows' texts alone, before any picture is read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from deepfashion_training.data.sampling import split_of, unit_hash
from deepfashion_training.garment_types import TYPE_NAMES, UnknownCategoryError, parse_cloth_type, type_of
from deepfashion_training.preparation.garment_views import VIEWS, parse_pose
from deepfashion_training.preparation.settings import Settings

#: Rows of a batch: some seconds of work, so that a killed run loses little and the bar moves; some ten MB.
BATCH_ROWS = 64


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


@dataclass(frozen=True)
class Plan:
    """The rows, and batches of positions in ``rows``: rows of one outfit lie in one batch, next to each other."""

    rows: list[PlannedRow]
    batches: list[list[PlannedRow]]
    unknown_categories: dict[str, int]


def make_plan(texts: Mapping[str, Sequence[Any]], settings: Settings, *, has_cloth: bool = False) -> Plan:
    """Plan rows whose ``texts`` are given by canonical column, in the order of the source.

    With ``has_cloth`` the rows bring a garment picture, so that nobody needs to know whose photo shows which view.

    Raises ``ValueError`` when no row at all has a known garment type.
    """
    count = len(next(iter(texts.values()), []))
    cells = ({name: values[row] for name, values in texts.items()} for row in range(count))
    rows = [_planned(row, told, settings, has_cloth) for row, told in enumerate(cells)]
    if settings.limit is not None:
        rows = _limited(rows, settings.limit, settings.seed)
    unknown = Counter(row.category for row in rows if row.reason == "unknown_category")
    if rows and len(unknown) and all(row.cloth_type == 0 for row in rows):
        names = ", ".join(f"{name} ({number})" for name, number in unknown.most_common(20))
        raise ValueError(f"no row has a known category; found {names}: name their types with --category_type NAME=TYPE")
    return Plan(rows, _batches(rows), dict(unknown.most_common()))


def _planned(row: int, cells: Mapping[str, Any], settings: Settings, has_cloth: bool) -> PlannedRow:
    problem = ("", "")
    pid, category, caption = (_text(cells.get(name)) for name in ("pid", "category", "caption"))
    variant, view = _text(cells.get("variant")), _text(cells.get("view")).lower()
    if not pid:
        if not has_cloth:
            problem = ("no_pid", "the row does not say who is in the photo")
        pid = f"row {row}"
    if not view and _text(cells.get("pose")):
        try:
            variant, _, view = parse_pose(_text(cells["pose"]))
        except ValueError as error:
            problem = problem if has_cloth else ("unknown_pose", str(error))
    if not has_cloth and view not in VIEWS and not problem[0]:
        problem = ("unknown_pose", f"unknown view {view!r}: known are {', '.join(VIEWS)}")
    cloth_type = 0
    try:
        cloth_type = _cloth_type(cells, category, caption, settings) or 0
        if cloth_type == 0:
            problem = ("undecided_type", f"{category}: the caption does not say which garment: {caption[:200]!r}")
    except UnknownCategoryError as error:
        problem = ("unknown_category", str(error))
    split = split_of(pid, settings.validation_share, settings.test_share, settings.seed)
    gender = _text(cells.get("gender"))
    return PlannedRow(row, pid, variant, view, gender, category, caption, cloth_type, split, *problem)


def _cloth_type(cells: Mapping[str, Any], category: str, caption: str, settings: Settings) -> int | None:
    if cells.get("cloth_type") is None:
        return type_of(category, caption, settings.category_types)
    try:
        return parse_cloth_type(cells["cloth_type"])
    except ValueError:
        return type_of(_text(cells["cloth_type"]), caption, settings.category_types)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


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


def _batches(rows: Sequence[PlannedRow]) -> list[list[PlannedRow]]:
    """Whole outfits in the order of their first rows, packed into batches of at most ``BATCH_ROWS``.

    Only what no shop has, more than ``BATCH_ROWS`` photos of one outfit, is cut.
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
