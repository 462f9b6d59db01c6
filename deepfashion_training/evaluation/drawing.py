"""The pictures of an evaluation, drawn by as many processes as there are; what is drawn already stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import train_flux_inpaint as trainer
from deepfashion_training.dressing.dress import Look, picture_of
from deepfashion_training.dressing.records import save_picture
from deepfashion_training.evaluation.cases import Case, Cases
from deepfashion_training.models.fill import FillModel, Recipe
from deepfashion_training.pairs.paste import repainted
from deepfashion_training.pairs.pictures import PictureError


@dataclass(frozen=True)
class Setting:
    """One set of pictures: every case at one guidance, paired or unpaired, by each of ``looks`` (by model name)."""

    folder: Path
    guidance_scale: float
    unpaired: bool
    looks: Mapping[str, Look]

    def file(self, model: str, case: Case) -> Path:
        """The picture of a case."""
        return self.folder / model / case.file

    def missing(self, cases: Sequence[Case]) -> int:
        """How many pictures of ``cases`` are not there."""
        return sum(not self.file(model, case).is_file() for model in self.looks for case in cases)


def setting(root: Path, guidance_scale: float, unpaired: bool, looks: Mapping[str, Look]) -> Setting:
    """The ``Setting`` whose pictures lie under ``root``."""
    name = "unpaired" if unpaired else "paired"
    return Setting(root / "pictures" / f"guidance-{guidance_scale:g}" / name, guidance_scale, unpaired, looks)


def draw_missing(
    model: FillModel,
    recipe: Recipe,
    cases: Cases,
    settings: Sequence[Setting],
    *,
    seed: int,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    drawn: Callable[[int], object] = lambda count: None,
) -> None:
    """Draw every picture that ``settings`` lack.

    The noise of a case follows from ``seed`` and its row, so that it is the same for every model, guidance and garment,
    and in every batch. ``share`` is (rank, ranks): each rank takes every ranks-th case. ``drawn`` is told of pictures
    as they are saved. A case whose pictures cannot be used is passed over; measuring says so.
    """
    rank, ranks = share
    mine = cases.cases[rank::ranks]
    for one in settings:
        for name in one.looks:
            for first in range(0, len(mine), batch_size):
                batch = mine[first : first + batch_size]
                # Whole batches, also where a part is there: a picture's last bits depend on the others of its batch.
                if any(not one.file(name, case).is_file() for case in batch):
                    _draw_batch(model, recipe, cases, one, name, batch, seed, drawn)


def _draw_batch(
    model: FillModel,
    recipe: Recipe,
    cases: Cases,
    one: Setting,
    name: str,
    batch: Sequence[Case],
    seed: int,
    drawn: Callable[[int], object],
) -> None:
    usable: list[tuple[Case, dict[str, Any]]] = []
    for case in batch:
        try:
            usable.append((case, cases.sample(case, one.unpaired)))
        except PictureError:
            continue  # measuring meets it again, and says so
    if not usable:
        return
    look = one.looks[name]
    pairs = model.draw(
        [sample for _, sample in usable],
        [trainer.seed_for(seed, case.row) for case, _ in usable],
        prompts=[recipe.prompt_of(cases.caption(case, one.unpaired)) for case, _ in usable],
        steps=look.steps,
        guidance_scale=look.guidance_scale,
        lora=look.lora,
        lora_scale=look.lora_scale,
    )
    for (case, sample), pair in zip(usable, pairs, strict=True):
        if not one.file(name, case).is_file():
            picture = picture_of(pair[..., pair.shape[-1] // 2 :])
            save_picture(_finished(picture, sample, cases, case, look), one.file(name, case), {"row": case.row})
            drawn(1)


def _finished(half: Image.Image, sample: Mapping[str, Any], cases: Cases, case: Case, look: Look) -> Image.Image:
    """The person's half without padding, pasted into the photo where the look repaints."""
    box = cases.box(case)
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    if not look.repaint:
        return half.crop(edges)
    width = look.size[1]
    photo = picture_of((sample["image"][..., width:] + 1) / 2).crop(edges)
    mask = sample["inpaint_mask"][0, :, width:].to(torch.uint8).numpy()
    return repainted(photo, half.crop(edges), mask[box.top : box.top + box.height, box.left : box.left + box.width])
