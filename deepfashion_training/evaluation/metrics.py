"""Every figure of an evaluation, by its name in ``metrics.json``; ``reports/figures.py`` says what each is called.

Of one picture: SSIM and CIEDE2000 by scikit-image, PSNR, drift, LPIPS by torchmetrics. Of two sets of pictures: Fréchet
and kernel distances by torchmetrics, FID and KID by clean-fid. LPIPS, FID and KID need torchvision, clean-fid
(requirements-fid.txt) and two networks, which are downloaded; the tests run with stubs of these.

Pictures are float64 ``[h, w, 3]``: sRGB in [0, 1]. Masks are bool ``[h, w]``. Features are ``[n, D]``, n at least 2.
"""

# torchmetrics is imported where it is used, as it takes seconds; clean-fid and torchvision, as they are optional.
from __future__ import annotations

import functools
import importlib
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity
from torch import Tensor

#: Width of the Gaussian window of SSIM, in pixels: no side of a picture may be smaller.
SSIM_WINDOW = 11
#: Rows of one estimate of the kernel distance, and the number of estimates, as in Bińkowski et al. 2018.
KERNEL_SUBSET, KERNEL_SUBSETS = 1000, 100
#: Figures that need torchvision.
EXTRAS = ("lpips", "fid", "kid")


# ---- of one picture


def paired_figures(result: np.ndarray, photo: np.ndarray, mask: np.ndarray, garment: np.ndarray) -> dict[str, float]:
    """Figures of a result beside its photo; PSNR of equal pictures is infinite.

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
    how: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    mean, similarity_map = structural_similarity(one, other, data_range=1, channel_axis=-1, full=True, **how)
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


def lpips(one: Tensor, other: Tensor) -> float:
    """Learned perceptual distance (Zhang et al. 2018) of two pictures ``[3, h, w]`` in [0, 1]: 0 for equal ones.

    Version 0.1 over SqueezeNet 1.1, as try-on papers have it.
    """
    metric = _squeezenet().to(one.device)
    metric.reset()
    metric.update(one[None].float(), other[None].float())
    return float(metric.compute())


# ---- of two sets of pictures


def feature_figures(real: Tensor, made: Tensor, seed: int) -> dict[str, float]:
    """Distances between DINOv2 features of photos and of results."""
    return {"fd_dinov2": frechet_distance(real, made), "kd_dinov2": kernel_distance(real, made, seed)}


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Fréchet distance between normal distributions fitted to the two sets, 0 for equal ones (Heusel et al. 2017).

    It falls as sets grow: compare sets of one size only. With fewer rows than features, equal sets come out as
    rounding: 30 features of 768 numbers against themselves gave -4e-4, where others gave thousands.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    return float(_compared(FrechetInceptionDistance, real, made))


def kernel_distance(real: Tensor, made: Tensor, seed: int) -> float:
    """Kernel distance between the two sets (Bińkowski et al. 2018): the squared maximum mean discrepancy.

    The mean over 100 subsets of up to 1,000 rows, drawn by ``seed``. The estimate has no bias at any size, so it falls
    below 0 for sets that are near each other. Papers mostly give it times 1,000.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(real), len(made), KERNEL_SUBSET)
    # Subsets that are the whole of both sets would all be the same.
    subsets = 1 if size == len(real) == len(made) else KERNEL_SUBSETS
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features in memory
        torch.default_generator.manual_seed(seed)  # it draws from the CPU's generator
        mean, _ = _compared(KernelInceptionDistance, real, made, subsets=subsets, subset_size=size)
    return float(mean)


def _compared(metric: Any, real: Tensor, made: Tensor, **options: Any) -> Any:
    """A torchmetrics distance over features in the place of pictures: float64 on the CPU, always the same figure."""
    network: Any = torch.nn.Identity()
    network.num_features = real.shape[1]
    # With sync_on_compute, a process that computes alone would wait for the others for ever.
    distance = metric(network, sync_on_compute=False, **options)
    distance.update(real.to("cpu", torch.float64), real=True)
    distance.update(made.to("cpu", torch.float64), real=False)
    return distance.compute()


def inception_figures(real: Path, made: Path, seed: int) -> dict[str, float]:
    """FID and KID between the pictures of two folders, by clean-fid in mode "clean".

    FID falls as folders grow, and says little of fewer than some 500 pictures. KID is times 1,000, as papers give it:
    the mean of 100 subsets of up to 1,000 pictures, drawn by ``seed``, and negative for sets that are near each other.
    """
    clean_fid = importlib.import_module("cleanfid.fid")
    how = {"mode": "clean", "device": _device(), "num_workers": 0, "use_dataparallel": False, "verbose": False}
    fid = clean_fid.compute_fid(str(real), str(made), custom_feat_extractor=_inception(), **how)
    np.random.seed(seed % 2**32)  # clean-fid draws from numpy's global generator
    return {"fid": float(fid), "kid": 1000 * float(clean_fid.compute_kid(str(real), str(made), **how))}


def unavailable(metric: str) -> str | None:
    """Why one of ``EXTRAS`` cannot be computed on this machine, in one line; None where it can.

    Loads the network, and downloads its weights: call it in one process only.
    """
    try:
        _squeezenet() if metric == "lpips" else _inception()
    except Exception as error:  # a package that is not installed or is for another torch, no network
        reason = str(error).strip().partition("\n")[0]
        return f"its network cannot be loaded ({reason}): connect once, or pip install -r requirements-fid.txt"
    return None


@functools.lru_cache(maxsize=1)
def _inception() -> Any:
    """clean-fid's Inception, loaded once in a process."""
    importlib.import_module("torchvision")
    features = importlib.import_module("cleanfid.features")
    return features.build_feature_extractor("clean", _device(), use_dataparallel=False)


@functools.lru_cache(maxsize=1)
def _squeezenet() -> Any:
    """The LPIPS metric of torchmetrics, loaded once in a process."""
    importlib.import_module("torchvision")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="squeeze", normalize=True, sync_on_compute=False)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
