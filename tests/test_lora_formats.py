"""Reading LoRAs of other tools: each changes weights, and pictures, as the same LoRA in diffusers' form does."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import noise
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
from huggingface_hub.errors import GatedRepoError
from PIL import Image
from safetensors.torch import load_file, save_file

from deepfashion_training.models.lora_files import to_kohya
from training_run import lora_formats
from training_run.lora_formats import LoraFile, find_lora, fitted, joined_layer, read_lora

Tensors = dict[str, torch.Tensor]
WIDTH, RANK, ALPHA = 192, 4, 2.0


def layer_sizes(transformer: Path) -> dict[str, tuple[int, int]]:
    """Rows and columns of the linear layers of the embedded transformer, in and outside of blocks."""
    config = FluxTransformer2DModel.load_config(transformer)
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config)
    modules = model.named_modules()
    return {name: tuple(module.weight.shape) for name, module in modules if isinstance(module, torch.nn.Linear)}


@pytest.fixture(scope="module")
def reference(tiny_flux_fill) -> Tensors:
    """A LoRA of rank 4 on all linear layers, by diffusers' names without prefix: B of attention is as wide as A."""
    draw = torch.Generator().manual_seed(11)
    weights = {}
    for layer, (rows, columns) in layer_sizes(tiny_flux_fill / "transformer").items():
        weights[f"{layer}.lora_A.weight"] = torch.randn(RANK, columns, generator=draw) / columns**0.5
        weights[f"{layer}.lora_B.weight"] = 0.3 * torch.randn(rows, RANK, generator=draw)
    return weights


def layers_of(weights: Tensors) -> list[str]:
    return sorted({name.rsplit(".lora_", 1)[0] for name in weights})


def updates(weights: Tensors, scaling: Callable[[str], float]) -> Tensors:
    """What each layer's weight grows by."""
    return {
        layer: scaling(layer) * (weights[f"{layer}.lora_B.weight"] @ weights[f"{layer}.lora_A.weight"])
        for layer in layers_of(weights)
    }


def settings(prefix: str = "transformer.", **changes: object) -> dict[str, str]:
    said = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["to_q"], **changes}
    return {"lora_adapter_metadata": json.dumps({f"{prefix}{name}": value for name, value in said.items()})}


def renamed(weights: Tensors, layer: str, down: str = "lora_A.weight", up: str = "lora_B.weight") -> Tensors:
    """Under other names: in ``layer`` NAME stands for the layer, N_A_M_E for it with underscores."""

    def key(name: str) -> str:
        own, _, part = name.rpartition(".lora_")
        full = layer.replace("N_A_M_E", own.replace(".", "_")).replace("NAME", own)
        return f"{full}.{down if part.startswith('A') else up}"

    return {key(name): tensor for name, tensor in weights.items()}


def with_alphas(weights: Tensors, alpha: float = ALPHA) -> Tensors:
    layers = {re.sub(r"\.lora[._].*", "", name) for name in weights}
    return weights | {f"{layer}.alpha": torch.tensor(alpha) for layer in layers}


def by_bfl_names(weights: Tensors, layer: str, part: str) -> Tensors:
    """Joined as Black Forest Labs' layers: our kohya export has the matrices, ``layer`` and ``part`` the names."""
    lora = LoraFile(Path(), weights, _config(), {})
    found = {}
    for name, tensor in to_kohya(lora).items():
        stem, _, kind = name.partition(".")
        dotted = next(
            joined
            for own in layers_of(weights)
            if (joined := (joined_layer(own) or ("",))[0]).replace(".", "_") == stem[10:]
        )
        kind = {"lora_down.weight": part.format("A"), "lora_up.weight": part.format("B")}.get(kind, kind)
        found[f"{layer.replace('NAME', dotted)}.{kind}"] = tensor
    return found


def _config():
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["x"])


def lora_of(path: Path, weights: Tensors, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, path, metadata)
    return path


def peft_folder(path: Path, weights: Tensors) -> Path:
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_rslora": False, "new_flag_of_tomorrow": 1}
    lora_of(path / "adapter_model.safetensors", renamed(weights, "base_model.model.NAME"))
    (path / "adapter_config.json").write_text(json.dumps(said))
    return path


TEXT = {
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 8),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B.weight": torch.ones(8, 2),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0),
}
#: Each writes the reference LoRA to a folder and returns what a user names.
FORMATS: dict[str, Callable[[Path, Tensors], Path]] = {
    "diffusers": lambda p, w: lora_of(p / "l.safetensors", renamed(w, "transformer.NAME"), settings()),
    "no prefix": lambda p, w: lora_of(p / "l.safetensors", with_alphas(renamed(w, "NAME"))),
    "alpha keys": lambda p, w: lora_of(p / "l.safetensors", with_alphas(renamed(w, "transformer.NAME"))),
    "diffusion_model": lambda p, w: lora_of(p / "l.safetensors", with_alphas(renamed(w, "diffusion_model.NAME"))),
    "model.diffusion_model": lambda p, w: lora_of(
        p / "l.safetensors", with_alphas(renamed(w, "model.diffusion_model.NAME"))
    ),
    "base_model.model": lambda p, w: lora_of(
        p / "l.safetensors", renamed(w, "base_model.model.NAME"), settings("base_model.model.")
    ),
    "simpletuner": lambda p, w: lora_of(
        p / "l.safetensors", with_alphas(renamed(w, "transformer.base_model.model.NAME"))
    ),
    "compiled": lambda p, w: lora_of(p / "l.safetensors", with_alphas(renamed(w, "transformer._orig_mod.NAME"))),
    "default": lambda p, w: lora_of(
        p / "l.safetensors",
        with_alphas(renamed(w, "base_model.model.NAME", "lora_A.default.weight", "lora_B.default.weight")),
    ),
    "lora.down": lambda p, w: lora_of(
        p / "l.safetensors", with_alphas(renamed(w, "transformer.NAME", "lora.down.weight", "lora.up.weight"))
    ),
    "lora_unet and diffusers": lambda p, w: lora_of(
        p / "l.safetensors", with_alphas(renamed(w, "lora_unet_N_A_M_E", "lora_down.weight", "lora_up.weight"))
    ),
    "lycoris": lambda p, w: lora_of(
        p / "l.safetensors", with_alphas(renamed(w, "lycoris_N_A_M_E", "lora_down.weight", "lora_up.weight"))
    ),
    "kohya": lambda p, w: lora_of(p / "l.safetensors", to_kohya(LoraFile(p, w, _config(), {}))),
    "kohya with text encoders": lambda p, w: lora_of(
        p / "l.safetensors", to_kohya(LoraFile(p, w, _config(), {})) | TEXT
    ),
    "bfl": lambda p, w: lora_of(p / "l.safetensors", by_bfl_names(w, "diffusion_model.NAME", "lora_{}.weight")),
    "bfl in peft": lambda p, w: lora_of(
        p / "l.safetensors", by_bfl_names(w, "base_model.model.NAME", "lora_{}.weight")
    ),
    "peft": lambda p, w: peft_folder(p / "adapter", w),
    "lora.alpha": lambda p, w: lora_of(
        p / "l.safetensors",
        renamed(w, "transformer.NAME", "lora.down.weight", "lora.up.weight")
        | {f"transformer.{layer}.lora.alpha": torch.tensor(ALPHA) for layer in layers_of(w)},
    ),
    "lora_A.alpha and lora_B.alpha": lambda p, w: lora_of(
        p / "l.safetensors",
        renamed(w, "transformer.NAME")
        | {f"transformer.{layer}.lora_{part}.alpha": torch.tensor(ALPHA) for layer in layers_of(w) for part in "AB"},
    ),
    "alpha in kohya's metadata": lambda p, w: lora_of(
        p / "l.safetensors",
        renamed(w, "transformer.NAME"),
        {"ss_network_alpha": str(2 * ALPHA), "ss_network_dim": str(2 * RANK)},
    ),
    "twice": lambda p, w: lora_of(
        p / "l.safetensors",
        with_alphas(renamed(w, "transformer.NAME")) | {"lora_unet_img_in.lora_down.weight": torch.ones(3, 3)},
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_changes_weights_as_the_lora_does(name, reference, tmp_path):
    lora = read_lora(find_lora(str(FORMATS[name](tmp_path, reference))))
    wanted = updates(reference, lambda _: ALPHA / RANK)
    got = updates(lora.weights, lora.scaling)
    assert set(got) == set(wanted)
    for layer, update in wanted.items():
        torch.testing.assert_close(got[layer], update, rtol=1e-5, atol=1e-6, msg=layer)
    assert lora.config.r == RANK and not lora.config.rank_pattern
    assert lora.ranks == "4" and lora.config.lora_alpha == ALPHA and not lora.config.alpha_pattern
    assert not any("alpha" in note for note in lora.notes)


@pytest.mark.parametrize("rank", [6, 8, 64])
def test_joined_layers_that_share_an_a(rank, tmp_path):
    """kohya's usual LoRA: one A of any rank for q, k and v, whose alpha is not the rank."""
    draw = torch.Generator().manual_seed(5)
    sizes = {"double_blocks_0_img_attn_qkv": 3 * WIDTH, "single_blocks_1_linear1": 7 * WIDTH}
    weights = {}
    for name, rows in sizes.items():
        weights[f"lora_unet_{name}.lora_down.weight"] = torch.randn(rank, WIDTH, generator=draw)
        weights[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, rank, generator=draw)
        weights[f"lora_unet_{name}.alpha"] = torch.tensor(16.0)
    lora = read_lora(lora_of(tmp_path / "k.safetensors", weights))
    got = updates(lora.weights, lora.scaling)
    for (name, rows), block in zip(sizes.items(), ("transformer_blocks.0", "single_transformer_blocks.1"), strict=True):
        ends = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"][: 3 + rows // (7 * WIDTH)]
        whole = torch.cat([got[f"{block}.{end}"] for end in ends])
        up, down = (weights[f"lora_unet_{name}.lora_{part}.weight"] for part in ("up", "down"))
        torch.testing.assert_close(whole, 16 / rank * (up @ down), rtol=1e-5, atol=1e-5)
    assert lora.config.r == rank and lora.config.lora_alpha == 16 and lora.notes == ()


def test_xlabs(tmp_path):
    draw = torch.Generator().manual_seed(6)
    weights = {}
    for layer, rows, columns in (
        ("double_blocks.1.processor.qkv_lora1", 3 * WIDTH, WIDTH),
        ("double_blocks.1.processor.qkv_lora2", 3 * WIDTH, WIDTH),
        ("double_blocks.1.processor.proj_lora1", WIDTH, WIDTH),
        ("double_blocks.1.processor.proj_lora2", WIDTH, WIDTH),
        ("single_blocks.3.processor.qkv_lora", 3 * WIDTH, WIDTH),
        ("single_blocks.3.processor.proj_lora", WIDTH, 5 * WIDTH),
    ):
        weights[f"{layer}.down.weight"] = torch.randn(2, columns, generator=draw)
        weights[f"{layer}.up.weight"] = torch.randn(rows, 2, generator=draw)
    file = lora_of(tmp_path / "x.safetensors", weights)
    lora = read_lora(file)
    check_as_diffusers_reads(lora, weights)
    assert len(lora.layers) == 12 and "alpha" in lora.notes[0] and len(lora.notes) == 1


def check_as_diffusers_reads(lora: LoraFile, stored: Tensors) -> None:
    """Its converter folds the scale into A."""
    converted = FluxLoraLoaderMixin.lora_state_dict(dict(stored))
    converted = {name.removeprefix("transformer."): tensor for name, tensor in converted.items()}
    assert set(converted) == set(lora.weights)
    for layer in lora.layers:
        down, up = (lora.weights[f"{layer}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(lora.scaling(layer) * down, converted[f"{layer}.lora_A.weight"])
        torch.testing.assert_close(up, converted[f"{layer}.lora_B.weight"])


def test_kohya_at_the_sizes_of_flux_is_read_as_diffusers_reads_it(tmp_path):
    """Rank 1, alpha 0.5, in the first and last blocks of FLUX.1; nothing in diffusers is replaced."""
    draw, weights = torch.Generator().manual_seed(7), {}
    wide = 3072
    rows = {"attn_qkv": 3 * wide, "attn_proj": wide, "mlp_0": 4 * wide, "mlp_2": wide, "mod_lin": 6 * wide}
    sizes = {
        f"double_blocks_{i}_{stream}_{name}": (out, 4 * wide if name == "mlp_2" else wide)
        for i in (0, 18)
        for stream in ("img", "txt")
        for name, out in rows.items()
    }
    for i in (0, 37):
        sizes |= {f"single_blocks_{i}_linear1": (7 * wide, wide), f"single_blocks_{i}_linear2": (wide, 5 * wide)}
        sizes[f"single_blocks_{i}_modulation_lin"] = (3 * wide, wide)
    for name, (out, into) in sizes.items():
        weights[f"lora_unet_{name}.lora_down.weight"] = torch.randn(1, into, generator=draw)
        weights[f"lora_unet_{name}.lora_up.weight"] = torch.randn(out, 1, generator=draw)
        weights[f"lora_unet_{name}.alpha"] = torch.tensor(0.5)
    check_as_diffusers_reads(read_lora(lora_of(tmp_path / "k.safetensors", weights)), weights)


def test_layers_outside_of_blocks(tmp_path):
    """By BFL's names; the last modulation has shift before scale there, and diffusers has scale before shift."""
    up = torch.arange(8.0)[:, None]
    weights = {"lora_unet_final_layer_adaLN_modulation_1.lora_down.weight": torch.ones(1, 4)}
    weights |= {"lora_unet_final_layer_adaLN_modulation_1.lora_up.weight": up}
    weights |= {"lora_unet_time_in_in_layer.lora_down.weight": torch.ones(1, 4)}
    weights |= {"lora_unet_time_in_in_layer.lora_up.weight": up}
    lora = read_lora(lora_of(tmp_path / "k.safetensors", weights))
    assert lora.layers == ["norm_out.linear", "time_text_embed.timestep_embedder.linear_1"]
    assert lora.weights["norm_out.linear.lora_B.weight"].flatten().tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert lora.weights[f"{lora.layers[1]}.lora_B.weight"].flatten().tolist() == list(range(8))


@pytest.mark.parametrize("said", ["keys", "metadata", "nothing"])
def test_mixed_ranks(said, reference, tmp_path):
    """The feed-forward layers have rank 2. Without a word alpha is the rank of each layer."""
    low = [layer for layer in layers_of(reference) if ".ff" in layer]
    weights = dict(reference)
    for layer in low:
        weights[f"{layer}.lora_A.weight"] = reference[f"{layer}.lora_A.weight"][:2]
        weights[f"{layer}.lora_B.weight"] = reference[f"{layer}.lora_B.weight"][:, :2]
    alphas = {layer: (6.0 if layer in low else 3.0) for layer in layers_of(weights)}
    stored, metadata = renamed(weights, "transformer.NAME"), None
    if said == "keys":
        stored |= {f"transformer.{layer}.alpha": torch.tensor(alpha) for layer, alpha in alphas.items()}
    elif said == "metadata":
        patterns = {"rank_pattern": dict.fromkeys(low, 2), "alpha_pattern": dict.fromkeys(low, 6.0)}
        metadata = settings(lora_alpha=3.0, **patterns)
    else:
        alphas = {layer: (2.0 if layer in low else 4.0) for layer in alphas}
    lora = read_lora(lora_of(tmp_path / "m.safetensors", stored, metadata))
    wanted = updates(weights, lambda layer: alphas[layer] / (2 if layer in low else 4))
    got = updates(lora.weights, lora.scaling)
    for layer, update in wanted.items():
        torch.testing.assert_close(got[layer], update, msg=layer)
    assert lora.ranks == "2 to 4" and bool(lora.notes) == (said == "nothing")


def test_rslora_in_peft(reference, tmp_path):
    folder = peft_folder(tmp_path / "a", reference)
    said = json.loads((folder / "adapter_config.json").read_text()) | {"use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    lora = read_lora(find_lora(str(folder)))
    assert lora.scaling("x_embedder") == ALPHA / math.sqrt(RANK)


def test_dora_of_kohya_and_of_peft(reference, tmp_path):
    """``dora_scale`` [out, 1] of a joined layer comes apart with its rows."""
    down, up = torch.ones(2, WIDTH), torch.arange(3.0 * WIDTH * 2).reshape(3 * WIDTH, 2)
    magnitude = torch.arange(3.0 * WIDTH)[:, None] + 1
    name = "lora_unet_double_blocks_0_txt_attn_qkv"
    stored = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": magnitude}
    lora = read_lora(lora_of(tmp_path / "d.safetensors", stored))
    assert lora.config.use_dora
    got = lora.weights["transformer_blocks.0.attn.add_k_proj.lora_magnitude_vector"]
    assert got.tolist() == list(range(WIDTH + 1, 2 * WIDTH + 1))
    with pytest.raises(ValueError, match="DoRA"):  # of the inputs, which peft does not know
        read_lora(lora_of(tmp_path / "e.safetensors", {**stored, f"{name}.dora_scale": torch.ones(1, WIDTH)}))
    with pytest.raises(ValueError, match="DoRA"):  # of one layer of two
        half = {f"lora_unet_img_in.lora_{part}.weight": torch.ones(2, 2) for part in ("up", "down")}
        read_lora(lora_of(tmp_path / "f.safetensors", stored | half))


def test_what_is_left_out_is_said_once(reference, tmp_path):
    more = TEXT | {"diffusion_model.img_in.diff_b": torch.ones(2)}
    lora = read_lora(lora_of(tmp_path / "l.safetensors", renamed(reference, "transformer.NAME") | more))
    assert set(lora.weights) == set(reference)
    said = "\n".join(lora.notes)
    assert len(lora.notes) == 3 and "alpha" in said and "text encoders (3 tensors)" in said and "diff_b" in said


@pytest.mark.parametrize(
    "name",
    [
        "clip_l",
        "clip_g",
        "t5xxl",
        "emb_params",
        "conditioner.embedders.0.x.lora_A.weight",
        "cond_stage_model.x.lora_A.weight",
    ],
)
def test_text_encoders_by_other_names(name, reference, tmp_path):
    more = {name: torch.ones(2, 3), "iteration": torch.tensor(5)}
    lora = read_lora(lora_of(tmp_path / "l.safetensors", renamed(reference, "transformer.NAME") | more))
    said = "\n".join(lora.notes)
    assert set(lora.weights) == set(reference) and "text encoders (1 tensors)" in said and "iteration" in said


def test_a_changed_weight_beside_the_lora_is_said_to_be_left_out(reference, tmp_path):
    name = "diffusion_model.double_blocks.0.img_attn.qkv.diff"
    more = {name: torch.ones(3 * WIDTH, WIDTH)}
    lora = read_lora(lora_of(tmp_path / "l.safetensors", renamed(reference, "transformer.NAME") | more))
    assert any(name in note and "left out" in note for note in lora.notes)


@pytest.mark.parametrize("said", [{"ss_network_alpha": "Dynamic"}, {"ss_network_alpha": "0", "ss_network_dim": "4"}])
def test_kohyas_metadata_without_an_alpha(said, reference, tmp_path):
    lora = read_lora(lora_of(tmp_path / "l.safetensors", renamed(reference, "transformer.NAME"), said))
    assert lora.config.lora_alpha == RANK and "alpha" in lora.notes[0]


def test_alphas_that_contradict_one_another(reference, tmp_path):
    alphas = {
        f"transformer.proj_out.lora_{part}.alpha": torch.tensor(value) for part, value in (("A", 1.0), ("B", 2.0))
    }
    with pytest.raises(ValueError, match=r"holds proj_out twice"):
        read_lora(lora_of(tmp_path / "l.safetensors", renamed(reference, "transformer.NAME") | alphas))


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b""])
def test_settings_of_peft_that_cannot_be_read(content, reference, tmp_path):
    folder = peft_folder(tmp_path / "a", reference)
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_config\.json: .*save the LoRA again") as error:
        read_lora(find_lora(str(folder)))
    assert "\n" not in str(error.value)


def test_a_lora_in_bf16_is_not_rounded_again(reference, tmp_path):
    stored = to_kohya(LoraFile(tmp_path, reference, _config(), {}))
    half = {name: tensor.bfloat16() for name, tensor in stored.items()}
    lora = read_lora(lora_of(tmp_path / "l.safetensors", half))
    assert all(torch.equal(tensor, reference[name].bfloat16()) for name, tensor in lora.weights.items())


def test_a_lora_of_dev_fits_fill(reference, tiny_flux_fill, tmp_path):
    """The 64 channels of dev are the first of Fill's."""
    weights = renamed(reference, "transformer.NAME")
    weights["transformer.x_embedder.lora_A.weight"] = torch.ones(RANK, 64)
    lora = read_lora(lora_of(tmp_path / "l.safetensors", weights))
    down = fitted(lora, str(tiny_flux_fill)).weights["x_embedder.lora_A.weight"]
    assert down.shape == (RANK, 384) and down.sum() == RANK * 64 and (down[:, :64] == 1).all()


# --------------------------------------------------------------------------------------------------------- refusals


def pair(layer: str, rows: int = 8, columns: int = 8, names: tuple[str, str] = ("lora_A", "lora_B")) -> Tensors:
    sizes = ((2, columns), (rows, 2))
    return {f"{layer}.{name}.weight": torch.ones(size) for name, size in zip(names, sizes, strict=True)}


KOHYA = ("lora_down", "lora_up")
OTHERS: dict[str, Tensors] = {
    "SDXL": pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 640, 2048, KOHYA),
    "Stable Diffusion 1": pair("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 320, 768),
    "SD3": pair("lora_unet_joint_blocks_0_context_block_attn_qkv", names=KOHYA),
    "Wan": pair("diffusion_model.blocks.0.cross_attn.k"),
    "Qwen-Image": pair("transformer.transformer_blocks.0.img_mlp.net.0.proj"),
    "HunyuanVideo": pair("transformer.double_blocks.0.img_attn_qkv")
    | pair("transformer.double_blocks.0.img_mod.linear"),
    "LTX-Video": pair("diffusion_model.transformer_blocks.0.attn1.to_q"),
    "Z-Image": pair("diffusion_model.layers.0.attention.to_q"),
    "HiDream": pair("diffusion_model.double_stream_blocks.0.block.attn1.to_q"),
    "AuraFlow": pair("transformer.joint_transformer_blocks.0.attn.to_q"),
    "FLUX.2": pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"),
    "Chroma": pair("diffusion_model.distilled_guidance_layer.in_proj"),
    "language model": pair("base_model.model.model.layers.0.self_attn.q_proj"),
    "LoKr": {"lycoris_single_transformer_blocks_0_attn_to_q.lokr_w1": torch.ones(2, 2)},
    "LoHa": {"lora_unet_double_blocks_0_img_attn_qkv.hada_w1_a": torch.ones(2, 2)},
    "OneTrainer": pair("lora_transformer_transformer_blocks_0_attn_to_q", names=KOHYA),
    "Control LoRA": pair("img_in") | {"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(2)},
    "A whole transformer": {"double_blocks.0.img_attn.qkv.weight": torch.ones(6, 2)},
    "text encoders only": {name: TEXT[name] for name in TEXT},
    "no part of a LoRA": pair("x_embedder") | {"x_embedder.weight": torch.ones(2, 2)},
    "transformer_blocks.0.attn.to_z": pair("transformer.transformer_blocks.0.attn.to_z"),
    "holds nothing": {},
    "VeRA": {"base_model.vera_A": torch.ones(2, 3), "transformer_blocks.0.attn.to_q.vera_lambda_b": torch.ones(2)},
    "IP-Adapter": {"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": torch.ones(3, 3)},
    "does not end in .weight": {"transformer.x_embedder.lora_A": torch.ones(2, 2)},
    "img_attn.qkv.diff and no LoRA": {"diffusion_model.double_blocks.0.img_attn.qkv.diff": torch.ones(2, 2)},
    "biases in its LoRA": pair("transformer.x_embedder") | {"transformer.x_embedder.lora_B.bias": torch.ones(8)},
    "is a Control LoRA": pair("transformer.x_embedder", 8, 128),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_lora_of_flux_is_told_what_it_is(what, tmp_path):
    path = lora_of(tmp_path / "other.safetensors", OTHERS[what])
    with pytest.raises(ValueError, match=re.escape(what)) as error:
        read_lora(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "HTML page"),
        (b'{"error": "Unauthorized"}', "JSON text"),
        (b"", "empty"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"PK\x03\x04" + b"0" * 60, "pickle"),
        (b"GGUF" + b"0" * 60, "GGUF"),
        (b"0" * 600, "cut short"),
    ],
)
def test_files_that_are_something_else(content, what, tmp_path):
    path = tmp_path / "l.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=what) as error:
        read_lora(path)
    assert str(path) in str(error.value)


def test_only_a_whole_transformer_is_sent_to_base(tmp_path):
    for what in OTHERS:
        file = lora_of(tmp_path / "other.safetensors", OTHERS[what])
        with pytest.raises(ValueError) as error:
            read_lora(file)
        assert ("whole transformer goes" in str(error.value)) == (what == "A whole transformer")


@pytest.mark.parametrize("alpha", [0.0, -2.0])
def test_an_alpha_of_zero_or_less_is_not_called_damage(alpha, reference, tmp_path):
    stored = renamed(reference, "transformer.NAME") | {"transformer.proj_out.alpha": torch.tensor(alpha)}
    with pytest.raises(ValueError, match=rf"alpha of proj_out is {alpha:g}: 0 .*negative") as error:
        read_lora(lora_of(tmp_path / "l.safetensors", stored))
    assert "damaged" not in str(error.value)


def test_damaged_weights(reference, tmp_path):
    stored = renamed(reference, "transformer.NAME")
    alone = {name: tensor for name, tensor in stored.items() if name != "transformer.proj_out.lora_B.weight"}
    nan = stored | {"transformer.proj_out.lora_B.weight": torch.full((64, RANK), math.nan)}
    zero = stored | {"transformer.proj_out.alpha": torch.tensor(0.0)}
    ints = stored | {"transformer.proj_out.lora_B.weight": torch.ones(64, RANK, dtype=torch.int8)}
    for weights in (alone, nan, zero, ints):
        with pytest.raises(ValueError, match=r"proj_out"):
            read_lora(lora_of(tmp_path / "l.safetensors", weights))
    file = lora_of(tmp_path / "l.safetensors", stored)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut short"):
        read_lora(file)


# ------------------------------------------------------------------------------------------------------------ finding


def test_folders(tmp_path):
    for name, words in (("one", ["a.safetensors"]), ("two", ["a.safetensors", "b.safetensors"]), ("bin", ["x.bin"])):
        (tmp_path / name).mkdir()
        for word in (*words, "._a.safetensors"):
            (tmp_path / name / word).write_bytes(b"x")
    assert find_lora(str(tmp_path / "one")) == tmp_path / "one" / "a.safetensors"
    for name, said in (("two", "two/a.safetensors"), ("bin", r"x\.bin is a pickle"), (".", "such as .*/one")):
        with pytest.raises(ValueError, match=said):
            find_lora(str(tmp_path / name))


def cached_repository(cache: Path, files: dict[str, bytes]) -> None:
    """A repository me/loras in a cache of the Hub, as a download leaves it."""
    root = cache / "models--me--loras"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    for number, (name, content) in enumerate(files.items()):
        path = root / "snapshots" / "abc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = root / "blobs" / str(number)
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        path.symlink_to(blob)


def test_folders_and_files_of_a_hub_repository(reference, tmp_path, monkeypatch):
    weights = peft_folder(tmp_path / "p", reference)
    peft = {name: (weights / name).read_bytes() for name in ("adapter_model.safetensors", "adapter_config.json")}
    files = {f"sub/folder/{name}": content for name, content in peft.items()}
    files |= {"pytorch_lora_weights.safetensors": b"root", "old/a.safetensors": b"a", "old/b.safetensors": b"b"}
    cached_repository(tmp_path, files)
    for module in (huggingface_hub.file_download, huggingface_hub._snapshot_download):
        monkeypatch.setattr(module.constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_lora("me/loras").read_bytes() == b"root"
    assert find_lora("me/loras/old/b.safetensors").read_bytes() == b"b"
    lora = read_lora(find_lora("me/loras/sub/folder"))
    assert lora.path.name == "adapter_model.safetensors" and lora.scaling("x_embedder") == ALPHA / RANK
    for name, said in (
        ("me/loras/old", "me/loras/old/a.safetensors"),
        ("me/loras/none", "me/loras/none"),
        ("me/no", "me/no"),
    ):
        with pytest.raises(ValueError, match=f"LoRA {name}: .*{said}"):
            find_lora(name)


def test_of_a_reachable_repository_only_what_is_needed_is_downloaded(tmp_path, monkeypatch):
    there = [
        "README.md",
        "a/adapter_model.safetensors",
        "a/adapter_config.json",
        "b/lora.safetensors",
        "big.safetensors",
    ]
    siblings = [SimpleNamespace(rfilename=name) for name in there]
    monkeypatch.setattr(lora_formats.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=siblings))
    fetched: list[str] = []

    def download(repository: str, name: str) -> str:
        fetched.append(name)
        return str(tmp_path / name)

    monkeypatch.setattr(lora_formats, "hf_hub_download", download)
    assert find_lora("me/loras/a") == tmp_path / "a" / "adapter_model.safetensors"
    assert sorted(fetched) == ["a/adapter_config.json", "a/adapter_model.safetensors"]
    for name, file in (("me/loras", "big.safetensors"), ("me/loras/b/", "b/lora.safetensors")):
        fetched.clear()
        assert find_lora(name) == tmp_path / file and fetched == [file]

    def gated(*_: object, **__: object) -> None:
        raise GatedRepoError(
            "terms", response=httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
        )

    monkeypatch.setattr(lora_formats, "hf_hub_download", gated)
    with pytest.raises(ValueError, match="me/loras is gated"):
        find_lora("me/loras/b")


# ------------------------------------------------------------------------------------------------------ whole pictures


@pytest.fixture(scope="module")
def person(tmp_path_factory) -> list[object]:
    folder = tmp_path_factory.mktemp("person")
    noise(64, 48).save(folder / "p.png")
    noise(64, 48).transpose(Image.Transpose.ROTATE_180).save(folder / "g.png")
    mask = Image.new("L", (48, 64), 0)
    mask.paste(255, (12, 20, 36, 52))
    mask.save(folder / "m.png")
    files = {"person": "p", "garment": "g", "mask": "m"}
    return [word for flag, name in files.items() for word in (f"--{flag}", folder / f"{name}.png")]


@pytest.fixture
def draws(tryon_run, person, tmp_path) -> Callable[..., np.ndarray]:
    def draw(lora: Path | None) -> np.ndarray:
        named = () if lora is None else ("--lora", lora)
        out = tmp_path / "o.png"
        size = ("--height", 64, "--width", 48)
        said = tryon_run(*person, *named, "--embedded", *size, "--output", out, "--overwrite")
        assert "Traceback" not in said
        return np.asarray(Image.open(out).convert("RGB"), dtype=int)

    return draw


#: Levels of 255 by which a LoRA has to change the picture, where formats may differ by 1. How much it is depends on the
#: base.
SEEN = 3
SHOWN = ["kohya", "simpletuner", "peft"]


def check_picture(draws, reference: Tensors, lora: Path, folder: Path) -> None:
    weights = reference
    wanted = draws(FORMATS["diffusers"](folder / "wanted", weights))
    assert abs(wanted - draws(None)).max() > SEEN
    assert abs(draws(lora) - wanted).max() <= 1


@pytest.mark.parametrize("name", SHOWN)
def test_a_format_draws_the_picture_that_the_lora_draws(name, reference, draws, tmp_path):
    check_picture(draws, reference, FORMATS[name](tmp_path / "l", reference), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in SHOWN])
def test_every_format_draws_the_picture_that_the_lora_draws(name, reference, draws, tmp_path):
    check_picture(draws, reference, FORMATS[name](tmp_path / "l", reference), tmp_path)


@pytest.mark.long
def test_a_dora_of_kohya_draws_what_it_draws_in_diffusers(save_random_lora, draws, tmp_path):
    """Its magnitudes are ``dora_scale`` [out, 1] of joined layers there."""
    file = save_random_lora("--lora_rank", "4", "--lora_target_modules", "all", "--use_dora")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    plain = {name: tensor for name, tensor in weights.items() if "magnitude" not in name}
    lora = LoraFile(file, plain, _config(), {})
    stored = {name: tensor for name, tensor in to_kohya(lora).items() if not name.endswith("alpha")}
    for layer in lora.layers:
        joined, parts = joined_layer(layer)
        key = f"lora_unet_{joined.replace('.', '_')}.dora_scale"
        stored[key] = torch.cat([weights[f"{part}.lora_magnitude_vector"] for part in parts])[:, None]
    # Without alpha keys a joined layer of n parts of rank r has the scale 1, as each of them alone.
    wanted = draws(lora_of(tmp_path / "d.safetensors", renamed_dora(weights)))
    without = draws(lora_of(tmp_path / "p.safetensors", renamed(plain, "transformer.NAME")))
    assert abs(wanted - without).max() > SEEN
    assert abs(draws(lora_of(tmp_path / "k.safetensors", stored)) - wanted).max() <= 1


def renamed_dora(weights: Tensors) -> Tensors:
    return {f"transformer.{name}": tensor for name, tensor in weights.items()}


@pytest.mark.long
def test_xlabs_draws_what_diffusers_makes_of_it(draws, tmp_path):
    draw, weights = torch.Generator().manual_seed(6), {}
    for block, layer, rows, columns in (
        *((f"double_blocks.{i}", f"qkv_lora{n}", 3 * WIDTH, WIDTH) for i in range(2) for n in (1, 2)),
        *((f"double_blocks.{i}", f"proj_lora{n}", WIDTH, WIDTH) for i in range(2) for n in (1, 2)),
        *((f"single_blocks.{i}", "qkv_lora", 3 * WIDTH, WIDTH) for i in range(4)),
        *((f"single_blocks.{i}", "proj_lora", WIDTH, 5 * WIDTH) for i in range(4)),
    ):
        weights[f"{block}.processor.{layer}.down.weight"] = torch.randn(4, columns, generator=draw) / columns**0.5
        weights[f"{block}.processor.{layer}.up.weight"] = 0.2 * torch.randn(rows, 4, generator=draw)
    wanted = draws(lora_of(tmp_path / "d.safetensors", FluxLoraLoaderMixin.lora_state_dict(dict(weights))))
    assert abs(wanted - draws(None)).max() > SEEN
    assert abs(draws(lora_of(tmp_path / "x.safetensors", weights)) - wanted).max() <= 1


@pytest.mark.long
def test_mixed_ranks_and_alphas_draw_what_they_do_with_alpha_in_b(reference, draws, tmp_path):
    mixed, alphas = dict(reference), {}
    for number, layer in enumerate(layers_of(reference)):
        rank = 1 + number % 4
        mixed[f"{layer}.lora_A.weight"] = reference[f"{layer}.lora_A.weight"][:rank]
        mixed[f"{layer}.lora_B.weight"] = reference[f"{layer}.lora_B.weight"][:, :rank]
        alphas[f"{layer}.alpha"] = torch.tensor(0.5 + number % 3)
    scaled = dict(mixed)
    for layer in layers_of(mixed):
        rank = len(mixed[f"{layer}.lora_A.weight"])
        scaled[f"{layer}.lora_B.weight"] = mixed[f"{layer}.lora_B.weight"] * alphas[f"{layer}.alpha"] / rank
    wanted = draws(lora_of(tmp_path / "s.safetensors", renamed(scaled, "transformer.NAME")))
    got = draws(lora_of(tmp_path / "m.safetensors", renamed(mixed, "transformer.NAME") | renamed_dora(alphas)))
    assert abs(wanted - draws(None)).max() > SEEN and abs(got - wanted).max() <= 1

    back = read_lora(lora_of(tmp_path / "k.safetensors", to_kohya(read_lora(tmp_path / "m.safetensors"))))
    wanted_updates = updates(scaled, lambda _: 1.0)
    for layer, update in updates(back.weights, back.scaling).items():
        torch.testing.assert_close(update, wanted_updates[layer], rtol=1e-5, atol=1e-6)
    assert abs(draws(tmp_path / "k.safetensors") - wanted).max() <= 1


def test_tryon_refuses_in_one_line(tryon_run, person, tmp_path):
    said = {name: lora_of(tmp_path / f"{number}.safetensors", OTHERS[name]) for number, name in enumerate(OTHERS)}
    for name in ("SDXL", "LoKr", "OneTrainer"):
        out = tryon_run(*person, "--lora", said[name], "--embedded", "--output", tmp_path / "o.png", code=1)
        assert name in out.splitlines()[-1] and not (tmp_path / "o.png").exists()


def test_models_with_layers_of_the_same_names_are_known_by_blocks_and_width(tiny_flux_fill, tmp_path):
    for model, layer, width in (
        ("SD3", "transformer_blocks.23.attn.to_q", 1536),
        ("Qwen-Image", "transformer_blocks.59.attn.to_q", 3072),
        ("HunyuanVideo", "single_transformer_blocks.39.attn.to_q", 3072),
    ):
        lora = read_lora(lora_of(tmp_path / "l.safetensors", pair(f"transformer.{layer}", width, width)))
        with pytest.raises(ValueError, match=model) as error:
            fitted(lora, str(tiny_flux_fill))
        assert layer in str(error.value)


def test_a_lora_of_flux_on_the_embedded_model(tryon_run, person, tmp_path):
    lora = lora_of(tmp_path / "l.safetensors", pair("transformer.transformer_blocks.0.attn.to_q", 3072, 3072))
    out = tryon_run(*person, "--lora", lora, "--embedded", "--output", tmp_path / "o.png", code=1)
    assert "transformer_blocks.0.attn.to_q" in out and "FLUX.1" in out and "(192, 192)" in out
    assert load_file(lora)
