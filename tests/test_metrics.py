"""Figures: values of the papers, of cases worked out by hand, and of independent computations.

clean-fid and torchvision are stubs here: the first records what it is asked, the second has a small network of
SqueezeNet's widths. LPIPS itself is torchmetrics' own, with the layer weights that come with it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as functional_lpips
import torchmetrics.image.lpip as lpips_class
from PIL import Image, ImageDraw
from scipy import linalg

from deepfashion_training.evaluation import metrics
from deepfashion_training.evaluation.metrics import (
    EXTRAS,
    SSIM_WINDOW,
    ciede2000_masked,
    drift,
    frechet_distance,
    inception_figures,
    kernel_distance,
    lpips,
    paired_figures,
    ssim,
    unavailable,
)

INSTALL = "pip install -r requirements-fid.txt"
HEIGHT, WIDTH = 48, 36


def pair(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures ``[48, 36, 3]`` that have something in common."""
    noise = np.random.default_rng(0).random((2, HEIGHT, WIDTH, 3))
    if kind == "noise":
        return noise[0], 0.7 * noise[0] + 0.3 * noise[1]
    if kind == "flat":  # and bright, as a shop's background
        one = np.full((HEIGHT, WIDTH, 3), 0.97)
        return one, one - 1 / 255
    pictures = []
    for shift, colour in ((0, "navy"), (1, "crimson")):
        picture = Image.new("RGB", (WIDTH, HEIGHT), (246, 245, 243))
        pen = ImageDraw.Draw(picture)
        pen.rectangle((9 + shift, 13, 27 + shift, HEIGHT - 1), fill=colour)
        pictures.append(np.asarray(picture) / 255)
    return pictures[0], pictures[1]


def block() -> np.ndarray:
    """A mask from row 15 to the lower border: what a pair of trousers would have."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[15:, 8:29] = True
    return mask


def window_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """SSIM of the middle pixel of pictures ``[11, 11]``, by the formula of Wang et al. 2004."""
    steps = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(steps**2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    m1, m2 = (window * one).sum(), (window * other).sum()
    v1, v2 = (window * one**2).sum() - m1**2, (window * other**2).sum() - m2**2
    between = (window * one * other).sum() - m1 * m2
    return (2 * m1 * m2 + 0.01**2) * (2 * between + 0.03**2) / ((m1**2 + m2**2 + 0.01**2) * (v1 + v2 + 0.03**2))


@pytest.mark.parametrize("kind", ["noise", "flat", "drawn"])
def test_ssim_is_the_formula_of_its_paper(kind: str) -> None:
    one, other = pair(kind)
    mean, similarity = ssim(one, other)
    row, column, reach = 20, 12, SSIM_WINDOW // 2
    rows, columns = slice(row - reach, row + reach + 1), slice(column - reach, column + reach + 1)
    for channel in range(3):
        expected = window_ssim(one[rows, columns, channel], other[rows, columns, channel])
        assert similarity[row, column, channel] == pytest.approx(expected, abs=1e-9)
    assert mean == pytest.approx(similarity[reach:-reach, reach:-reach].mean(), abs=1e-12)
    figures = paired_figures(one, other, block(), block())
    assert figures["ssim_masked"] == pytest.approx(similarity[block()].mean(), abs=1e-12)


def test_ciede2000_of_known_colours() -> None:
    white, black = np.ones((1, 1, 3)), np.zeros((1, 1, 3))
    whole = np.ones((1, 1), bool)
    assert ciede2000_masked(white, black, whole) == pytest.approx(100, abs=1e-3)
    # L, a, b of sRGB red and green by Lindbloom's tables, and their difference by Sharma's spreadsheet: 86.6.
    red, green = np.array([[[1.0, 0, 0]]]), np.array([[[0, 1.0, 0]]])
    assert ciede2000_masked(red, green, whole) == pytest.approx(86.61, abs=0.02)


@pytest.mark.parametrize("kind", ["noise", "flat", "drawn"])
def test_equal_pictures(kind: str) -> None:
    picture, _ = pair(kind)
    found = paired_figures(picture, picture.copy(), block(), block())
    assert found.pop("ssim") == pytest.approx(1, abs=1e-12)
    assert found.pop("ssim_masked") == pytest.approx(1, abs=1e-12)
    assert found == {"psnr": math.inf, "psnr_masked": math.inf, "ciede2000_masked": 0, "drift": 0}


def test_an_offset_gives_its_own_drift_and_psnr() -> None:
    one, mask = np.full((20, 20, 3), 0.25), np.zeros((20, 20), bool)
    mask[:10] = True
    found = paired_figures(one + 2 / 255, one, mask, mask)
    assert found["drift"] == pytest.approx(2, abs=1e-9)
    assert found["psnr"] == found["psnr_masked"] == pytest.approx(20 * math.log10(255 / 2), abs=1e-9)
    # One channel of three by 30 levels, in 1 of the 10 rows outside: 30 / 3 / 10.
    other = one.copy()
    other[12, :, 1] += 30 / 255
    found = paired_figures(other, one, mask, mask)
    assert found["drift"] == pytest.approx(1, abs=1e-9) and found["psnr_masked"] == math.inf
    # Over the whole picture a third of a twentieth of the values is off by 30 / 255.
    assert found["psnr"] == pytest.approx(-10 * math.log10((30 / 255) ** 2 / 3 / 20), abs=1e-9)


def test_drift_sees_only_the_outside_and_colour_only_the_garment() -> None:
    one, _ = pair("noise")
    mask = block()
    inside, outside = np.where(mask[..., None], 1 - one, one), np.where(mask[..., None], one, 1 - one)
    assert drift(one, inside, mask) == 0 and drift(one, outside, mask) > 50
    assert ciede2000_masked(one, outside, mask) == 0 and ciede2000_masked(one, inside, mask) > 5
    garment = mask.copy()
    garment[:30] = False
    changed = one.copy()
    changed[15:30] = 0.5  # in the mask, and not on the garment
    assert paired_figures(changed, one, mask, garment)["ciede2000_masked"] == 0
    assert paired_figures(changed, one, mask, mask)["ciede2000_masked"] > 5


# ---- of two sets


def noise(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def with_moments(rows: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> torch.Tensor:
    """Features whose mean and unbiased covariance are the given ones exactly: noise whitened, then coloured."""
    drawn = np.random.default_rng(seed).normal(size=(rows, len(mean)))
    drawn -= drawn.mean(axis=0)
    white = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn, rowvar=False))).T
    return torch.from_numpy(white @ np.linalg.cholesky(covariance).T + mean)


def test_frechet_distance_of_independent_numbers():
    # Variances 1, 4, 9 against 4, 4, 1 and means 3 and 4 apart: (1-2)^2 + (2-2)^2 + (3-1)^2 + 3^2 + 4^2.
    one = with_moments(40, np.array([0.0, 0, 7]), np.diag([1.0, 4, 9]), seed=0)
    other = with_moments(55, np.array([3.0, 4, 7]), np.diag([4.0, 4, 1]), seed=1)
    assert frechet_distance(one, other) == pytest.approx(30, abs=1e-9)
    assert frechet_distance(other, one) == pytest.approx(30, abs=1e-9)


def test_frechet_distance_is_the_formula_of_its_papers():
    width = 12
    real, made = noise(90, width) @ noise(width, width, 1), noise(70, width, 2) @ noise(width, width, 3) + 0.3
    first, second = real.double().numpy(), made.double().numpy()
    c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    apart = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    expected = apart + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [20, 300])  # below and above the number of features
def test_equal_sets_are_no_distance_apart(rows):
    features = noise(rows, 64)
    assert frechet_distance(features, features.clone()) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(features, features + 0.5) == pytest.approx(64 * 0.25, abs=1e-4)


def direct(real: torch.Tensor, made: torch.Tensor) -> float:
    """The unbiased estimate of the squared discrepancy, pair by pair: Gretton et al. 2012, equation 3."""
    first, second = real.double().tolist(), made.double().tolist()
    n, m, width = len(first), len(second), len(first[0])

    def kernel(x: list[float], y: list[float]) -> float:
        return (sum(a * b for a, b in zip(x, y, strict=True)) / width + 1) ** 3

    within_real = sum(kernel(first[i], first[j]) for i in range(n) for j in range(n) if i != j)
    within_made = sum(kernel(second[i], second[j]) for i in range(m) for j in range(m) if i != j)
    across = sum(kernel(x, y) for x in first for y in second)
    return within_real / (n * (n - 1)) + within_made / (m * (m - 1)) - 2 * across / (n * m)


def test_kernel_distance_of_two_rows_each():
    # One number a picture. Real 0 and 1: k(0, 1) = 1. Made 1 and 2: k(1, 2) = 27. Across: 1, 1, 8, 27.
    real, made = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert kernel_distance(real, made, seed=0) == pytest.approx(1 + 27 - 2 * 37 / 4)


def test_kernel_distance_of_whole_sets_is_the_double_sum():
    real, made = noise(30, 8), noise(30, 8, 1) * 1.3 + 0.2
    assert kernel_distance(real, made, seed=3) == pytest.approx(direct(real, made), rel=1e-9)


def test_kernel_distance_by_subsets_nears_that_of_the_whole():
    real, made = noise(25, 6), noise(60, 6, 1) + 0.5  # 100 subsets of 25: all of the one, some of the other
    found = kernel_distance(real, made, seed=3)
    assert found == pytest.approx(direct(real, made), rel=0.05)
    assert kernel_distance(real, made, seed=4) != found


def test_a_set_against_itself_may_fall_below_0():
    features = noise(40, 8)
    mean = kernel_distance(features, features.clone(), seed=0)
    assert mean == pytest.approx(direct(features, features), rel=1e-9)
    assert -1 < mean < 0


def test_the_same_sets_have_exactly_the_same_figures():
    real, made = noise(50, 32), noise(70, 32, 1)
    torch.manual_seed(1)
    found = frechet_distance(real, made), kernel_distance(real, made, seed=5)
    torch.manual_seed(2)
    again = frechet_distance(real.clone(), made.clone()), kernel_distance(real.clone(), made.clone(), seed=5)
    assert found == again


def test_drawing_subsets_leaves_the_generator_as_it_was():
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    kernel_distance(noise(20, 4), noise(30, 4, 1), seed=5)
    assert torch.equal(torch.rand(3), expected)


# ---- with networks that are downloaded


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    """Networks are kept for a process: each test starts and leaves without."""
    metrics._inception.cache_clear()
    metrics._squeezenet.cache_clear()
    yield
    metrics._inception.cache_clear()
    metrics._squeezenet.cache_clear()


def features(seed: int = 0) -> torch.nn.Sequential:
    """Thirteen layers of which LPIPS takes seven outputs, of 64 to 512 channels, with weights drawn by ``seed``."""
    torch.manual_seed(seed)
    conv, relu, same = torch.nn.Conv2d, torch.nn.ReLU, torch.nn.Identity
    layers = [conv(3, 64, 3, stride=2), relu(), same(), conv(64, 128, 1), relu(), same(), conv(128, 256, 1), relu()]
    layers += [conv(256, 384, 1), relu(), conv(384, 384, 1), conv(384, 512, 1), conv(512, 512, 1)]
    return torch.nn.Sequential(*layers)


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A torchvision whose SqueezeNet is ``features``."""
    weights = SimpleNamespace(DEFAULT=None)
    models = SimpleNamespace(SqueezeNet1_1_Weights=weights)
    models.squeezenet1_1 = lambda weights: SimpleNamespace(features=features())
    for module in (functional_lpips, lpips_class):
        monkeypatch.setattr(module, "_TORCHVISION_AVAILABLE", True)
    return stub(monkeypatch, "torchvision", models=models)


@pytest.fixture
def asked(torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What clean-fid was asked, in turn."""
    calls: list[tuple[Any, ...]] = []

    def compute_fid(fdir1: str, fdir2: str, **how: Any) -> np.float64:
        calls.append(("fid", fdir1, fdir2, how))
        return np.float64(12.5)

    def compute_kid(fdir1: str, fdir2: str, **how: Any) -> float:
        calls.append(("kid", fdir1, fdir2, how))
        return float(np.random.random())

    def build_feature_extractor(mode: str, device: torch.device, use_dataparallel: bool) -> str:
        calls.append(("build", mode, device, use_dataparallel))
        return "the network"

    stub(monkeypatch, "cleanfid")
    stub(monkeypatch, "cleanfid.features", build_feature_extractor=build_feature_extractor)
    stub(monkeypatch, "cleanfid.fid", compute_fid=compute_fid, compute_kid=compute_kid)
    return calls


def test_fid_and_kid_are_asked_of_clean_fid(asked: list[tuple[Any, ...]]) -> None:
    np.random.seed(7)
    drawn = np.random.random()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    how = {"mode": "clean", "device": device, "num_workers": 0, "use_dataparallel": False, "verbose": False}
    for _ in range(2):  # KID is drawn by its seed, a thousandfold; the network is built once
        assert inception_figures(Path("real"), Path("made"), seed=7) == {"fid": 12.5, "kid": 1000 * drawn}
    one = [("fid", "real", "made", {**how, "custom_feat_extractor": "the network"}), ("kid", "real", "made", how)]
    assert asked == [("build", "clean", device, False), *one, *one]
    assert [unavailable(metric) for metric in EXTRAS] == [None, None, None]


def by_formula(one: torch.Tensor, other: torch.Tensor) -> float:
    """Equation 1 of Zhang et al. 2018 for a pair [3, h, w] in [0, 1], in float64."""
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).double().view(2, 3, 1, 1)
    file = Path(functional_lpips.__file__).parent / "lpips_models" / "squeeze.pth"
    layers = torch.load(file, map_location="cpu", weights_only=True)
    x, y = ((2 * picture.double() - 1 - shift) / scale for picture in (one, other))
    total, level = 0.0, 0
    with torch.no_grad():
        for number, layer in enumerate(features().double()):
            x, y = layer(x[None])[0], layer(y[None])[0]
            if number in (1, 4, 7, 9, 10, 11, 12):  # fire modules end there, before each pooling
                apart = (x / x.norm(dim=0) - y / y.norm(dim=0)) ** 2
                weights = layers[f"lin{level}.model.1.weight"].double().view(-1, 1, 1)
                total += (weights * apart).sum(dim=0).mean().item()
                level += 1
    assert level == 7
    return total


def test_lpips_is_that_of_its_formula_picture_by_picture(torchvision: ModuleType) -> None:
    one, other = torch.rand(2, 3, 3, 40, 32, generator=torch.Generator().manual_seed(4))
    other[1] = (one[1] + other[1]) / 2
    other[2] = one[2]
    expected = [by_formula(*pair) for pair in zip(one, other, strict=True)]
    assert expected[0] > 1.5 * expected[1] > 0.01
    found = [lpips(*pair) for pair in zip(one, other, strict=True)]
    assert found == pytest.approx(expected, rel=1e-4) and found[2] == 0


def test_packages_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch, torchvision: ModuleType) -> None:
    monkeypatch.setitem(sys.modules, "cleanfid", None)
    assert unavailable("lpips") is None
    assert "cleanfid" in str(unavailable("fid")) and INSTALL in str(unavailable("kid"))
    metrics._squeezenet.cache_clear()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "torchvision" in str(unavailable("lpips")) and INSTALL in str(unavailable("lpips"))


def test_a_broken_torchvision_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    text = "raise RuntimeError('operator torchvision::nms does not exist\\nand more')"
    (tmp_path / "torchvision" / "__init__.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    for metric in ("fid", "lpips"):
        why = str(unavailable(metric))
        assert "operator torchvision::nms does not exist" in why and "\n" not in why and INSTALL in why
