"""DINOv2 features: those of transformers' own forward, of each picture alone, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from deepfashion_training.models.features import DEFAULT_DINO, Dino, find_dino
from deepfashion_training.models.hub_files import revision_of

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a DINOv2 with random weights and the preprocessing file of facebook/dinov2-base, for reading only."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14, mlp_ratio=2
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():  # as after training: a layer scale of 1e-5 or a norm without gain would hide mistakes
        for weights in model.parameters():
            weights.normal_(0.5, 0.5)
    folder = tmp_path_factory.mktemp("dino") / "tiny"
    model.save_pretrained(folder)
    settings = {
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
        "size": {"shortest_edge": 256},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def edit(folder: Path, name: str, **changes: Any) -> None:
    content = {**json.loads((folder / name).read_text(encoding="utf-8")), **changes}
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_hand(folder: Path, levels: np.ndarray) -> torch.Tensor:
    """The class token that transformers gives for a picture [h, w, 3] in 0..255 of the network's size."""
    network = Dinov2Model.from_pretrained(folder).eval()
    pixels = torch.tensor((levels / 255 - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return network(pixel_values=pixels).pooler_output


def test_features_are_the_class_token_of_transformers(tiny: Path) -> None:
    picture = noise(224, 224)
    found = Dino(str(tiny), "cpu").embed([picture])
    assert found.shape == (1, 24) and found.dtype == torch.float32 and not found.requires_grad
    assert found.std() > 0.1
    assert torch.allclose(found, by_hand(tiny, np.asarray(picture)), atol=1e-5)


def test_a_picture_is_squeezed_whole(tiny: Path) -> None:
    photo = noise(400, 150)
    photo.paste((255, 0, 0), (0, 0, 150, 60))  # what a centre crop would lose
    squeezed = np.asarray(photo.resize((224, 224), Image.Resampling.BICUBIC))
    found = Dino(str(tiny), "cpu").embed([photo])
    assert torch.allclose(found, by_hand(tiny, squeezed), atol=1e-5)
    photo.paste((0, 0, 255), (0, 0, 150, 60))
    assert not torch.allclose(found, Dino(str(tiny), "cpu").embed([photo]), atol=1e-3)


def test_a_picture_has_the_same_features_in_any_company(tiny: Path) -> None:
    pictures = [noise(64, 48), Image.new("L", (30, 50), 90), Image.new("RGBA", (20, 20), (9, 9, 9, 100)), noise(9, 9)]
    dino = Dino(str(tiny), "cpu")
    together = dino.embed(pictures)
    for picture, features in zip(pictures, together, strict=True):
        assert torch.equal(dino.embed([picture])[0], features)
    assert torch.equal(dino.embed(pictures[::-1]), together.flip(0))
    assert dino.embed([]).shape == (0, 24)


def test_the_revision_is_that_of_the_files(tiny: Path, copy: Path) -> None:
    one = Dino(str(tiny), "cpu").revision
    assert one.startswith("sha256:") and one == revision_of(str(copy), copy)
    edit(copy, "preprocessor_config.json", image_std=[1, 1, 1])
    assert revision_of(str(copy), copy) != one
    assert revision_of("acme/dino", Path("/cache/0123abc")) == "0123abc"


def test_a_model_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--dino_model {DEFAULT_DINO} is not in the cache") as refused:
        find_dino()  # tests run offline
    assert f"`hf download {DEFAULT_DINO}`" in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=f"--dino_model {tmp_path}: "):
        Dino(str(tmp_path))
    with pytest.raises(ValueError, match=r"--dino_model \./none: no such folder, and not a Hub id such as facebook"):
        find_dino("./none")


def test_a_folder_is_found_where_it_is(tiny: Path) -> None:
    assert find_dino(str(tiny)) == tiny


def test_other_models_and_spoiled_files_are_refused(copy: Path) -> None:
    edit(copy, "config.json", model_type="clip")
    with pytest.raises(ValueError, match="is a clip model: pass a DINOv2 model such as facebook/dinov2-base"):
        find_dino(str(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors in it"):
        find_dino(str(copy))


def test_a_file_that_lacks_weights_is_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights such as layernorm\.weight"):
        Dino(str(copy), "cpu")
