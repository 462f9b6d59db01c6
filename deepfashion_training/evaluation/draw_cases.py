"""The pictures of an evaluation, drawn by as many processes as there are; what is drawn already stays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import train_flux_inpaint as trainer
from deepfashion_training.evaluation.cases import Case, Cases
from deepfashion_training.images.paste import repainted
from deepfashion_training.images.pictures import PictureError
from deepfashion_training.inference.dress import DrawingSettings, picture_of
from deepfashion_training.inference.records import save_picture
from deepfashion_training.models.fill import FillModel, Recipe


@dataclass(frozen=True)
class Setting:
    """One set of pictures: every case at one guidance, paired or unpaired, by each of ``looks`` (by model name)."""

    folder: Path
    guidance_scale: float
    unpaired: bool
    looks: Mapping[str, DrawingSettings]

    def file(self, model: str, case: Case) -> Path:
        """The picture of a case."""
        return self.folder / model / case.file

    def has(self, model: str, case: Case, cases: Cases) -> bool:
        """Whether the picture of a case is there, whole and of the size that it has to have."""
        file = self.file(model, case)
        if not file.is_file():
            return False
        try:
            box = cases.box(case)
        except PictureError:
            return True  # nothing can be drawn in its place
        return _is_whole(file, box.width, box.height)

    def drawn(self, cases: Cases, share: Sequence[Case]) -> int:
        """How many pictures of ``share`` are there."""
        return sum(self.has(model, case, cases) for model in self.looks for case in share)


#: How a PNG begins and ends. Its width and height follow 8 bytes after the beginning, 4 bytes each.
_PNG_HEAD, _PNG_TAIL = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def _is_whole(file: Path, width: int, height: int) -> bool:
    """Whether ``file`` is a PNG of that size that was not cut off; read at its ends only, as there may be thousands."""
    with file.open("rb") as stored:
        head = stored.read(24)
        stored.seek(max(0, file.stat().st_size - len(_PNG_TAIL)))
        tail = stored.read()
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return head.startswith(_PNG_HEAD) and head[16:] == size and tail == _PNG_TAIL


def setting(root: Path, guidance_scale: float, unpaired: bool, looks: Mapping[str, DrawingSettings]) -> Setting:
    """The ``Setting`` whose pictures lie under ``root``."""
    name = "unpaired" if unpaired else "paired"
    return Setting(root / "pictures" / f"guidance-{guidance_scale:g}" / name, guidance_scale, unpaired, looks)


def share_of(cases: Cases, unpaired: bool, batch_size: int, rank: int, ranks: int) -> list[list[Case]]:
    """The batches that process ``rank`` of ``ranks`` draws. Which cases share a batch does not depend on ``ranks``."""
    chosen = cases.of(unpaired)
    return [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)][rank::ranks]


def draw_missing(
    model: Callable[[], FillModel],
    recipe: Recipe,
    cases: Cases,
    settings: Sequence[Setting],
    *,
    seed: int,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    drawn: Callable[[int], object] = lambda count: None,
) -> None:
    """Draw every picture that ``settings`` lack; ``model`` is asked for when the first is about to be drawn.

    The noise of a case follows from ``seed`` and its row, so that it is the same for every model, guidance and garment,
    and in every batch. ``share`` is (rank, ranks): each rank takes every ranks-th batch. ``drawn`` is told of pictures
    as they are saved or passed over: those of a case whose pictures cannot be used, as measuring says again.
    """
    for one in settings:
        batches = share_of(cases, one.unpaired, batch_size, *share)
        for name in one.looks:
            for batch in batches:
                # Whole batches, also where a part is there: a picture's last bits depend on the others of its batch.
                lacking = {case for case in batch if not one.has(name, case, cases)}
                if lacking:
                    _draw_batch(model, recipe, cases, one, name, batch, lacking, seed, drawn)


def _draw_batch(
    model: Callable[[], FillModel],
    recipe: Recipe,
    cases: Cases,
    one: Setting,
    name: str,
    batch: Sequence[Case],
    lacking: Collection[Case],
    seed: int,
    drawn: Callable[[int], object],
) -> None:
    usable: list[tuple[Case, dict[str, Any]]] = []
    for case in batch:
        try:
            usable.append((case, cases.sample(case, one.unpaired)))
        except PictureError:  # measuring meets it again, and says so
            drawn(int(case in lacking))
    if not usable:
        return
    look = one.looks[name]
    pairs = model().draw(
        [sample for _, sample in usable],
        [trainer.seed_for(seed, case.row) for case, _ in usable],
        prompts=[recipe.prompt_of(cases.caption(case, one.unpaired)) for case, _ in usable],
        steps=look.num_inference_steps,
        guidance_scale=look.guidance_scale,
        lora=look.lora,
        lora_scale=look.lora_scale,
    )
    for (case, sample), pair in zip(usable, pairs, strict=True):
        if case in lacking:
            picture = picture_of(pair[..., pair.shape[-1] // 2 :])
            save_picture(_finished(picture, sample, cases, case, look), one.file(name, case), {"row": case.row})
            drawn(1)


def _finished(
    half: Image.Image, sample: Mapping[str, Any], cases: Cases, case: Case, look: DrawingSettings
) -> Image.Image:
    """The person's half without padding, pasted into the photo where the look repaints."""
    box = cases.box(case)
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    if not look.repaint:
        return half.crop(edges)
    width = look.size[1]
    photo = picture_of((sample["image"][..., width:] + 1) / 2).crop(edges)
    mask = sample["inpaint_mask"][0, :, width:].to(torch.uint8).numpy()
    return repainted(photo, half.crop(edges), mask[box.top : box.top + box.height, box.left : box.left + box.width])
