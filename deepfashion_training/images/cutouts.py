"""Cut-outs: the garment of a photo alone on white, in place of the product shot that a dataset lacks."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFilter
from scipy import ndimage

from deepfashion_training.images.pictures import WHITE, box_of

#: Share of the canvas that stays white on each side, as in the product shots of VITON-HD.
MARGIN = 0.06
#: A garment is not enlarged beyond this: more would teach blur.
LARGEST_ENLARGEMENT = 2.0

#: Pieces of a region below this share of its largest one are specks: errors of a mask, not parts of a garment that
#: a bag strap or an arm divides.
_SPECK_SHARE = 0.02

#: How far a warped cut-out may differ: turned, in degrees; scaled; and bent, as a share of the canvas.
_TURN = 5.0
_SCALES = (0.82, 0.94)
_BEND = 0.012
#: Cells of the mesh that bends a picture, along each side.
_MESH = 6


def cut_out(photo: Image.Image, region: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The garment of an RGB photo on white: RGB picture of ``size`` (height, width).

    ``region`` is uint8 ``[h, w]`` in {0, 1} of the photo's size, 1 = garment, and not empty. The garment's box is
    centred and scaled to fit within ``MARGIN``, at most ``LARGEST_ENLARGEMENT`` times. Its edge is drawn in by about a
    pixel of the photo and softened, so that no seam of the background shows. Specks are left out.
    """
    return _laid_out(photo, region, size)[0]


def warped_cut_out(photo: Image.Image, region: np.ndarray, size: tuple[int, int], seed: int) -> Image.Image:
    """``cut_out`` turned, made smaller, shifted and slightly bent by random numbers from ``seed``.

    It serves as the garment picture of the photo that it was cut from: a model cannot learn to copy pixels from
    place to place. The same arguments give the same pixels. The garment stays on the canvas.
    """
    straight, (left, top, right, bottom) = _laid_out(photo, region, size)
    rng = np.random.default_rng(seed)
    height, width = size
    angle = math.radians(float(rng.uniform(0.3, 1.0)) * _TURN * float(rng.choice([-1, 1])))
    scale = float(rng.uniform(*_SCALES))
    # Where the corners of the garment come to lie tells how far it may be shifted.
    reach_x = scale * (abs(math.cos(angle)) * (right - left) + abs(math.sin(angle)) * (bottom - top)) / 2
    reach_y = scale * (abs(math.sin(angle)) * (right - left) + abs(math.cos(angle)) * (bottom - top)) / 2
    bend = _BEND * min(size)
    shift_x = float(rng.uniform(-1, 1)) * max(0.0, width / 2 - reach_x - bend)
    shift_y = float(rng.uniform(-1, 1)) * max(0.0, height / 2 - reach_y - bend)

    # The mesh maps each cell of the new picture to a quadrilateral of the old one: an affine map plus smooth noise.
    nodes = np.linspace(0, 1, _MESH + 1)
    x, y = np.meshgrid(nodes * width, nodes * height)
    from_x, from_y = x - width / 2 - shift_x, y - height / 2 - shift_y
    source = np.stack(
        [
            (from_x * math.cos(angle) + from_y * math.sin(angle)) / scale + width / 2,
            (from_y * math.cos(angle) - from_x * math.sin(angle)) / scale + height / 2,
        ]
    ) + bend * rng.uniform(-1, 1, (2, _MESH + 1, _MESH + 1))
    edges_x, edges_y = (np.rint(nodes * side).astype(int).tolist() for side in (width, height))
    mesh = []
    for row in range(_MESH):
        for column in range(_MESH):
            corners = ((row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1))
            quad = tuple(float(source[axis][corner]) for corner in corners for axis in (0, 1))
            mesh.append(((edges_x[column], edges_y[row], edges_x[column + 1], edges_y[row + 1]), quad))
    return straight.transform(
        (width, height), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR, fill=1, fillcolor=WHITE
    )


def _laid_out(
    photo: Image.Image, region: np.ndarray, size: tuple[int, int]
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """``cut_out``, and the garment's box on the canvas."""
    region = _without_specks(region)
    box = box_of(region)
    assert box is not None and region.shape == (photo.height, photo.width)
    left, top, right, bottom = box
    garment = Image.new("RGB", (right - left, bottom - top), WHITE)
    garment.paste(photo.crop(box), mask=_soft_edge(region[top:bottom, left:right]))

    height, width = size
    scale = min(
        (1 - 2 * MARGIN) * height / garment.height, (1 - 2 * MARGIN) * width / garment.width, LARGEST_ENLARGEMENT
    )
    fitted = (max(1, round(garment.width * scale)), max(1, round(garment.height * scale)))
    if fitted != garment.size:
        garment = garment.resize(fitted, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (width, height), WHITE)
    left, top = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    canvas.paste(garment, (left, top))
    return canvas, (left, top, left + fitted[0], top + fitted[1])


def _soft_edge(region: npt.NDArray[np.uint8]) -> Image.Image:
    """Opacity of a region: none outside and on its outermost pixel, two thirds on the next, then full.

    The outermost pixel has the background's colour in it, from the camera and from JPEG.
    """
    eroded = Image.fromarray(ndimage.binary_erosion(region) * np.uint8(255))
    return ImageChops.darker(eroded, eroded.filter(ImageFilter.BoxBlur(1)))


def _without_specks(region: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """``region`` without the pieces below ``_SPECK_SHARE`` of its largest one."""
    labels, _ = ndimage.label(region, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return region * (sizes >= _SPECK_SHARE * sizes.max())[labels]
