"""FID, KID and LPIPS: what clean-fid is asked, LPIPS by its formula, and why each cannot be had.

clean-fid and torchvision are stand-ins here: the first records what it is asked, the second has a small network of
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
from PIL import Image

from deepfashion_training.evaluation import inception
from deepfashion_training.evaluation.inception import clean_fid, clean_kid, lpips, unavailable

INSTALL = "pip install -r requirements-fid.txt"
INCEPTION_URL = "https://weights.test/inception-2015-12-05.pt"
SQUEEZENET_URL = "https://weights.test/squeezenet1_1-b8a52dc0.pth"


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    """Networks are kept for a process: each test starts and leaves without."""
    inception._inception.cache_clear()
    inception._perceptual.cache_clear()
    yield
    inception._inception.cache_clear()
    inception._perceptual.cache_clear()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("real", "made [1]"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    return tmp_path / "real", tmp_path / "made [1]"


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


def test_fid_is_asked_of_clean_fid(asked: list[tuple[Any, ...]], folders: tuple[Path, Path]) -> None:
    real, made = folders
    found = clean_fid(real, made, workers=3)
    assert found == 12.5 and type(found) is float
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    how = {"mode": "clean", "device": device, "num_workers": 3, "use_dataparallel": False, "verbose": False}
    assert asked[0] == ("build", "clean", device, False)
    # A bracket in a folder's name would be a pattern to glob, by which clean-fid looks for pictures.
    escaped = str(made).replace("[", "[[]")
    assert asked[1:] == [("fid", str(real), escaped, {**how, "custom_feat_extractor": "the network"})]
    clean_kid(str(real), str(made))
    assert asked[2:] == [("kid", str(real), escaped, {**how, "num_workers": 0})]  # the network is built once


def test_kid_is_drawn_by_its_seed_and_a_thousandfold(asked: list, folders: tuple[Path, Path]) -> None:
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(1)
    following = np.random.random(3)
    np.random.seed(1)
    assert clean_kid(*folders, seed=7) == 1000 * expected
    assert np.array_equal(np.random.random(3), following)  # numpy's generator goes on as if nothing had been drawn
    assert clean_kid(*folders, seed=7) == 1000 * expected != clean_kid(*folders, seed=8)


def test_a_folder_of_one_picture_is_no_distribution(asked: list, folders: tuple[Path, Path]) -> None:
    (folders[1] / "1.png").unlink()
    (folders[1] / "notes.txt").touch()
    for figure in (clean_fid, clean_kid):
        with pytest.raises(ValueError, match=r"holds 1 pictures \(\.png, .*: a distribution needs 2 or more"):
            figure(*folders)


def test_all_can_be_had_where_everything_is_there(asked: list, torchvision: ModuleType) -> None:
    assert [unavailable(metric) for metric in ("fid", "kid", "lpips")] == [None, None, None]
    with pytest.raises(ValueError, match="no metric 'ssim': ask for one of fid, kid, lpips"):
        unavailable("ssim")


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
    found = lpips(one, other)
    assert found == pytest.approx(expected, rel=1e-4) and found[2] == 0
    assert lpips(one[1], other[1]) == found[1:2]  # alone as in a batch, and after other pictures
    assert lpips(one.double(), other.double()) == found
    assert lpips(one[:0], other[:0]) == []


def test_lpips_refuses_what_does_not_fit(torchvision: ModuleType) -> None:
    picture = torch.rand(3, 40, 32)
    with pytest.raises(ValueError, match=r"alike in shape, not \[3, 40, 32\] and \[3, 40, 31\]"):
        lpips(picture, picture[..., :-1])
    with pytest.raises(ValueError, match=r"in the \[0, 1\] range"):
        lpips(picture, picture * 2 - 1)


def test_packages_that_are_not_installed_are_named(
    monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path], torchvision: ModuleType
) -> None:
    monkeypatch.setitem(sys.modules, "cleanfid", None)
    assert unavailable("fid") == unavailable("kid") == f"cleanfid is not installed: {INSTALL}"
    assert unavailable("lpips") is None
    inception._perceptual.cache_clear()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for metric in ("fid", "kid", "lpips"):
        assert unavailable(metric) == f"torchvision is not installed: {INSTALL}"
    for figure in (clean_fid, clean_kid):
        with pytest.raises(ValueError, match="torchvision is not installed"):
            figure(*folders)
    with pytest.raises(ValueError, match="torchvision is not installed"):
        lpips(torch.rand(3, 40, 32), torch.rand(3, 40, 32))


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist\\nand more')",
            f"torchvision cannot be imported beside torch {torch.__version__} "
            f"(RuntimeError: operator torchvision::nms does not exist): {INSTALL}",
        ),
        ("import a_module_that_is_missing", f"torchvision lacks a_module_that_is_missing: {INSTALL}"),
    ],
)
def test_a_broken_torchvision_is_told_in_one_line(
    broken: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(broken, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    for metric in ("fid", "lpips"):
        assert unavailable(metric) == told


def test_missing_weights_are_not_fetched_offline(asked: list, folders: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "inception-2015-12-05.pt"
    file.unlink()
    told = "are not on this machine and HF_HUB_OFFLINE is set: fetch"
    assert unavailable("fid") == f"weights of Inception {told} {INCEPTION_URL} to {file}"
    with pytest.raises(ValueError, match="weights of Inception are not on this machine"):
        clean_kid(*folders)
    file = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    file.unlink()
    assert unavailable("lpips") == f"weights of SqueezeNet {told} {SQUEEZENET_URL} to {file}"
    assert asked == []


def test_weights_that_cannot_be_fetched_or_read_are_told(
    asked: list, torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from urllib.error import URLError

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route to host\nat all")

    monkeypatch.setattr(inception.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sys.modules["cleanfid.features"], "build_feature_extractor", refuse)
    monkeypatch.setattr(torchvision.models, "squeezenet1_1", refuse)
    file = tmp_path / "inception-2015-12-05.pt"
    assert unavailable("kid") == (
        f"weights of Inception cannot be loaded (URLError: <urlopen error no route to host): "
        f"fetch {INCEPTION_URL} to {file}"
    )
    assert str(unavailable("lpips")).startswith("weights of SqueezeNet cannot be loaded (URLError: ")
