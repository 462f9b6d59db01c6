"""Pairs as picture files in the folders and lists of VITON-HD or DressCode, which other tools read."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepfashion_training.data.pair_folders import (
    CAPTIONS,
    CATEGORIES,
    DRESSCODE,
    GARMENT_END,
    LISTS,
    PERSON_END,
    VITON_HD,
    place_of,
)
from deepfashion_training.data.sampling import unpaired_partners
from deepfashion_training.images.layout import garment_mask
from deepfashion_training.images.pictures import border_colour, opacity, open_picture, orientation, upright
from deepfashion_training.preparation.batch import jpeg, png

#: JPEG quality of a picture that is stored in another form; 4:4:4, so that colours lose no sharpness.
QUALITY = 95


class PairWriter:
    """Writes pairs to ``folder`` in ``layout``, one after the other, and in the end its lists and captions.

    Validation pairs lie in ``train`` and in a list of their own, which no other tool reads. VITON-HD has no garment
    types: theirs are noted beside the captions.
    """

    def __init__(self, folder: Path, layout: str) -> None:
        self.folder, self.layout = folder, layout
        self.rewritten = 0
        """Pictures that were no upright RGB JPEG, and became one."""
        self._rows: dict[str, list[dict[str, Any]]] = defaultdict(list)  # by split
        self._count = 0

    def write(self, row: dict[str, Any], split: str) -> None:
        """Write the pictures of a documented ``row``, as stored where that is what other tools expect."""
        viton = self.layout == VITON_HD
        number, self._count = f"{self._count:06d}", self._count + 1
        person, garment = (f"{number}{end}.jpg" for end in (("_00", "_00") if viton else (PERSON_END, GARMENT_END)))
        base = self._base(split, row["cloth_type"])
        files = {
            place_of(self.layout, "image", person): self._picture(row["image"]["bytes"]),
            place_of(self.layout, "cloth", garment): self._picture(row["cloth"]["bytes"]),
            place_of(self.layout, "mask", person): row["mask"]["bytes"],
            place_of(self.layout, "cloth_mask", garment): _garment_mask(row["cloth"]["bytes"], as_jpeg=viton),
        }
        for name, content in files.items():
            file = self.folder / base / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        kept = {name: row[name] for name in ("cloth_type", "caption", "pid")}
        self._rows[split].append({**kept, "person": person, "garment": garment, "base": base})

    def close(self, seed: int) -> None:
        """Write lists and captions; ``seed`` chooses whose garment each test person gets in the unpaired list."""
        for split, rows in self._rows.items():
            own = [(row["base"], row["person"], row["garment"]) for row in rows]
            self._write_lists(LISTS[self.layout][split][0], own)
            if split == "test":
                partners = unpaired_partners([row["cloth_type"] for row in rows], [row["pid"] for row in rows], seed)
                others = [
                    (base, person, rows[other]["garment"])
                    for (base, person, _), other in zip(own, partners, strict=True)
                ]
                self._write_lists(LISTS[self.layout]["unpaired"][-1], others)
        by_base: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for rows in self._rows.values():
            for row in rows:
                by_base[row["base"]].append(row)
        for base, rows in by_base.items():
            file = self.folder / base / CAPTIONS[self.layout].format(base=base)
            write = _tags if self.layout == VITON_HD else _lines
            file.write_text(write(rows), encoding="utf-8")

    def _base(self, split: str, cloth_type: int) -> str:
        if self.layout == DRESSCODE:
            return next(category for category, kind in CATEGORIES.items() if kind == cloth_type)
        return "test" if split == "test" else "train"

    def _picture(self, stored: bytes) -> bytes:
        picture = open_picture(stored)
        if stored.startswith(b"\xff\xd8") and picture.mode == "RGB" and orientation(picture) == 1:
            return stored
        self.rewritten += 1
        return jpeg(upright(picture), QUALITY)

    def _write_lists(self, name: str, pairs: Sequence[tuple[str, str, str]]) -> None:
        """One list; in DressCode one for each category and a common one. CatVTON wants a blank between words."""
        if self.layout == VITON_HD:
            (self.folder / name).write_text("".join(f"{person} {garment}\n" for _, person, garment in pairs), "utf-8")
            return
        common = ""
        for code, category in enumerate(CATEGORIES):
            (self.folder / category / "images").mkdir(parents=True, exist_ok=True)  # tools look for all three
            lines = [f"{person} {garment}" for base, person, garment in pairs if base == category]
            (self.folder / category / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
            common += "".join(f"{line} {code}\n" for line in lines)
        (self.folder / name).write_text(common, "utf-8")


def _garment_mask(stored: bytes, as_jpeg: bool) -> bytes:
    """Garment pixels of a stored garment picture, at its size, white = garment: PNG, or JPEG as in VITON-HD."""
    picture = open_picture(stored)
    garment, alpha = upright(picture), opacity(picture)
    if alpha is not None and orientation(picture) == 1:
        mask = alpha > 127
    else:
        mask = garment_mask(np.asarray(garment).transpose(2, 0, 1), border_colour(garment))
    levels = mask.view(np.uint8)
    return jpeg(Image.fromarray(levels * np.uint8(255)), QUALITY) if as_jpeg else png(levels)


def _tags(rows: Sequence[dict[str, Any]]) -> str:
    """Captions and types of garments in the form of VITON-HD's tags; who reads tags alone sees captions."""
    tagged = [
        {
            "file_name": row["garment"],
            "tag_info": [{"tag_name": "item", "tag_category": row["caption"] or None}],
            "cloth_type": row["cloth_type"],
        }
        for row in rows
    ]
    return json.dumps({"data": tagged}, indent=0, ensure_ascii=False) + "\n"


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(f"{row['garment']} {' '.join((row['caption'] or '').split())}".rstrip() + "\n" for row in rows)
