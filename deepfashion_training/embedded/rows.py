"""Which rows a drawn wardrobe has, and each row's pictures. Every row depends on its own seed alone."""

from __future__ import annotations

import functools
import io
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from deepfashion_training.embedded.body import PERSON_VIEWS, VIEW_NUMBERS, Person, random_person, random_pose
from deepfashion_training.embedded.figure import Drawing, Mask, draw_flat, draw_person
from deepfashion_training.embedded.garments import Garment, Outfit, caption, describe, random_category, random_outfit
from deepfashion_training.garment_types import FULL, LOWER, UPPER
from training_run.stopping import end_with_parent

#: How often each of ``PERSON_VIEWS`` comes, roughly as on the Hub.
VIEW_SHARES = (0.36, 0.18, 0.12, 0.22, 0.12)
#: The same in a studio, where most people are seen from the front.
STUDIO_SHARES = (0.48, 0.05, 0.13, 0.25, 0.09)
#: Garment types of the raw dataset's pids, in turn: lower body is rarer than upper, yet a fifth at least.
_RAW_TYPES = (UPPER, LOWER, FULL, UPPER, LOWER, UPPER, FULL, UPPER, LOWER, UPPER)


@dataclass(frozen=True)
class RowSpec:
    """What a row shows; from this alone it can be drawn, in any process and in any order."""

    seed: int
    index: int
    pid_index: int
    variant: int
    view: str
    cloth_type: int  # of the garment that the row is about
    around: int  # type of the garment that the outfit is drawn around
    category: str | None = None  # of that garment; None draws one
    whole_mask: bool = False  # the raw mask covers all clothes, not only the garment of ``cloth_type``
    # As shops show clothes: calm people before a bare wall, and only the half of the body that the garment is on. Only
    # the view "full" shows all of it.
    studio: bool = False
    patterned: float = 0.5  # share of the garments drawn with a pattern that keep it; the others become plain

    @property
    def pid(self) -> str:
        """``id_`` and 8 digits."""
        return f"id_{self.pid_index + 1:08d}"

    @property
    def pose_name(self) -> str:
        """``<variant>_<number>_<view>``."""
        return f"{self.variant:02d}_{VIEW_NUMBERS[self.view]}_{self.view}"

    def generator(self, *purpose: int) -> np.random.Generator:
        """Random numbers that belong to this row's person and to one purpose."""
        return np.random.default_rng([self.seed, self.pid_index, *purpose])

    @functools.cached_property
    def person(self) -> Person:
        """The person, the same in all rows of a pid."""
        return random_person(self.generator(0))

    @functools.cached_property
    def outfit(self) -> Outfit:
        """The outfit, the same in all rows of a variant."""
        outfit = random_outfit(self.generator(1, self.variant), self.person.gender, self.around, self.category)
        keep = self.generator(4, self.variant).random(2) < self.patterned
        # The first draw is for the garment that the outfit is drawn around: it looks alike whatever else is worn.
        garments = tuple(
            garment if keep[int(garment.cloth_type != self.around)] else garment.in_plain()
            for garment in outfit.garments
        )
        return replace(outfit, garments=garments)

    def garment(self) -> Garment:
        """The garment that the row is about."""
        return next(garment for garment in self.outfit.garments if garment.cloth_type == self.cloth_type)

    def draw(self, size: tuple[int, int]) -> Drawing:
        """The person's picture: rows of one pid, variant and view show the same one."""
        place = self.generator(2, self.variant, VIEW_NUMBERS[self.view])
        half = {UPPER: "upper", LOWER: "lower"}.get(self.cloth_type) if self.studio else None
        pose = random_pose(place, self.view, half, calm=self.studio)
        wall_seed = int(place.integers(1 << 30))
        return draw_person(self.person, self.outfit, pose, size, wall_seed, bare_wall=self.studio)

    def draw_garment(self, size: tuple[int, int]) -> tuple[Image.Image, Mask]:
        """The garment laid out flat, and where it lies."""
        return draw_flat(self.garment(), self.person.gender, size, self.outfit.inner)

    def caption(self) -> str:
        """The caption, the same for all views of a variant."""
        if self.view == "flat":
            return f"The picture shows {describe(self.garment())}."
        return caption(self.person, self.outfit, self.generator(3, self.variant))


def documented_specs(rows: int, seed: int) -> Iterator[RowSpec]:
    """Rows of the documented schema: three to a pid, one of each garment type in turn, shown in a studio."""
    for index in range(rows):
        pid_index, place = divmod(index, 3)
        rng = np.random.default_rng([seed, pid_index, 9])
        views = [str(view) for view in rng.choice(PERSON_VIEWS, 3, replace=False, p=STUDIO_SHARES)]
        if views[0] == "full":  # tops are shown from nearby, and the whole person with trousers or a dress
            views[0], views[1] = views[1], views[0]
        # Top and bottom of one outfit in half of the pids, of two outfits in the others.
        lower_variant = 1 if rng.random() < 0.5 else 2
        variant = (1, lower_variant, lower_variant + 1)[place]
        around = (UPPER, UPPER if lower_variant == 1 else LOWER, FULL)[place]
        yield RowSpec(seed, index, pid_index, variant, views[place], (UPPER, LOWER, FULL)[place], around, studio=True)


def split_of_pids(rows: int, seed: int, held_out_share: float = 0.1) -> list[str]:
    """The split of each documented pid, by its index, each split non-empty from three pids on.

    ``held_out_share`` of the pids, rounded, are in validation, and as many in test; 0.1 gives 80/10/10.
    """
    count = -(-rows // 3)
    held_out = max(1, round(count * held_out_share)) if count >= 3 else 0
    order = np.random.default_rng([seed, 8]).permutation(count)
    # A last pid with fewer rows stays in training, so that the held-out splits are balanced.
    order = order[order != count - 1]
    splits = ["train"] * count
    for place, pid_index in enumerate(order[: 2 * held_out]):
        splits[int(pid_index)] = "test" if place < held_out else "validation"
    return splits


def raw_specs(rows: int, seed: int) -> Iterator[RowSpec]:
    """Exactly ``rows`` rows of the raw schema: each pid sells one category, in one or two variants."""
    index = pid_index = 0
    while True:
        rng = np.random.default_rng([seed, pid_index, 9])
        cloth_type = _RAW_TYPES[pid_index % len(_RAW_TYPES)]
        gender = random_person(np.random.default_rng([seed, pid_index, 0])).gender
        category = random_category(rng, gender, cloth_type)
        whole_mask = bool(rng.random() < 0.5)
        for variant in range(1, 2 + int(rng.random() < 0.4)):
            count = 1 if rng.random() < 0.08 else int(rng.integers(2, 5))
            views = [str(view) for view in rng.choice(PERSON_VIEWS, count, replace=False, p=VIEW_SHARES)]
            views.sort(key=lambda view: VIEW_NUMBERS[view])
            if rng.random() < 0.5:
                views.append("flat")
            for view in views:
                if index == rows:
                    return
                yield RowSpec(seed, index, pid_index, variant, view, cloth_type, cloth_type, category, whole_mask)
                index += 1
        pid_index += 1


def draw_all(draw: Callable[[RowSpec], Any], specs: Iterable[RowSpec], num_proc: int) -> Iterator[Any]:
    """``draw(spec)`` for all ``specs`` in order, in this process or in ``num_proc`` others."""
    if num_proc == 1:
        yield from map(draw, specs)
        return
    # Spawned, because a fork would copy the threads of whatever else the process has loaded.
    with multiprocessing.get_context("spawn").Pool(num_proc, end_with_parent) as pool:
        yield from pool.imap(draw, specs, chunksize=4)


def _encoded(picture: Image.Image | np.ndarray, name: str) -> dict[str, Any]:
    """A picture as ``datasets.Image`` stores it: JPEG for RGB, PNG for masks (0/255) and label maps."""
    sink = io.BytesIO()
    if isinstance(picture, Image.Image):
        # Small pictures keep their full colour resolution: stripes are a few pixels wide there.
        picture.save(sink, "JPEG", quality=92, subsampling=0 if picture.height < 256 else 2)
        return {"bytes": sink.getvalue(), "path": f"{name}.jpg"}
    levels = picture.astype(np.uint8) * np.uint8(255) if picture.dtype == bool else picture
    Image.fromarray(levels).save(sink, "PNG", compress_level=1)
    return {"bytes": sink.getvalue(), "path": f"{name}.png"}


def documented_row(spec: RowSpec, size: tuple[int, int]) -> dict[str, Any]:
    """One row of the documented schema with its provenance and ``parse``, pictures encoded."""
    drawing = spec.draw(size)
    name = f"{spec.pid}_{spec.pose_name}"
    return {
        "image": _encoded(drawing.photo, name),
        "cloth": _encoded(spec.draw_garment(size)[0], f"{spec.pid}_{spec.variant:02d}_6_flat"),
        "mask": _encoded(drawing.agnostic[spec.cloth_type], f"{name}_mask"),
        "caption": spec.caption(),
        "cloth_type": spec.cloth_type,
        "pid": spec.pid,
        "variant": f"{spec.variant:02d}",
        "view": spec.view,
        "gender": spec.person.gender,
        "category": spec.garment().category,
        "garment_source": "flat",
        "garment_view": "flat",
        "source_row": spec.index,
        "parse": _encoded(drawing.parse, f"{name}_parse"),
    }


def raw_row(spec: RowSpec, size: tuple[int, int]) -> dict[str, Any]:
    """One row of the raw schema, pictures encoded."""
    if spec.view == "flat":
        photo, mask = spec.draw_garment(size)
    else:
        drawing = spec.draw(size)
        photo = drawing.photo
        mask = drawing.clothes_mask() if spec.whole_mask else drawing.garment_mask(spec.cloth_type)
    name = f"{spec.pid}_{spec.pose_name}"
    tint = Image.blend(photo, Image.new("RGB", photo.size, (230, 30, 60)), 0.5)
    return {
        "images": _encoded(photo, name),
        "gender": spec.person.gender,
        "pose": spec.pose_name,
        "cloth_type": spec.garment().category,
        "pid": spec.pid,
        "caption": spec.caption(),
        "mask": _encoded(mask, f"{name}_mask"),
        "mask_overlay": _encoded(Image.composite(tint, photo, Image.fromarray(mask)), name),
    }
