"""Sheets of validation pictures from what a script draws while it trains."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import train_flux_inpaint as trainer

#: File name of a sheet, by the kind of rows that it shows.
NAMES = {"validation": "step-{}.png", "train": "train-step-{}.png"}


class Sheets:
    """The rows that validation shows, by kind ("train", "validation"), and what has been drawn of them so far."""

    def __init__(self, settings: Namespace) -> None:
        self.settings, self.folder = settings, Path(settings.output_dir) / "validation"
        self.samples: dict[str, list[dict[str, Any]]] = {}
        self.drawn: dict[str, list[torch.Tensor]] = {}

    def rows_of(self, kind: str, data: Any) -> list[dict[str, Any]]:
        """Samples of ``data`` to show: ``--num_validation_images`` of them, none with ``--validation_steps 0``."""
        if kind not in self.samples:
            count = self.settings.num_validation_images if self.settings.validation_steps else 0
            self.samples[kind] = [data[row] for row in trainer.validation_rows(data, count)]
        return self.samples[kind]

    def path(self, kind: str, step: int) -> Path:
        """Where the sheet of a step lies."""
        return self.folder / NAMES[kind].format(step)

    def add(self, step: int, pairs: torch.Tensor, results: Sequence[Image.Image]) -> None:
        """Take in pictures [B,3,H,2W] in [-1,1] and what was drawn for them; a complete set becomes a sheet."""
        for pair, result in zip(pairs, results, strict=True):
            for kind, samples in self.samples.items():
                drawn = self.drawn.setdefault(kind, [])
                if len(drawn) < len(samples) and torch.equal(samples[len(drawn)]["image"], pair.cpu()):
                    pixels = torch.from_numpy(np.array(result.convert("RGB")))
                    drawn.append(pixels.permute(2, 0, 1) / 127.5 - 1)
                    if len(drawn) == len(samples):
                        self._write(kind, step, samples, self.drawn.pop(kind))
                    break

    def _write(self, kind: str, step: int, samples: list[dict[str, Any]], results: list[torch.Tensor]) -> None:
        width, rows = self.settings.width, []
        for sample, pair in zip(samples, results, strict=True):
            person = [tensor[..., width:] for tensor in (sample["im_mask"], pair, sample["image"])]
            rows.append([trainer.to_picture(tensor) for tensor in (sample["cloth_pure"], *person)])
        labels = [f"{sample['im_name']}  {sample['caption_cloth']}" for sample in samples]
        self.folder.mkdir(exist_ok=True)
        columns = ["garment", "masked person", f"result, step {step}", "truth"]
        trainer.labelled_grid(rows, columns, labels).save(self.path(kind, step))
