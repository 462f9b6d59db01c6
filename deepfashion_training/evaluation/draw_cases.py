"""The pictures of an evaluation, drawn by as many processes as there are; what is drawn already stays."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

import train_flux_inpaint as trainer
from deepfashion_training.evaluation.cases import Case
from deepfashion_training.evaluation.evaluation_plan import EvaluationPlan
from deepfashion_training.images.layout import Box
from deepfashion_training.images.paste import repainted
from deepfashion_training.images.pictures import PictureError
from deepfashion_training.inference.dress import DrawingSettings, picture_of
from deepfashion_training.inference.records import save_picture
from deepfashion_training.models.fill import FillModel


def draw_missing(plan: EvaluationPlan, state: PartialState) -> None:
    """Draw every picture of this process's share that is not there yet; the model is loaded only if there is one.

    The noise of a case follows from the seed and its row: it is the same for every model and garment, and in every
    batch. A case whose pictures cannot be used is skipped here, and reported when it is measured.
    """
    # Whole batches, also where some pictures are there: a picture's last bits depend on the others of its batch.
    missing = [
        (name, cases)
        for name, cases in batches_of(plan, state.process_index, state.num_processes)
        if not all(plan.picture(name, case).exists() for case in cases)
    ]

    def prompt(case: Case) -> str:
        return plan.choice.recipe.prompt_of(plan.cases.rows.caption(case.garment_row))

    model: FillModel | None = None
    quiet = None if missing and state.is_main_process else True
    for name, cases in tqdm(missing, unit="batch", desc="drawing", disable=quiet):
        usable = []
        for case in cases:
            try:
                usable.append((case, *plan.cases.sample(case)))
            except PictureError:
                continue
        if not usable:
            continue
        if model is None:
            # With captions each case is a prompt, which takes 4 MB of memory: only those of this share are encoded.
            prompts = [prompt(case) for _, some in missing for case in some]
            others = {} if plan.against is None else {"against": plan.against}
            model = plan.choice.load(prompts, device=state.device, **others)
        look = plan.drawing[name]
        pairs = model.draw(
            [sample for _, sample, _ in usable],
            [trainer.seed_for(plan.settings["seed"], case.row) for case, _, _ in usable],
            prompts=[prompt(case) for case, _, _ in usable],
            steps=look.num_inference_steps,
            guidance_scale=look.guidance_scale,
            lora=look.lora,
            lora_scale=look.lora_scale,
        )
        for (case, sample, box), pair in zip(usable, pairs, strict=True):
            save_picture(_person(pair, sample, box, look), plan.picture(name, case), {"row": case.row})


def batches_of(plan: EvaluationPlan, rank: int, ranks: int) -> list[tuple[str, list[Case]]]:
    """Model and cases of each batch that process ``rank`` draws. What shares one does not depend on ``ranks``."""
    size = plan.settings["batch_size"]
    found = []
    for cases in plan.sets:
        batches = [cases[first : first + size] for first in range(0, len(cases), size)]
        found += [(name, batch) for name in plan.drawing for batch in batches[rank::ranks]]
    return found


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
