"""Validation sheets: what a model has drawn, beside what it saw, in one labelled grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from training_run.atomic import replacing


def to_picture(tensor: torch.Tensor) -> Image.Image:
    """Picture of a [3,H,W] tensor in [-1,1]."""
    pixels = ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def sheet_path(folder: Path, step: int) -> Path:
    """Where a run in ``folder`` has its sheet of a step."""
    return folder / "validation" / f"step-{step}.png"


def sheets_in(folder: Path) -> list[Path]:
    """The sheets of a run in ``folder``, by step."""
    found = {path: path.stem.removeprefix("step-") for path in folder.glob("validation/step-*.png")}
    return sorted((path for path, step in found.items() if step.isdecimal()), key=step_of_sheet)


def step_of_sheet(path: Path) -> int:
    """The step of a sheet that ``sheets_in`` has found."""
    return int(path.stem.removeprefix("step-"))


def write_sheet(
    folder: Path, step: int, samples: Sequence[dict[str, Any]], results: Sequence[Image.Image]
) -> Image.Image:
    """Write the sheet of a step to a run's ``folder``, and return it.

    A row is a sample: garment, masked person, the person of the same size in ``results`` pasted into the photo where
    the mask is, as try-on gives it, and the photo itself.
    """
    rows = []
    for sample, result in zip(samples, results, strict=True):
        known = (sample["cloth_pure"], sample["im_mask"][..., result.width :], sample["image"][..., result.width :])
        garment, masked, truth = map(to_picture, known)
        mask = Image.fromarray(sample["inpaint_mask"][0, :, result.width :].bool().numpy())
        rows.append([garment, masked, Image.composite(result, truth, mask), truth])
    labels = [f"{sample['im_name']}  {sample['caption_cloth']}" for sample in samples]
    sheet = labelled_grid(rows, ["garment", "masked person", f"step {step}, in the photo", "photo"], labels)
    with replacing(sheet_path(folder, step)) as draft:
        sheet.save(draft)
    return sheet


def labelled_grid(rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], labels: Sequence[str]) -> Image.Image:
    """One picture of ``rows`` of equally large pictures, each column under its name, each row under its label."""
    enlarge = max(1, round(256 / rows[0][0].height))
    width = rows[0][0].width * enlarge
    height = rows[0][0].height * enlarge
    size = max(13, height // 28)
    gap = max(6, height // 64)
    line = round(size * 1.7)
    font = ImageFont.load_default(size)
    sheet = Image.new("RGB", ((width + gap) * len(columns) + gap, line + (line + height + gap) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        draw.text((gap + column * (width + gap), line // 2), name, "black", font, anchor="lm")
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = line + number * (line + height + gap)
        label = " ".join(label.split())
        while label and draw.textlength(label, font) > sheet.width - 2 * gap:
            label = label.removesuffix("…")[:-1] + "…"
        draw.text((gap, top + line // 2), label, "dimgray", font, anchor="lm")
        for column, picture in enumerate(row):
            place = (gap + column * (width + gap), top + line)
            sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), place)
    return sheet
