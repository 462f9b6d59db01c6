"""Quality gates: worked-out cases of each, and no false alarm on drawn people."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from deepfashion_training.embedded.figure import Drawing, draw_flat
from deepfashion_training.embedded.rows import RowSpec, raw_specs
from deepfashion_training.images.cutouts import cut_out
from deepfashion_training.images.quality import (
    REASONS,
    UNPAIRED_REASONS,
    Gates,
    check_garment,
    check_mask,
    check_region,
    colour_likeness,
    looks_like_product_shot,
)

GATES = Gates()
SIZE = (240, 160)


def test_every_reason_is_a_sentence_and_names_one_thing():
    for reason, sentence in [*REASONS.items(), *UNPAIRED_REASONS.items()]:
        assert reason == reason.lower()
        assert sentence[0].isupper()
        assert sentence.endswith(".")
    assert not set(REASONS) & set(UNPAIRED_REASONS)


def region(height: int, width: int, *, of: tuple[int, int] = (100, 100)) -> np.ndarray:
    mask = np.zeros(of, np.uint8)
    mask[:height, :width] = 1
    return mask


@pytest.mark.parametrize(
    ("mask", "reason", "detail"),
    [
        (region(0, 0), "mask_empty", ""),
        (np.ones((10, 10), np.uint8), "mask_too_large", "100.0%"),
        (region(91, 100), "mask_too_large", "91.0%"),
        (region(90, 100), None, ""),
        (region(1, 1), None, ""),
        (region(90, 100).astype(bool), None, ""),
    ],
)
def test_masks(mask, reason, detail):
    finding = check_mask(mask, GATES)
    assert (finding.reason if finding else None) == reason
    assert detail in (finding.detail if finding else "")


@pytest.mark.parametrize("wrong", [{"max_mask_share": 1.5}, {"min_garment_px": -1}, {"max_megapixels": 0}])
def test_gates_out_of_their_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Gates(**wrong)


def test_thresholds_are_those_of_the_gates():
    assert check_mask(region(50, 100), Gates(max_mask_share=0.4)).reason == "mask_too_large"
    assert check_region(region(30, 30), Gates(min_garment_px=30)) is None


@pytest.mark.parametrize(
    ("height", "width", "small"), [(64, 64, False), (63, 90, True), (90, 63, True), (100, 64, False), (0, 0, True)]
)
def test_a_side_of_the_garments_box_below_64_pixels(height, width, small):
    finding = check_region(region(height, width), GATES)
    assert (finding is not None) == small
    if small:
        assert finding.reason == "garment_too_small"
        assert f"{width}x{height} pixels" in finding.detail


def test_the_box_counts_not_the_pixels():
    outline = region(70, 70)
    outline[1:69, 1:69] = 0
    assert check_region(outline, GATES) is None


def picture(ground: int, garment: int, box: tuple[int, int, int, int]) -> Image.Image:
    drawn = Image.new("RGB", (120, 160), (ground,) * 3)
    drawn.paste((garment,) * 3, box)
    return drawn


@pytest.mark.parametrize(
    ("garment", "blank"),
    [
        (Image.new("RGB", (90, 120), (255, 255, 255)), True),
        (Image.new("RGB", (90, 120), (30, 60, 90)), True),
        (picture(255, 246, (20, 20, 100, 140)), True),
        (picture(255, 244, (20, 20, 100, 140)), False),
        (picture(255, 0, (60, 80, 64, 84)), True),
        (picture(255, 0, (50, 70, 70, 90)), False),
        (picture(20, 40, (0, 80, 120, 160)), False),
    ],
    ids=["white", "one colour", "9 levels", "11 levels", "dot", "patch", "halves"],
)
def test_blank_garments(garment, blank):
    finding = check_garment(garment, GATES)
    assert (finding.reason if finding else None) == ("blank_garment" if blank else None)


def test_jpeg_noise_is_no_garment_and_white_on_white_is_one():
    noise = np.random.default_rng(0).normal(250, 2, (160, 120, 1)).clip(0, 255).astype(np.uint8).repeat(3, axis=2)
    assert check_garment(Image.fromarray(noise), GATES).reason == "blank_garment"
    for spec in itertools.islice((spec for spec in raw_specs(3000, 4) if spec.garment().pattern.base == "white"), 5):
        assert check_garment(draw_flat(spec.garment(), "WOMEN", SIZE)[0], GATES) is None


@pytest.fixture(scope="module")
def drawn() -> list[tuple[RowSpec, Drawing]]:
    """100 drawn people in all views."""
    people = (spec for spec in raw_specs(900, 21) if spec.view != "flat")
    specs = list(itertools.islice(people, 100))
    return [(spec, spec.draw(SIZE)) for spec in specs]


def test_drawn_people_are_never_taken_for_product_shots(drawn):
    assert {spec.view for spec, _ in drawn} == {"front", "side", "back", "full", "additional"}
    for spec, drawing in drawn:
        union = drawing.clothes_mask().astype(np.uint8)
        assert looks_like_product_shot(drawing.photo, union, None, GATES) is None, spec
        assert looks_like_product_shot(drawing.photo, union, drawing.parse, GATES) is None, spec


def test_nor_are_people_whose_photo_ends_at_the_neck(drawn):
    for spec, drawing in drawn:
        union = drawing.clothes_mask()
        neck = int(np.flatnonzero(union.any(axis=1))[0]) + 6
        photo = drawing.photo.crop((0, neck, SIZE[1], SIZE[0]))
        assert looks_like_product_shot(photo, union[neck:].astype(np.uint8), None, GATES) is None, spec


def test_drawn_garments_alone_are(drawn):
    for spec, _ in drawn[:40]:
        photo, mask = draw_flat(spec.garment(), spec.person.gender, SIZE)
        for parse in (None, np.where(mask, 4, 0)):
            finding = looks_like_product_shot(photo, mask.astype(np.uint8), parse, GATES)
            assert finding.reason == "product_shot", spec


def test_a_mask_that_is_a_little_small_hides_no_product_shot():
    photo = Image.new("RGB", (192, 256), (255, 255, 255))
    photo.paste((200, 0, 0), (50, 50, 150, 200))
    mask = np.zeros((256, 192), np.uint8)
    mask[52:198, 52:148] = 1
    assert looks_like_product_shot(photo, mask, None, GATES).reason == "product_shot"
    mask[60:, :] = 0
    assert looks_like_product_shot(photo, mask, None, GATES) is None


def test_what_is_no_product_shot_without_a_person():
    # A mask of something that the photo does not set apart from its border says nothing.
    mask = region(100, 100, of=(160, 120))
    assert looks_like_product_shot(Image.new("RGB", (120, 160), (9, 9, 9)), mask, None, GATES) is None


def test_the_share_outside_of_the_mask_decides():
    photo = Image.new("RGB", (200, 300), (255, 255, 255))
    photo.paste((200, 0, 0), (50, 50, 150, 250))
    mask = np.zeros((300, 200), np.uint8)
    mask[50:250, 50:150] = 1
    assert looks_like_product_shot(photo, mask, None, GATES).detail.startswith("0.0%")
    photo.paste((90, 60, 40), (80, 10, 120, 40))  # a head of 40x30 = 1,200 of 21,200 pixels
    assert looks_like_product_shot(photo, mask, None, GATES) is None
    finding = looks_like_product_shot(photo, mask, None, Gates(max_person_free_share=0.07))
    assert 4.5 < float(finding.detail.partition("%")[0]) < 7


def test_the_right_garment_has_the_likelier_colours(drawn):
    rng = np.random.default_rng(1)
    scores = []
    for spec, drawing in drawn[::2]:
        worn = drawing.garment_mask(spec.cloth_type).astype(np.uint8)
        if np.count_nonzero(worn) < 400:
            continue
        other = drawn[int(rng.integers(len(drawn)))][0]
        if other.pid == spec.pid:
            continue
        # The photo in another light than the product shot.
        photo = ImageEnhance.Brightness(drawing.photo).enhance(float(rng.uniform(0.85, 1.1)))
        garments = [draw_flat(one.garment(), one.person.gender, SIZE)[0] for one in (spec, other)]
        scores.append([colour_likeness(garment, photo, worn) for garment in garments])
    right, wrong = np.array(scores).T
    assert len(right) > 40
    assert min(wrong) >= 0
    assert max(right) <= 1
    assert np.mean(right > wrong) >= 0.95
    assert np.median(right) > 2 * np.median(wrong)


def test_cut_outs_are_ranked_too(drawn):
    better = []
    for (spec, drawing), (_, other) in itertools.pairwise(drawn[:61:2]):
        worn = drawing.garment_mask(spec.cloth_type).astype(np.uint8)
        wrong = other.clothes_mask().astype(np.uint8)
        if np.count_nonzero(worn) > 400:
            garments = [cut_out(drawing.photo, worn, SIZE), cut_out(other.photo, wrong, SIZE)]
            scores = [colour_likeness(garment, drawing.photo, worn) for garment in garments]
            assert scores[0] > 0.65
            better.append(scores[0] > scores[1])
    assert np.mean(better) >= 0.9


def test_likeness_by_hand():
    photo = Image.new("RGB", (120, 160), (0, 0, 255))
    photo.paste((220, 0, 0), (0, 0, 120, 80))
    top, bottom = region(80, 120, of=(160, 120)), 1 - region(80, 120, of=(160, 120))
    red = Image.new("RGB", (120, 160), (255, 255, 255))
    red.paste((220, 0, 0), (30, 30, 90, 130))
    assert colour_likeness(red, photo, top) == pytest.approx(1)
    assert colour_likeness(red, photo, bottom) == pytest.approx(0)
    assert colour_likeness(red, photo, np.ones_like(top)) == pytest.approx(0.5, abs=0.02)
    assert colour_likeness(red, photo, np.zeros_like(top)) == 0
    # A garment that fills its picture has no background to leave out.
    assert colour_likeness(Image.new("RGB", (50, 50), (220, 0, 0)), photo, top) == pytest.approx(1)
