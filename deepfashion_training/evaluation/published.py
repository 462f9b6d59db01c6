"""What others have published for the test list of a VITON-HD or DressCode folder, to stand beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deepfashion_training.evaluation.cases import Cases

#: Figures of a row of ``published.yaml``, in its order.
COLUMNS = ("ssim", "lpips", "fid", "kid", "fid_unpaired", "kid_unpaired")


def published_figures(cases: Cases, settings: Mapping[str, Any], measured: Mapping[str, int]) -> dict[str, Any] | None:
    """``published`` of ``metrics.json``; None where the rows are not those of such a folder's test list.

    ``measured`` is the number of paired pictures that were measured by garment type and ``all``. ``tables`` is empty
    where that is not the whole list, and ``notes`` says so; else ``{type: [{"method", "size", "source", "differs",
    figure: value or None}]}``. ``lists`` says of a type whose list is not as long as that of the papers how long both
    are, as of other data in the same layout.
    """
    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    known = table["datasets"].get(cases.layout)
    if known is None or cases.split != "test":
        return None
    listed = {kind: cases.listed[kind] for kind in known["lines"] if cases.listed[kind]}
    whole = [kind for kind, number in listed.items() if measured.get(kind) == number]
    notes, lists = list[str](), dict[str, str]()
    if not whole:
        notes.append(
            f"{measured['all']} of the {cases.listed['all']} people of {known['name']}'s test list are measured: "
            "nothing published is comparable with a part of it. --limit all takes the whole list"
        )
    for kind in whole:
        if listed[kind] != known["lines"][kind]:
            lists[kind] = f"another list: {listed[kind]} lines, the papers' has {known['lines'][kind]}; not comparable"
    if not cases.lists_unpaired:
        notes.append("the folder has no list of unpaired garments: those of others are a permutation of our own")
    entries = [one for one in table["tables"] if one["dataset"] == cases.layout and one["type"] in whole]
    tables = {
        kind: [
            {"method": method, "size": size, "source": one["source"], "differs": one["differs"]}
            | dict(zip(COLUMNS, values, strict=True))
            for one in entries
            if one["type"] == kind
            for method, size, *values in one["rows"]
        ]
        for kind in listed
        if kind in whole
    }
    if whole:
        repaint = "on" if settings["repaint"] else "off"
        notes.append(
            f"measured at {settings['height']}x{settings['width']}, repaint {repaint}; SSIM by scikit-image, LPIPS "
            "over SqueezeNet, FID and KID by clean-fid"
        )
    notes += dict.fromkeys(f"{one['source']}: {one['differs']}" for one in entries)
    return {"dataset": known["name"], "columns": list(COLUMNS), "tables": tables, "lists": lists, "notes": notes}
