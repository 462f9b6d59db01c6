"""People and garments to try the page with: drawn from the embedded wardrobe when the page starts, no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepfashion_training.embedded.rows import RowSpec, documented_row
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.inference.upload_store import Picked

#: Height and width of the drawings.
SIZE = (384, 288)
PEOPLE, GARMENTS = 2, 3  # of each type
_SEED = 5


@dataclass(frozen=True)
class Example:
    """A drawn person or garment; ``cloth_type`` (1, 2, 3) is what the person wears, or the garment is."""

    picked: Picked
    label: str
    cloth_type: int


def draw_examples(folder: Path) -> tuple[list[Example], list[Example]]:
    """People and garments, every type of both, written into ``folder``: the same ones at every start."""
    folder.mkdir(parents=True, exist_ok=True)
    people: list[Example] = []
    garments: list[Example] = []
    index = 0
    for cloth_type, name in TYPE_NAMES.items():
        for number in range(1, PEOPLE + GARMENTS + 1):
            # The whole body from the front, as the small model knows people; the garments are other people's.
            row = documented_row(RowSpec(_SEED, index, index, 1, "full", cloth_type, cloth_type, studio=True), SIZE)
            index += 1
            is_person = number <= PEOPLE
            label = f"person {len(people) + 1}" if is_person else f"{name} {number - PEOPLE}"
            path = folder / f"{label.replace(' ', '-')}.jpg"
            path.write_bytes(row["image" if is_person else "cloth"]["bytes"])
            (people if is_person else garments).append(Example(Picked(path, f"example {label}"), label, cloth_type))
    return people, garments
