"""Figures of the drawn pictures: of each picture, and of all pictures of a garment type as a set."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepfashion_training.evaluation import inception
from deepfashion_training.evaluation.cases import Case, Truth
from deepfashion_training.evaluation.distribution import frechet_distance, kernel_distance
from deepfashion_training.evaluation.evaluation_plan import EvaluationPlan
from deepfashion_training.evaluation.paired import drift, paired_figures
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.layout import garment_mask
from deepfashion_training.images.pictures import PictureError, border_colour
from deepfashion_training.inference.records import save_picture
from deepfashion_training.models.features import Dino
from deepfashion_training.reports.figures import UNPAIRED

#: ``{model: {type or "all": {figure: value}}}``.
Distances = dict[str, dict[str, dict[str, float]]]


@dataclass
class MeasuredCases:
    """Figures of the paired or the unpaired pictures.

    A row is one picture: ``{"row", "name", "garment", "type", "group", "model", "figures": {name: value}}``.
    """

    unpaired: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    """The cases that could be measured."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Names of the others, and why not."""
    areas_unknown: int = 0
    """Cases whose garment's own area is not known, so that colours are compared in the whole mask."""
    distances: Distances = field(default_factory=dict)
    """Fréchet and kernel distances to the photos, for types with two cases or more."""


def measure(
    plan: EvaluationPlan, dino: Dino | None, unpaired: bool, device: torch.device, done: Callable[[], object]
) -> MeasuredCases:
    """Measure every picture against the photo it was made from; ``done`` is called after each case.

    Unpaired pictures have no truth. Their figures are ``drift``, ``dino`` (the garment picture beside the repainted
    area) and the distances between sets. Raises ``ValueError`` when no case can be measured.
    """
    found, cases = MeasuredCases(unpaired), plan.cases.of(unpaired)
    features: dict[str, list[torch.Tensor]] = {}
    for case in cases:
        done()
        try:
            truth = plan.cases.truth(case)
            garment = plan.cases.garment(case, unpaired)
            results = {model: read_result(plan.picture(model, case, unpaired), truth) for model in plan.drawing}
        except PictureError as error:
            found.left_out[case.name] = str(error)
            continue
        found.cases.append(case)
        found.areas_unknown += not truth.area_known
        figures = {model: _figures(result, truth, unpaired, plan.extras, device) for model, result in results.items()}
        if dino is not None:
            similarity, seen = _compared(dino, results, truth, _garment_alone(garment) if unpaired else None)
            for model, value in similarity.items():
                figures[model]["dino"] = value
            for name, feature in seen.items():
                features.setdefault(name, []).append(feature)
        if {"fid", "kid"} & set(plan.extras):
            save_picture(Image.fromarray(truth.photo), plan.picture("truth", case, unpaired), {"row": case.row})
        ending = UNPAIRED if unpaired else ""
        for model, values in figures.items():
            found.rows.append(
                {
                    "row": case.row,
                    "name": case.name,
                    "garment": case.partner_name if unpaired else case.garment_name,
                    "type": case.type_name,
                    "group": case.group,
                    "model": model,
                    "figures": {name + ending: value for name, value in values.items()},
                }
            )
    if not found.cases:
        name, why = next(iter(found.left_out.items()))
        raise ValueError(f"nothing could be measured: none of {len(cases)} cases can be used, such as {name}: {why}")
    stacked = {name: torch.cat(parts) for name, parts in features.items()}
    found.distances = {model: _distances(plan, found, model, stacked) for model in plan.drawing}
    return found


def read_result(file: Path, truth: Truth) -> np.ndarray:
    """A drawn picture, uint8 ``[h, w, 3]``; ``PictureError`` for one that is not there or of another size."""
    if not file.is_file():
        raise PictureError("it was not drawn: a picture of it cannot be used")
    try:
        with Image.open(file, formats=("PNG",)) as stored:
            levels = np.asarray(stored.convert("RGB"))
    except Exception as error:  # decoders raise OSError, SyntaxError, zlib.error and others
        raise PictureError(f"{file} cannot be read ({error}): delete it, and give the command again") from error
    if levels.shape != truth.photo.shape:
        raise PictureError(
            f"{file} has another size, {levels.shape[1]}x{levels.shape[0]}: delete it, and give the command again"
        )
    return levels


def _figures(
    result: np.ndarray, truth: Truth, unpaired: bool, extras: Sequence[str], device: torch.device
) -> dict[str, float]:
    # Pictures have the precision of the tensors that models draw.
    made, photo = (levels.astype(np.float32) / 255 for levels in (result, truth.photo))
    both = made.astype(np.float64), photo.astype(np.float64)
    if unpaired:
        return {"drift": drift(*both, truth.mask)}
    figures = paired_figures(*both, truth.mask, truth.garment_area)
    if "lpips" in extras:
        one, other = (torch.from_numpy(picture).permute(2, 0, 1).to(device) for picture in (made, photo))
        figures["lpips"] = inception.lpips(one, other)
    return figures


def _compared(
    dino: Dino, results: Mapping[str, np.ndarray], truth: Truth, garment: np.ndarray | None
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Cosine similarity of DINOv2 features of garment areas by model; and features ``[1, D]`` of the whole pictures.

    The area of each result is compared with the same area of the photo. Where there is no truth, the repainted area is
    compared with the picture ``garment``; the area shows the person too, so that the similarity is lower.
    """
    area = truth.garment_area if garment is None else truth.mask
    worn = _only(truth.photo, area) if garment is None else garment
    shown = {**results, "truth": truth.photo, "worn": worn}
    shown |= {f"{model} area": _only(result, area) for model, result in results.items()}
    # In one call: on a GPU a picture takes as long as a batch.
    embedded = dino.embed([Image.fromarray(levels) for levels in shown.values()]).double()
    features = dict(zip(shown, embedded[:, None], strict=True))
    cosine = torch.nn.functional.cosine_similarity
    similarity = {model: float(cosine(features[f"{model} area"], features["worn"]).clamp(-1, 1)) for model in results}
    return similarity, {name: features[name] for name in (*results, "truth")}


def _garment_alone(garment: Image.Image) -> np.ndarray:
    """A garment picture without its background, as ``_only`` makes it."""
    levels = np.asarray(garment)
    own = garment_mask(levels.transpose(2, 0, 1), border_colour(garment)) > 0
    return _only(levels, own if own.any() else np.ones_like(own))


def _only(picture: np.ndarray, area: np.ndarray) -> np.ndarray:
    """What lies in ``area``, white beyond it, in the middle of the smallest square around it: uint8 ``[s, s, 3]``."""
    rows, columns = np.flatnonzero(area.any(axis=1)), np.flatnonzero(area.any(axis=0))
    inside = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    shown = np.where(area[inside][..., None], picture[inside], np.uint8(255))
    height, width = shown.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = shown
    return square


def _distances(
    plan: EvaluationPlan, measured: MeasuredCases, model: str, features: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, float]]:
    """Distances of one model's pictures to the photos by garment type."""
    ending, seed = UNPAIRED if measured.unpaired else "", plan.settings["seed"]
    found: dict[str, dict[str, float]] = {}
    for kind in (*TYPE_NAMES.values(), "all"):
        places = [place for place, case in enumerate(measured.cases) if kind in ("all", case.type_name)]
        if len(places) < 2:
            continue
        figures: dict[str, float] = {}
        if features:
            real, made = features["truth"][places], features[model][places]
            figures["fd_dinov2"] = frechet_distance(real, made)
            figures["kd_dinov2"] = kernel_distance(real, made, seed)
        if {"fid", "kid"} & set(plan.extras):
            figures |= _inception_distances(plan, model, [measured.cases[place] for place in places], measured.unpaired)
        found[kind] = {name + ending: value for name, value in figures.items() if math.isfinite(value)}
    return found


def _inception_distances(plan: EvaluationPlan, model: str, cases: Sequence[Case], unpaired: bool) -> dict[str, float]:
    """FID and KID of one model's pictures of ``cases``, as far as they can be computed here."""
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:  # clean-fid takes pictures by the folder
        real, made = Path(scratch, "real"), Path(scratch, "made")
        for folder, name in ((real, "truth"), (made, model)):
            folder.mkdir()
            for case in cases:
                (folder / case.file).symlink_to(plan.picture(name, case, unpaired))
        if "fid" in plan.extras:
            figures["fid"] = inception.fid(real, made)
        if "kid" in plan.extras:
            figures["kid"] = inception.kid(real, made, plan.settings["seed"])
    return figures
