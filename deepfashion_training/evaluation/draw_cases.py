"""The pictures of an evaluation, drawn by as many processes as there are; what is drawn already stays."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
from training_run.flops import duration
from training_run.guards import is_out_of_memory
from training_run.speed import FILL, free_memory, free_to_use

#: Pictures of a batch at most where ``--batch_size`` does not say. Eight of 768x576 are 36,000 tokens in each product:
#: more should make no card faster (estimate), and a run that is stopped loses its batch.
MOST_AT_ONCE = 8


@dataclass(frozen=True)
class _Opened:
    """A case with its tensors, and where the person lies in them."""

    case: Case
    sample: dict[str, Any]
    box: Box


def draw_missing(plan: EvaluationPlan, state: PartialState) -> None:
    """Draw every picture of this process's share that is not there yet; the model is loaded only if there is one.

    The noise of a case follows from the seed and its row: it is the same for every model and garment, and in every
    batch. A batch for which a GPU has too little memory is drawn in halves. A case whose pictures cannot be used is
    skipped here, and reported when it is measured.
    """
    todo = missing_cases(plan, state.process_index, state.num_processes)
    told = bool(todo) and state.is_main_process
    model: FillModel | None = None
    size, batches = plan.batch_size or 1, 0
    with tqdm(total=_pictures(todo), unit="picture", desc="drawing", disable=None if told else True) as bar:
        while todo:
            batch = todo[:size]
            opened = _open(plan, [case for case, _ in batch])
            if opened:
                model = model or _load(plan, [case for case, _ in todo], state.device)
                measured = plan.batch_size is None and batches == 0 and state.device.type == "cuda"
                held = _held(state.device) if measured else 0
                began = time.perf_counter()
                if not _drawn(plan, model, opened):
                    free_memory()
                    size = max(1, len(opened) // 2)
                    if told:
                        bar.write(
                            f"note      {len(opened)} pictures at once are too many for this GPU: now {size}",
                            file=sys.stderr,
                        )
                    continue
                batches += 1
                if measured:
                    size = batch_that_fits(torch.cuda.max_memory_allocated(state.device) - held, state.device)
            todo = todo[len(batch) :]
            bar.update(_pictures(batch))
            if opened and batches == 2 and told and todo:  # the first one also chooses kernels and fills the memory
                each = (time.perf_counter() - began) / _pictures(batch)
                left = duration(each * _pictures(todo))
                bar.write(f"time      about {left} left: {each:.2g} s a picture, {size} at once", file=sys.stderr)


def missing_cases(plan: EvaluationPlan, rank: int, ranks: int) -> list[tuple[Case, list[str]]]:
    """The cases of process ``rank`` with the models whose pictures of them are not there."""
    share = [case for cases in plan.sets for case in cases[rank::ranks]]
    found = [(case, [name for name in plan.drawing if not plan.picture(name, case).exists()]) for case in share]
    return [(case, names) for case, names in found if names]


def _pictures(cases: Sequence[tuple[Case, list[str]]]) -> int:
    return sum(len(names) for _, names in cases)


def _prompt(plan: EvaluationPlan, case: Case) -> str:
    return plan.choice.recipe.prompt_of(plan.cases.rows.caption(case.garment_row))


def _load(plan: EvaluationPlan, cases: Sequence[Case], device: torch.device) -> FillModel:
    # With captions each case is a prompt, which takes 4 MB of memory: only those of this share are encoded.
    others = {} if plan.against is None else {"against": plan.against}
    return plan.choice.load([_prompt(plan, case) for case in cases], device=device, **others)


def _held(device: torch.device) -> int:
    """Bytes that PyTorch holds on a GPU; its peak is counted from here."""
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def batch_that_fits(each: int, device: torch.device) -> int:
    """How many pictures to draw at once on a GPU where one takes ``each`` bytes beside the models; at least one."""
    room = FILL * free_to_use(device) - torch.cuda.memory_allocated(device)
    return max(1, min(MOST_AT_ONCE, int(room / each)))


def _open(plan: EvaluationPlan, cases: Sequence[Case]) -> list[_Opened]:
    """The cases whose pictures can be used."""
    found = []
    for case in cases:
        try:
            found.append(_Opened(case, *plan.cases.sample(case)))
        except PictureError:
            continue
    return found


def _drawn(plan: EvaluationPlan, model: FillModel, opened: Sequence[_Opened]) -> bool:
    """Draw and save a batch by each model, where it is not there; False where the GPU has too little memory for it."""
    for name, look in plan.drawing.items():
        missing = [one for one in opened if not plan.picture(name, one.case).exists()]
        if not missing:
            continue
        try:
            pairs = model.draw(
                [one.sample for one in missing],
                [trainer.seed_for(plan.settings["seed"], one.case.row) for one in missing],
                prompts=[_prompt(plan, one.case) for one in missing],
                steps=look.num_inference_steps,
                guidance_scale=look.guidance_scale,
                loras=look.loras,
            )
        except ValueError as error:
            if len(opened) == 1 or not is_out_of_memory(error):
                raise
            return False
        for one, pair in zip(missing, pairs, strict=True):
            picture = _person(pair, one.sample, one.box, look)
            save_picture(picture, plan.picture(name, one.case), {"row": one.case.row})
    return True


def _person(pair: torch.Tensor, sample: dict[str, Any], box: Box, look: DrawingSettings) -> Image.Image:
    """The person's half of a drawn pair without padding, pasted into the photo where the look repaints."""
    width = look.size[1]
    left, top, right, bottom = box.edges
    drawn = picture_of(pair[..., width:]).crop(box.edges)
    if not look.repaint:
        return drawn
    photo = picture_of((sample["image"][..., width:] + 1) / 2).crop(box.edges)
    mask = sample["inpaint_mask"][0, :, width:].to(torch.uint8).numpy()
    return repainted(photo, drawn, mask[top:bottom, left:right])
