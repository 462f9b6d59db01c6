"""The drawn people that the small base's transformer learns from, written as a VITON-HD folder.

As in VITON-HD they wear whatever goes with the top, and in most rows the top is put on. Unlike there, most people are
drawn as far away as the wardrobe shows dresses. A share of the rows is plain inpainting, as FLUX.1-Fill learned it
before CatVTON-Flux: legs or all clothes are to be repainted, and the top in the garment half says nothing about them,
or the garment half is empty, and people in dresses and trousers are repainted, in part or all.
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

SIZE = (128, 96)  # height and width of one half of a pair

#: Seed of these people: another than those of every wardrobe that evaluates.
TOPS_SEED = 1014
#: Seeds of those that the transformer learned from before: at first, and each time that it went on.
FORMER_TOPS_SEEDS = (1008, 1009, 1011, 1012, 1013)
#: People of the folder's test split, for validation.
TEST_ROWS = 16
#: Share of the rows that have an empty garment half, and of the people in them those in a dress or a jumpsuit; others
#: are seen for their trousers or skirt. Then the share that repaints a rectangle, and its sides as shares of the
#: picture's.
WITHOUT_GARMENT, IN_DRESSES, IN_PART, RECTANGLE = 0.1, 0.65, 0.5, (0.3, 0.8)
#: Share of the rows with a garment that are plain inpainting: the top in the garment half says nothing about it.
PLAIN_INPAINTING = 0.1
#: Share of the garments drawn with a pattern that keep it.
PATTERNED = 1.0
#: Share of the people that are drawn as far away as the wardrobe shows dresses, whatever is repainted; so are those in
#: the view "full". There garments and their patterns are smaller than laid out flat, by area a dress 0.73 times and
#: trousers 0.58 times as long and wide (medians of 200 rows), where tops as shops show them are as large.
WHOLE = 0.75
#: Share of the people of ``WHOLE`` of whom only a part is shown, nearer and anywhere, and of the garment pictures that
#: are smaller and anywhere. What the model learns there holds wherever garment and body are, so that a LoRA finds it
#: useful for legs, too.
ELSEWHERE = 0.5
#: Height and width of the drawings of those people, and which share of both sides the picture shows.
LARGE, NEARNESS = (192, 144), (0.6, 1.0)
#: Folders of a phase of VITON-HD that the trainer reads.
FOLDERS = ("image", "cloth", "cloth-mask", "agnostic-mask")


def top_specs(rows: int) -> Iterator[RowSpec]:
    """``rows`` people, each once, in an outfit drawn around a top; views as in the wardrobe, twice its patterns."""
    for index in range(rows):
        view = str(np.random.default_rng([TOPS_SEED, index, 9]).choice(PERSON_VIEWS, p=STUDIO_SHARES))
        yield RowSpec(TOPS_SEED, index, index, 1, view, UPPER, UPPER, studio=True, patterned=PATTERNED)


def repainted_type(spec: RowSpec) -> int:
    """Garment type whose area is to be repainted beside a top: the top's, or in ``PLAIN_INPAINTING`` another's."""
    draw = spec.generator(11).random(2)
    return UPPER if draw[0] >= PLAIN_INPAINTING else (LOWER if draw[1] < 0.5 else FULL)


def without_garment(spec: RowSpec) -> RowSpec | None:
    """What is seen of the person where the garment half is empty, as in ``WITHOUT_GARMENT`` of the rows; else None.

    That is a dress or jumpsuit, trousers or a skirt.
    """
    draw = spec.generator(15).random(2)
    kind = FULL if draw[1] < IN_DRESSES else LOWER
    return replace(spec, cloth_type=kind, around=kind) if draw[0] < WITHOUT_GARMENT else None


def part_of(spec: RowSpec, area: np.ndarray) -> np.ndarray:
    """What is repainted beside an empty garment half, bool [H,W]: ``area``, or in ``IN_PART`` of the rows a rectangle.

    The rectangle lies around a point of ``area``, which needs one at least, and ends where the picture does. What it
    leaves of a garment tells how the rest looks.
    """
    rng = spec.generator(16)
    if rng.random() < 1 - IN_PART:
        return area
    points = np.argwhere(area)
    edges = []
    for place, side in zip(points[rng.integers(len(points))], area.shape, strict=True):
        length = round(side * rng.uniform(*RECTANGLE))
        first = place - rng.integers(length)
        edges.append(slice(max(0, first), first + length))
    found = np.zeros_like(area)
    found[tuple(edges)] = True
    return found


def seen_from(spec: RowSpec) -> tuple[bool, bool, bool]:
    """Of a row: whether the person is drawn whole, whether only a part of that is shown, and whether the garment moves.

    As ``WHOLE`` and ``ELSEWHERE`` say.
    """
    whole, near = spec.generator(14).random(2) < (WHOLE, ELSEWHERE)
    return bool(whole), bool(whole and near), bool(spec.generator(17).random() < ELSEWHERE)


def drawn_person(spec: RowSpec) -> tuple[Image.Image, np.ndarray]:
    """Photo, and bool [H,W], the area of ``spec.cloth_type`` to repaint, seen as ``seen_from`` says.

    A part that is shown is one of a larger drawing, around a point of that area. People who are not drawn whole are as
    in the wardrobe.
    """
    whole, near, _ = seen_from(spec)
    drawing = (replace(spec, cloth_type=FULL) if whole else spec).draw(LARGE if near else SIZE)
    photo, area = drawing.photo, drawing.agnostic[spec.cloth_type]
    if not near:
        return photo, area
    rng = spec.generator(12)
    rows, columns = np.nonzero(area)
    point = rng.integers(len(rows))
    share = rng.uniform(*NEARNESS)
    height, width = (share * side for side in LARGE)
    top = min(max(rows[point] - height * rng.uniform(0.2, 0.8), 0), LARGE[0] - height)
    left = min(max(columns[point] - width * rng.uniform(0.2, 0.8), 0), LARGE[1] - width)
    box = (left, top, left + width, top + height)
    near_area = Image.fromarray(area).resize(SIZE[::-1], Image.Resampling.NEAREST, box)
    return photo.resize(SIZE[::-1], Image.Resampling.LANCZOS, box), np.asarray(near_area)


def garment_elsewhere(spec: RowSpec, flat: Image.Image, lies: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """The flat garment and where it lies, smaller and anywhere on its white ground."""
    rng = spec.generator(13)
    width, height = (round(side * rng.uniform(0.6, 1)) for side in flat.size)
    place = (int(rng.integers(flat.width - width + 1)), int(rng.integers(flat.height - height + 1)))
    ground, mask = Image.new("RGB", flat.size, (255, 255, 255)), Image.new("L", flat.size)
    ground.paste(flat.resize((width, height), Image.Resampling.LANCZOS), place)
    mask.paste(Image.fromarray(lies).resize((width, height), Image.Resampling.NEAREST), place)
    return ground, np.asarray(mask) > 0


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
    wears = without_garment(spec)
    # Who is not seen whole is seen where the body is repainted.
    photo, area = drawn_person(wears or replace(spec, cloth_type=repainted_type(spec)))
    if wears:
        area = part_of(spec, area)
        flat, lies = Image.new("RGB", SIZE[::-1], (255, 255, 255)), np.zeros(SIZE, bool)
    else:
        flat, lies = spec.draw_garment(SIZE)
        if seen_from(spec)[2]:
            flat, lies = garment_elsewhere(spec, flat, lies)
    masks = [Image.fromarray(mask.astype(np.uint8) * np.uint8(255)) for mask in (lies, area)]
    pictures = {f"{spec.index:06d}": [photo, flat, *masks]}
    if spec.index < rows:
        pictures[f"{spec.index:06d}m"] = [ImageOps.mirror(picture) for picture in (photo, flat, *masks)]
    phase = target / ("train" if spec.index < rows else "test")
    for name, parts in pictures.items():
        for folder, picture in zip(FOLDERS[:3], parts, strict=False):
            picture.save(phase / folder / f"{name}.jpg", quality=95, subsampling=0)
        parts[3].save(phase / "agnostic-mask" / f"{name}_mask.png", compress_level=1)
    return list(pictures)
