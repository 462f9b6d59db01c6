"""The human parser: its checks, its preprocessing against transformers' own rules, and what it makes of people."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepfashion_training.embedded import DRAWN_PARSER
from deepfashion_training.embedded.make.make_parser import (
    SIZE,
    draw_people,
    person_specs,
    save_parser,
    small_segformer,
    train_drawn_parser,
)
from deepfashion_training.images.parts import LABELS
from deepfashion_training.models import hub_files, human_parser
from deepfashion_training.models.human_parser import (
    DEFAULT_PARSER,
    HumanParser,
    check_human_parser,
    default_human_parser,
    load_human_parser,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a SegFormer with random weights, for reading only."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parser") / "tiny"
    save_parser(small_segformer(), folder)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def edit(folder: Path, name: str, **changes: Any) -> None:
    file = folder / name
    content = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}), encoding="utf-8")


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_maps_have_the_size_of_their_photos(tiny: Path) -> None:
    photos = [noise(50, 30), Image.new("L", (64, 20)), Image.new("RGBA", (17, 200), (9, 9, 9, 100))]
    maps = HumanParser(str(tiny), device="cpu").parse(photos)
    assert [one.shape for one in maps] == [(50, 30), (20, 64), (200, 17)]
    assert all(one.dtype == np.uint8 and one.max() < 18 for one in maps)
    assert HumanParser(str(tiny), device="cpu").parse([]) == []


def test_a_photo_is_parsed_the_same_in_any_batch(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [noise(64, 48, seed) for seed in range(5)]
    one = HumanParser(str(tiny), device="cpu")
    together = one.parse(photos)
    monkeypatch.setattr(human_parser, "_BATCH", 2)
    assert all(map(np.array_equal, together, one.parse(photos)))
    assert not np.array_equal(together[0], together[1])


def test_labels_are_those_of_the_network_itself(tiny: Path) -> None:
    """A photo of the network's size, normalised and upsampled here by the formulas, gives the same labels."""
    from transformers import SegformerForSemanticSegmentation

    photo = noise(*SIZE)
    network = SegformerForSemanticSegmentation.from_pretrained(tiny).float().eval()
    scaled = (np.asarray(photo) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        logits = network(pixel_values=torch.tensor(scaled.transpose(2, 0, 1)[None], dtype=torch.float32)).logits
        full = torch.nn.functional.interpolate(logits, SIZE, mode="bilinear")
    (labels,) = HumanParser(str(tiny), device="cpu").parse([photo])
    assert len(np.unique(labels)) > 1
    assert (labels == full[0].argmax(dim=0).numpy()).mean() > 0.999  # rounding may turn a tie


def test_preprocessing_follows_its_file(copy: Path) -> None:
    settings = {"rescale_factor": 1 / 51, "resample": 0, "image_mean": [1, 2, 5], "image_std": [5] * 3}
    edit(copy, "preprocessor_config.json", size={"height": 64, "width": 48}, **settings)
    pixels = human_parser._Preprocessing(copy, "copy")(Image.new("RGB", (10, 30), (51, 153, 255)))
    assert pixels.shape == (3, 64, 48) and pixels.dtype == np.float32
    assert pixels[:, 5, 5].tolist() == pytest.approx([0, 0.2, 0])


def test_labels_in_another_order_and_spelling_are_mapped_by_name(tiny: Path, copy: Path) -> None:
    spelled = [name.replace("-", "_").upper() for name in reversed(LABELS)]
    edit(copy, "config.json", id2label={str(number): name for number, name in enumerate(spelled)})
    check_human_parser(str(copy))
    photo = noise(60, 40)
    (ours,), (theirs,) = (HumanParser(str(folder), device="cpu").parse([photo]) for folder in (tiny, copy))
    assert np.array_equal(theirs, 17 - ours)  # the same weights: number n is now called 17 - n


def test_labels_as_the_default_parser_spells_them(copy: Path) -> None:
    spelled = (
        "Background Hat Hair Sunglasses Upper-clothes Skirt Pants Dress Belt Left-shoe Right-shoe Face Left-leg "
        "Right-leg Left-arm Right-arm Bag Scarf"
    )
    edit(copy, "config.json", id2label={str(number): name for number, name in enumerate(spelled.split())})
    assert human_parser._atr_numbers(copy, "copy").tolist() == list(range(18))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"0": "wall", "1": "sky"}, "its labels are wall, sky"),
        ({}, "its labels are none"),
        ({str(number): name for number, name in enumerate([*LABELS, "glove"])}, "glove"),
        ({str(number): name for number, name in enumerate([*LABELS[:17], "belt"])}, "bag, belt"),
    ],
)
def test_other_labels_are_refused_by_name(copy: Path, labels: dict[str, str], told: str) -> None:
    edit(copy, "config.json", id2label=labels)
    with pytest.raises(ValueError, match="needs the 18 ATR labels") as refused:
        check_human_parser(str(copy))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ValueError, match=rf"--parser .*copy: .*{name}"):
        check_human_parser(str(copy))


def test_a_git_lfs_pointer_is_named(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    with pytest.raises(ValueError, match="git lfs pull") as caught:
        check_human_parser(str(copy))
    assert str(copy / "model.safetensors") in str(caught.value)


def test_a_pickled_model_is_never_opened(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        HumanParser(str(copy), device="cpu")


@pytest.mark.parametrize("changed", [{"size": {"shortest_edge": 512}}, {"do_normalize": False}, {"image_std": "gone"}])
def test_preprocessing_that_is_not_known_is_refused(changed: dict[str, Any], copy: Path) -> None:
    edit(copy, "preprocessor_config.json", **changed)
    with pytest.raises(ValueError, match=r"--parser .*preprocessor_config\.json"):
        check_human_parser(str(copy))


def test_spoiled_files_are_refused(copy: Path) -> None:
    (copy / "preprocessor_config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        check_human_parser(str(copy))
    (copy / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json"):
        check_human_parser(str(copy))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "segformer", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"--parser {name}: no such folder, and not a Hub id"):
        check_human_parser(name)


def test_a_hub_model_without_network_is_one_line() -> None:
    with pytest.raises(ValueError, match="--parser acme/parser is not in the cache") as refused:
        check_human_parser("acme/parser")  # tests run offline
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("GatedRepoError", "is gated"),
        ("RepositoryNotFoundError", "is not on the Hub"),
        ("RevisionNotFoundError", "has no revision v9"),
    ],
)
def test_answers_of_the_hub_are_passed_on(error: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    def refuse(*_: object, **__: object) -> str:
        kind = getattr(errors, error)
        raise kind.__new__(kind)

    monkeypatch.setattr(hub_files, "snapshot_download", refuse)
    with pytest.raises(ValueError, match="--parser acme/parser") as refused:
        check_human_parser("acme/parser", "v9")
    assert told in str(refused.value)


def test_a_hub_model_records_its_commit(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked = []

    def download(model: str, **options: Any) -> str:
        asked.append((model, options["revision"], options["allow_patterns"]))
        return str(shutil.copytree(tiny, tmp_path / commit))

    monkeypatch.setattr(hub_files, "snapshot_download", download)
    assert HumanParser("acme/parser", "main", "cpu").revision == commit
    ((model, revision, files),) = asked
    assert (model, revision) == ("acme/parser", "main")
    assert not [name for name in files if name.endswith((".bin", ".py", "*"))]


def test_the_fingerprint_of_a_folder_is_that_of_its_files(tiny: Path, copy: Path) -> None:
    revision = HumanParser(str(tiny), device="cpu").revision
    assert revision.startswith("sha256:")
    (copy / "README.md").write_text("not loaded", encoding="utf-8")
    assert HumanParser(str(copy), device="cpu").revision == revision
    edit(copy, "preprocessor_config.json", image_std=[1, 1, 1])
    assert HumanParser(str(copy), device="cpu").revision != revision


def test_a_parser_is_loaded_once_in_a_process(tiny: Path) -> None:
    assert load_human_parser(str(tiny)) is load_human_parser(str(tiny))


def test_the_default_needs_a_gpu_that_torch_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_human_parser() == DEFAULT_PARSER
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_human_parser() is None


def overlap(found: np.ndarray, truth: np.ndarray, *names: str) -> float:
    """Intersection over union of some labels together, taken over all pictures."""
    labels = [LABELS.index(name) for name in names]
    one, other = np.isin(found, labels), np.isin(truth, labels)
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.slow
def test_the_drawn_parser_knows_people_it_never_saw() -> None:
    photos, truth = draw_people(person_specs(90, seed=4242, every=3), size=(192, 144))
    found = np.stack(load_human_parser(str(DRAWN_PARSER)).parse([Image.fromarray(photo) for photo in photos]))
    assert (found == truth).mean() > 0.93  # 0.951 when it was made
    assert overlap(found, truth, "upper-clothes") > 0.75  # 0.83
    assert overlap(found, truth, "dress") > 0.75  # 0.85
    assert overlap(found, truth, "skirt", "pants") > 0.75  # 0.84
    assert overlap(found, truth, "pants") > 0.6  # 0.68
    assert overlap(found, truth, "skirt") > 0.45  # 0.53: it takes some skirts for wide shorts


@pytest.mark.slow
@pytest.mark.long
def test_training_learns_and_repeats_itself(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_drawn_parser(tmp_path / name, [(24, 11, 1, 60, 6e-3)])
    one, two = (load_human_parser(str(tmp_path / name)) for name in ("one", "two"))
    assert one.revision == two.revision
    photos, truth = draw_people(person_specs(12, seed=11))
    found = np.stack(one.parse([Image.fromarray(photo) for photo in photos]))
    assert (found == truth).mean() > (truth == 0).mean() + 0.02  # better than calling all of it background
