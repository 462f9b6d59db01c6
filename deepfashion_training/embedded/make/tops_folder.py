"""Writes a VITON-HD folder of drawn people in drawn tops: what the small FLUX-Fill learns from, as the real one did.

As in VITON-HD there are tops only, and people from head to thighs: a person wears whatever goes with the top, and the
area to repaint is the upper body's. A share of the rows is plain inpainting, as FLUX.1-Fill learned it before
CatVTON-Flux: legs or all clothes are to be repainted, and the top in the garment half says nothing about them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from deepfashion_training.embedded.body import PERSON_VIEWS
from deepfashion_training.embedded.rows import STUDIO_SHARES, RowSpec, draw_all
from deepfashion_training.garment_types import FULL, LOWER, UPPER

#: Folders of a phase of VITON-HD that the trainer reads.
FOLDERS = ("image", "cloth", "cloth-mask", "agnostic-mask")
#: No wardrobe that evaluates has this seed: people of another seed are other people.
SEED = 1008
SIZE = (128, 96)  # height and width of one half of a pair
TEST_ROWS = 16
#: Share of the rows that are plain inpainting.
ELSEWHERE = 0.4


def top_specs(rows: int) -> Iterator[RowSpec]:
    """``rows`` people, each once, in an outfit drawn around a top, from head to thighs; views as in the wardrobe."""
    shares = {view: share for view, share in zip(PERSON_VIEWS, STUDIO_SHARES, strict=True) if view != "full"}
    chances = np.array(list(shares.values())) / sum(shares.values())
    for index in range(rows):
        view = str(np.random.default_rng([SEED, index, 9]).choice(list(shares), p=chances))
        yield RowSpec(SEED, index, index, 1, view, UPPER, UPPER, studio=True)


def repainted_type(spec: RowSpec) -> int:
    """Garment type whose area is to be repainted: the top's, or for a share ``ELSEWHERE`` of the rows another's."""
    draw = spec.generator(11).random(2)
    return UPPER if draw[0] >= ELSEWHERE else (LOWER if draw[1] < 0.5 else FULL)


def write_tops_folder(target: Path, rows: int, num_proc: int = 1) -> None:
    """Draw a VITON-HD folder with ``rows`` people in ``train/`` and ``TEST_ROWS`` others in ``test/``.

    Each training pair is there a second time as its mirror image, so the list has twice as many lines. The same bytes
    for the same arguments, whatever ``num_proc`` is.
    """
    for phase in ("train", "test"):
        for folder in FOLDERS:
            (target / phase / folder).mkdir(parents=True)
    count = rows + TEST_ROWS
    draw = functools.partial(_write_row, target, rows)
    written = tqdm(draw_all(draw, top_specs(count), num_proc), total=count, desc="drawing tops", unit="row")
    names = [name for of_row in written for name in of_row]
    for phase, some in (("train", names[: 2 * rows]), ("test", names[2 * rows :])):
        (target / f"{phase}_pairs.txt").write_text("".join(f"{name}.jpg {name}.jpg\n" for name in some), "utf-8")


def _write_row(target: Path, rows: int, spec: RowSpec) -> list[str]:
    """Draw one row and write its four pictures, in training their mirror images, too; returns the pairs' names."""
    repainted = repainted_type(spec)
    drawing = replace(spec, cloth_type=repainted).draw(SIZE)  # shows the part of the body that is repainted
    flat, lies = spec.draw_garment(SIZE)
    masks = [Image.fromarray(mask.astype(np.uint8) * np.uint8(255)) for mask in (lies, drawing.agnostic[repainted])]
    pictures = {f"{spec.index:06d}": [drawing.photo, flat, *masks]}
    if spec.index < rows:
        pictures[f"{spec.index:06d}m"] = [ImageOps.mirror(picture) for picture in (drawing.photo, flat, *masks)]
    phase = target / ("train" if spec.index < rows else "test")
    for name, parts in pictures.items():
        for folder, picture in zip(FOLDERS[:3], parts, strict=False):
            picture.save(phase / folder / f"{name}.jpg", quality=95, subsampling=0)
        parts[3].save(phase / "agnostic-mask" / f"{name}_mask.png", compress_level=1)
    return list(pictures)
