"""The row function of a preparation: planned rows and their pictures in, pairs and rejected rows out.

It is pure: what comes out depends on the rows and the settings alone, so that any process may run it.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from deepfashion_training.data.near_duplicates import fingerprint
from deepfashion_training.data.schema import PARSES
from deepfashion_training.garment_types import LOWER, UPPER
from deepfashion_training.images import quality
from deepfashion_training.images.cutouts import cut_out, warped_cut_out
from deepfashion_training.images.mask_check import area_fault, mask_fault
from deepfashion_training.images.masks import align_mask, mask_features, read_parse, repaint_mask
from deepfashion_training.images.parts import ALL_GARMENTS, LABELS
from deepfashion_training.images.person import PersonFrame, find_person
from deepfashion_training.images.pictures import MIN_SIDE, PictureError, TooManyPixelsError, open_picture, upright
from deepfashion_training.images.quality import Finding
from deepfashion_training.images.regions import Region, UnresolvedRegionError, garment_region, worn_region
from deepfashion_training.preparation.garment_views import Candidate, Choice, choose_garment
from deepfashion_training.preparation.pair_plan import PlannedRow, Settings

if TYPE_CHECKING:
    from deepfashion_training.models.human_parser import PhotoParser

#: JPEG quality of cut-outs: above the photos' own, so that they lose nothing that a photo had.
_CUT_OUT_QUALITY = 95
_THUMBNAIL = (192, 192)
#: First bytes of stored pictures -> the ending of their files, so that files of an exported dataset open.
_ENDINGS = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}
#: Shorter side of the pictures that are judged, at least: above the grids of persons, fingerprints and colours.
_SMALL_SIDE = 128


class _Garment(NamedTuple):
    stored: bytes
    small: Image.Image  # upright RGB, shrunk


@dataclass
class _Photo:
    """A row and what is found out about its photo, step by step."""

    plan: PlannedRow
    stored: Mapping[str, bytes | str]
    finding: Finding | None = None  # why it may not be trained on
    photo: Image.Image | None = None  # upright RGB
    small: Image.Image | None = None  # the same, shrunk: enough for every judgement, and a tenth of the work
    mask: np.ndarray | None = None  # as decoded, uint8 [h, w]
    inverted: bool = False
    parse: np.ndarray | None = None
    person: PersonFrame | None = None
    region: Region | None = None
    column: _Garment | Finding | None = None  # what the cloth column holds
    cut_out: _Garment | Finding | None = None  # its own garment on white, once another photo has asked for it

    @property
    def garment_only(self) -> bool:
        """Whether it is a flat shot, which serves other photos as garment picture."""
        return self.plan.view == "flat" and "cloth" not in self.stored

    def seed(self, settings: Settings) -> int:
        return settings.seed * 1_000_003 + self.plan.source_row


def prepare_batch(
    planned: Sequence[PlannedRow],
    pictures: Mapping[str, Sequence[bytes | str]],
    settings: Settings,
    parser: PhotoParser | None = None,
) -> list[dict[str, Any]]:
    """Turn rows into pairs.

    ``pictures`` are those of ``SourceRows``. Rows of one outfit lie next to each other, and no outfit is in two
    batches. What comes out has the columns of a pair and ``schema.NOTES``, as far as they are known: one row for each
    row that came in, in the same order; after those of an outfit the pairs mined from it.
    """
    photos = [
        _Photo(plan, {name: cells[place] for name, cells in pictures.items()}) for place, plan in enumerate(planned)
    ]
    out: list[dict[str, Any]] = []
    for _, outfit in groupby(photos, key=lambda photo: photo.plan.outfit):
        out += _outfit_rows(list(outfit), settings, parser)
    return out


def _outfit_rows(photos: list[_Photo], settings: Settings, parser: PhotoParser | None) -> Iterator[dict[str, Any]]:
    for photo in photos:
        photo.finding = _open(photo, settings)
    worn = [photo for photo in photos if photo.finding is None and not photo.garment_only]
    unparsed = [photo for photo in worn if photo.parse is None]
    if parser is not None and unparsed:
        maps = parser.parse([photo.photo for photo in unparsed if photo.photo is not None])
        for photo, parse in zip(unparsed, maps, strict=True):
            photo.parse = parse
    for photo in worn:
        if photo.mask is None and photo.parse is not None:  # rows without masks
            photo.mask = np.isin(photo.parse, ALL_GARMENTS).view(np.uint8)
    for photo in photos:
        photo.finding = photo.finding or _examine(photo, settings)
    for photo in photos:
        yield _row(photo, _outcome(photo, photos, settings), mined=False)
    if settings.mine_lower_body:
        yield from _mined(photos, settings)


def _open(photo: _Photo, settings: Settings) -> Finding | None:
    """Decode the pictures of a row; why that is not possible, or what is wrong with the mask."""
    plan = photo.plan
    if plan.reason:
        return Finding(plan.reason, plan.detail)
    if "cloth" in photo.stored:
        photo.column = _stored_garment(photo.stored["cloth"], settings)
    column = "photo"
    try:
        picture = _opened(photo.stored["image"], settings)
        photo.photo = upright(picture)
        photo.small = _small(photo.photo)
        if photo.garment_only:
            return None
        column = "mask"
        for name in set(PARSES) & photo.stored.keys():
            photo.parse = read_parse(photo.stored[name], photo.photo.size, lip=name == "parse_lip")
        if "mask" not in photo.stored:
            return photo.column if isinstance(photo.column, Finding) else None
        stored_mask = _opened(photo.stored["mask"], settings)
    except PictureError as error:
        return _unreadable(column, error)
    try:
        _, mask = align_mask(picture, stored_mask, plan.cloth_type)
    except PictureError as error:
        return Finding("mask_size", str(error))
    fault = mask_fault(photo.small, stored_mask, mask)
    if fault is not None and fault.kind == "inverted" and settings.mask_polarity == "white":
        fault = None
    looks_inverted = fault is not None and fault.kind == "inverted" and area_fault(photo.small, 1 - mask) is None
    photo.inverted = looks_inverted or settings.mask_polarity == "black"
    photo.mask = 1 - mask if photo.inverted else mask
    if fault is not None and not photo.inverted and fault.kind not in ("everything", "speck"):  # gates report these
        return Finding("no_mask", f"it {fault.looks}")
    return photo.column if isinstance(photo.column, Finding) else None


def _opened(stored: bytes | str, settings: Settings) -> Image.Image:
    return open_picture(stored, settings.gates.max_megapixels * 1_000_000, MIN_SIDE)


def _unreadable(column: str, error: PictureError) -> Finding:
    if isinstance(error, TooManyPixelsError):
        return Finding("decompression_bomb", f"{column}: {error}")
    return Finding(f"unreadable_{column}", str(error))


def _stored_garment(stored: bytes | str, settings: Settings) -> _Garment | Finding:
    """What the cloth column holds, as it is stored; a finding where it is no good."""
    try:
        picture = _opened(stored, settings)
        small = _small(upright(picture))
    except PictureError as error:
        return _unreadable("garment", error)
    assert isinstance(stored, bytes)
    return quality.check_garment(small, settings.gates) or _Garment(stored, small)


def _examine(photo: _Photo, settings: Settings) -> Finding | None:
    """Apply the gates and find the named garment."""
    plan, gates = photo.plan, settings.gates
    assert photo.small is not None
    if photo.garment_only:
        return quality.check_garment(photo.small, gates)
    assert photo.mask is not None
    finding = quality.check_mask(photo.mask, gates) or quality.looks_like_product_shot(
        photo.small, _small_mask(photo.mask, photo.small), photo.parse, gates
    )
    if finding is not None:
        return finding
    photo.person = find_person(photo.small, photo.mask)
    try:
        photo.region = garment_region(
            photo.mask, plan.cloth_type, plan.category, photo.small, photo.person, photo.parse
        )
    except UnresolvedRegionError as error:
        return Finding("union_mask", str(error))
    return quality.check_region(photo.region.mask, gates)


def _outcome(photo: _Photo, photos: Sequence[_Photo], settings: Settings) -> dict[str, Any]:
    """What became of one row that came in."""
    if photo.finding is not None:
        return _quarantined(photo, photo.finding)
    if photo.garment_only:
        return {"outcome": "unpaired", "reason": "garment_picture"}
    assert photo.small is not None
    noted = {"fingerprint": fingerprint(photo.small)}  # also of a photo that only serves others as garment
    choice = _choice(photo, photos, settings)
    if choice is None:
        return noted | {"outcome": "unpaired", "reason": "no_garment_picture"}
    garment = _garment(photo, choice, photos, settings)
    if isinstance(garment, Finding):
        return noted | _quarantined(photo, Finding(garment.reason, f"row {choice.row}: {garment.detail}"))
    return noted | _pair(photo, choice, garment, settings)


def _quarantined(photo: _Photo, finding: Finding) -> dict[str, Any]:
    shown = None if photo.photo is None else thumbnail(photo.photo, photo.plan.source_row)
    return {"outcome": "quarantined", "reason": finding.reason, "detail": finding.detail, "thumbnail": shown}


def _mined(photos: Sequence[_Photo], settings: Settings) -> Iterator[dict[str, Any]]:
    """Lower-body pairs from photos of tops, in which trousers or a skirt are seen as well."""
    seen: list[_Photo] = []
    for photo in photos:
        if photo.finding is None and photo.plan.cloth_type == UPPER and photo.parse is not None:
            worn = worn_region(photo.parse, LOWER)
            if worn is not None and quality.check_region(worn, settings.gates) is None:
                labels = photo.parse[worn > 0]
                skirt, pants = (np.count_nonzero(labels == LABELS.index(name)) for name in ("skirt", "pants"))
                plan = photo.plan._replace(cloth_type=LOWER, category="Skirts" if skirt > pants else "Pants")
                lower = _Photo(plan, {"image": photo.stored["image"]}, photo=photo.photo, small=photo.small)
                lower.parse, lower.person, lower.region = photo.parse, photo.person, Region(worn, "parsed")
                seen.append(lower)
    for photo in seen:
        choice = _choice(photo, seen, settings)
        garment = None if choice is None else _garment(photo, choice, seen, settings)
        if choice is not None and isinstance(garment, _Garment):
            yield _row(photo, _pair(photo, choice, garment, settings), mined=True)


def _row(photo: _Photo, became: Mapping[str, Any], *, mined: bool) -> dict[str, Any]:
    return {**photo.plan._asdict(), "mined": mined, "mask_inverted": photo.inverted, **became}


def _choice(photo: _Photo, photos: Sequence[_Photo], settings: Settings) -> Choice | None:
    """Where the garment picture of ``photo`` comes from, None where no photo of the outfit may show it."""
    plan = photo.plan
    if photo.column is not None:
        return Choice("column", plan.source_row, "")
    sources = [
        source
        for source in settings.garment_sources
        if source != "same_photo" or plan.split == "train" or settings.same_photo_in_evaluation
    ]
    candidates = [_candidate(other) for other in photos if other.finding is None]
    return choose_garment(plan.source_row, plan.view, candidates, sources)


def _candidate(photo: _Photo) -> Candidate:
    plan = photo.plan
    if photo.region is None:  # a flat shot
        return Candidate(plan.source_row, "flat", 0, False)
    mask = photo.region.mask
    at_border = bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    return Candidate(plan.source_row, plan.view, int(np.count_nonzero(mask)), at_border)


def _garment(photo: _Photo, choice: Choice, photos: Sequence[_Photo], settings: Settings) -> _Garment | Finding:
    """The garment picture that was chosen for ``photo``; a finding where it is no good."""
    if photo.column is not None:
        return photo.column
    source = next(other for other in photos if other.plan.source_row == choice.row)
    assert source.photo is not None and source.small is not None
    if source.region is None:  # a flat shot
        stored = source.stored["image"]
        assert isinstance(stored, bytes)
        return _Garment(stored, source.small)
    size = (source.photo.height, source.photo.width)
    if choice.source == "same_photo":
        return _checked(warped_cut_out(source.photo, source.region.mask, size, photo.seed(settings)), settings)
    if source.cut_out is None:
        source.cut_out = _checked(cut_out(source.photo, source.region.mask, size), settings)
    return source.cut_out


def _checked(picture: Image.Image, settings: Settings) -> _Garment | Finding:
    small = _small(picture)
    return quality.check_garment(small, settings.gates) or _Garment(jpeg(picture, _CUT_OUT_QUALITY), small)


def _pair(photo: _Photo, choice: Choice, garment: _Garment, settings: Settings) -> dict[str, Any]:
    """The documented row of a pair, and what is noted of it."""
    plan, region, stored = photo.plan, photo.region, photo.stored["image"]
    assert region is not None and photo.small is not None and isinstance(stored, bytes)
    policy = settings.mask_policy
    if policy == "relaxed" and plan.split != "train":
        policy = "agnostic"  # the variation is for training; evaluation wants the same mask every time
    mask = repaint_mask(region.mask, plan.cloth_type, photo.person, photo.parse, policy, photo.seed(settings))
    name = f"{plan.pid}_{plan.variant}_{plan.view}_{plan.source_row}"
    return {
        "outcome": "pair",
        "image": {"bytes": stored, "path": f"{name}{_ending(stored)}"},
        "cloth": {"bytes": garment.stored, "path": f"{name}_garment{_ending(garment.stored)}"},
        "mask": {"bytes": png(mask), "path": f"{name}_mask.png"},
        "garment_source": choice.source,
        "garment_view": choice.view,
        "garment_row": choice.row,
        "features_as_is": mask_features(region.mask).tobytes(),
        "features": mask_features(mask).tobytes(),
        "likeness": quality.colour_likeness(garment.small, photo.small, _small_mask(region.mask, photo.small)),
        "mask_how": region.how,
    }


def _small(picture: Image.Image) -> Image.Image:
    """``picture`` shrunk by a whole number to 128 pixels or more along its shorter side."""
    factor = min(picture.size) // _SMALL_SIDE
    return picture.reduce(factor) if factor > 1 else picture


def _small_mask(mask: np.ndarray, small: Image.Image) -> np.ndarray:
    """``mask`` [h, w] in the size of ``small``."""
    return np.asarray(Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST))


def _ending(stored: bytes) -> str:
    return next((ending for start, ending in _ENDINGS.items() if stored.startswith(start)), "")


def jpeg(picture: Image.Image, jpeg_quality: int) -> bytes:
    """A picture as JPEG, 4:4:4."""
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=jpeg_quality, subsampling=0)
    return sink.getvalue()


def png(mask: np.ndarray) -> bytes:
    """A mask as 8-bit PNG, white = repaint."""
    sink = io.BytesIO()
    # There is nothing but runs to compress, for which zlib has a fast way.
    Image.fromarray(mask * np.uint8(255)).save(sink, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return sink.getvalue()


def thumbnail(photo: Image.Image, source_row: int) -> dict[str, Any]:
    """An RGB picture as a small JPEG, the cell that a quarantined row shows."""
    small = photo.copy()
    small.thumbnail(_THUMBNAIL)
    return {"bytes": jpeg(small, 80), "path": f"row-{source_row}.jpg"}
