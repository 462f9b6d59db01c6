"""Figures of one result beside its photo: SSIM and CIEDE2000 by scikit-image, PSNR, and drift.

Pictures are float64 ``[h, w, 3]``: sRGB in [0, 1]. Masks are bool ``[h, w]``.
"""

from __future__ import annotations

import math

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

#: Width of the Gaussian window of SSIM, in pixels: no side of a picture may be smaller.
SSIM_WINDOW = 11


def paired_figures(result: np.ndarray, photo: np.ndarray, mask: np.ndarray, garment: np.ndarray) -> dict[str, float]:
    """Figures by their names in ``metrics.json``; PSNR of equal pictures is infinite.

    ``mask`` is the area that the model filled in, ``garment`` the area in which colours are compared. Neither is empty,
    and ``mask`` is not the whole picture.
    """
    similarity, similarity_map = ssim(result, photo)
    squared = np.square(result - photo)
    return {
        "ssim": similarity,
        "ssim_masked": float(similarity_map[mask].mean()),
        "psnr": _decibels(squared),
        "psnr_masked": _decibels(squared[mask]),
        "ciede2000_masked": ciede2000_masked(result, photo, garment),
        "drift": drift(result, photo, mask),
    }


def ssim(one: np.ndarray, other: np.ndarray) -> tuple[float, np.ndarray]:
    """Structural similarity, at most 1: its mean, and its map ``[h, w, 3]``.

    Wang, Bovik, Sheikh, Simoncelli 2004 with their settings: a Gaussian window of sigma 1.5 and 11 x 11 pixels, K1
    0.01, K2 0.03. The mean leaves out the 5 pixels next to the border. The map has them, as masks reach the border;
    there the picture is continued by its mirror image.
    """
    mean, similarity_map = structural_similarity(
        one,
        other,
        data_range=1,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(mean), similarity_map


def ciede2000_masked(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float:
    """Mean CIEDE2000 colour difference in ``mask``, 0 to 100. About 1 is just noticeable."""
    return float(deltaE_ciede2000(rgb2lab(one[mask]), rgb2lab(other[mask])).mean())


def drift(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference outside ``mask`` in 8-bit levels: what changed where nothing was to change."""
    return 255 * float(np.abs(one - other)[~mask].mean())


def _decibels(squared: np.ndarray) -> float:
    """PSNR of squared differences, in dB."""
    mean = float(squared.mean())
    return -10 * math.log10(mean) if mean else math.inf
