"""Figures for comparison with papers: FID and KID by clean-fid, LPIPS by torchmetrics.

They need torchvision, clean-fid (requirements-fid.txt) and the weights of two networks, which are downloaded. The tests
run with stubs of torchvision and clean-fid, not with the real networks.
"""

# clean-fid and torchvision are imported where they are used: they are optional.
from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants
from torch import Tensor

_INSTALL = "pip install -r requirements-fid.txt"


def unavailable(metric: str) -> str | None:
    """Why ``"fid"``, ``"kid"`` or ``"lpips"`` cannot be computed on this machine, in one line; None where it can.

    Loads the network, and downloads its weights unless ``HF_HUB_OFFLINE`` is set: call it in one process only.
    """
    try:
        _squeezenet() if metric == "lpips" else _inception()
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed: {_INSTALL}"
    except Exception as error:  # a torchvision built for another torch, no network, a damaged download
        reason = str(error).strip().partition("\n")[0]
        return f"its network cannot be loaded ({type(error).__name__}: {reason}): connect once, or {_INSTALL}"
    return None


def fid(real: Path, made: Path) -> float:
    """Fréchet Inception distance between the pictures of two folders, by clean-fid in mode "clean".

    It falls as folders grow, and says little of fewer than some 500 pictures.
    """
    options = {"custom_feat_extractor": _inception(), **_options()}
    return float(importlib.import_module("cleanfid.fid").compute_fid(str(real), str(made), **options))


def kid(real: Path, made: Path, seed: int) -> float:
    """Kernel Inception distance between the pictures of two folders, times 1,000 as papers give it, by clean-fid.

    The mean of 100 subsets of up to 1,000 pictures, drawn by ``seed``; negative for sets that are near each other.
    """
    _inception()
    state = np.random.get_state()
    np.random.seed(seed)  # clean-fid draws from numpy's global generator
    try:
        return 1000 * float(importlib.import_module("cleanfid.fid").compute_kid(str(real), str(made), **_options()))
    finally:
        np.random.set_state(state)


def lpips(one: Tensor, other: Tensor) -> float:
    """Learned perceptual distance (Zhang et al. 2018) of two pictures ``[3, h, w]`` in [0, 1]: 0 for equal ones.

    Version 0.1 over SqueezeNet 1.1, as try-on papers have it.
    """
    metric = _squeezenet().to(one.device)
    metric.reset()
    metric.update(one[None].float(), other[None].float())
    return float(metric.compute())


def _options() -> dict[str, Any]:
    """Arguments of both of clean-fid's functions."""
    return {"mode": "clean", "device": _device(), "num_workers": 0, "use_dataparallel": False, "verbose": False}


@functools.lru_cache(maxsize=1)
def _inception() -> Any:
    """clean-fid's Inception, loaded once in a process."""
    importlib.import_module("torchvision")
    features = importlib.import_module("cleanfid.features")
    url = importlib.import_module("cleanfid.downloads_helper").inception_url
    _check_weights(_inception_file(), url)
    return features.build_feature_extractor("clean", _device(), use_dataparallel=False)


@functools.lru_cache(maxsize=1)
def _squeezenet() -> Any:
    """The LPIPS metric of torchmetrics, loaded once in a process."""
    url = importlib.import_module("torchvision").models.SqueezeNet1_1_Weights.DEFAULT.url
    _check_weights(Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name, url)
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    # With sync_on_compute, a process that computes alone would wait for the others for ever.
    return LearnedPerceptualImagePatchSimilarity(net_type="squeeze", normalize=True, sync_on_compute=False)


def _check_weights(file: Path, url: str) -> None:
    if constants.HF_HUB_OFFLINE and not file.is_file():
        raise FileNotFoundError(f"HF_HUB_OFFLINE is set: fetch {url} to {file}")


def _inception_file() -> Path:
    """Where clean-fid keeps Inception's weights."""
    return Path("." if os.name == "nt" else "/tmp") / "inception-2015-12-05.pt"


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
