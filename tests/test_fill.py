"""FLUX-Fill with and without LoRAs: what they are said to be trained with, the noise, and agreement with diffusers."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline
from peft import LoraConfig
from PIL import Image

import train_flux_inpaint as tfi
from deepfashion_training.images.layout import pair_tensors
from deepfashion_training.models import fill
from deepfashion_training.models.access import CATVTON_FLUX_ALPHA
from deepfashion_training.models.fill import FLUX_FILL, FillModel, Recipe, check_means, same_model
from deepfashion_training.models.lora_files import write_fused
from training_run import flops, guards
from training_run.lora_formats import LoraFile, read_lora

PROMPT, OTHER_PROMPT = "a person in trousers", "a coat"
STEPS, GUIDANCE = 2, 3.5


@pytest.fixture(scope="module")
def recipe(tiny_flux_fill) -> Recipe:
    where = str(tiny_flux_fill)
    return Recipe(pipeline=where, transformer=where, height=128, width=96, max_sequence_length=64)


@pytest.fixture(scope="module")
def loras(save_random_lora) -> dict[str, LoraFile]:
    made = {"lora": (1, 0.1), "second": (2, 0.1), "zero": (3, 0.0), "rslora": (4, 0.05), "dora": (5, 0.05)}
    kinds = {"rslora": ["--use_rslora"], "dora": ["--use_dora"]}
    return {
        name: read_lora(save_random_lora("--lora_alpha", "8", *kinds.get(name, []), size=size, seed=seed))
        for name, (seed, size) in made.items()
    }


@pytest.fixture(scope="module")
def model(recipe, loras) -> FillModel:
    return FillModel(recipe, [PROMPT, OTHER_PROMPT], loras=loras)


@pytest.fixture(scope="module")
def bare(recipe) -> FillModel:
    return FillModel(recipe, [PROMPT])


def sample(seed: int) -> dict[str, torch.Tensor]:
    draw = np.random.default_rng(seed)
    photo, cloth = (Image.fromarray(draw.integers(0, 256, (128, 96, 3), np.uint8)) for _ in range(2))
    mask = Image.new("L", (96, 128), 0)
    mask.paste(255, (16 + seed, 40, 80, 112))
    return pair_tensors(photo, cloth, mask, (128, 96))


def draw(model: FillModel, *, samples=(7,), seeds=(11,), lora=None, scale=1.0, prompt=PROMPT) -> torch.Tensor:
    return model.draw(
        [sample(one) for one in samples],
        seeds,
        prompts=[prompt] * len(samples),
        steps=STEPS,
        guidance_scale=GUIDANCE,
        loras={lora: scale} if isinstance(lora, str) else lora,
    )


def spoken(metadata: dict[str, str]) -> LoraFile:
    """A LoRA of which only the metadata matters."""
    return SimpleNamespace(path=Path("some.safetensors"), metadata=metadata)


# --------------------------------------------------------------------------------------------------------- recipe


def test_a_recipe_is_what_the_metadata_say():
    said = {"base_model": "me/pipe", "transformer": "me/net", "height": "64", "width": "48", "prompt": "p"}
    said |= {"use_captions": "True", "guidance_scale": "3.5", "max_sequence_length": "96", "rank": "4"}
    wanted = Recipe("me/pipe", "me/net", 64, 48, "p", True, 3.5, 96)
    assert Recipe.of(spoken(said)) == wanted
    assert wanted.prompt_of(" blue jeans ") == "p blue jeans" and wanted.prompt_of() == "p"
    assert dataclasses.replace(wanted, use_captions=False).prompt_of("blue jeans") == "p"


def test_a_recipe_of_a_lora_that_says_nothing_is_the_trainers_own():
    assert Recipe.of(spoken({})) == Recipe()
    assert Recipe() == Recipe(FLUX_FILL, CATVTON_FLUX_ALPHA, 768, 576, tfi.DEFAULT_PROMPT, False, 30.0, 512)
    assert not Recipe.of(spoken({"use_captions": "False"})).use_captions


def test_a_recipe_of_what_the_trainer_writes(loras, tiny_flux_fill):
    trained = Recipe.of(loras["lora"])
    defaults = tfi.parse_args(["--dataroot", "data"])
    assert (trained.height, trained.width) == (defaults.height, defaults.width)
    assert trained.guidance_scale == defaults.guidance_scale and trained.prompt == tfi.DEFAULT_PROMPT
    assert trained.pipeline == trained.transformer == str(tiny_flux_fill)


# -------------------------------------------------------------------------------------------------------- drawing


def test_values_and_what_is_told(model):
    told: list[int] = []
    samples = [sample(7), sample(8)]
    options = {"prompts": [PROMPT] * 2, "steps": 3, "guidance_scale": GUIDANCE, "on_step": told.append}
    drawn = model.draw(samples, [1, 2], **options)
    assert drawn.shape == (2, 3, 128, 192) and drawn.dtype == torch.float32 and drawn.device.type == "cpu"
    assert 0 <= drawn.min() < drawn.max() <= 1 and told == [1, 2, 3]


@pytest.mark.parametrize("name", ["zero", "dora"])
def test_a_zero_lora_and_any_lora_at_scale_0_are_the_base_bit_for_bit(name, model, bare):
    base = draw(bare)
    if name != "zero":
        assert (draw(model, lora=name) - base).abs().max() > 1 / 255
    assert torch.equal(draw(model, lora=name, scale=1.0 if name == "zero" else 0.0), base)


def test_on_off_and_on_again(model, bare):
    first = draw(model, lora="lora")
    assert torch.equal(draw(model), draw(bare))
    second = draw(model, lora="second")
    half = draw(model, lora="lora", scale=0.5)
    assert torch.equal(draw(model, lora="lora"), first)
    for one, other in ((first, second), (first, half), (second, half)):
        assert (one - other).abs().max() > 1 / 255


def plain(lora: LoraFile | None, scale: float, where: Path, seed: int = 11) -> torch.Tensor:
    """What diffusers draws, by its documented calls alone: text from the pipeline's own encoders."""
    pipeline = FluxFillPipeline.from_pretrained(where, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(lora.path.parent, weight_name=lora.path.name, adapter_name="it")
        if scale != 1:
            pipeline.set_adapters("it", scale)
    one = sample(7)
    return pipeline(
        prompt=PROMPT,
        image=(one["im_mask"][None] + 1) / 2,
        mask_image=one["inpaint_mask"][None],
        height=128,
        width=192,
        max_sequence_length=64,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images


@pytest.mark.parametrize(("name", "scale"), [(None, 1.0), ("lora", 0.5), ("rslora", 1.0), ("dora", 1.0)])
def test_diffusers_alone_draws_the_same(name, scale, model, loras, tiny_flux_fill):
    wanted = plain(loras[name] if name else None, scale, tiny_flux_fill)
    torch.testing.assert_close(draw(model, lora=name, scale=scale), wanted, rtol=0, atol=1e-5)


def joined(one: LoraFile, other: LoraFile, share: float) -> LoraFile:
    """One LoRA whose update is that of ``one`` and ``share`` of that of ``other``: their ranks side by side."""
    weights = {}
    for layer in one.layers:
        names = [f"{layer}.lora_{part}.weight" for part in "AB"]
        downs, ups = ([lora.weights[name].float() for lora in (one, other)] for name in names)
        ups = [one.scaling(layer) * ups[0], share * other.scaling(layer) * ups[1]]
        weights |= dict(zip(names, (torch.cat(downs), torch.cat(ups, 1)), strict=True))
    rank = len(downs[0]) + len(downs[1])
    return dataclasses.replace(
        one, weights=weights, config=LoraConfig(r=rank, lora_alpha=rank, target_modules=one.layers)
    )


@pytest.mark.parametrize("second", ["second", "rslora"])
def test_the_updates_of_two_loras_add_up(second, model, loras, recipe):
    """With ranks of their own, and one after the other."""
    both = draw(model, lora={"lora": 1.0, second: 0.125})
    one = FillModel(recipe, [PROMPT], loras={"it": joined(loras["lora"], loras[second], 0.125)})
    torch.testing.assert_close(both, draw(one, lora="it"), rtol=0, atol=1e-5)
    assert (both - draw(model, lora="lora")).abs().max() > 1 / 255
    assert torch.equal(draw(model, lora={"lora": 1.0, second: 0.0}), draw(model, lora="lora"))
    for lora in (loras["lora"], loras[second]):  # alone it draws what it draws in a model without the other
        alone = FillModel(recipe, [PROMPT], loras={"it": lora})
        assert torch.equal(draw(model, lora="lora" if lora is loras["lora"] else second), draw(alone, lora="it"))


def test_a_dora_and_another_lora_add_up_in_any_order(model, loras, recipe, tiny_flux_fill, tmp_path):
    """peft would let the DoRA resize what the other one adds."""
    write_fused(loras["dora"], tiny_flux_fill / "transformer", torch.float32, tmp_path / "fused")
    fused = dataclasses.replace(recipe, transformer=str(tmp_path / "fused"))
    wanted = draw(FillModel(fused, [PROMPT], loras={"it": loras["lora"]}), lora="it")
    for order in (["dora", "lora"], ["lora", "dora"]):
        torch.testing.assert_close(draw(model, lora=dict.fromkeys(order, 1.0)), wanted, rtol=0, atol=1e-5)


def test_noise_follows_from_the_seed_alone(model, monkeypatch):
    """Alone or in a batch, with or without a LoRA: the first latents that the transformer sees are the same."""
    seen: list[torch.Tensor] = []
    forward = model._transformer.forward

    def watched(*args, **more):
        seen.append(more["hidden_states"].clone())
        return forward(*args, **more)

    monkeypatch.setattr(model._transformer, "forward", watched)

    def noise(**how) -> torch.Tensor:
        seen.clear()
        drawn.append(draw(model, **how))
        return seen[0][..., :64]  # then come 64 channels of the masked pair and 256 of the mask

    drawn: list[torch.Tensor] = []
    alone = noise()
    assert torch.equal(noise(lora="lora"), alone)
    both = noise(samples=(7, 9), seeds=(11, 12))
    assert torch.equal(both[:1], alone) and not torch.equal(both[1:], alone)
    assert torch.equal(noise(samples=(9, 7), seeds=(12, 11))[1:], alone)
    assert not torch.equal(noise(seeds=(12,)), alone)
    torch.testing.assert_close(drawn[2][:1], drawn[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(drawn[3][1:], drawn[0], rtol=0, atol=1e-4)
    assert alone.std() == pytest.approx(1, abs=0.05)


def test_the_largest_seed(model):
    assert draw(model, seeds=(2**63 + 10_000,)).isfinite().all()


def test_prompts(model):
    assert not torch.equal(draw(model, prompt=OTHER_PROMPT), draw(model))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")])
def test_too_little_gpu_memory_names_what_helps(model, recipe, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(model._transformer, "forward", full)
    with pytest.raises(ValueError, match="--quantize_base nf4 or --offload") as told:
        draw(model)
    assert guards.is_out_of_memory(told.value)
    monkeypatch.setattr(FillModel, "_load_transformer", full)
    with pytest.raises(ValueError, match="--quantize_base nf4 or --offload"):
        FillModel(recipe, [PROMPT])
    monkeypatch.setattr(
        FillModel, "_load_transformer", lambda *_: (_ for _ in ()).throw(RuntimeError("illegal access"))
    )
    with pytest.raises(RuntimeError, match="illegal access"):
        FillModel(recipe, [PROMPT])


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_on_a_gpu_the_vae_takes_one_picture_at_a_time(model, recipe, monkeypatch, device):
    pipeline = copy.copy(model._pipeline)
    pipeline.vae = copy.deepcopy(model._pipeline.vae)
    monkeypatch.setattr(fill.FluxFillPipeline, "from_pretrained", lambda *_, **__: pipeline)
    monkeypatch.setattr(pipeline.vae, "to", lambda device: pipeline.vae)
    other = copy.copy(model)
    other.device = torch.device(device)
    vae, seen = other._load_pipeline().vae, []
    monkeypatch.setattr(vae, "_decode", lambda z, *a, _of=vae._decode, **k: (seen.append(len(z)), _of(z, *a, **k))[1])
    drawn = vae.decode(torch.ones(3, vae.config.latent_channels, 8, 12))[0]
    assert seen == ([1, 1, 1] if device == "cuda" else [3]) and len(drawn) == 3


def test_a_result_that_is_not_finite(recipe, loras):
    spoiled = copy.copy(loras["lora"])
    weights = {name: torch.full_like(tensor, torch.nan) for name, tensor in spoiled.weights.items()}
    model = FillModel(recipe, [PROMPT], loras={"bad": dataclasses.replace(spoiled, weights=weights)})
    with pytest.raises(ValueError, match="the LoRA at scale 2 draws values that are not finite"):
        draw(model, lora="bad", scale=2.0)
    assert draw(model).isfinite().all()


# -------------------------------------------------------------------------------------------------- less memory


def test_block_by_block_draws_the_same(recipe, loras, model, monkeypatch):
    """Group offload with the CPU in place of the GPU: its hooks and the LoRA's layers go together."""
    monkeypatch.setattr(fill, "check_means", lambda quantize_base, offload: None)
    offloaded = FillModel(recipe, [PROMPT], loras={"lora": loras["lora"]}, offload=True, device="cpu")
    hooks = [name for name, part in offloaded._transformer.named_modules() if hasattr(part, "_diffusers_hook")]
    assert {"transformer_blocks.0", "single_transformer_blocks.1"} <= set(hooks)
    assert torch.equal(draw(offloaded, lora="lora"), draw(model, lora="lora"))
    assert torch.equal(draw(offloaded), draw(model))
    assert torch.equal(draw(offloaded, lora="lora", scale=0.5), draw(model, lora="lora", scale=0.5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="group offload with a stream needs a CUDA GPU")
def test_block_by_block_to_the_gpu(recipe, loras):
    offloaded = FillModel(recipe, [PROMPT], loras={"lora": loras["lora"]}, offload=True)
    whole = FillModel(recipe, [PROMPT], loras={"lora": loras["lora"]})
    for how in ({"lora": "lora"}, {}, {"lora": "lora", "scale": 0.5}):
        torch.testing.assert_close(draw(offloaded, **how), draw(whole, **how), rtol=0, atol=1e-2)


@pytest.fixture
def full_size(tmp_path):
    """Folder with the configuration of FLUX.1-Fill's transformer, and no weights."""
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel", **flops.FLUX_FILL}))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("free", "pins", "said"), [(40, True, ["36.6", "40.0"]), (30, False, ["24.2", "30.0", "36.6"])]
)
def test_offload_says_what_it_takes_and_pins_where_that_fits(free, pins, said, full_size, monkeypatch):
    """22.2 GiB in bf16 and 2 beside. Pinned, tensors of 18, 54, 72, 90 and 108 MiB take 32, 64, 128, 128 and 128."""
    monkeypatch.setattr(guards, "available_memory", lambda: free * 2**30)
    pinned, line = fill.plan_offload(full_size)
    assert pinned is pins and re.findall(r"\d+\.\d", line) == said


def test_offload_is_refused_before_anything_is_loaded_where_main_memory_is_too_small(recipe, full_size, monkeypatch):
    monkeypatch.setattr(guards, "available_memory", lambda: 24 * 2**30)
    monkeypatch.setattr(fill, "check_means", lambda quantize_base, offload: None)
    monkeypatch.setattr(fill.trainer, "encode_prompts", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r"--offload .* 24\.2 GiB, and 24\.0 "):
        FillModel(dataclasses.replace(recipe, transformer=full_size), [PROMPT], offload=True)


@pytest.mark.parametrize("pins", [True, False])
def test_weights_are_pinned_once_where_that_fits_and_block_by_block_elsewhere(pins, monkeypatch):
    asked = {}
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda weight: weight + 1)
    transformer = torch.nn.Linear(2, 3)
    before = transformer.weight.detach().clone()
    transformer.enable_group_offload = lambda **how: asked.update(how)
    fill.offload_blocks(transformer, torch.device("cuda"), pins)
    assert torch.equal(transformer.weight, before + pins)
    assert (asked["use_stream"], asked["low_cpu_mem_usage"]) == (True, not pins)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_nf4(device, request, recipe, loras):
    if device == "cpu":
        request.getfixturevalue("bitsandbytes_on_cpu")
    elif not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    pytest.importorskip("bitsandbytes")
    quantized, whole = (
        FillModel(recipe, [PROMPT], loras={"lora": loras["lora"]}, quantize_base=kind, device=device)
        for kind in ("nf4", None)
    )
    assert type(quantized._transformer.transformer_blocks[0].attn.to_q.base_layer.weight).__name__ == "Params4bit"
    for how in ({"lora": "lora"}, {}):
        assert 0 < (draw(quantized, **how) - draw(whole, **how)).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("quantize", "offload", "cuda", "message"),
    [
        ("nf4", True, True, "--offload and --quantize_base are two ways to the same end"),
        (None, True, False, "--offload needs a CUDA GPU"),
        ("int8", False, False, "pip install torchao"),
        ("nf4", False, True, "pip install bitsandbytes"),
    ],
)
def test_means_that_this_machine_does_not_allow(quantize, offload, cuda, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(guards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        check_means(quantize, offload)


def test_means_that_it_allows(monkeypatch):
    check_means(None, False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(guards.importlib.util, "find_spec", lambda name: object())
    check_means(None, True)
    check_means("nf4", False)


def test_same_model(tiny_flux_fill, tmp_path, monkeypatch):
    assert same_model(str(tiny_flux_fill), f"{tiny_flux_fill}/") and same_model(CATVTON_FLUX_ALPHA, CATVTON_FLUX_ALPHA)
    assert same_model(str(tiny_flux_fill), str(tiny_flux_fill / "transformer"))
    monkeypatch.chdir(tiny_flux_fill.parent)
    assert same_model("tiny_flux_fill", str(tiny_flux_fill))
    (tmp_path / "link").symlink_to(tiny_flux_fill)
    assert same_model(str(tmp_path / "link"), str(tiny_flux_fill))
    assert not same_model(str(tiny_flux_fill), str(tmp_path))
    assert not same_model(CATVTON_FLUX_ALPHA, FLUX_FILL)
    assert not same_model(str(tiny_flux_fill), str(tiny_flux_fill / "vae"))
