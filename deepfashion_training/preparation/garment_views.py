"""Views of a garment: what ``pose`` says, and which other photo can show the garment of a photo."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

#: Where a garment picture may come from, best first; the names are those of ``garment_source``.
SOURCES: tuple[str, ...] = ("flat", "cross_view", "same_photo")

#: View of a photo, as ``pose`` names it -> views of the same outfit that show its side of the garment, best first. The
#: back of a garment is another garment to a model that has to copy what it sees, so a back never dresses a front, nor
#: a front a back. A side view has half of either. ``additional`` (a close-up or another pose) and ``full`` are fronts;
#: a full view is smaller than a front, and an additional one may be cropped. ``flat`` is the garment alone: nothing
#: dresses it.
DRESSED_BY: dict[str, tuple[str, ...]] = {
    "front": ("front", "full", "additional", "side"),
    "side": ("side", "front", "full", "additional", "back"),
    "back": ("back", "side"),
    "full": ("full", "front", "additional", "side"),
    "flat": (),
    "additional": ("front", "full", "additional", "side"),
}
VIEWS: tuple[str, ...] = tuple(DRESSED_BY)

# Some copies of the dataset keep the ending of the file that `pose` is a part of.
_POSE = re.compile(r"(?P<variant>\d+)_\d+_(?P<view>[a-z]+)(\.(jpe?g|png|webp))?", re.IGNORECASE)


class Candidate(NamedTuple):
    """A photo of one outfit that shows the garment: its row, view, garment pixels, and whether a border cuts them."""

    row: int
    view: str
    region_px: int
    at_border: bool


class Choice(NamedTuple):
    """Where the garment picture of a photo comes from: one of ``SOURCES``, and the row and view that show it."""

    source: str
    row: int
    view: str


def parse_pose(pose: str) -> tuple[str, str]:
    """Variant and view, perhaps an unknown one, of a ``pose`` such as ``01_4_full``; else ``ValueError``."""
    match = _POSE.fullmatch(pose.strip())
    if match is None:
        raise ValueError(f"pose {pose!r} is not VARIANT_NUMBER_VIEW, such as 01_4_full")
    return match["variant"], match["view"].lower()


def choose_garment(row: int, view: str, candidates: Sequence[Candidate], sources: Sequence[str]) -> Choice | None:
    """Which of ``candidates``, all of one outfit, shows the garment of photo ``row`` best; ``None`` if none may.

    The first of ``sources`` that has one decides: a flat shot, another row in a view that may dress ``view`` (the
    better view first), the row itself. Among equals the one that no border cuts, then the one with more garment
    pixels, then the lower row number, so that the order of ``candidates`` does not matter.
    """
    views = DRESSED_BY.get(view)
    if not views:
        return None
    order = ("flat", *views, view)
    for source in sources:
        if source == "same_photo":
            fitting = [one for one in candidates if one.row == row and one.view != "flat"]
        else:
            wanted = ("flat",) if source == "flat" else views
            fitting = [one for one in candidates if one.row != row and one.view in wanted]
        if fitting:
            best = min(fitting, key=lambda one: (order.index(one.view), one.at_border, -one.region_px, one.row))
            return Choice(source, best.row, best.view)
    return None
