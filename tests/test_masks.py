"""Masks: each encoding of the same four pixels decodes to the same four bits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deepfashion_training.pairs.masks import decode_mask

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
        BITS,
        BITS.astype(bool),
        BITS[..., None] * 255,
        BITS.astype(np.float64),
    ],
    ids=lambda mask: mask.mode if isinstance(mask, Image.Image) else str(mask.dtype),
)
def test_the_same_mask_in_every_encoding(mask):
    decoded = decode_mask(mask)
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == BITS.tolist()


def test_grey_counts_above_127_once_a_value_is_above_1():
    assert decode_mask(np.array([[0, 1, 127, 128, 255]], np.uint8)).tolist() == [[0, 0, 0, 1, 1]]
    assert decode_mask(np.array([[0, 1]], np.uint8)).tolist() == [[0, 1]]


def test_inverted_palette_is_read_by_its_colours():
    assert decode_mask(palette([255, 255, 255, 0, 0, 0])).tolist() == (1 - BITS).tolist()


def test_an_empty_mask_stays_empty():
    assert not decode_mask(Image.new("L", (3, 3))).any()


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\)"):
        decode_mask(np.zeros((2, 2, 2), np.uint8))
