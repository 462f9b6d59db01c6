"""FID, KID and LPIPS: what clean-fid is asked, LPIPS by its formula, and why each cannot be had.

clean-fid and torchvision are stubs here: the first records what it is asked, the second has a small network of
SqueezeNet's widths. LPIPS itself is torchmetrics' own, with the layer weights that come with it.
"""

from __future__ import annotations

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

from deepfashion_training.evaluation import inception
from deepfashion_training.evaluation.inception import fid, kid, lpips, unavailable

INSTALL = "pip install -r requirements-fid.txt"
INCEPTION_URL = "https://weights.test/inception-2015-12-05.pt"
SQUEEZENET_URL = "https://weights.test/squeezenet1_1-b8a52dc0.pth"


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    """Networks are kept for a process: each test starts and leaves without."""
    inception._inception.cache_clear()
    inception._squeezenet.cache_clear()
    yield
    inception._inception.cache_clear()
    inception._squeezenet.cache_clear()


def features(seed: int = 0) -> torch.nn.Sequential:
    """Thirteen layers of which LPIPS takes seven outputs, of 64 to 512 channels, with weights drawn by ``seed``."""
    torch.manual_seed(seed)
    conv, relu, same = torch.nn.Conv2d, torch.nn.ReLU, torch.nn.Identity
    layers = [conv(3, 64, 3, stride=2), relu(), same(), conv(64, 128, 1), relu(), same(), conv(128, 256, 1), relu()]
    layers += [conv(256, 384, 1), relu(), conv(384, 384, 1), conv(384, 512, 1), conv(512, 512, 1)]
    return torch.nn.Sequential(*layers)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A torchvision whose SqueezeNet is ``features``, with its weights in torch's cache."""
    weights = SimpleNamespace(DEFAULT=SimpleNamespace(url=SQUEEZENET_URL))
    models = SimpleNamespace(SqueezeNet1_1_Weights=weights)
    models.squeezenet1_1 = lambda weights: SimpleNamespace(features=features())
    for module in (functional_lpips, lpips_class):
        monkeypatch.setattr(module, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").touch()
    return stand_in(monkeypatch, "torchvision", models=models)


@pytest.fixture
def asked(torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """What a clean-fid with Inception's weights on this machine was asked, in turn."""
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

    (tmp_path / "inception-2015-12-05.pt").touch()
    monkeypatch.setattr(inception, "_inception_file", lambda: tmp_path / "inception-2015-12-05.pt")
    stand_in(monkeypatch, "cleanfid")
    stand_in(monkeypatch, "cleanfid.features", build_feature_extractor=build_feature_extractor)
    stand_in(monkeypatch, "cleanfid.downloads_helper", inception_url=INCEPTION_URL)
    stand_in(monkeypatch, "cleanfid.fid", compute_fid=compute_fid, compute_kid=compute_kid)
    return calls


def test_fid_and_kid_are_asked_of_clean_fid(asked: list[tuple[Any, ...]]) -> None:
    assert fid(Path("real"), Path("made")) == 12.5
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    how = {"mode": "clean", "device": device, "num_workers": 0, "use_dataparallel": False, "verbose": False}
    assert asked[0] == ("build", "clean", device, False)
    assert asked[1:] == [("fid", "real", "made", {**how, "custom_feat_extractor": "the network"})]
    kid(Path("real"), Path("made"), seed=0)
    assert asked[2:] == [("kid", "real", "made", how)]  # the network is built once


def test_kid_is_drawn_by_its_seed_and_a_thousandfold(asked: list) -> None:
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(1)
    following = np.random.random(3)
    np.random.seed(1)
    assert kid(Path("real"), Path("made"), seed=7) == 1000 * expected
    assert np.array_equal(np.random.random(3), following)  # numpy's generator goes on as if nothing had been drawn


def test_all_can_be_had_where_everything_is_there(asked: list, torchvision: ModuleType) -> None:
    assert [unavailable(metric) for metric in ("fid", "kid", "lpips")] == [None, None, None]


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
    for metric in ("fid", "kid"):
        assert "cleanfid" in str(unavailable(metric)) and INSTALL in str(unavailable(metric))
    inception._squeezenet.cache_clear()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "torchvision" in str(unavailable("lpips")) and INSTALL in str(unavailable("lpips"))


def test_a_broken_torchvision_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    text = "raise RuntimeError('operator torchvision::nms does not exist\\nand more')"
    (tmp_path / "torchvision" / "__init__.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    for metric in ("fid", "lpips"):
        why = str(unavailable(metric))
        assert "operator torchvision::nms does not exist" in why and "\n" not in why and INSTALL in why


def test_missing_weights_are_not_fetched_offline(asked: list, tmp_path: Path) -> None:
    file = tmp_path / "inception-2015-12-05.pt"
    file.unlink()
    assert f"fetch {INCEPTION_URL} to {file}" in str(unavailable("fid"))
    file = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    file.unlink()
    assert f"fetch {SQUEEZENET_URL} to {file}" in str(unavailable("lpips"))
    assert asked == []
