"""Pictures with a colour profile: the values of sRGB, wherever they are read."""

from __future__ import annotations

import io
import logging

import icc
import numpy as np
import pytest
from conftest import pieces, pixels
from PIL import Image

from deepfashion_training.images.layout import pair_tensors
from deepfashion_training.images.pictures import to_rgb
from train_flux_inpaint import VitonHDTestDataset
from training_run import colour


@pytest.fixture(autouse=True)
def not_said_yet():
    """Warnings that are given once in a process are given in each test."""
    colour._read.cache_clear()


def colours(channels: int = 3, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """Flat patches of many colours, uint8 [h, w, channels], of values that all tables have."""
    values = np.random.default_rng(4).integers(0, 9, (size[0] // 8, size[1] // 8, channels)) * 255 // 8
    return np.kron(values, np.ones((8, 8, 1))).astype(np.uint8)


def with_profile(picture: Image.Image, profile: bytes, form: str = "PNG") -> Image.Image:
    """``picture`` with a profile, as it is opened again."""
    sink = io.BytesIO()
    picture.save(sink, form, icc_profile=profile, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {}))
    return Image.open(io.BytesIO(sink.getvalue()))


@pytest.mark.parametrize("space", ["Display P3", "Adobe RGB", "ProPhoto"])
def test_wide_gamut_pictures_have_the_values_of_srgb(space):
    stored = colours()
    seen = to_rgb(with_profile(Image.fromarray(stored), icc.rgb_profile(space)))
    expected = icc.in_srgb(stored, space)
    assert np.abs(stored - expected).mean() > 2  # dropping the profile would show
    assert np.abs(np.asarray(seen, float) - expected).mean() < 0.5
    assert "icc_profile" not in seen.info and to_rgb(seen) is seen  # converted once


def test_cmyk_and_grey_profiles():
    inks = colours(4)
    seen = to_rgb(with_profile(Image.fromarray(inks, "CMYK"), icc.cmyk_profile(), "TIFF"))
    assert np.abs(np.asarray(seen, float) - icc.cmyk_in_srgb(inks)).mean() < 1
    grey = colours(1)[..., 0]
    expected = icc.encoded((grey / 255) ** 1.5)
    seen = np.asarray(to_rgb(with_profile(Image.fromarray(grey), icc.grey_profile(1.5))), float)
    assert np.abs(seen - expected[..., None]).max() < 2 and np.abs(grey - expected).mean() > 10
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.abs(np.asarray(to_rgb(with_profile(deep, icc.grey_profile(1.5))), float) - expected[..., None]).max() < 2


def test_transparent_and_palette_pictures_with_a_profile():
    stored, profile = colours(), icc.rgb_profile("Display P3")
    picture = Image.fromarray(stored).convert("RGBA")
    picture.putalpha(Image.fromarray(np.where(np.arange(96) < 48, 255, 0).astype(np.uint8)[None].repeat(64, 0)))
    seen = np.asarray(to_rgb(with_profile(picture, profile)), float)
    assert np.abs(seen[:, :48] - icc.in_srgb(stored, "Display P3")[:, :48]).mean() < 0.5
    assert (seen[:, 48:] == 255).all()
    palette = Image.fromarray(stored[:32, :32]).quantize(16)
    expected = icc.in_srgb(np.asarray(palette.convert("RGB")), "Display P3")
    assert np.abs(np.asarray(to_rgb(with_profile(palette, profile)), float) - expected).mean() < 0.5


def test_srgb_stays_as_it_is():
    picture = with_profile(Image.fromarray(colours()), icc.rgb_profile("sRGB"))
    assert np.array_equal(np.asarray(to_rgb(picture)), colours()) and colour.profile_name(picture) is None
    assert colour.profile_name(with_profile(picture, icc.rgb_profile("Adobe RGB"))) == "Adobe RGB"


@pytest.mark.parametrize("profile", [b"no profile at all", b"", icc.cmyk_profile(2), icc.rgb_profile("ProPhoto")[:200]])
def test_a_profile_that_cannot_be_used_is_said_once(profile, caplog):
    picture = Image.fromarray(colours())
    picture.info["icc_profile"] = profile
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert np.array_equal(np.asarray(to_rgb(picture)), colours())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(profile) and all("sRGB is assumed" in line for line in said)


def test_samples_of_both_datasets_are_srgb(viton_copy):
    profile, stored = icc.rgb_profile("ProPhoto"), colours(size=(128, 96))
    expected = icc.in_srgb(stored, "ProPhoto")
    picture = with_profile(Image.fromarray(stored), profile)
    mask = Image.new("L", picture.size)
    mask.paste(255, (8, 8, 40, 40))
    image = pair_tensors(picture, picture, mask, (128, 96))["image"]
    for folder in ("image", "cloth"):
        Image.fromarray(stored).save(viton_copy / "train" / folder / "000_00.jpg", "PNG", icc_profile=profile)
    trained = VitonHDTestDataset(str(viton_copy), "train", size=(128, 96))[0]["image"]
    for pair in (image, trained):
        shown = (pair.permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(shown - np.concatenate([expected, expected], axis=1)).mean() < 0.5


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_tryon_keeps_the_person_in_srgb_beyond_the_mask_and_says_so(form, wardrobe, tryon_run, tmp_path):
    flags = dict(zip(*[iter(pieces(wardrobe))] * 2, strict=True))
    stored = Image.open(flags["--person"]).convert("RGB")
    person = tmp_path / f"person.{form.lower()}"
    stored.save(person, form, icc_profile=icc.rgb_profile("Display P3"), quality=100, subsampling=0)
    output = tmp_path / "o.png"
    said = tryon_run(*(part for pair in {**flags, "--person": person}.items() for part in pair), "--output", output)
    assert "'Display P3': its result is in sRGB" in said
    kept = np.asarray(Image.open(flags["--mask"]).convert("L")) == 0
    kept &= np.indices(kept.shape)[0] < 40  # far from the mask of trousers
    drawn, expected = pixels(output), icc.in_srgb(np.asarray(stored), "Display P3")
    assert np.abs(drawn - expected)[kept].mean() < 1
    with Image.open(person) as again, Image.open(output) as result:
        assert np.array_equal(drawn[kept], np.asarray(to_rgb(again))[kept]) and "icc_profile" not in result.info


def test_a_profile_is_known_by_what_it_does_not_by_its_name():
    """sRGB under another name changes nothing, and colours of another space are converted whatever they are called."""
    picture = Image.fromarray(colours())
    same = icc.rgb_profile("sRGB").replace(b"sRGB", b"mine")
    other = icc.rgb_profile("Adobe RGB").replace(b"Adobe RGB", b"like sRGB")
    assert colour.profile_name(with_profile(picture, same)) is None
    assert (np.asarray(colour.to_srgb(with_profile(picture, same))) == np.asarray(picture)).all()
    assert colour.profile_name(with_profile(picture, other)) == "like sRGB"
    assert (np.asarray(colour.to_srgb(with_profile(picture, other))) != np.asarray(picture)).any()
