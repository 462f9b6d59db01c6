"""The model card: its header as the Hub reads it, its code as a user runs it, and the table of an evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import train_flux_inpaint as trainer
from deepfashion_training.reports import model_card
from deepfashion_training.reports.figures import FIGURES, figure_of
from deepfashion_training.reports.model_card import write_model_card

FILL, ALPHA = "black-forest-labs/FLUX.1-Fill-dev", "xiaozaa/catvton-flux-alpha"
RAW = "SaffalPoosh/deepFashion-with-masks"


@pytest.fixture
def trained(tmp_path: Path, tiny_args: Callable[..., Any]) -> Callable[..., Path]:
    """A folder as training leaves it, with a LoRA that says nothing and the arguments given."""

    def leave(**arguments: Any) -> Path:
        folder = tmp_path / "skirts"
        (folder / "validation").mkdir(parents=True, exist_ok=True)
        for step in (0, 50, 100):
            Image.new("RGB", (8, 8)).save(folder / "validation" / f"step-{step}.png")
        (folder / "pytorch_lora_weights.safetensors").write_bytes(b"a LoRA")
        both = {"pretrained_model_name_or_path": FILL, "pretrained_inpaint_model_name_or_path": ALPHA}
        both |= {"raw_dataset_name": RAW, "embedded": False}
        counts = {"upper": 30, "lower": 20, "full": 14}
        data = {"source": "/home/someone/pairs/of-mine", "split": "train", "rows": 64, "by_type": counts}
        run = {"arguments": {**vars(tiny_args()), **both, **arguments}, "dataset": {"train": data}}
        run |= {"step": 100, "seconds_per_step": 1.234, "world_size": 2, "device": "NVIDIA H100"}
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
        return folder

    return leave


def written(folder: Path, *more: Any) -> str:
    return write_model_card(folder, *more).read_text(encoding="utf-8")


def code_of(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


# ---- header


def test_the_header_is_what_the_hub_wants(trained: Callable[..., Path]) -> None:
    folder = trained()
    write_model_card(folder)
    assert ModelCard.load(folder / "README.md").data.to_dict() == {
        "library_name": "diffusers",
        "base_model": ALPHA,
        "base_model_relation": "adapter",
        "datasets": [RAW],
        "pipeline_tag": "image-to-image",
        "license": "other",
        "license_name": "flux-1-dev-non-commercial-license",
        "license_link": f"https://huggingface.co/{FILL}/blob/main/LICENSE.md",
        "tags": ["lora", "flux", "virtual-try-on", "inpainting"],
    }


def test_a_folder_is_no_base_model_and_no_dataset_of_the_hub(trained: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    mine = {"pretrained_inpaint_model_name_or_path": str(tmp_path / "mine"), "raw_dataset_name": str(tmp_path)}
    card = ModelCard(written(trained(**mine)))
    assert {"base_model", "base_model_relation", "datasets"} & set(card.data.to_dict()) == set()
    assert str(tmp_path) not in card.text
    assert 'from_pretrained("PATH/TO/mine",' in card.text


def test_the_embedded_model_is_neither_a_base_model_nor_under_the_licence_of_flux(
    trained: Callable[..., Path], tiny_flux_fill: Path
) -> None:
    names = ("pretrained_model_name_or_path", "pretrained_inpaint_model_name_or_path")
    card = ModelCard(
        written(trained(embedded=True, raw_dataset_name=None, **dict.fromkeys(names, str(tiny_flux_fill))))
    )
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "license", "tags"}
    assert "is of no use on photos" in card.text and "gated" not in card.text


def test_weights_of_the_base_are_a_finetune(trained: Callable[..., Path]) -> None:
    card = ModelCard(written(trained(train_base_model=True)))
    assert (card.data.base_model, card.data.to_dict()["base_model_relation"]) == (ALPHA, "finetune")
    assert "lora" not in card.text.split("## Use")[0].lower().replace("lower", "")
    code = code_of(card.text)
    assert 'from_pretrained("PATH/TO/THIS/FOLDER", subfolder="transformer",' in code and "lora" not in code


# ---- words


def test_the_card_tells_base_data_settings_and_the_last_picture(trained: Callable[..., Path]) -> None:
    card = written(trained())
    for line in (
        "# skirts: a virtual try-on LoRA for FLUX.1-Fill",
        "![garment, masked person, result, truth](validation/step-100.png)",
        f"| Transformer trained on | `{ALPHA}` |",
        f"| Training data | `of-mine`, split `train`, 64 rows, made from `{RAW}` |",
        "| Garments | upper body 30, lower body 20, full body 14 |",
        "| Steps | 100, 1.23 s each on 2 x NVIDIA H100 |",
        "| `lora_rank` | 4 |",
        "## Licence and limits",
    ):
        assert line in card.splitlines()
    assert "someone" not in card and "Evaluation" not in card
    assert "\n\n\n" not in card


def test_captions_are_mentioned_where_they_were_used(trained: Callable[..., Path]) -> None:
    assert "captions: append" in written(trained(use_captions=True))
    assert "captions: append" not in written(trained())


# ---- code


def test_the_code_names_what_was_trained_on_and_where_the_lora_is(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_card, "subfolder_of_transformer", lambda *_: "transformer")
    revisions = {"revision": "abc", "inpaint_revision": "def"}
    code = code_of(written(trained(**revisions)))
    assert f'from_pretrained("{ALPHA}", subfolder="transformer", revision="def", torch' in code
    assert f'from_pretrained("{FILL}", transformer=transformer, revision="abc", torch' in code
    assert 'load_lora_weights("PATH/TO/THIS/FOLDER")' in code
    assert len([line for line in code.splitlines() if line]) <= 11
    assert 'load_lora_weights("me/skirts")' in code_of(written(trained(publish_as="me/skirts")))
    assert 'load_lora_weights("me/other")' in code_of(written(trained(publish_as="me/skirts"), "me/other"))


def test_the_code_dresses_a_person_as_the_pipeline_does(
    tiny_flags: Callable[..., list[str]], tiny_flux_fill: Path, trained: Callable[..., Path],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from diffusers import FluxFillPipeline

    args = trainer.parse_args(tiny_flags("--instance_prompt", 'a "shirt" & <hat>', "--guidance_scale", "3.5"))
    transformer = trainer.load_transformer(args, torch.float32)
    torch.manual_seed(1)
    for parameter in trainer.make_trainable(transformer, args):
        torch.nn.init.normal_(parameter, std=0.2)
    names = ("instance_prompt", "guidance_scale", "num_inference_steps", "max_sequence_length", "height", "width")
    paths = {name: getattr(args, name) for name in vars(args) if name.startswith("pretrained")}
    folder = trained(embedded=True, **{name: getattr(args, name) for name in names}, **paths)
    trainer.save_lora(transformer, args, folder)
    size, rng = (args.width, args.height), np.random.default_rng(0)
    garment, person = (Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for _ in range(2))
    mask = Image.new("L", size)
    mask.paste(255, (24, 40, 72, 100))
    for name, picture in (("garment", garment), ("person", person), ("mask", mask)):
        picture.save(tmp_path / f"{name}.png")

    monkeypatch.chdir(tmp_path)
    code = code_of(written(folder))
    for said, here in (
        ("PATH/TO/THIS/FOLDER", str(folder)),
        (f"PATH/TO/{tiny_flux_fill.name}", str(tiny_flux_fill)),
        ('"cuda"', '"cpu"'),
        ("torch.bfloat16", "torch.float32"),
    ):
        assert said in code
        code = code.replace(said, here)
    torch.manual_seed(0)
    exec(compile(code, "card", "exec"), {})
    dressed = np.asarray(Image.open(tmp_path / "dressed.png").convert("RGB"), dtype=int)

    pipeline = FluxFillPipeline.from_pretrained(tiny_flux_fill)
    pair, area = (np.concatenate(halves, 1) for halves in ((garment, person), (np.zeros(size[::-1], np.uint8), mask)))

    def draw() -> np.ndarray:
        torch.manual_seed(0)
        result = pipeline(
            args.instance_prompt, image=Image.fromarray(pair), mask_image=Image.fromarray(area), height=args.height,
            width=2 * args.width, num_inference_steps=2, guidance_scale=3.5, max_sequence_length=96,
        )  # fmt: skip
        return np.asarray(result.images[0], dtype=int)[:, args.width :]

    plain = draw()
    pipeline.load_lora_weights(folder)
    assert dressed.shape == (args.height, args.width, 3)
    assert np.abs(dressed - draw()).max() <= 1
    assert np.abs(dressed - plain).max() > 5


# ---- evaluation


def evaluated(folder: Path, **settings: Any) -> dict[str, Any]:
    digest = hashlib.sha256((folder / "pytorch_lora_weights.safetensors").read_bytes()).hexdigest()
    made = {"lora_sha256": digest, "data": "/home/someone/pairs", "split": "test", "height": 768, "width": 576}
    made |= {"num_inference_steps": 30, "guidance_scale": 1.0, "repaint": True, "seed": 7, **settings}
    made["dino_model"] = "facebook/dinov2-base"
    colour = {"ciede2000_masked": 9.0}
    base = {"upper": {"n": 12, "ssim": 0.81249, "ssim_ci": [0.8, 0.82], "fid_unpaired": 20.0, "psnr": 20.0, **colour}}
    base["all"] = {"n": 500, "ssim": 0.7, "fid_unpaired": 31.004, "dino": None, **colour}
    lora = {"upper": {**base["upper"], "ssim": 0.8463, "fid_unpaired": 24.5, "psnr": 22.0, "ciede2000_masked": 8.0}}
    lora["all"] = {**base["all"], "ssim": 0.70004, "fid_unpaired": 32.0, "ciede2000_masked": 8.9}
    made_of = {"n": 12, "people": 12}
    up, down = {"ci": [0.01, 0.06], "better": "lora"}, {"ci": [-1.5, -0.5], "better": "lora"}
    changes = {
        "upper": {"ssim": {**made_of, "mean": 0.03, **up}, "ciede2000_masked": {**made_of, "mean": -1.0, **down}},
        "all": {"ciede2000_masked": {**made_of, "mean": -0.1, "ci": [-0.3, 0.1], "better": None}},
    }
    content = {"settings": made, "models": {"base": base, "lora": lora}, "left_out": {"lpips": "no torchvision"}}
    content |= {"difference": changes, "warnings": ["fewer than 500 pictures"]}
    (folder / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")
    return content


def test_the_table_has_base_and_lora_by_type_with_the_better_in_bold_unless_by_chance(
    trained: Callable[..., Path],
) -> None:
    folder = trained()
    evaluated(folder)
    card = written(folder)
    lines = card.split("## Evaluation\n\n")[1].split("\n\n## Use")[0].splitlines()
    assert lines[:9] == [
        "| base → LoRA | upper body | all |",
        "| --- | --- | --- |",
        "| pictures | 12 | 500 |",
        "| the LoRA is | better by CIEDE2000 | no clear difference |",
        "| SSIM ↑ | 0.812 → **0.846** (+0.010 to +0.060) | 0.700 → 0.700 |",
        "| PSNR ↑ | 20.00 → 22.00 | - → - |",
        "| CIEDE2000 ↓ | 9.00 → **8.00** (-1.50 to -0.50) | 9.00 → 8.90 (-0.30 to +0.10) |",
        "| DINO similarity ↑ | - → - | - → - |",
        "| FID, unpaired ↓ | 20.00 → 24.50 | 31.00 → 32.00 |",
    ]
    said = " ".join(lines[9:])
    for part in ("Split `test` of `pairs`, 576 x 768 pixels, 30 steps, guidance 1.0, with repaint, seed 7", "LPIPS"):
        assert part in said
    assert "`facebook/dinov2-base`" in said and "[evaluation.json](evaluation.json)" in said
    assert "> fewer than 500 pictures" in lines
    assert ModelCard(card).data.base_model == ALPHA


def test_every_figure_has_a_row(trained: Callable[..., Path]) -> None:
    folder = trained()
    content = evaluated(folder)
    for model in content["models"].values():
        model["full"] = {"n": 3, **dict.fromkeys(FIGURES, 1.0)}
    content["difference"]["full"] = content["difference"]["all"]
    content["left_out"] = {}
    (folder / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in written(folder).splitlines() if "→" in line][1:]
    assert set(rows) == {figure_of(name).heading for name in (*FIGURES, "fid_unpaired")}
    assert "not measured" not in written(folder)


def test_a_table_of_another_lora_is_not_shown(trained: Callable[..., Path]) -> None:
    folder = trained()
    plain = written(folder)
    evaluated(folder)
    assert written(folder) != plain
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"trained again")
    assert written(folder) == plain
    evaluated(folder, lora_sha256=None)
    assert written(folder) == plain
