"""Back from the pair to the person's own picture: the right half in the photo's size, and pasted into the photo.

Sizes are ``(height, width)``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from deepfashion_training.images.layout import ResizeMode, fit_box
from deepfashion_training.images.pictures import box_of

Alpha = npt.NDArray[np.float32]

#: Width of the seam as a share of the photo's longer side: 5 pixels of 1024. So a result spills 10 pixels over the
#: mask's edge, little more than one cell of the latents (8 pixels), in which the edge lies somewhere.
SEAM = 0.005


def unplace(half: Image.Image, source: tuple[int, int], resize_mode: ResizeMode = "pad") -> Image.Image:
    """What ``layout.place_picture`` made of a photo of size ``source``, without padding and in that size again.

    ``half`` is RGB, of the size of one half of a pair.
    """
    box = fit_box(source, (half.height, half.width), resize_mode)
    cut = half.crop(box.edges)
    height, width = source
    return cut if cut.size == (width, height) else cut.resize((width, height), Image.Resampling.LANCZOS)


def feathered(mask: np.ndarray, seam: int) -> Alpha:
    """A mask ``[h, w]`` in {0, 1} with a soft edge outside of it: float32 ``[h, w]`` in [0, 1].

    1 on the mask, 0 farther than 2 x ``seam`` pixels (in either direction) from it, between them a ramp: the mask grown
    by ``seam`` pixels, averaged over squares that reach ``seam`` pixels to each side. ``seam`` 0 is the mask itself.
    """
    grown = ndimage.maximum_filter(mask > 0, 2 * seam + 1, mode="constant")
    # Places outside of the picture count neither as masked nor as seen.
    alpha: Alpha = _box_sums(grown, seam) / _box_sums(np.ones_like(grown), seam)
    return alpha


def seam_of(size: tuple[int, int]) -> int:
    """Width of the seam in pixels for a photo of ``size``, see ``SEAM``."""
    return max(1, round(SEAM * max(size)))


def repainted(photo: Image.Image, drawn: Image.Image, mask: np.ndarray) -> Image.Image:
    """``drawn`` in ``photo`` where ``mask`` (``[h, w]`` in {0, 1}) is 1, through a feathered edge.

    Both pictures are RGB of the mask's size. Where ``feathered`` is 0, every pixel is the photo's.
    """
    seam, result = seam_of(mask.shape), photo.copy()
    # Only around the mask, for the time and memory that large photos would take: what is farther than 2 seams from it
    # stays, and an average looks one seam farther.
    box = box_of(mask, room=3 * seam)
    if box is None:
        return result
    left, top, right, bottom = box
    alpha = feathered(mask[top:bottom, left:right], seam)[..., None]
    old, new = (np.asarray(picture.crop(box), np.float32) for picture in (photo, drawn))
    result.paste(Image.fromarray((old + alpha * (new - old)).round().astype(np.uint8)), (left, top))
    return result


def _box_sums(cells: npt.NDArray[np.bool_], reach: int) -> npt.NDArray[np.float32]:
    """How many ``cells`` are 1 in the square around each one, ``reach`` to each side; none lie outside."""
    window = np.ones(2 * reach + 1)
    rows = ndimage.correlate1d(cells.astype(np.float32), window, axis=0, mode="constant")
    sums: npt.NDArray[np.float32] = ndimage.correlate1d(rows, window, axis=1, mode="constant")
    return sums
