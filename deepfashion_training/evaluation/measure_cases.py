"""Figures of an evaluation: of each picture first, then by garment type with intervals and differences.

A *row* here is one picture's figures: ``{"row", "name", "garment", "type", "group", "model", "guidance_scale",
"figures": {name: value}}``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepfashion_training.evaluation import inception
from deepfashion_training.evaluation.cases import Case, Cases, Truth, garment_rgb
from deepfashion_training.evaluation.distribution import cosine_similarity, frechet_distance, kernel_distance
from deepfashion_training.evaluation.draw_cases import Setting
from deepfashion_training.evaluation.intervals import bootstrap_interval
from deepfashion_training.evaluation.paired import drift, paired_figures
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.images.layout import garment_mask
from deepfashion_training.images.pictures import PictureError, border_colour
from deepfashion_training.inference.dress import picture_of
from deepfashion_training.inference.records import save_picture
from deepfashion_training.models.features import Dino
from deepfashion_training.reports.figures import FEWEST_FOR_VERDICT, UNPAIRED, figure_of

#: Figures of single pictures, and figures of sets of them.
OF_A_PICTURE = ("ssim", "ssim_masked", "psnr", "psnr_masked", "ciede2000_masked", "drift", "dino", "lpips")
OF_A_SET = ("fd_dinov2", "kd_dinov2", "fid", "kid")


class Instruments:
    """What figures are measured with: DINOv2 where a model is named, ``extras`` of papers, on ``device``."""

    def __init__(self, dino: str | None, extras: Sequence[str], device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.dino = None if dino is None else Dino(dino)
        self.lpips = inception.lpips if "lpips" in extras else None
        self.distances = tuple(name for name in ("fid", "kid") if name in extras)


class Measured:
    """Pictures of one ``Setting``, measured: ``rows`` as above, and what ``OF_A_SET`` need.

    ``features`` [n, D] are DINOv2's by model, and of the photos under ``truth``, in the order of ``cases``.
    ``left_out`` says by name of which cases nothing could be measured, and why; ``areas_unknown`` counts cases whose
    garment's own area is not known, so that the mask stands for it.
    """

    def __init__(self, setting: Setting, instruments: Instruments) -> None:
        self.setting, self.instruments = setting, instruments
        self.rows: list[dict[str, Any]] = []
        self.cases: list[Case] = []
        self.left_out: dict[str, str] = {}
        self.areas_unknown = 0
        self.features: dict[str, torch.Tensor] = {}


def measure(
    cases: Cases, setting: Setting, instruments: Instruments, told: Callable[[int], object] = lambda count: None
) -> Measured:
    """Measure every picture of ``setting`` against the photo it was made from; ``told`` of each case done.

    Unpaired pictures have no truth: of them there are ``drift``, ``dino`` (the garment picture against the repainted
    area) and what ``OF_A_SET`` need.
    """
    found, dino = Measured(setting, instruments), instruments.dino
    features: dict[str, list[torch.Tensor]] = {}
    chosen = cases.of(setting.unpaired)
    for case in chosen:
        told(1)
        try:
            truth = cases.truth(case)
            garment = cases.garment(case, setting.unpaired)
            pictures = {model: read_result(setting.file(model, case), truth) for model in setting.looks}
        except PictureError as error:
            found.left_out[case.name] = str(error)
            continue
        found.cases.append(case)
        found.areas_unknown += not truth.area_known
        if instruments.distances:
            save_picture(picture_of(truth.photo), setting.file("truth", case), {"row": case.row})
        seen = {} if dino is None else _seen(dino, pictures, truth, garment, setting.unpaired)
        for model, picture in pictures.items():
            figures = _figures(picture, truth, setting.unpaired, instruments)
            if seen:
                figures["dino"] = float(cosine_similarity(seen[f"{model} area"], seen["worn"])[0])
            found.rows.append(_row(case, model, setting, figures))
        for name in (*pictures, "truth") if seen else ():
            features.setdefault(name, []).append(seen[name])
    found.features = {name: torch.cat(parts) for name, parts in features.items()}
    if not found.cases:
        name, why = next(iter(found.left_out.items()))
        raise ValueError(f"nothing could be measured: none of {len(chosen)} cases can be used, such as {name}: {why}")
    return found


def _row(case: Case, model: str, setting: Setting, figures: Mapping[str, float]) -> dict[str, Any]:
    ending = UNPAIRED if setting.unpaired else ""
    return {
        "row": case.row,
        "name": case.name,
        "garment": case.partner_name if setting.unpaired else case.garment_name,
        "type": case.type_name,
        "group": case.group,
        "model": model,
        "guidance_scale": setting.guidance_scale,
        "figures": {name + ending: value for name, value in figures.items()},
    }


def _figures(picture: torch.Tensor, truth: Truth, unpaired: bool, instruments: Instruments) -> dict[str, float]:
    result, photo, mask, area = (
        each.to(instruments.device) for each in (picture, truth.photo, truth.mask, truth.garment_area)
    )
    if unpaired:
        return {"drift": float(drift(result, photo, mask)[0])}
    figures = paired_figures(result, photo, mask, area)[0]
    if instruments.lpips is not None:
        figures["lpips"] = instruments.lpips(result, photo)[0]
    return figures


def _seen(
    dino: Dino, pictures: Mapping[str, torch.Tensor], truth: Truth, garment: Image.Image, unpaired: bool
) -> dict[str, torch.Tensor]:
    """DINOv2 features [1, D]: of each picture under its model's name and of the photo under ``truth``.

    And of garment areas, to compare by cosine: each result's under ``<model> area``, and under ``worn`` the same area
    of the photo. Unpaired there is no truth: the garment picture and the repainted area, whose person shows too, so
    that it is lower.
    """
    area = truth.mask if unpaired else truth.garment_area
    worn = _garment_alone(garment) if unpaired else _only(truth.photo, area)
    shown = {**pictures, "truth": truth.photo, "worn": worn}
    shown |= {f"{model} area": _only(picture, area) for model, picture in pictures.items()}
    # In one call: on a GPU a picture takes as long as a batch.
    features = dino.embed([picture_of(picture) for picture in shown.values()])
    return dict(zip(shown, features[:, None], strict=True))


def _garment_alone(garment: Image.Image) -> torch.Tensor:
    """A garment picture without its background, as ``_only`` makes it."""
    alone = garment_rgb(garment)
    levels = np.asarray(alone)
    own = garment_mask(levels.transpose(2, 0, 1), border_colour(alone))
    whole = torch.from_numpy(own if own.any() else np.ones_like(own))[None]
    return _only(torch.from_numpy(levels.astype(np.float32) / 255).permute(2, 0, 1), whole)


def _only(picture: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """What lies in ``area`` [1, h, w], white beyond it, in the middle of the smallest square around it: [3, s, s]."""
    rows, columns = (torch.nonzero(area[0].any(dim=dim))[:, 0] for dim in (1, 0))
    inside = (slice(None), slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    seen = torch.where(area[inside] > 0, picture[inside], torch.ones(()))
    side = max(seen.shape[1:])
    square = torch.ones(3, side, side)
    top, left = ((side - edge) // 2 for edge in seen.shape[1:])
    square[:, top : top + seen.shape[1], left : left + seen.shape[2]] = seen
    return square


def read_result(file: Path, truth: Truth) -> torch.Tensor:
    """A drawn picture as float32 [3, h, w] in [0, 1]; ``PictureError`` for one that is not there or of another size."""
    if not file.is_file():
        raise PictureError("it was not drawn: a picture of it cannot be used")
    try:
        with Image.open(file, formats=("PNG",)) as stored:
            levels = np.asarray(stored.convert("RGB"))
    except Exception as error:  # decoders raise OSError, SyntaxError, zlib.error and others
        raise PictureError(f"{file} cannot be read ({error}): delete it, and give the command again") from error
    if levels.shape[:2] != truth.photo.shape[1:]:
        raise PictureError(f"{file.name} has {levels.shape[1]}x{levels.shape[0]} pixels, of another size or run")
    return torch.from_numpy(levels.astype(np.float32)).permute(2, 0, 1) / 255


def summarise(measured: Sequence[Measured], seed: int, rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """``{model: {type or "all": {"n", figure: mean, figure_ci: [low, high], ...}}}`` over paired and unpaired pictures.

    ``n`` counts pictures of cases, ``<figure>_n`` those that a mean is over where these are fewer (PSNR of equal
    pictures is infinite and does not count). Intervals are 95% bootstrap ones over people, None of one person.
    """
    rows = [row for one in measured for row in one.rows]
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        models[model] = {}
        for kind in (*TYPE_NAMES.values(), "all"):
            chosen = [row for row in rows if row["model"] == model and kind in ("all", row["type"])]
            if chosen:
                models[model][kind] = {"n": len({row["row"] for row in chosen}), **_means(chosen, seed, rounds)}
    for one in measured:
        _add_distances(models, one, seed)
    return models


def _means(rows: Sequence[Mapping[str, Any]], seed: int, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row["figures"]):
        values = [(row["figures"][name], row["group"]) for row in rows if name in row["figures"]]
        finite = [(value, group) for value, group in values if math.isfinite(value)]
        if len(finite) < len(values) or len(values) < len({row["row"] for row in rows}):
            found[f"{name}_n"] = len(finite)
        if not finite:
            found[name] = None
            continue
        numbers, groups = [value for value, _ in finite], [group for _, group in finite]
        found[name] = float(np.mean(numbers))
        found[f"{name}_ci"] = _interval(numbers, groups, seed, rounds)
    return found


def _interval(numbers: Sequence[float], groups: Sequence[str], seed: int, rounds: int) -> list[float] | None:
    """The 95% interval of a mean over people; None of one person, who says nothing of others."""
    return list(bootstrap_interval(numbers, seed, rounds, groups=groups)) if len(set(groups)) > 1 else None


def _add_distances(models: dict[str, dict[str, dict[str, Any]]], one: Measured, seed: int) -> None:
    """Fréchet and kernel distances of each model's pictures to the photos, of types with two cases or more."""
    ending = UNPAIRED if one.setting.unpaired else ""
    for kind in (*TYPE_NAMES.values(), "all"):
        places = [place for place, case in enumerate(one.cases) if kind in ("all", case.type_name)]
        if len(places) < 2:
            continue
        for model in one.setting.looks:
            figures = models[model][kind]
            if one.features:
                real, made = one.features["truth"][places], one.features[model][places]
                figures[f"fd_dinov2{ending}"] = frechet_distance(real, made)
                figures[f"kd_dinov2{ending}"] = kernel_distance(real, made, seed)[0]
            if one.instruments.distances:
                _add_inception(figures, one, model, [one.cases[place] for place in places], ending, seed)


def _add_inception(
    figures: dict[str, Any], one: Measured, model: str, cases: Sequence[Case], ending: str, seed: int
) -> None:
    """FID and KID of one model's pictures of ``cases``, which clean-fid takes by the folder."""
    with tempfile.TemporaryDirectory(dir=one.setting.folder) as scratch:
        real, made = Path(scratch, "real"), Path(scratch, "made")
        for folder, name in ((real, "truth"), (made, model)):
            folder.mkdir()
            for case in cases:
                (folder / case.file).symlink_to(one.setting.file(name, case))
        if "fid" in one.instruments.distances:
            figures[f"fid{ending}"] = inception.clean_fid(real, made)
        if "kid" in one.instruments.distances:
            figures[f"kid{ending}"] = inception.clean_kid(real, made, seed)


def differences(measured: Sequence[Measured], seed: int, rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """What the LoRA changed: ``{type or "all": {figure: {"n", "people", "mean", "ci", "better"}}}``.

    ``mean`` is that of LoRA minus base, case by case, with its 95% bootstrap interval over ``people``; ``better`` is
    ``"lora"`` or ``"base"`` where the interval lies on one side of 0, else None: no difference that chance would not
    make, or fewer than ``FEWEST_FOR_VERDICT`` people. Cases of which one figure is infinite and the other not (PSNR of
    equal pictures) do not count, as ``n`` says.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in (*TYPE_NAMES.values(), "all"):
        for one in measured:
            by_model: dict[str, dict[int, Mapping[str, Any]]] = {"base": {}, "lora": {}}
            for row in one.rows:
                if kind in ("all", row["type"]):
                    by_model[row["model"]][row["row"]] = row
            both = [number for number in by_model["base"] if number in by_model["lora"]]
            for name in dict.fromkeys(name for number in both for name in by_model["base"][number]["figures"]):
                change = _change(name, [(by_model["base"][at], by_model["lora"][at]) for at in both], seed, rounds)
                if change is not None:
                    found.setdefault(kind, {})[name] = change
    return found


def _change(
    name: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], seed: int, rounds: int
) -> dict[str, Any] | None:
    """The change of one figure; equal values are no change, also where both are infinite."""
    numbers, groups = [], []
    for base, lora in pairs:
        before, after = base["figures"].get(name), lora["figures"].get(name)
        if before is None or after is None:
            continue
        change = 0.0 if before == after else after - before
        if math.isfinite(change):
            numbers.append(change)
            groups.append(base["group"])
    if not numbers:
        return None
    interval, people, better = _interval(numbers, groups, seed, rounds), len(set(groups)), None
    if interval is not None and people >= FEWEST_FOR_VERDICT and (interval[0] > 0 or interval[1] < 0):
        better = "lora" if (interval[0] > 0) == (figure_of(name).better == "higher") else "base"
    return {"n": len(numbers), "people": people, "mean": float(np.mean(numbers)), "ci": interval, "better": better}
