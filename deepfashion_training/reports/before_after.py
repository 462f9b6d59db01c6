"""One picture that shows what a LoRA changed: people before and after, a row for each garment type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from deepfashion_training.reports.evaluation_report import TYPE_LABELS, ShownCase
from training_run.atomic import replacing

#: In pixels: height of a picture, space between pictures, between two cases, and around; height of a line of text.
_TILE, _GAP, _BETWEEN, _MARGIN, _LINE = 256, 6, 36, 24, 34
_INK, _FAINT, _PAPER = (32, 34, 38), (112, 116, 124), (255, 255, 255)


def save_before_after(file: Path, cases: Sequence[ShownCase]) -> None:
    """Write a PNG of ``cases``, which all have a truth: a row for each garment type, its cases beside each other."""
    rows = {kind: [case for case in cases if case.type_name == kind] for kind in TYPE_LABELS}
    rows = {kind: chosen for kind, chosen in rows.items() if chosen}
    wide = max(_tile(case.person).width for case in cases)
    across = max(len(chosen) for chosen in rows.values())
    group = (3 + len(cases[0].results)) * (wide + _GAP) - _GAP
    size = (2 * _MARGIN + across * (group + _BETWEEN) - _BETWEEN, 2 * _MARGIN + len(rows) * (_TILE + 2 * _LINE))
    sheet = Image.new("RGB", size, _PAPER)
    draw, large, small = ImageDraw.Draw(sheet), ImageFont.load_default(22), ImageFont.load_default(17)
    for number, (kind, chosen) in enumerate(rows.items()):
        top = _MARGIN + number * (_TILE + 2 * _LINE)
        draw.text((_MARGIN, top), TYPE_LABELS[kind], _INK, large)
        for place, case in enumerate(chosen):
            left = _MARGIN + place * (group + _BETWEEN)
            assert case.truth is not None
            pictures = {"garment": case.garment, "person": case.person, **case.results, "photo": case.truth}
            for name, picture in pictures.items():
                tile = _tile(picture)
                sheet.paste(tile, (left + (wide - tile.width) // 2, top + 2 * _LINE - 4))
                label = "LoRA" if name == "lora" else name
                draw.text((left + wide / 2, top + 2 * _LINE - 10), label, _FAINT, small, anchor="ms")
                left += wide + _GAP
    with replacing(file) as draft:
        sheet.save(draft, "PNG")


def _tile(picture: Image.Image) -> Image.Image:
    size = (max(1, round(picture.width * _TILE / picture.height)), _TILE)
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
