"""Validation sheets: pictures of tensors, in one labelled grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont


def to_picture(tensor: torch.Tensor) -> Image.Image:
    """Picture of a [3,H,W] tensor in [-1,1]."""
    pixels = ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


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
