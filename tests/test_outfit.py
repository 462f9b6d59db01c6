"""Several garments on one person, through `tryon`: one after the other, each in its own mask."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import pixels

from deepfashion_training.garment_types import type_of_name
from deepfashion_training.images.paste import feathered, seam_of
from deepfashion_training.inference.records import read_record

SEAM = seam_of((256, 192))


@pytest.fixture
def top_and_trousers(wardrobe):
    """Flags of an outfit for the person in the lower garment; the names of its pictures say their types."""
    return ["--person", wardrobe / "lower-person.png"] + [
        part for kind in ("upper", "lower") for part in ("--garment", wardrobe / f"{kind}-garment.png")
    ]


def test_the_second_garment_is_drawn_over_the_first(top_and_trousers, wardrobe, tryon_run, tmp_path):
    """The same as two commands in a row with the masks of the photo; beyond both masks every pixel is the photo's."""
    output = tryon_run(*top_and_trousers, "--save_mask", "--save_pair", "--output", tmp_path / "o.png")
    assert "garments  by their names: upper-garment.png upper, lower-garment.png lower" in output
    made = [tmp_path / f"o{end}.png" for end in ("-pair", "-mask", "-pair-2", "-mask-2", "")]
    assert output.startswith("".join(f"{path}\n" for path in made))
    person, _, one, _, two = top_and_trousers[1:]
    tryon_run("--person", person, "--garment", one, "--mask", made[1], "--output", tmp_path / "1.png")
    tryon_run("--person", tmp_path / "1.png", "--garment", two, "--mask", made[3], "--output", tmp_path / "2.png")
    assert (pixels(tmp_path / "2.png") == pixels(tmp_path / "o.png")).all()
    masks = [pixels(made[place])[..., 0] > 0 for place in (1, 3)]
    changed = np.abs(pixels(tmp_path / "o.png") - pixels(person)).max(axis=2)
    assert (changed[(feathered(masks[0], SEAM) == 0) & (feathered(masks[1], SEAM) == 0)] == 0).all()
    assert all((changed[mask] > 0).mean() > 0.7 for mask in masks)
    record = read_record(tmp_path / "o.png")
    assert (record["garment_type"], record["garment_type_2"]) == (1, 2) and record["parser"]
    assert set(record["pictures"]) == {"person", "garment", "garment_2"}


def test_types_and_masks_that_are_given_and_default_names(top_and_trousers, wardrobe, tryon_run, tmp_path):
    tryon_run(*top_and_trousers, "--output", tmp_path / "found.png")
    types = ["--garment_type", "upper", "--garment_type", "lower"]
    output = tryon_run(*top_and_trousers, *types, "--num_images", 2, "--save_mask", "--output", tmp_path / "out")
    assert "by their names" not in output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    stem = "lower-person-upper-garment-lower-garment"
    assert names == sorted(f"{stem}-{seed}{end}.png" for seed in (0, 1) for end in ("", "-mask", "-mask-2"))
    assert (pixels(tmp_path / "found.png") == pixels(tmp_path / "out" / f"{stem}-0.png")).all()
    masks = [word for end in ("", "-2") for word in ("--mask", tmp_path / "out" / f"{stem}-0-mask{end}.png")]
    tryon_run(*top_and_trousers, *masks, "--output", tmp_path / "masks.png")
    assert (pixels(tmp_path / "found.png") == pixels(tmp_path / "masks.png")).all()
    assert read_record(tmp_path / "masks.png")["parser"] is None


def test_three_garments_in_the_order_given(wardrobe, tryon_run, tmp_path):
    flags = ["--person", wardrobe / "full-person.png"]
    for kind in ("full", "upper", "upper"):
        flags += ["--garment", wardrobe / f"{kind}-garment.png", "--garment_type", kind, "--caption", kind]
    tryon_run(*flags, "--output", tmp_path / "a.png")
    record = read_record(tmp_path / "a.png")
    assert [record[f"garment_type{end}"] for end in ("", "_2", "_3")] == [3, 1, 1]
    assert [record[f"caption{end}"] for end in ("", "_2", "_3")] == ["full", "upper", "upper"]


def test_a_batch_of_outfits_continues_and_knows_changes(wardrobe_copy, tryon_run, tryon_refused):
    (wardrobe_copy / "t.csv").write_text(
        "person,garment,garment_type,garment_2,mask_2,caption_2,output\n"
        "lower-person.png,upper-garment.png,,lower-garment.png,,blue,a.png\n"
        "lower-person.png,upper-garment.png,upper,lower-garment.png,lower-mask.png,,\n"
        "upper-person.png,upper-garment.png,upper,,,,c.png\n"
    )
    batch = ["--batch", wardrobe_copy / "t.csv", "--output", wardrobe_copy / "out"]
    assert "3 of 3 rows drawn" in tryon_run(*batch)
    second = "3-lower-person-upper-garment-lower-garment.png"
    assert sorted(path.name for path in (wardrobe_copy / "out").iterdir()) == [second, "a.png", "c.png"]
    (wardrobe_copy / "out" / "c.png").unlink()
    assert "2 of 3 pictures are drawn already" in tryon_run(*batch)
    record = read_record(wardrobe_copy / "out" / second)
    assert record["garment_type_2"] is None and "mask_2" in record["pictures"]
    (wardrobe_copy / "lower-garment.png").write_bytes((wardrobe_copy / "full-garment.png").read_bytes())
    assert "a.png exists and was made otherwise" in tryon_refused(*batch)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("garment_2\np.png,lower-garment.png,none.png", "line 2: garment_2"),
        ("garment_2\nlower-person.png,upper-garment.png,blob.png", "line 2: garment"),
        ("mask_2\nlower-person.png,upper-garment.png,lower-mask.png", "line 2: garment_2 is needed"),
        ("garment_1\nlower-person.png,upper-garment.png,lower-garment.png", "garment_1"),
    ],
)
def test_tables_of_outfits_that_are_refused(rows, message, wardrobe_copy, tryon_refused):
    (wardrobe_copy / "blob.png").write_bytes((wardrobe_copy / "lower-garment.png").read_bytes())
    (wardrobe_copy / "t.csv").write_text(f"person,garment,{rows}\n")
    assert message in tryon_refused("--batch", wardrobe_copy / "t.csv", "--output", wardrobe_copy / "out")


def test_flags_that_do_not_fit_the_garments(top_and_trousers, wardrobe_copy, tryon_misused, tryon_refused, tmp_path):
    end = ["--output", tmp_path / "o.png"]
    for flag, value in (("--mask", "m.png"), ("--garment_type", "lower"), ("--caption", "red")):
        assert f"{flag} comes 1 times and --garment 2 times" in tryon_misused(*top_and_trousers, flag, value, *end)
    (wardrobe_copy / "g7.png").write_bytes((wardrobe_copy / "full-garment.png").read_bytes())
    message = tryon_refused(*top_and_trousers, "--garment", wardrobe_copy / "g7.png", *end)
    assert "g7.png: its name does not say" in message and "garment_type" in message


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("top", 1), ("Red_Trousers-2", 2), ("summer-dresses", 3), ("skirt01", 2), ("lower_body", 2), ("T-Shirt", 1)),
        *(
            (name, None)
            for name in ("cloth", "00034_00", "top-and-skirt", "dress-shirt", "IMG_2041", "stopwatch", "suit")
        ),
    ],
)
def test_what_a_name_says(name, kind):
    assert type_of_name(name) == kind
