"""Figures for comparison with papers: FID and KID by clean-fid, LPIPS by torchmetrics.

What they need (requirements-fid.txt) is torchvision and two networks' weights from the web, which not every machine can
have: ``unavailable`` says in one line what is missing, and the figures raise that line as ``ValueError``. In this
project's own tests torchvision and clean-fid are small stand-ins that have the same functions: nothing here has run
with the real torchvision and the real weights.
"""

# clean-fid and torchvision are imported where they are used: they are optional.
from __future__ import annotations

import functools
import glob
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants
from torch import Tensor

_MEND = "pip install -r requirements-fid.txt"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def unavailable(metric: str) -> str | None:
    """Why ``"fid"``, ``"kid"`` or ``"lpips"`` cannot be had on this machine, in one line with the mend; None if it can.

    Loads the network to know it, and so downloads its weights where they are missing: ask in one process only. With
    ``HF_HUB_OFFLINE`` set nothing is fetched. ``ValueError`` for another metric.
    """
    networks: dict[str, Callable[[], object]] = {"fid": _inception, "kid": _inception, "lpips": _perceptual}
    if metric not in networks:
        raise ValueError(f"no metric {metric!r}: ask for one of {', '.join(networks)}")
    try:
        networks[metric]()
    except ValueError as error:
        return str(error)
    return None


def clean_fid(folder_real: str | Path, folder_made: str | Path, workers: int = 0) -> float:
    """Fréchet Inception distance between the pictures of two folders: 0 for equal ones, lower is nearer.

    By clean-fid in mode "clean" (Parmar, Zhang, Zhu 2022), in fp32, on the GPU where there is one. It falls as folders
    grow, and under some 500 pictures it says little. Pictures are found in subfolders too and taken in the order of
    their paths; ``workers`` processes read and shrink them. ``ValueError`` as in ``unavailable``, and for a folder
    of fewer than two pictures.
    """
    real, made = _pictures(folder_real), _pictures(folder_made)
    network = _inception()
    fid = importlib.import_module("cleanfid.fid")
    return float(fid.compute_fid(real, made, custom_feat_extractor=network, **_how(workers)))


def clean_kid(folder_real: str | Path, folder_made: str | Path, seed: int = 0, workers: int = 0) -> float:
    """Kernel Inception distance between the pictures of two folders, times 1,000 as papers give it.

    By clean-fid in mode "clean": the mean of 100 subsets of up to 1,000 pictures, drawn by ``seed``. Without bias, and
    so negative for sets that are near each other. The rest as in ``clean_fid``.
    """
    real, made = _pictures(folder_real), _pictures(folder_made)
    _inception()
    fid = importlib.import_module("cleanfid.fid")
    state = np.random.get_state()
    np.random.seed(seed)  # clean-fid draws from numpy's global generator
    try:
        return 1000 * float(fid.compute_kid(real, made, **_how(workers)))
    finally:
        np.random.set_state(state)


def lpips(one: Tensor, other: Tensor) -> list[float]:
    """Learned perceptual distance (Zhang et al. 2018) of each pair: 0 for equal pictures, lower is nearer.

    ``one`` and ``other`` are float ``[3, H, W]`` or ``[B, 3, H, W]`` in [0, 1], compared on their device in fp32 and
    picture by picture. Version 0.1 over SqueezeNet 1.1, by torchmetrics, as try-on papers have it. ``ValueError`` as in
    ``unavailable``, and for pictures of other shapes or ranges.
    """
    if one.shape != other.shape or one.ndim not in (3, 4):
        raise ValueError(f"pictures are [B, 3, H, W] and alike in shape, not {list(one.shape)} and {list(other.shape)}")
    metric = _perceptual().to(one.device)
    metric.reset()
    one, other = ((side[None] if side.ndim == 3 else side).float() for side in (one, other))
    for first, second in zip(one, other, strict=True):
        metric.update(first[None], second[None])
    return [float(value) for value in metric.compute().flatten()] if len(one) else []


def _how(workers: int) -> dict[str, Any]:
    """What both of clean-fid's functions are told."""
    return {"mode": "clean", "device": _device(), "num_workers": workers, "use_dataparallel": False, "verbose": False}


@functools.lru_cache(maxsize=1)
def _inception() -> Callable[[Tensor], Tensor]:
    """clean-fid's Inception, loaded once in a process: from pictures of 299 x 299 to features ``[n, 2048]``."""
    _imported("torchvision")
    features = _imported("cleanfid.features")
    url = importlib.import_module("cleanfid.downloads_helper").inception_url
    with_weights = functools.partial(features.build_feature_extractor, "clean", _device(), use_dataparallel=False)
    return _loaded("Inception", url, _inception_file(), with_weights)


@functools.lru_cache(maxsize=1)
def _perceptual() -> Any:
    """The LPIPS metric of torchmetrics, loaded once in a process; the weights of its layers come with torchmetrics."""
    url = _imported("torchvision").models.SqueezeNet1_1_Weights.DEFAULT.url
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # imports torchvision itself, untried

    # Without sync_on_compute a process that computes alone would wait for the others for ever.
    with_weights = functools.partial(
        LearnedPerceptualImagePatchSimilarity,
        net_type="squeeze",
        reduction="none",
        normalize=True,
        sync_on_compute=False,
    )
    return _loaded("SqueezeNet", url, Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name, with_weights)


def _imported(name: str) -> Any:
    """The module ``name``, or a ``ValueError`` with how to install its package."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == package:
            raise ValueError(f"{package} is not installed: {_MEND}") from error
        raise ValueError(f"{package} lacks {error.name}: {_MEND}") from error
    except Exception as error:  # torchvision built for another torch: RuntimeError, OSError, AttributeError...
        raise ValueError(
            f"{package} cannot be imported beside torch {torch.__version__} ({_reason(error)}): {_MEND}"
        ) from error


def _loaded(network: str, url: str, file: Path, load: Callable[[], Any]) -> Any:
    """What ``load`` gives, or a ``ValueError`` with where the weights of ``network`` come from and belong."""
    if constants.HF_HUB_OFFLINE and not file.is_file():
        raise ValueError(
            f"weights of {network} are not on this machine and HF_HUB_OFFLINE is set: fetch {url} to {file}"
        )
    try:
        return load()
    except Exception as error:  # no network, a download that was cut off, a file of another version
        raise ValueError(f"weights of {network} cannot be loaded ({_reason(error)}): fetch {url} to {file}") from error


def _inception_file() -> Path:
    """Where clean-fid keeps Inception's weights."""
    return Path("." if os.name == "nt" else "/tmp") / "inception-2015-12-05.pt"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _pictures(folder: str | Path) -> str:
    """``folder`` as clean-fid takes it, once two or more pictures are found in it."""
    count = sum(file.suffix in _SUFFIXES for file in Path(folder).rglob("*"))
    if count < 2:
        raise ValueError(f"{folder} holds {count} pictures ({', '.join(_SUFFIXES)}): a distribution needs 2 or more")
    return glob.escape(str(folder))
