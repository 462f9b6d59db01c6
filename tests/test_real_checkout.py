"""The real training script of nftblackmagic/catvton-flux, from a checkout that CATVTON_FLUX names.

    CATVTON_FLUX=../catvton-flux python -m pytest -s tests/test_real_checkout.py

Nothing of it is copied here, so without a checkout these tests are skipped; the other tests use the re-creation in
``tests/scripts``. It needs einops, which our own code does not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import forget_accelerator
from diffusers import FluxFillPipeline
from PIL import Image
from safetensors.torch import load_file

from deepfashion_training import run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.upstream.driven_run import DrivenRun

SCRIPT = Path(os.environ.get("CATVTON_FLUX", "")) / "train_flux_inpaint.py"
BASE = TINY_FLUX_FILL / "transformer" / "diffusion_pytorch_model.safetensors"
LORA = "pytorch_lora_weights.safetensors"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("CATVTON_FLUX" not in os.environ, reason="CATVTON_FLUX names no checkout"),
    pytest.mark.skipif(importlib.util.find_spec("einops") is None, reason="the real script needs einops"),
]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wardrobe(tmp_path_factory.mktemp("real") / "pairs", rows=72, seed=0, size=(128, 96), num_proc=1)


def train(pairs: Path, out: Path, *flags: str) -> tuple[torch.nn.Module, dict]:
    """Train through the real script; returns its transformer and run.json."""
    forget_accelerator()
    models = []

    def end(run: DrivenRun, status: str) -> None:
        models.append(run.model)
        original(run, status)

    original = DrivenRun.end
    argv = ["--preset=quick_test", "--embedded", f"--dataset_name={pairs}", f"--output_dir={out}", *flags]
    args, script = run_arguments.parse([*argv, f"--upstream={SCRIPT}", "--num_inference_steps=2"])
    wrapper.check(args, script)
    with mock.patch.object(DrivenRun, "end", end):
        wrapper.run(args, script)
    forget_accelerator()
    return models[0], json.loads((out / "run.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_ten_steps_a_checkpoint_a_resume_and_a_lora(pairs: Path, tmp_path: Path, precision: str) -> None:
    script_before, base_before = sha256(SCRIPT), sha256(BASE)
    flags = [f"--mixed_precision={precision}", "--checkpointing_steps=5", "--validation_steps=4"]
    flags += ["--lr_scheduler=constant"]  # another schedule depends on --max_train_steps
    model, record = train(pairs, tmp_path / "whole", *flags, "--max_train_steps=10")
    assert record["status"] == "done" and record["step"] == 10

    adapter = {name for name, _ in model.named_parameters()}
    inside = {name.replace(".base_layer", ""): tensor.detach() for name, tensor in
              torch.nn.Module.named_parameters(model) if name not in adapter}  # fmt: skip
    stored = load_file(BASE)
    assert inside.keys() == stored.keys()
    assert all(torch.equal(inside[name], stored[name].to(inside[name].dtype)) for name in stored)
    assert all(p.dtype == torch.float32 for _, p in model.named_parameters())

    train(pairs, tmp_path / "parts", *flags, "--max_train_steps=5")
    train(pairs, tmp_path / "parts", *flags, "--max_train_steps=10", "--resume_from_checkpoint=latest")
    whole, parts = (load_file(tmp_path / name / LORA) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    moved = [name for name in whole if ".lora_B." in name and whole[name].abs().max() > 0]
    assert len(moved) == len([name for name in whole if ".lora_B." in name])

    change = change_of_output(tmp_path / "whole")
    assert change > 0.01
    sheets = sorted(path.name for path in (tmp_path / "whole" / "validation").glob("step-*.png"))
    assert sheets == ["step-1.png", "step-5.png", "step-9.png"]
    assert (sha256(SCRIPT), sha256(BASE)) == (script_before, base_before)
    print(f"\n{precision}: losses {[round(json.loads(line)['loss'], 4) for line in losses(tmp_path / 'whole')]}")
    print(f"{precision}: {len(moved)} adapted layers, all moved; resumed LoRA equals the uninterrupted one bit for bit")
    print(
        f"{precision}: the LoRA changes latents by {change:.2f}; base weights in memory equal {len(stored)} stored ones"
    )
    print(f"script {script_before}\nbase   {base_before}, before and after")


def losses(out: Path) -> list[str]:
    return (out / "logs" / "losses.jsonl").read_text(encoding="utf-8").splitlines()


def change_of_output(folder: Path) -> float:
    """Largest change of a drawn latent when the LoRA in ``folder`` is loaded by diffusers."""
    pipeline = FluxFillPipeline.from_pretrained(TINY_FLUX_FILL)
    pipeline.set_progress_bar_config(disable=True)
    picture, mask = Image.new("RGB", (192, 128), "white"), Image.new("L", (192, 128), 255)
    drawn = []
    for lora in (None, folder):
        if lora:
            pipeline.load_lora_weights(lora)
        drawn.append(pipeline("a shirt", image=picture, mask_image=mask, height=128, width=192, num_inference_steps=2,
                              max_sequence_length=96, generator=torch.Generator().manual_seed(0),
                              output_type="latent").images)  # fmt: skip
    return (drawn[1] - drawn[0]).abs().max().item()
