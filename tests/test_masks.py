"""Masks: each encoding of the same pixels decodes to the same bits, and each policy keeps its promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from deepfashion_training.embedded.body import random_person, random_pose
from deepfashion_training.embedded.figure import Drawing, draw_person
from deepfashion_training.embedded.garments import random_outfit
from deepfashion_training.embedded.rows import raw_specs
from deepfashion_training.images.masks import align_mask, decode_mask, repaint_mask
from deepfashion_training.images.parts import protected
from deepfashion_training.images.person import PersonFrame, find_person

BITS = np.array([[0, 1], [1, 0]], np.uint8)


def grey(scale: int, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(BITS.astype(dtype) * dtype(scale))


def palette(colours: list[int]) -> Image.Image:
    picture = Image.fromarray(BITS).convert("P")
    picture.putpalette(colours)
    return picture


def rgba(outside: tuple[int, ...], inside: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.array([outside, inside], np.uint8)[BITS])


@pytest.mark.parametrize(
    "mask",
    [
        grey(1),
        grey(255),
        grey(255).convert("1"),
        grey(255).convert("RGB"),
        grey(1).convert("RGB"),
        grey(255).convert("LA"),
        grey(255).convert("CMYK"),
        grey(65535, np.uint16),
        grey(255, np.uint16),
        grey(255, np.int32),
        grey(1, np.float32),
        palette([0, 0, 0, 255, 255, 255]),
        palette([0, 0, 0, 128, 0, 0]),  # a label map in colours: its brightest channel counts
        rgba((0, 0, 0, 255), (255, 0, 0, 255)),
        rgba((255, 255, 255, 0), (255, 255, 255, 255)),  # the mask is the alpha channel
        rgba((0, 0, 0, 255), (1, 1, 1, 255)),
    ],
    ids=lambda mask: mask.mode,
)
def test_the_same_mask_in_every_encoding(mask):
    repaint = decode_mask(mask)
    assert repaint.dtype == np.uint8
    assert repaint.tolist() == BITS.tolist()


def test_grey_counts_above_127_once_a_value_is_above_1():
    assert decoded(np.array([[0, 1, 127, 128, 255]], np.uint8)) == [[0, 0, 0, 1, 1]]
    assert decoded(np.array([[0, 1]], np.uint8)) == [[0, 1]]


def test_inverted_palette_is_read_by_its_colours():
    assert decode_mask(palette([255, 255, 255, 0, 0, 0])).tolist() == (1 - BITS).tolist()


def test_an_empty_mask_stays_empty():
    assert not decode_mask(Image.new("L", (3, 3))).any()


def decoded(levels: np.ndarray, cloth_type: int | None = None) -> list[list[int]]:
    return decode_mask(Image.fromarray(levels), cloth_type).tolist()


LABELS = np.zeros((8, 8), np.uint8)
LABELS[1:4, 1:7] = 1
LABELS[4:7, 1:7] = 2


def test_a_label_map_of_types_gives_the_type_that_is_asked_for():
    assert decoded(LABELS, 1) == (LABELS == 1).tolist()
    assert decoded(LABELS, 2) == (LABELS == 2).tolist()
    grey_palette = Image.fromarray(LABELS).convert("P")
    grey_palette.putpalette([value for level in range(256) for value in (level, level, level)])
    assert decode_mask(grey_palette, 2).tolist() == (LABELS == 2).tolist()


def test_a_label_map_without_the_type_or_without_a_question_gives_all_of_it():
    assert decoded(LABELS, 3) == (LABELS > 0).tolist()
    assert decoded(LABELS) == (LABELS > 0).tolist()


def test_a_label_map_of_parts_counts_and_dark_noise_does_not():
    parts = np.kron(np.array([[0, 4], [6, 17]], np.uint8), np.ones((16, 16), np.uint8))
    assert decoded(parts, 2) == (parts > 0).tolist()
    noise = np.random.default_rng(0).integers(0, 12, (32, 32)).astype(np.uint8)
    assert not np.any(decoded(noise, 2))
    assert not np.any(decoded(parts.astype(np.float32) + 0.5))
    assert not np.any(decoded(np.full((4, 4), 32, np.uint8)))


def test_align_mask_passes_the_type_on():
    _, mask = align_mask(Image.new("RGB", (8, 8)), Image.fromarray(LABELS), 2)
    assert mask.tolist() == (LABELS == 2).tolist()


def drawings(cloth_type: int, count: int = 6) -> list[tuple[Drawing, np.ndarray, PersonFrame | None]]:
    """Drawn people of that garment type, with the garment's mask and the person found by it."""
    specs = [spec for spec in raw_specs(120, 6) if spec.view != "flat" and spec.cloth_type == cloth_type]
    found = []
    for spec in specs[:: max(1, len(specs) // count)][:count]:
        drawing = spec.draw((192, 128))
        mask = drawing.garment_mask(cloth_type).view(np.uint8)
        found.append((drawing, mask, find_person(drawing.photo, mask)))
    return found


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def test_as_is_is_the_garment():
    region = np.zeros((12, 10), np.uint8)
    region[3:5, 4] = 1
    assert repaint_mask(region, 2, None, policy="as_is").tolist() == region.tolist()
    with pytest.raises(ValueError, match=r"'body'.*as_is, agnostic, relaxed"):
        repaint_mask(region, 2, None, policy="body")


@pytest.mark.parametrize("cloth_type", [1, 2, 3])
@pytest.mark.parametrize("parsed", [False, True], ids=["bare", "parsed"])
def test_agnostic_covers_the_garment_and_spares_the_head(cloth_type, parsed):
    heads = []
    for drawing, garment, person in drawings(cloth_type):
        mask = repaint_mask(garment, cloth_type, person, drawing.parse if parsed else None)
        assert mask.dtype == np.uint8 and mask.shape == garment.shape and set(np.unique(mask)) == {0, 1}
        assert (mask & garment).sum() >= 0.99 * garment.sum()
        heads.append(mask[np.isin(drawing.parse, (2, 11))].mean())
        assert overlap(mask > 0, drawing.agnostic[cloth_type]) > 0.55
        if parsed:
            assert not (mask[protected(drawing.parse)]).any()
    assert np.mean(heads) < (1e-9 if parsed else 0.08)


def test_trousers_shorts_and_a_skirt_have_nearly_the_same_mask():
    rng = np.random.default_rng(5)
    person, pose = replace(random_person(rng), gender="WOMEN"), random_pose(rng, "front")
    masks, garments = [], []
    for category in ("Pants", "Shorts", "Skirts"):
        outfit = random_outfit(np.random.default_rng(5), "WOMEN", 2, category)
        drawing = draw_person(person, outfit, pose, (192, 128))
        garments.append(drawing.garment_mask(2))
        masks.append(repaint_mask(garments[-1].view(np.uint8), 2, find_person(drawing.photo, garments[-1])) > 0)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert overlap(masks[one], masks[other]) > 0.9
    assert overlap(garments[0], garments[1]) < 0.6


def test_a_lower_mask_reaches_from_the_waist_to_the_ankles_whatever_the_hem():
    region = np.zeros((200, 120), np.uint8)
    region[100:120, 48:72] = 1  # shorts
    silhouette = np.zeros((96, 58), bool)
    silhouette[5:90, 23:35] = True
    person = PersonFrame(5 / 96, 90 / 96, 85 / 96, silhouette, np.zeros_like(silhouette))
    rows = np.flatnonzero(repaint_mask(region, 2, person).any(axis=1))
    height = 85 / 96 * 200
    assert rows[0] == pytest.approx(5 / 96 * 200 + 0.38 * height, abs=3)
    assert rows[-1] == pytest.approx(5 / 96 * 200 + 0.965 * height, abs=3)


@pytest.mark.parametrize("cloth_type", [1, 2, 3])
def test_relaxed_varies_by_seed_and_never_uncovers(cloth_type):
    for drawing, garment, person in drawings(cloth_type, 2):
        plain = repaint_mask(garment, cloth_type, person)
        some = [repaint_mask(garment, cloth_type, person, None, "relaxed", seed) for seed in range(6)]
        assert all((mask >= garment).all() for mask in some)
        assert len({mask.tobytes() for mask in some}) == 6
        assert repaint_mask(garment, cloth_type, person, None, "relaxed", 3).tolist() == some[3].tolist()
        assert all(overlap(mask > 0, plain > 0) > 0.7 for mask in some)
        varied = repaint_mask(garment, cloth_type, person, drawing.parse, "relaxed", 1)
        assert not varied[protected(drawing.parse)].any()


def test_without_a_person_the_garment_s_own_box_is_the_guide():
    region = np.zeros((192, 128), np.uint8)
    region[60:170, 50:80] = 1
    mask = repaint_mask(region, 2, None)
    assert (mask >= region).all()
    assert 1.5 < mask.sum() / region.sum() < 4


def test_a_garment_at_the_picture_s_edge_is_covered():
    region = np.zeros((96, 64), np.uint8)
    region[:, :20] = 1
    for cloth_type in (1, 2, 3):
        assert (repaint_mask(region, cloth_type, None) >= region).all()
