"""The row function of `prepare`: pure, whole outfits at a time, with a parser and without."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepfashion_training.data.schema import NOTES, PAIR_COLUMNS
from deepfashion_training.embedded.rows import RowSpec, raw_row, raw_specs
from deepfashion_training.garment_types import LOWER, UPPER
from deepfashion_training.images.parts import GARMENT_LABELS
from deepfashion_training.images.quality import Gates
from deepfashion_training.preparation.batch import prepare_batch
from deepfashion_training.preparation.pair_plan import PlannedRow, Settings, batches_of, make_plan

SIZE = (192, 144)
GATES = Gates(min_garment_px=18)
#: Face, hair, shoes and bag: never repainted.
KEPT = (2, 9, 10, 11, 16)


@dataclass
class Drawn:
    """Planned rows with their pictures, and the true label map of each photo."""

    planned: list[PlannedRow]
    pictures: dict[str, list[bytes | str]]
    parses: dict[bytes, np.ndarray]

    def prepare(self, parser: bool = False, **settings: Any) -> list[dict[str, Any]]:
        chosen = Settings(gates=GATES, parser="true" if parser else None, **settings)
        return prepare_batch(self.planned, self.pictures, chosen, TrueParser(self.parses) if parser else None)

    def part(self, places: Sequence[int]) -> Drawn:
        pictures = {name: [cells[place] for place in places] for name, cells in self.pictures.items()}
        return Drawn([self.planned[place] for place in places], pictures, self.parses)


def drawn_rows(specs: Sequence[RowSpec]) -> Drawn:
    rows = [raw_row(spec, SIZE) for spec in specs]
    names = {"category": "cloth_type", "gender": "gender", "pose": "pose", "pid": "pid", "caption": "caption"}
    plan = make_plan({name: [row[column] for row in rows] for name, column in names.items()}, Settings())
    planned = [row for batch in batches_of(plan) for row in batch]
    pictures = {
        name: [rows[row.source_row][column]["bytes"] for row in planned]
        for name, column in (("image", "images"), ("mask", "mask"))
    }
    parses = {}
    for spec, row in zip(specs, rows, strict=True):
        if spec.view != "flat":
            photo = Image.open(io.BytesIO(row["images"]["bytes"])).convert("RGB")
            parses[photo.tobytes()] = np.asarray(spec.draw(SIZE).parse)
    return Drawn(planned, pictures, parses)


class TrueParser:
    def __init__(self, parses: dict[bytes, np.ndarray]) -> None:
        self.parses = parses

    def parse(self, photos: Sequence[Image.Image]) -> list[np.ndarray]:
        return [self.parses[photo.tobytes()] for photo in photos]


def mask_of(record: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record["mask"]["bytes"]))) > 0


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return drawn_rows(list(raw_specs(84, 11)))


@pytest.fixture(scope="module")
def parsed(drawn) -> list[dict[str, Any]]:
    return drawn.prepare(parser=True, mine_lower_body=True, same_photo_in_evaluation=True)


def photo_of(record: dict[str, Any]) -> bytes:
    return Image.open(io.BytesIO(record["image"]["bytes"])).convert("RGB").tobytes()


def test_every_row_comes_back_once_in_order(drawn, parsed):
    expected = [row.source_row for row in drawn.planned]
    out = drawn.prepare()
    assert [row["source_row"] for row in out] == expected and not any(row["mined"] for row in out)
    assert {name for row in out for name in row} <= {*PAIR_COLUMNS, *NOTES}
    assert [row["source_row"] for row in parsed if not row["mined"]] == expected


def test_the_answer_does_not_depend_on_what_else_is_in_the_batch(drawn):
    whole = drawn.prepare(mask_policy="relaxed")
    parts: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, row in enumerate(drawn.planned):
        parts[row.outfit].append(place)
    for places in list(parts.values())[::4]:
        assert repr(drawn.part(places).prepare(mask_policy="relaxed")) == repr([whole[place] for place in places])


def test_with_a_parser_kept_parts_are_never_repainted_and_the_garment_is(drawn, parsed):
    pairs = [record for record in parsed if record["outcome"] == "pair"]
    assert len(pairs) > 40 and {record["mask_how"] for record in pairs} == {"parsed"}
    for record in pairs:
        parse, mask = drawn.parses[photo_of(record)], mask_of(record)
        assert not (mask & np.isin(parse, KEPT)).any()
        garment = np.isin(parse, GARMENT_LABELS[record["cloth_type"]])
        assert (mask & garment).sum() > 0.97 * garment.sum()


def test_lower_body_pairs_are_mined_from_rows_of_tops(drawn, parsed):
    mined = [record for record in parsed if record["mined"]]
    assert len(mined) > 5
    tops = {record["source_row"]: record for record in parsed if not record["mined"] and record["cloth_type"] == UPPER}
    for record in mined:
        assert record["cloth_type"] == LOWER and record["outcome"] == "pair" and record["source_row"] in tops
        assert record["garment_source"] in ("cross_view", "same_photo")  # a flat shot would show the top
        parse = drawn.parses[photo_of(record)]
        skirt, trousers = (parse == 5).sum(), (parse == 6).sum()
        assert record["category"] == ("Skirts" if skirt > trousers else "Pants")
        assert record["split"] == tops[record["source_row"]]["split"]
        assert record["caption"] == tops[record["source_row"]]["caption"]


def test_mining_changes_no_other_pair(drawn, parsed):
    without = drawn.prepare(parser=True, same_photo_in_evaluation=True)
    assert [repr(record) for record in without] == [repr(record) for record in parsed if not record["mined"]]


def test_a_garment_of_the_same_photo_is_only_for_training(drawn):
    for split, allowed in (("train", True), ("test", False)):
        rows = replace(drawn, planned=[row._replace(split=split) for row in drawn.planned])
        out = rows.prepare(garment_sources=("same_photo",))
        assert ("pair" in {row["outcome"] for row in out}) is allowed
        assert {row.get("garment_source") for row in out} == ({None, "same_photo"} if allowed else {None})
        if not allowed:
            assert {row["reason"] for row in out} >= {"no_garment_picture", "garment_picture"}


def test_a_cut_out_is_not_the_photo_again(drawn):
    out = drawn.prepare(garment_sources=("same_photo",))
    pair = next(record for record in out if record["outcome"] == "pair")
    photo, garment = (
        np.asarray(Image.open(io.BytesIO(pair[name]["bytes"])).convert("RGB"), dtype=int) for name in ("image", "cloth")
    )
    worn = (garment.min(axis=2) < 240) & mask_of(pair)
    assert worn.any() and (np.abs(photo - garment).max(axis=2)[worn] > 8).mean() > 0.5


@pytest.mark.parametrize("polarity", ["auto", "black"])
def test_a_mask_with_black_for_repaint_is_turned(drawn, polarity):
    def turned(stored: bytes) -> bytes:
        sink = io.BytesIO()
        Image.fromarray(255 - np.asarray(Image.open(io.BytesIO(stored)))).save(sink, "PNG")
        return sink.getvalue()

    few = drawn.part(range(12))
    inverted = replace(few, pictures={**few.pictures, "mask": [turned(mask) for mask in few.pictures["mask"]]})
    expected = few.prepare(mask_polarity="white")
    for record, other in zip(inverted.prepare(mask_polarity=polarity), expected, strict=True):
        assert (record["outcome"], record.get("mask")) == (other["outcome"], other.get("mask"))
        assert record["mask_inverted"] or record["reason"] == "garment_picture"
