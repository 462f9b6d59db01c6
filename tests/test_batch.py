"""The row function of `prepare`: pure, whole outfits at a time, with a parser and without."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepfashion_training.embedded.rows import RowSpec, raw_row, raw_specs
from deepfashion_training.garment_types import LOWER, UPPER
from deepfashion_training.images.parts import garment_labels
from deepfashion_training.images.quality import Gates
from deepfashion_training.preparation.batch import OUTPUT_COLUMNS, Batch, prepare_batch
from deepfashion_training.preparation.pair_plan import PlannedRow, make_plan
from deepfashion_training.preparation.settings import Settings

SIZE = (256, 192)
GATES = Gates(min_garment_px=24)
#: Face, hair, shoes and bag: never repainted.
KEPT = (2, 9, 10, 11, 16)


def batch_of(specs: Sequence[RowSpec], settings: Settings) -> tuple[Batch, dict[bytes, np.ndarray]]:
    """The rows of ``specs`` as the engines pass them, and the true label map of each photo."""
    rows, parses = [raw_row(spec, SIZE) for spec in specs], {}
    names = {"category": "cloth_type", "gender": "gender", "pose": "pose", "pid": "pid", "caption": "caption"}
    plan = make_plan({name: [row[column] for row in rows] for name, column in names.items()}, settings)
    planned = [row for batch in plan.batches for row in batch]
    batch: Batch = {name: [getattr(row, name) for row in planned] for name in PlannedRow._fields}
    for name, column in (("image", "images"), ("mask", "mask")):
        batch[name] = [rows[row.source_row][column]["bytes"] for row in planned]
    for spec, row in zip(specs, rows, strict=True):
        if spec.view != "flat":
            photo = Image.open(io.BytesIO(row["images"]["bytes"])).convert("RGB")
            parses[photo.tobytes()] = np.asarray(spec.draw(SIZE).parse)
    return batch, parses


class TrueParser:
    def __init__(self, parses: dict[bytes, np.ndarray]) -> None:
        self.parses = parses

    def parse(self, photos: Sequence[Image.Image]) -> list[np.ndarray]:
        return [self.parses[photo.tobytes()] for photo in photos]


def records(out: Batch) -> list[dict[str, Any]]:
    return [dict(zip(out, cells, strict=True)) for cells in zip(*out.values(), strict=True)]


def mask_of(record: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record["mask"]["bytes"]))) > 0


@pytest.fixture(scope="module")
def drawn() -> tuple[Batch, dict[bytes, np.ndarray]]:
    return batch_of(list(raw_specs(120, 11)), Settings(gates=GATES))


@pytest.fixture(scope="module")
def parsed(drawn) -> list[dict[str, Any]]:
    settings = Settings(gates=GATES, parser="true", mine_lower_body=True, same_photo_in_evaluation=True)
    return records(prepare_batch(drawn[0], settings, TrueParser(drawn[1])))


def photo_of(record: dict[str, Any]) -> bytes:
    return Image.open(io.BytesIO(record["image"]["bytes"])).convert("RGB").tobytes()


def test_every_row_comes_back_once_in_order(drawn, parsed):
    out = prepare_batch(drawn[0], Settings(gates=GATES))
    assert tuple(out) == OUTPUT_COLUMNS
    assert out["source_row"] == drawn[0]["source_row"] and not any(out["mined"])
    assert [record["source_row"] for record in parsed if not record["mined"]] == drawn[0]["source_row"]


def test_the_answer_does_not_depend_on_what_else_is_in_the_batch(drawn):
    batch, _ = drawn
    settings = Settings(gates=GATES, mask_policy="relaxed")
    whole = records(prepare_batch(batch, settings))
    parts: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, outfit in enumerate(zip(batch["pid"], batch["variant"], strict=True)):
        parts[outfit].append(place)
    for places in list(parts.values())[::4]:
        part = records(prepare_batch({name: [cells[p] for p in places] for name, cells in batch.items()}, settings))
        assert [repr(record) for record in part] == [repr(whole[place]) for place in places]


def test_with_a_parser_kept_parts_are_never_repainted_and_the_garment_is(drawn, parsed):
    pairs = [record for record in parsed if record["outcome"] == "pair"]
    assert len(pairs) > 60 and {record["mask_how"] for record in pairs} == {"parsed"}
    for record in pairs:
        parse, mask = drawn[1][photo_of(record)], mask_of(record)
        assert not (mask & np.isin(parse, KEPT)).any()
        garment = np.isin(parse, garment_labels(record["cloth_type"]))
        assert (mask & garment).sum() > 0.97 * garment.sum()


def test_lower_body_pairs_are_mined_from_rows_of_tops(drawn, parsed):
    mined = [record for record in parsed if record["mined"]]
    assert len(mined) > 10
    tops = {record["source_row"]: record for record in parsed if not record["mined"] and record["cloth_type"] == UPPER}
    for record in mined:
        assert record["cloth_type"] == LOWER and record["outcome"] == "pair" and record["source_row"] in tops
        assert record["garment_source"] in ("cross_view", "same_photo")  # a flat shot would show the top
        parse = drawn[1][photo_of(record)]
        skirt, trousers = (parse == 5).sum(), (parse == 6).sum()
        assert record["category"] == ("Skirts" if skirt > trousers else "Pants")
        assert record["split"] == tops[record["source_row"]]["split"]
        assert record["caption"] == tops[record["source_row"]]["caption"]


def test_mining_changes_no_other_pair(drawn, parsed):
    settings = Settings(gates=GATES, parser="true", same_photo_in_evaluation=True)
    without = records(prepare_batch(drawn[0], settings, TrueParser(drawn[1])))
    assert [repr(record) for record in without] == [repr(record) for record in parsed if not record["mined"]]


def test_a_garment_of_the_same_photo_is_only_for_training(drawn):
    batch, _ = drawn
    for split, allowed in (("train", True), ("test", False)):
        told = {**batch, "split": [split] * len(batch["split"])}
        out = prepare_batch(told, Settings(gates=GATES, garment_sources=("same_photo",)))
        assert ("pair" in out["outcome"]) is allowed
        assert set(out["garment_source"]) <= ({"", "same_photo"} if allowed else {""})
        if not allowed:
            assert set(out["reason"]) >= {"no_garment_picture", "garment_picture"}


def test_a_cut_out_is_not_the_photo_again(drawn):
    out = records(prepare_batch(drawn[0], Settings(gates=GATES, garment_sources=("same_photo",))))
    pair = next(record for record in out if record["outcome"] == "pair")
    photo, garment = (
        np.asarray(Image.open(io.BytesIO(pair[name]["bytes"])).convert("RGB"), dtype=int) for name in ("image", "cloth")
    )
    worn = (garment.min(axis=2) < 240) & mask_of(pair)
    assert worn.any() and (np.abs(photo - garment).max(axis=2)[worn] > 8).mean() > 0.5


@pytest.mark.parametrize("polarity", ["auto", "black"])
def test_a_mask_with_black_for_repaint_is_turned(drawn, polarity):
    batch, _ = drawn

    def turned(stored: bytes) -> bytes:
        sink = io.BytesIO()
        Image.fromarray(255 - np.asarray(Image.open(io.BytesIO(stored)))).save(sink, "PNG")
        return sink.getvalue()

    few = {name: cells[:12] for name, cells in batch.items()}
    inverted = {**few, "mask": [turned(stored) for stored in few["mask"]]}
    expected = records(prepare_batch(few, Settings(gates=GATES, mask_polarity="white")))
    for record, other in zip(
        records(prepare_batch(inverted, Settings(gates=GATES, mask_polarity=polarity))), expected, strict=True
    ):
        assert (record["outcome"], record["mask"]) == (other["outcome"], other["mask"])
        assert record["mask_inverted"] or record["reason"] == "garment_picture"
