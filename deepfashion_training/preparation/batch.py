"""The row function of a preparation: a batch of rows in, the same batch as pairs and rejects out.

It is pure: what comes out depends on the batch and the settings alone, so that any engine may run it anywhere.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
from PIL import Image

from deepfashion_training.data.near_duplicates import fingerprint
from deepfashion_training.data.source_rows import PICTURES
from deepfashion_training.garment_types import LOWER, UPPER
from deepfashion_training.images import quality
from deepfashion_training.images.cutouts import cut_out, warped_cut_out
from deepfashion_training.images.mask_check import area_fault, mask_fault
from deepfashion_training.images.masks import align_mask, repaint_mask
from deepfashion_training.images.parts import LABELS
from deepfashion_training.images.person import PersonFrame, find_person
from deepfashion_training.images.pictures import (
    MIN_SIDE,
    PictureError,
    TooManyPixelsError,
    open_picture,
    orientation,
    to_rgb,
    turn,
)
from deepfashion_training.images.quality import Finding
from deepfashion_training.images.regions import Region, UnresolvedRegionError, garment_region, worn_types
from deepfashion_training.preparation.garment_views import Candidate, Choice, choose_garment
from deepfashion_training.preparation.mask_leak import mask_features
from deepfashion_training.preparation.pair_plan import PlannedRow
from deepfashion_training.preparation.settings import Settings

#: JPEG quality of cut-outs: above the photos' own, so that they lose nothing that a photo had.
_CUT_OUT_QUALITY = 95
_THUMBNAIL = (192, 192)
#: First bytes of the formats that ``pictures.FORMATS`` lets in -> the ending of their files.
_ENDINGS = {
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"GIF8": ".gif",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
#: What pictures are judged at, at least: above the grids of persons, fingerprints and colours.
_SMALL_SIDE = 128

Batch = dict[str, list[Any]]


class Parses(Protocol):
    """A human parser: photos to ATR label maps, uint8 ``[h, w]`` of each photo's size."""

    def parse(self, photos: Sequence[Image.Image]) -> list[np.ndarray]:
        """Label maps of ``photos``."""


@dataclass(frozen=True)
class _Garment:
    """A garment picture: as it is stored, and upright RGB, shrunk."""

    stored: bytes
    small: Image.Image


@dataclass
class _Photo:
    """A row whose photo and mask have been looked at."""

    plan: PlannedRow
    stored: Mapping[str, bytes | str]
    finding: Finding | None = None
    garment_only: bool = False
    photo: Image.Image | None = None  # upright RGB
    small: Image.Image | None = None  # the same, shrunk: enough for every judgement, and a tenth of the work
    mask: np.ndarray | None = None  # as decoded, uint8 [h, w]
    inverted: bool = False
    parse: np.ndarray | None = None
    person: PersonFrame | None = None
    region: Region | None = None
    column: _Garment | None = None  # what the cloth column holds
    cut_out: _Garment | Finding | None = None  # its own garment on white, once somebody has asked for it


def prepare_batch(batch: Mapping[str, Sequence[Any]], settings: Settings, parser: Parses | None = None) -> Batch:
    """Turn rows into pairs.

    ``batch`` has the fields of ``PlannedRow`` and ``image``, ``mask`` and, where the source has it, ``cloth``: stored
    bytes, or a ``str`` that says why there are none. Rows of one outfit lie next to each other, and no outfit is in
    two batches. What comes out has the columns of ``OUTPUT_COLUMNS``: one row for each row that came in, in the
    same order, each ``outcome`` ``pair``, ``quarantined`` or ``unpaired``; after those of an outfit the pairs mined
    from it, with ``mined`` true.
    """
    out: Batch = {name: [] for name in OUTPUT_COLUMNS}
    pictures = [name for name in PICTURES if name in batch]
    photos = [
        _Photo(
            PlannedRow(*(batch[name][index] for name in PlannedRow._fields)),
            {name: batch[name][index] for name in pictures},
        )
        for index in range(len(batch["source_row"]))
    ]
    for _, outfit in groupby(photos, key=lambda photo: photo.plan.outfit):
        for record in _outfit_records(list(outfit), settings, parser):
            for name in OUTPUT_COLUMNS:
                out[name].append(record.get(name, _EMPTY[name]))
    return out


_EMPTY: dict[str, Any] = {
    **dict.fromkeys(("outcome", "reason", "detail"), ""),
    "mined": False,
    **dict.fromkeys(("image", "cloth", "mask"), None),
    "caption": "",
    "cloth_type": 0,
    **dict.fromkeys(("pid", "variant", "view", "gender", "category", "garment_source", "garment_view"), ""),
    "source_row": -1,
    "split": "",
    "garment_row": -1,
    "fingerprint": None,
    "garment_digest": None,
    "features_as_is": None,
    "features": None,
    "likeness": float("nan"),
    "mask_how": "",
    "mask_inverted": False,
    "thumbnail": None,
}

#: Columns of what ``prepare_batch`` returns: the documented row, what became of it and why, and what the decisions
#: over all rows (near duplicates, shares, leak) and the report need to know of it.
OUTPUT_COLUMNS: tuple[str, ...] = tuple(_EMPTY)


def _outfit_records(photos: list[_Photo], settings: Settings, parser: Parses | None) -> Iterator[dict[str, Any]]:
    for photo in photos:
        _open(photo, settings)
    _parse([photo for photo in photos if photo.finding is None and not photo.garment_only], parser)
    for photo in photos:
        if photo.finding is None:
            _examine(photo, settings)
    yield from (_record(photo, photos, settings) for photo in photos)
    if settings.mine_lower_body:
        yield from _mined(photos, settings)


def _open(photo: _Photo, settings: Settings) -> None:
    """Decode photo and mask; notes a finding where that is not possible."""
    plan = photo.plan
    if plan.reason:
        photo.finding = Finding(plan.reason, plan.detail)
        return
    if "cloth" in photo.stored:
        _check_garment_column(photo, settings)
    photo.garment_only = plan.view == "flat" and "cloth" not in photo.stored
    try:
        column = "photo"
        picture = _opened(photo.stored["image"], settings)
        upright = turn(to_rgb(picture), orientation(picture))
        photo.photo, photo.small = upright, _small(upright)
        if photo.garment_only:
            return
        column = "mask"
        stored_mask = _opened(photo.stored["mask"], settings)
    except TooManyPixelsError as error:
        photo.finding = Finding("decompression_bomb", f"{column}: {error}")
        return
    except PictureError as error:
        photo.finding = Finding(f"unreadable_{column}", str(error))
        return
    try:
        _, mask = align_mask(picture, stored_mask, plan.cloth_type)
    except PictureError as error:
        photo.finding = Finding("mask_size", str(error))
        return
    fault, polarity = mask_fault(photo.small, stored_mask, mask), settings.mask_polarity
    if fault is not None and fault.kind == "inverted" and polarity == "white":
        fault = None  # somebody knows better
    turns = fault is not None and fault.kind == "inverted" and area_fault(photo.small, 1 - mask) is None
    photo.inverted = polarity == "black" or turns
    photo.mask = 1 - mask if photo.inverted else mask
    if fault is not None and not photo.inverted and fault.kind not in ("everything", "speck"):  # which gates see to
        photo.finding = Finding("no_mask", f"it {fault.looks}")


def _opened(stored: bytes | str, settings: Settings) -> Image.Image:
    if isinstance(stored, str):
        raise PictureError(stored)
    return open_picture(stored, settings.gates.max_megapixels * 1_000_000, MIN_SIDE)


def _check_garment_column(photo: _Photo, settings: Settings) -> None:
    try:
        picture = _opened(photo.stored["cloth"], settings)
        garment = turn(to_rgb(picture), orientation(picture))
    except TooManyPixelsError as error:
        photo.finding = Finding("decompression_bomb", f"garment: {error}")
    except PictureError as error:
        photo.finding = Finding("unreadable_garment", str(error))
    else:
        assert isinstance(photo.stored["cloth"], bytes)
        photo.column = _Garment(photo.stored["cloth"], _small(garment))
        photo.finding = quality.check_garment(photo.column.small, settings.gates)


def _parse(photos: list[_Photo], parser: Parses | None) -> None:
    if parser is not None and photos:
        for photo, parse in zip(photos, parser.parse([photo.photo for photo in photos if photo.photo]), strict=True):
            photo.parse = parse


def _examine(photo: _Photo, settings: Settings) -> None:
    """Apply the gates and find the named garment; notes a finding or a region."""
    assert photo.small is not None
    if photo.garment_only:
        photo.finding = quality.check_garment(photo.small, settings.gates)
        return
    assert photo.mask is not None
    photo.finding = quality.check_mask(photo.mask, settings.gates) or quality.looks_like_product_shot(
        photo.small, _small_mask(photo.mask, photo.small), photo.parse, settings.gates
    )
    if photo.finding is not None:
        return
    photo.person = find_person(photo.small, photo.mask)
    plan = photo.plan
    try:
        region = garment_region(photo.mask, plan.cloth_type, plan.category, photo.small, photo.person, photo.parse)
    except UnresolvedRegionError as error:
        photo.finding = Finding("union_mask", str(error))
        return
    photo.finding = quality.check_region(region.mask, settings.gates)
    photo.region = region


def _record(photo: _Photo, photos: Sequence[_Photo], settings: Settings) -> dict[str, Any]:
    """What became of one row that came in."""
    record: dict[str, Any] = {**photo.plan._asdict(), "mask_inverted": photo.inverted}
    if photo.finding is not None:
        reason, detail = photo.finding
        return {**record, "outcome": "quarantined", "reason": reason, "detail": detail, "thumbnail": _thumbnail(photo)}
    if photo.garment_only:
        return {**record, "outcome": "unpaired", "reason": "garment_picture"}
    assert photo.small is not None and photo.region is not None
    record["fingerprint"] = fingerprint(photo.small)  # also of a photo that only serves others as garment
    choice, garment = _garment(photo, photos, settings)
    if choice is None or garment is None:
        return {**record, "outcome": "unpaired", "reason": "no_garment_picture"}
    if isinstance(garment, Finding):
        blank = f"row {choice.row}: {garment.detail}"
        return {
            **record,
            "outcome": "quarantined",
            "reason": garment.reason,
            "detail": blank,
            "thumbnail": _thumbnail(photo),
        }
    return record | _pair(photo, photo.region, choice, garment, settings)


def _mined(photos: Sequence[_Photo], settings: Settings) -> Iterator[dict[str, Any]]:
    """Lower-body pairs from photos of tops, whose outfits show trousers or a skirt as well."""
    seen: list[_Photo] = []
    for photo in photos:
        if photo.finding is None and photo.plan.cloth_type == UPPER and photo.parse is not None:
            worn = worn_types(photo.parse).get(LOWER)
            if worn is not None and quality.check_region(worn, settings.gates) is None:
                category = _lower_category(photo.parse, worn)
                plan = photo.plan._replace(cloth_type=LOWER, category=category)
                lower = _Photo(plan, {"image": photo.stored["image"]}, photo=photo.photo, small=photo.small)
                lower.parse, lower.person, lower.region = photo.parse, photo.person, Region(worn, "parsed")
                seen.append(lower)
    for photo in seen:
        choice, garment = _garment(photo, seen, settings)
        if choice is not None and isinstance(garment, _Garment):
            assert photo.region is not None
            pair = _pair(photo, photo.region, choice, garment, settings)
            yield {**photo.plan._asdict(), **pair, "mined": True}


def _garment(
    photo: _Photo, photos: Sequence[_Photo], settings: Settings
) -> tuple[Choice | None, _Garment | Finding | None]:
    """Where the garment picture of ``photo`` comes from, and the picture; a finding where it is no good."""
    plan = photo.plan
    if photo.column is not None:
        return Choice("column", plan.source_row, ""), photo.column
    sources = [
        source
        for source in settings.garment_sources
        if source != "same_photo" or plan.split == "train" or settings.same_photo_in_evaluation
    ]
    by_row = {other.plan.source_row: other for other in photos if other.finding is None}
    choice = choose_garment(plan.source_row, plan.view, [_candidate(other) for other in by_row.values()], sources)
    if choice is None:
        return None, None
    source = by_row[choice.row]
    assert source.photo is not None
    if choice.source == "flat":
        stored = source.stored["image"]
        assert isinstance(stored, bytes)
        assert source.small is not None
        return choice, _Garment(stored, source.small)
    assert source.region is not None
    size = (source.photo.height, source.photo.width)
    if choice.source == "same_photo":
        seed = settings.seed * 1_000_003 + plan.source_row
        return choice, _checked(warped_cut_out(source.photo, source.region.mask, size, seed), settings)
    if source.cut_out is None:
        source.cut_out = _checked(cut_out(source.photo, source.region.mask, size), settings)
    return choice, source.cut_out


def _checked(picture: Image.Image, settings: Settings) -> _Garment | Finding:
    small = _small(picture)
    return quality.check_garment(small, settings.gates) or _Garment(_jpeg(picture), small)


def _small(picture: Image.Image) -> Image.Image:
    """``picture`` shrunk by a whole number to 128 pixels or more along its shorter side."""
    factor = min(picture.size) // _SMALL_SIDE
    return picture.reduce(factor) if factor > 1 else picture


def _small_mask(mask: np.ndarray, small: Image.Image) -> np.ndarray:
    """``mask`` [h, w] in the size of ``small``."""
    return np.asarray(Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST))


def _candidate(photo: _Photo) -> Candidate:
    plan = photo.plan
    if photo.region is None:  # a flat shot
        return Candidate(plan.source_row, "flat", 0, False)
    mask = photo.region.mask
    at_border = bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    return Candidate(plan.source_row, plan.view, int(np.count_nonzero(mask)), at_border)


def _pair(photo: _Photo, region: Region, choice: Choice, garment: _Garment, settings: Settings) -> dict[str, Any]:
    """The documented row of a pair, and what is noted of it."""
    plan, stored = photo.plan, photo.stored["image"]
    assert photo.small is not None and isinstance(stored, bytes)
    policy = settings.mask_policy
    if policy == "relaxed" and plan.split != "train":
        policy = "agnostic"  # the variation is for training; evaluation wants the same mask every time
    seed = settings.seed * 1_000_003 + plan.source_row
    mask = repaint_mask(region.mask, plan.cloth_type, photo.person, photo.parse, policy, seed)
    as_is = repaint_mask(region.mask, plan.cloth_type, photo.person, photo.parse, "as_is")
    name = f"{plan.pid}_{plan.variant}_{plan.view}_{plan.source_row}"
    return {
        "outcome": "pair",
        "image": {"bytes": stored, "path": f"{name}{_suffix(stored)}"},
        "cloth": {"bytes": garment.stored, "path": f"{name}_garment{_suffix(garment.stored)}"},
        "mask": {"bytes": _png(mask), "path": f"{name}_mask.png"},
        "garment_source": choice.source,
        "garment_view": choice.view,
        "garment_row": choice.row,
        "garment_digest": hashlib.blake2b(garment.stored, digest_size=8).digest(),
        "features_as_is": mask_features(as_is).tobytes(),
        "features": mask_features(mask).tobytes(),
        "likeness": quality.colour_likeness(garment.small, photo.small, _small_mask(region.mask, photo.small)),
        "mask_how": region.how,
    }


def _lower_category(parse: np.ndarray, worn: np.ndarray) -> str:
    labels = parse[worn > 0]
    skirt, pants = (np.count_nonzero(labels == LABELS.index(name)) for name in ("skirt", "pants"))
    return "Skirts" if skirt > pants else "Pants"


def _suffix(stored: bytes) -> str:
    """File name ending of a stored picture, so that whoever exports the dataset gets files that open."""
    return next((ending for start, ending in _ENDINGS.items() if stored.startswith(start)), "")


def _jpeg(picture: Image.Image, jpeg_quality: int = _CUT_OUT_QUALITY) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=jpeg_quality, subsampling=0)
    return sink.getvalue()


def _png(mask: np.ndarray) -> bytes:
    """A mask as 8-bit PNG, white = repaint."""
    sink = io.BytesIO()
    # Runs are all that there is to compress, which zlib has a fast way for.
    Image.fromarray(mask * np.uint8(255)).save(sink, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return sink.getvalue()


def _thumbnail(photo: _Photo) -> bytes | None:
    return None if photo.photo is None else thumbnail_of(photo.photo)


def thumbnail_of(photo: Image.Image) -> bytes:
    """An RGB picture as a small JPEG, for the account of rows that became no pair."""
    small = photo.copy()
    small.thumbnail(_THUMBNAIL)
    return _jpeg(small, 80)
