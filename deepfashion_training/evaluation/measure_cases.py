"""Figures of the drawn pictures: of each picture, and of all pictures of a garment type as a set."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from deepfashion_training.evaluation.cases import Case, Truth
from deepfashion_training.evaluation.evaluation_plan import EvaluationPlan
from deepfashion_training.evaluation.metrics import drift, feature_figures, inception_figures, lpips, paired_figures
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.layout import garment_mask
from deepfashion_training.images.pictures import PictureError, border_colour
from deepfashion_training.inference.records import save_picture
from deepfashion_training.models.features import Dino
from deepfashion_training.reports.figures import UNPAIRED


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
    distances: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    """``{model: {type or "all": {figure: value}}}``: distances to the photos, for types with two cases or more."""


def measure(plan: EvaluationPlan, dino: Dino | None, cases: list[Case], device: torch.device) -> MeasuredCases:
    """Measure every picture of ``cases``, which are all paired or all not, against the photo it was made from.

    Unpaired pictures have no truth. Their figures are ``drift``, ``dino`` (the garment picture beside the repainted
    area) and the distances between sets. Raises ``ValueError`` when no case can be measured.
    """
    unpaired = cases[0].unpaired
    found, ending = MeasuredCases(unpaired), UNPAIRED if unpaired else ""
    features: dict[str, list[torch.Tensor]] = {}
    for case in tqdm(cases, unit="case", desc=f"measuring{ending}", disable=None):
        try:
            truth = plan.cases.truth(case)
            garment = plan.cases.garment(case)
            results = {model: read_result(plan.picture(model, case)) for model in plan.drawing}
        except PictureError as error:
            found.left_out[case.name] = str(error)
            continue
        found.cases.append(case)
        found.areas_unknown += not truth.area_known
        figures = {model: _figures(plan, result, truth, unpaired, device) for model, result in results.items()}
        if dino is not None:
            embedded = _embedded(dino, results, truth, _garment_alone(garment) if unpaired else None)
            for model in results:
                same = torch.nn.functional.cosine_similarity(embedded[f"{model} area"], embedded["worn"])
                figures[model]["dino"] = float(same.clamp(-1, 1))
            for name in (*results, "truth"):
                features.setdefault(name, []).append(embedded[name])
        if "fid" not in plan.left_out:
            save_picture(Image.fromarray(truth.photo), plan.picture("truth", case), {"row": case.row})
        about = {"row": case.row, "name": case.name, "garment": case.garment_name, "type": case.type_name}
        for model, values in figures.items():
            named = {name + ending: value for name, value in values.items()}
            found.rows.append({**about, "group": case.group, "model": model, "figures": named})
    if not found.cases:
        name, why = next(iter(found.left_out.items()))
        raise ValueError(f"none of {len(found.left_out)} cases can be measured, such as {name}: {why}")
    stacked = {name: torch.cat(parts) for name, parts in features.items()}
    found.distances = {model: _distances(plan, found, model, stacked) for model in plan.drawing}
    return found


def read_result(file: Path) -> np.ndarray:
    """A drawn picture, uint8 ``[h, w, 3]``; ``PictureError`` for one that cannot be read or is not there."""
    if not file.is_file():
        raise PictureError("it was not drawn: a picture of it cannot be used")
    try:
        with Image.open(file) as stored:
            return np.asarray(stored.convert("RGB"))
    except Exception as error:  # decoders raise OSError, SyntaxError, zlib.error and others
        raise PictureError(f"{file} cannot be read ({error}): delete it, and give the command again") from error


def _figures(
    plan: EvaluationPlan, result: np.ndarray, truth: Truth, unpaired: bool, device: torch.device
) -> dict[str, float]:
    # Pictures have the precision of the tensors that models draw.
    made, photo = (levels.astype(np.float32) / 255 for levels in (result, truth.photo))
    both = made.astype(np.float64), photo.astype(np.float64)
    if unpaired:
        return {"drift": drift(*both, truth.mask)}
    figures = paired_figures(*both, truth.mask, truth.garment_area)
    if "lpips" not in plan.left_out:
        figures["lpips"] = lpips(*(torch.from_numpy(each).permute(2, 0, 1).to(device) for each in (made, photo)))
    return figures


def _embedded(
    dino: Dino, results: Mapping[str, np.ndarray], truth: Truth, garment: np.ndarray | None
) -> dict[str, torch.Tensor]:
    """DINOv2 features ``[1, D]`` of the results, ``truth``, the ``MODEL area`` of each, and what is ``worn`` there.

    The garment's area of each result is compared with the same area of the photo. Where there is no truth, the
    repainted area is compared with the picture ``garment``; it shows the person too, so that the similarity is lower.
    """
    area = truth.garment_area if garment is None else truth.mask
    worn = _only(truth.photo, area) if garment is None else garment
    shown = {**results, "truth": truth.photo, "worn": worn}
    shown |= {f"{model} area": _only(result, area) for model, result in results.items()}
    # In one call: on a GPU a picture takes as long as a batch.
    embedded = dino.embed([Image.fromarray(levels) for levels in shown.values()]).double()
    return dict(zip(shown, embedded[:, None], strict=True))


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
            figures |= feature_figures(features["truth"][places], features[model][places], seed)
        if "fid" not in plan.left_out:
            with tempfile.TemporaryDirectory() as scratch:  # clean-fid takes pictures by the folder
                real, made = Path(scratch, "real"), Path(scratch, "made")
                for folder, name in ((real, "truth"), (made, model)):
                    folder.mkdir()
                    for case in (measured.cases[place] for place in places):
                        (folder / case.file).symlink_to(plan.picture(name, case))
                figures |= inception_figures(real, made, seed)
        found[kind] = {name + ending: value for name, value in figures.items() if math.isfinite(value)}
    return found
