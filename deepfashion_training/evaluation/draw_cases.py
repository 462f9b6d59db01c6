"""The pictures of an evaluation, drawn by as many processes as there are; what is drawn already stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

import train_flux_inpaint as trainer
from deepfashion_training.evaluation.cases import Case, Cases
from deepfashion_training.evaluation.evaluation_plan import EvaluationPlan, Processes
from deepfashion_training.images.layout import Box
from deepfashion_training.images.paste import repainted
from deepfashion_training.images.pictures import PictureError
from deepfashion_training.inference.dress import DrawingSettings, picture_of
from deepfashion_training.inference.records import save_picture
from deepfashion_training.models.fill import FillModel

Batch = tuple[bool, str, Sequence[Case]]
"""Cases that are drawn together: whether they are unpaired ones, and by which model."""


def draw_missing(plan: EvaluationPlan, state: Processes) -> None:
    """Draw every picture of this process's share that is not there yet; the model is loaded only if there is one.

    The noise of a case follows from the seed and its row: it is the same for every model and garment, and in every
    batch. A case whose pictures cannot be used is skipped here, and reported when it is measured.
    """
    from tqdm import tqdm

    batches = batches_of(plan, state.process_index, state.num_processes)
    # Whole batches, also where some pictures are there: a picture's last bits depend on the others of its batch.
    missing = [
        batch for batch in batches if not all(plan.picture(batch[1], case, batch[0]).exists() for case in batch[2])
    ]
    model: FillModel | None = None
    total, left = (sum(len(cases) for *_, cases in some) for some in (batches, missing))
    shown = state.is_main_process and left > 0
    with tqdm(
        total=total, initial=total - left, unit="picture", desc="drawing", disable=None if shown else True
    ) as bar:
        for unpaired, name, cases in missing:
            usable = _usable(plan.cases, cases, unpaired)
            if usable and model is None:
                model = _load(plan, missing, state.device)
            if usable and model is not None:
                _draw(model, plan, unpaired, name, usable)
            bar.update(len(cases))


def batches_of(plan: EvaluationPlan, rank: int, ranks: int) -> list[Batch]:
    """The batches that process ``rank`` of ``ranks`` draws. Which cases share a batch does not depend on ``ranks``."""
    size = plan.settings["batch_size"]
    found: list[Batch] = []
    for unpaired in (False, True) if plan.unpaired else (False,):
        cases = plan.cases.of(unpaired)
        batches = [cases[first : first + size] for first in range(0, len(cases), size)]
        found += [(unpaired, name, batch) for name in plan.drawing for batch in batches[rank::ranks]]
    return found


def _load(plan: EvaluationPlan, batches: Sequence[Batch], device: torch.device) -> FillModel:
    # With captions each case is a prompt, which takes 4 MB of memory: only those of this process's share are encoded.
    prompts = [_prompt(plan, case, unpaired) for unpaired, _, cases in batches for case in cases]
    others = {} if plan.against is None else {"against": plan.against}
    return plan.choice.load(prompts, device=device, **others)


def _prompt(plan: EvaluationPlan, case: Case, unpaired: bool) -> str:
    return plan.choice.recipe.prompt_of(plan.cases.caption(case, unpaired))


def _usable(cases: Cases, batch: Sequence[Case], unpaired: bool) -> list[tuple[Case, dict[str, Any], Box]]:
    found = []
    for case in batch:
        try:
            found.append((case, *cases.sample(case, unpaired)))
        except PictureError:
            continue
    return found


def _draw(
    model: FillModel, plan: EvaluationPlan, unpaired: bool, name: str, batch: Sequence[tuple[Case, dict[str, Any], Box]]
) -> None:
    look = plan.drawing[name]
    pairs = model.draw(
        [sample for _, sample, _ in batch],
        [trainer.seed_for(plan.settings["seed"], case.row) for case, _, _ in batch],
        prompts=[_prompt(plan, case, unpaired) for case, _, _ in batch],
        steps=look.num_inference_steps,
        guidance_scale=look.guidance_scale,
        lora=look.lora,
        lora_scale=look.lora_scale,
    )
    for (case, sample, box), pair in zip(batch, pairs, strict=True):
        save_picture(_person(pair, sample, box, look), plan.picture(name, case, unpaired), {"row": case.row})


def _person(pair: torch.Tensor, sample: dict[str, Any], box: Box, look: DrawingSettings) -> Image.Image:
    """The person's half of a drawn pair without padding, pasted into the photo where the look repaints."""
    width = look.size[1]
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    drawn = picture_of(pair[..., width:]).crop(edges)
    if not look.repaint:
        return drawn
    photo = picture_of((sample["image"][..., width:] + 1) / 2).crop(edges)
    mask = sample["inpaint_mask"][0, :, width:].to(torch.uint8).numpy()
    return repainted(photo, drawn, mask[edges[1] : edges[3], edges[0] : edges[2]])
