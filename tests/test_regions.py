"""Regions: a union of garments is recognised, and cut where the garments meet."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deepfashion_training.embedded.rows import raw_specs
from deepfashion_training.images.person import find_person
from deepfashion_training.images.regions import UnresolvedRegionError, garment_region, worn_region


def dressed(shirt=(40, 60, 160), trousers=(180, 60, 50), hem: int = 140) -> tuple[Image.Image, dict[str, np.ndarray]]:
    """A person of boxes on 288 x 192 in a shirt down to ``hem`` and trousers; and the masks of both."""
    photo = np.full((288, 192, 3), (222, 222, 226), np.uint8)
    photo[20:63, 83:109] = (60, 40, 30)
    photo[230:260, 78:114] = (30, 30, 30)
    photo[hem:230, 74:118] = trousers
    photo[63:hem, 68:124] = shirt
    masks = {name: np.zeros((288, 192), np.uint8) for name in ("shirt", "trousers", "union")}
    masks["shirt"][63:hem, 68:124] = 1
    masks["trousers"][hem:230, 74:118] = 1
    masks["union"] = masks["shirt"] | masks["trousers"]
    return Image.fromarray(photo), masks


@pytest.mark.parametrize("hem", [116, 132, 148])
@pytest.mark.parametrize(("cloth_type", "garment", "category"), [(1, "shirt", "Tees_Tanks"), (2, "trousers", "Pants")])
def test_a_union_is_cut_where_shirt_and_trousers_meet(hem, cloth_type, garment, category):
    photo, masks = dressed(hem=hem)
    person = find_person(photo, masks["union"])
    region = garment_region(masks["union"], cloth_type, category, photo, person)
    assert region.how == "restricted" and region.mask.dtype == np.uint8
    truth = masks[garment]
    assert (region.mask & truth).sum() / (region.mask | truth).sum() > 0.95


@pytest.mark.parametrize(("cloth_type", "garment", "category"), [(1, "shirt", "Sweaters"), (2, "trousers", "Pants")])
def test_a_mask_of_the_named_garment_stays_as_it_is(cloth_type, garment, category):
    photo, masks = dressed()
    region = garment_region(masks[garment], cloth_type, category, photo, find_person(photo, masks[garment]))
    assert region.how == "named" and region.mask.tolist() == masks[garment].tolist()


def test_a_long_coat_of_one_colour_is_no_union_and_one_over_trousers_is():
    photo, masks = dressed((40, 60, 160), (40, 60, 160))
    person = find_person(photo, masks["union"])
    assert garment_region(masks["union"], 1, "Jackets_Coats", photo, person).how == "named"
    assert garment_region(masks["union"], 1, "Tees_Tanks", photo, person).how == "restricted"
    photo, masks = dressed()
    assert garment_region(masks["union"], 1, "Jackets_Coats", photo, person).how == "restricted"


def test_where_the_picture_ends_above_the_feet_only_a_change_of_colours_tells_a_union():
    for trousers, how in (((40, 60, 160), "named"), ((180, 60, 50), "restricted")):
        photo, masks = dressed(trousers=trousers)
        close_up, union = photo.crop((30, 0, 162, 200)), masks["union"][:200, 30:162].copy()
        person = find_person(close_up, union)
        assert person.cut_below and person.share(200 / 200) > 0.6
        assert garment_region(union, 1, "Tees_Tanks", close_up, person).how == how


def test_full_body_masks_are_never_cut():
    photo, masks = dressed()
    region = garment_region(masks["union"], 3, "Dresses", photo, None)
    assert region.how == "named" and region.mask.tolist() == masks["union"].tolist()


def test_what_cannot_be_told_is_refused_in_one_line():
    photo, masks = dressed()
    for mask, cloth_type, parse, words in (
        (np.zeros_like(masks["union"]), 2, None, "empty"),
        (masks["union"], 2, None, "no person found"),
        (masks["union"], 2, np.full((288, 192), 4, np.uint8), "no lower garment"),
    ):
        with pytest.raises(UnresolvedRegionError, match=words) as caught:
            garment_region(mask, cloth_type, "Pants", photo, None, parse)
        assert "\n" not in str(caught.value)


def test_a_parse_map_decides():
    photo, masks = dressed()
    parse = np.where(masks["shirt"], 4, np.where(masks["trousers"], 6, 0)).astype(np.uint8)
    for cloth_type, garment in ((1, "shirt"), (2, "trousers")):
        region = garment_region(masks["union"], cloth_type, "Denim", photo, None, parse)
        assert region.how == "parsed" and region.mask.tolist() == masks[garment].tolist()


def test_a_jumpsuit_that_the_parser_splits_is_one_garment_and_a_jacket_over_a_dress_is_not():
    photo, masks = dressed()
    split = np.where(masks["shirt"], 4, np.where(masks["trousers"], 6, 0)).astype(np.uint8)
    region = garment_region(masks["union"], 3, "Rompers_Jumpsuits", photo, None, split)
    assert region.mask.tolist() == masks["union"].tolist()
    jacket = np.where(masks["union"], 7, 0).astype(np.uint8)
    jacket[63:90, 68:124] = 4
    region = garment_region(masks["union"], 3, "Dresses", photo, None, jacket)
    assert region.mask.tolist() == (jacket == 7).astype(int).tolist()


def test_a_worn_region_is_one_large_enough():
    _, masks = dressed()
    parse = np.where(masks["shirt"], 4, np.where(masks["trousers"], 6, 0)).astype(np.uint8)
    parse[20:63, 83:109] = 2
    found = worn_region(parse, 2)
    assert found.dtype == np.uint8 and found.tolist() == masks["trousers"].tolist()
    assert worn_region(parse, 1).tolist() == masks["shirt"].tolist() and worn_region(parse, 3) is None
    parse[masks["trousers"] > 0] = 12
    parse[140:146, 74:118] = 6  # a strip of trousers under a long shirt
    assert worn_region(parse, 2) is None and worn_region(parse, 1) is not None
    assert worn_region(np.zeros((40, 30), np.uint8), 1) is None


def test_drawn_rows_with_union_masks():
    overlaps, detected, unions = [], 0, 0
    for spec in [spec for spec in raw_specs(90, 9) if spec.view != "flat" and spec.cloth_type != 3][:40]:
        drawing = spec.draw((192, 128))
        truth = drawing.garment_mask(spec.cloth_type)
        mask = (drawing.clothes_mask() if spec.whole_mask else truth).view(np.uint8)
        person = find_person(drawing.photo, mask)
        region = garment_region(mask, spec.cloth_type, spec.garment().category, drawing.photo, person)
        assert (region.how == "restricted") <= spec.whole_mask
        unions, detected = unions + spec.whole_mask, detected + (region.how == "restricted")
        overlaps.append((region.mask & truth).sum() / (region.mask | truth).sum())
    assert unions > 10 and detected >= 0.95 * unions
    assert np.mean(overlaps) > 0.93
