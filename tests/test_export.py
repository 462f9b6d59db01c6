"""The command `export`: each format is loaded back into diffusers and computes what the LoRA computes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import peft
import pytest
import torch
from diffusers import FluxFillPipeline, FluxTransformer2DModel
from diffusers.loaders import lora_conversion_utils, lora_pipeline, single_file_utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import train_flux_inpaint as tfi
from deepfashion_training import export as command
from deepfashion_training.models import lora_files
from training_run import lora_formats
from training_run.lora import LORA_TARGETS

RANK, ALPHA = 4, 8
FLAGS = {
    "all": ["--lora_target_modules", "all"],
    "attention": ["--lora_target_modules", "attention"],
    "rslora": ["--lora_target_modules", "all", "--use_rslora"],
    "dora": ["--lora_target_modules", "all", "--use_dora"],
    # What diffusers' kohya converter reads at any hidden size: no linear1 of a single block. The v of qkv is missing.
    "double": ["--lora_target_modules", "add_q_proj,add_k_proj,norm1.linear,norm1_context.linear,ff.net.2,to_add_out"],
}


@pytest.fixture(scope="module")
def pipeline(tiny_flux_fill) -> FluxFillPipeline:
    no_text = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return FluxFillPipeline.from_pretrained(tiny_flux_fill, torch_dtype=torch.float32, **no_text)


@pytest.fixture(scope="module")
def loras(save_random_lora) -> dict[str, Path]:
    """Folders of LoRAs that the trainer saved, with random B, by the names of FLAGS."""
    scale = ("--lora_rank", str(RANK), "--lora_alpha", str(ALPHA))
    return {name: save_random_lora(*scale, *flags, name=name).parent for name, flags in FLAGS.items()}


def forward(transformer: torch.nn.Module) -> torch.Tensor:
    """Output on fixed random input: 2 pairs of 12 image tokens and 5 text tokens."""
    draw = torch.Generator().manual_seed(1)
    shapes = {"hidden_states": (2, 12, 384), "encoder_hidden_states": (2, 5, 32), "pooled_projections": (2, 32)}
    inputs = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    places = torch.stack(torch.meshgrid(*map(torch.arange, (1, 3, 4)), indexing="ij"), -1).reshape(12, 3).float()
    with torch.no_grad():
        return transformer(
            **inputs,
            txt_ids=torch.zeros(5, 3),
            img_ids=places,
            timestep=torch.tensor([0.3, 0.9]),
            guidance=torch.ones(2),
        ).sample


def with_lora(pipeline: FluxFillPipeline, lora: Path, scale: float = 1.0) -> torch.Tensor:
    pipeline.load_lora_weights(lora.parent if lora.suffix else lora, adapter_name="x", weight_name=weight_name(lora))
    pipeline.set_adapters("x", scale)
    try:
        return forward(pipeline.transformer)
    finally:
        pipeline.unload_lora_weights()


def weight_name(lora: Path) -> str:
    return lora.name if lora.suffix else tfi.LORA_FILE


def run(lora: Path | str, kind: str, output: Path, *more: object) -> int:
    return command.main(["--lora", str(lora), "--format", kind, "--output", str(output), *map(str, more)])


def check_same(got: torch.Tensor, lora: Path, pipeline: FluxFillPipeline, scale: float = 1.0) -> None:
    bare, wanted = forward(pipeline.transformer), with_lora(pipeline, lora, scale)
    assert (wanted - bare).abs().max() > 0.05
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=5e-5)  # fp32 rounding of fused weights


@pytest.fixture
def any_width(monkeypatch) -> None:
    """diffusers' kohya converter with the hidden size of the embedded model in place of FLUX's 3072."""
    source = inspect.getsource(lora_conversion_utils._convert_kohya_flux_lora_to_diffusers)
    flux, ours = "dims=[3072, 3072, 3072, 12288]", "dims=[192, 192, 192, 768]"
    assert source.count(flux) == 1
    space = dict(vars(lora_conversion_utils))
    exec(source.replace(flux, ours), space)
    name = "_convert_kohya_flux_lora_to_diffusers"
    monkeypatch.setattr(lora_pipeline, name, space[name])


# ---------------------------------------------------------------------------------------------------------- kohya


@pytest.mark.parametrize(("name", "scale"), [("all", 1), ("all", -1), ("attention", 0.5), ("rslora", 1)])
def test_kohya_computes_the_same_in_diffusers(name, scale, loras, pipeline, tmp_path, any_width, capsys):
    output = tmp_path / "kohya.safetensors"
    assert run(loras[name], "kohya", output, "--lora_scale", scale) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"written: {output} (rank 4, ") and f'load_lora_weights("{output}")' in last
    assert [path.name for path in tmp_path.iterdir()] == ["kohya.safetensors"]
    check_same(with_lora(pipeline, output), loras[name], pipeline, scale)


def test_kohya_computes_the_same_in_diffusers_as_it_is(loras, pipeline, tmp_path):
    """Layers that the converter reads at any hidden size, so nothing is replaced in it."""
    assert run(loras["double"], "kohya", tmp_path / "k.safetensors") == 0
    check_same(with_lora(pipeline, tmp_path / "k.safetensors"), loras["double"], pipeline)


def test_kohya_names_and_sizes(loras, tmp_path):
    """2 double blocks of 8 layers that become 4 and 4 of txt; 4 single blocks of 5 that become 2."""
    run(loras["all"], "kohya", tmp_path / "k.safetensors")
    weights = load_file(tmp_path / "k.safetensors")
    double = [f"{stream}_{part}" for stream in ("img", "txt") for part in ("attn_qkv", "attn_proj", "mlp_0", "mlp_2")]
    names = [f"lora_unet_double_blocks_{i}_{part}" for i in (0, 1) for part in double]
    names += [f"lora_unet_single_blocks_{i}_{part}" for i in range(4) for part in ("linear1", "linear2")]
    endings = ("alpha", "lora_down.weight", "lora_up.weight")
    assert set(weights) == {f"{name}.{ending}" for name in names for ending in endings}

    def facts(name: str) -> tuple[tuple[int, ...], tuple[int, ...], float]:
        stem = f"lora_unet_{name}"
        up, down = weights[f"{stem}.lora_up.weight"], weights[f"{stem}.lora_down.weight"]
        return tuple(up.shape), tuple(down.shape), weights[f"{stem}.alpha"].item()

    assert facts("double_blocks_0_img_attn_qkv") == ((576, 12), (12, 192), 24)
    assert facts("double_blocks_1_txt_mlp_0") == ((768, 4), (4, 192), 8)
    assert facts("single_blocks_1_linear1") == ((1344, 16), (16, 192), 32)
    assert facts("single_blocks_0_linear2") == ((192, 4), (4, 960), 8)
    with safe_open(tmp_path / "k.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "8.0")
    assert metadata["prompt"] == tfi.DEFAULT_PROMPT and "lora_adapter_metadata" not in metadata


def test_kohya_has_no_room_for_layers_without_a_lora(loras, tmp_path):
    """Attention alone: linear1 joins q, k and v of rank 4 in rank 12, the lowest that holds them."""
    run(loras["attention"], "kohya", tmp_path / "k.safetensors")
    weights = load_file(tmp_path / "k.safetensors")
    assert weights["lora_unet_single_blocks_2_linear1.lora_down.weight"].shape == (12, 192)
    assert weights["lora_unet_single_blocks_2_linear1.lora_up.weight"].shape == (1344, 12)
    assert weights["lora_unet_single_blocks_2_linear1.alpha"] == 24
    back = lora_formats.read_lora(tmp_path / "k.safetensors")
    stored = lora_formats.read_lora(loras["attention"] / tfi.LORA_FILE)
    assert back.config.r == RANK and back.config.lora_alpha == ALPHA and set(back.weights) == set(stored.weights)
    assert all(torch.equal(back.weights[name], stored.weights[name]) for name in stored.weights)
    assert back.metadata["prompt"] == tfi.DEFAULT_PROMPT and back.notes == ()
    assert run(loras["attention"], "kohya", tmp_path / "half.safetensors", "--dtype", "bf16") == 0
    assert (tmp_path / "half.safetensors").stat().st_size < 0.55 * (tmp_path / "k.safetensors").stat().st_size


def test_kohya_adds_the_same_to_the_joined_weights(loras):
    """ComfyUI and kohya add alpha / rank of the file x up down to the weight of q, k, v (and the MLP) in one."""
    lora = lora_formats.read_lora(loras["rslora"] / tfi.LORA_FILE)
    file = lora_files.to_kohya(lora)
    block = "transformer_blocks.1"
    for name, parts in (
        ("double_blocks_1_txt_attn_qkv", [f"{block}.attn.add_{part}_proj" for part in "qkv"]),
        (
            "single_blocks_1_linear1",
            [f"single_{block}.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")],
        ),
    ):
        down, up = file[f"lora_unet_{name}.lora_down.weight"], file[f"lora_unet_{name}.lora_up.weight"]
        added = file[f"lora_unet_{name}.alpha"] / down.shape[0] * (up @ down)
        products = [lora.weights[f"{part}.lora_B.weight"] @ lora.weights[f"{part}.lora_A.weight"] for part in parts]
        torch.testing.assert_close(added, ALPHA / RANK**0.5 * torch.cat(products), rtol=1e-5, atol=1e-6)


def flux_sized(tmp_path: Path, layers: list[str], dtype: torch.dtype) -> Path:
    """A LoRA of rank 3 and alpha 5 for layers of the real FLUX."""
    draw, weights = torch.Generator().manual_seed(4), {}
    for layer in layers:
        out = 12288 if layer.endswith(("proj_mlp", "0.proj")) else 18432 if layer.endswith("norm1.linear") else 3072
        into = 15360 if layer.endswith("proj_out") else 12288 if layer.endswith("net.2") else 3072
        for name, size in (("A", (3, into)), ("B", (out, 3))):
            weights[f"transformer.{layer}.lora_{name}.weight"] = torch.randn(size, generator=draw).to(dtype)
    settings = {"transformer.r": 3, "transformer.lora_alpha": 5, "transformer.target_modules": layers}
    save_file(weights, tmp_path / "flux.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    return tmp_path / "flux.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kohya_is_the_inverse_of_diffusers_converter(dtype, tmp_path):
    """At FLUX's sizes and with its first and last blocks, with nothing replaced: A, B and the scale come back."""
    ends = [*LORA_TARGETS["all"][:8], "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "norm1.linear"]
    layers = [f"transformer_blocks.{i}.{end}" for i in (0, 18) for end in ends]
    single = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out", "norm.linear")
    layers += [f"single_transformer_blocks.{i}.{end}" for i in (0, 37) for end in single]
    lora = lora_formats.read_lora(flux_sized(tmp_path, layers, dtype))
    back = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(lora_files.to_kohya(lora))
    assert {name.removeprefix("transformer.") for name in back} == set(lora.weights)
    for name, stored in lora.weights.items():
        wanted = stored * (5 / 3) if name.endswith("lora_A.weight") else stored
        torch.testing.assert_close(
            back[f"transformer.{name}"], wanted, rtol=1e-6 if dtype == torch.float32 else 0.01, atol=0
        )


# ----------------------------------------------------------------------------------------------------------- peft


@pytest.mark.parametrize(("name", "scale"), [("attention", 0.5), ("rslora", 1), ("dora", 1)])
def test_peft_computes_the_same_in_peft_and_diffusers(name, scale, loras, pipeline, tiny_flux_fill, tmp_path):
    assert run(loras[name], "peft", tmp_path / "p", "--lora_scale", scale) == 0
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    base = FluxTransformer2DModel.from_pretrained(tiny_flux_fill, subfolder="transformer")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "p")
    check_same(forward(loaded), loras[name], pipeline, scale)
    assert loaded.peft_config["default"].base_model_name_or_path == str(tiny_flux_fill)
    again = FluxTransformer2DModel.from_pretrained(tiny_flux_fill, subfolder="transformer")
    again.load_lora_adapter(tmp_path / "p", prefix="base_model.model", weight_name="adapter_model.safetensors")
    check_same(forward(again), loras[name], pipeline, scale)


# ---------------------------------------------------------------------------------------------------------- fused


@pytest.mark.parametrize(("name", "scale"), [("all", 0.5), ("rslora", 1), ("dora", 1)])
def test_fused_computes_the_same(name, scale, loras, pipeline, tmp_path):
    assert run(loras[name], "fused", tmp_path / "f", "--lora_scale", scale, "--dtype", "fp32") == 0
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert not any("lora" in key for key in load_file(tmp_path / "f" / "diffusion_pytorch_model.safetensors"))
    check_same(forward(FluxTransformer2DModel.from_pretrained(tmp_path / "f")), loras[name], pipeline, scale)


def test_fused_keeps_the_precision_of_the_base_and_takes_another(loras, tiny_flux_fill, tmp_path):
    kept = load_file(tiny_flux_fill / "transformer" / "diffusion_pytorch_model.safetensors")
    model = FluxTransformer2DModel.from_pretrained(tiny_flux_fill, subfolder="transformer", torch_dtype=torch.float16)
    model.save_pretrained(tmp_path / "half")
    for flags, wanted in (
        ([], next(iter(kept.values())).dtype),
        (["--base", tmp_path / "half"], torch.float16),
        (["--base", tmp_path / "half", "--dtype", "bf16"], torch.bfloat16),
    ):
        assert run(loras["all"], "fused", tmp_path / "f", "--overwrite", *flags) == 0
        stored = load_file(tmp_path / "f" / "diffusion_pytorch_model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {wanted}
    assert {path.name for path in tmp_path.iterdir()} == {"half", "f"}


def bfl_model(folder: Path, config: dict[str, object]) -> Path:
    """A transformer with random weights, in files of 100 KB at most."""
    torch.manual_seed(2)
    FluxTransformer2DModel.from_config(config).save_pretrained(folder, max_shard_size="100KB")
    return folder


def converted_back(file: Path, width: int) -> dict[str, torch.Tensor]:
    """diffusers' reader of such files, with another hidden size in place of FLUX's 3072; it wants all tensors."""
    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    assert source.count("inner_dim = 3072") == 1
    space = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), space)
    stored = load_file(file)
    back = space["convert_flux_transformer_checkpoint_to_diffusers"](stored)
    assert not stored
    return back


@pytest.mark.parametrize("name", ["all", "dora"])
def test_a_single_file_has_the_weights_of_the_folder(name, loras, tiny_flux_fill, tmp_path, capsys):
    file = tmp_path / "flux.safetensors"
    assert run(loras[name], "fused", file, "--single_file", "--dtype", "bf16") == 0
    assert "ComfyUI (models/diffusion_models)" in capsys.readouterr().out
    assert run(loras[name], "fused", tmp_path / "f", "--dtype", "bf16") == 0
    folder = load_file(tmp_path / "f" / "diffusion_pytorch_model.safetensors")
    back = converted_back(file, 192)
    assert set(back) == set(folder)
    assert all(torch.equal(back[key], folder[key]) and back[key].dtype == torch.bfloat16 for key in folder)
    assert (file.stat().st_mode & 0o777) == (tmp_path / "f" / "config.json").stat().st_mode & 0o777
    capsys.readouterr()
    assert "exists" in refused(capsys, "--lora", loras[name], "--format", "fused", "--single_file", "--output", file)
    assert run(loras[name], "fused", file, "--single_file", "--overwrite") == 0


def comfyui_names(double: int, single: int) -> set[str]:
    """The tensors of FLUX in ComfyUI, by how its model is built: a linear layer has weight and bias, a norm a scale."""
    linear = ["img_in", "txt_in", "final_layer.linear", "final_layer.adaLN_modulation.1"]
    linear += [f"{name}_in.{end}_layer" for name in ("time", "vector", "guidance") for end in ("in", "out")]
    norms = []
    for i in range(double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            linear += [f"{block}_{end}" for end in ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")]
            norms += [f"{block}_attn.norm.{end}_norm.scale" for end in ("query", "key")]
    for i in range(single):
        linear += [f"single_blocks.{i}.{end}" for end in ("linear1", "linear2", "modulation.lin")]
        norms += [f"single_blocks.{i}.norm.{end}_norm.scale" for end in ("query", "key")]
    return {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")} | set(norms)


def test_a_single_file_of_as_many_blocks_as_flux_has_780_tensors(tmp_path):
    """And what ComfyUI tells the model by: 96 channels of 2x2 patches are Fill, guidance_in is FLUX.1-dev's."""
    config = {
        "in_channels": 384,
        "out_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 8,
        "num_attention_heads": 1,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "guidance_embeds": True,
        "axes_dims_rope": (2, 2, 4),
    }
    base = bfl_model(tmp_path / "base", config)
    assert (base / "diffusion_pytorch_model.safetensors.index.json").is_file()
    ends = ("transformer_blocks.18.attn.to_k", "single_transformer_blocks.37.proj_out")
    weights = {}
    for layer, into in zip(ends, (8, 40), strict=True):
        weights[f"transformer.{layer}.lora_A.weight"] = torch.randn(2, into)
        weights[f"transformer.{layer}.lora_B.weight"] = torch.randn(8, 2)
    save_file(weights, tmp_path / "l.safetensors")
    flags = ("--base", base, "--dtype", "fp32")
    assert run(tmp_path / "l.safetensors", "fused", tmp_path / "flux.safetensors", "--single_file", *flags) == 0
    stored = load_file(tmp_path / "flux.safetensors")
    assert len(stored) == 780 and set(stored) == comfyui_names(19, 38)
    assert stored["img_in.weight"].shape == (8, 384) and "guidance_in.in_layer.weight" in stored

    assert run(tmp_path / "l.safetensors", "fused", tmp_path / "f", *flags) == 0
    folder = FluxTransformer2DModel.from_pretrained(tmp_path / "f").state_dict()
    bare = FluxTransformer2DModel.from_pretrained(base).state_dict()
    back = converted_back(tmp_path / "flux.safetensors", 8)
    assert {key for key in bare if not torch.equal(bare[key], folder[key])} == {f"{layer}.weight" for layer in ends}
    assert set(back) == set(folder) and all(torch.equal(back[key], folder[key]) for key in back)
    for layer in ends:
        added = weights[f"transformer.{layer}.lora_B.weight"] @ weights[f"transformer.{layer}.lora_A.weight"]
        torch.testing.assert_close(folder[f"{layer}.weight"], bare[f"{layer}.weight"] + added)


def test_names_of_a_single_file_at_the_size_of_flux():
    with torch.device("meta"):
        names = FluxTransformer2DModel(in_channels=384, guidance_embeds=True).state_dict().keys()
    plan = lora_files.single_file_plan(names)
    assert set(plan) == comfyui_names(19, 38) and sorted(name for parts in plan.values() for name in parts) == sorted(
        names
    )
    with pytest.raises(ValueError, match=r"transformer_blocks\.0\.attn\.to_k\.weight"):
        lora_files.single_file_plan([name for name in names if name != "transformer_blocks.0.attn.to_k.weight"])


# --------------------------------------------------------------------------------------------------------- refusals


def refused(capsys, *flags: object) -> str:
    """The one line of an error, exit code 1."""
    assert command.main(list(map(str, flags))) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("export: ")
    return err


def test_a_lora_that_is_not_there(tmp_path, capsys):
    rest = ("--format", "kohya", "--output", tmp_path / "k.safetensors")
    for name in (tmp_path / "none", tmp_path, "nobody/nothing"):
        assert f"LoRA {name}: " in refused(capsys, "--lora", name, *rest)
    assert not any(tmp_path.iterdir())


def test_a_file_that_is_not_our_lora(loras, tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "l.safetensors"
    rest = ("--lora", file, "--format", "peft", "--output", out)
    file.write_bytes(b"not safetensors")
    assert "is not a safetensors file" in refused(capsys, *rest)
    weights = load_file(loras["all"] / tfi.LORA_FILE)
    save_file(weights, file, {"lora_adapter_metadata": json.dumps({"transformer.r": 4})})
    assert "does not say a rank and alpha" in refused(capsys, *rest)
    settings = {"transformer.r": 8, "transformer.lora_alpha": 8, "transformer.target_modules": ["to_q"]}
    save_file(weights, file, {"lora_adapter_metadata": json.dumps(settings)})
    assert "settings say 8" in refused(capsys, *rest)
    save_file({"x_embedder.weight": torch.zeros(2)}, file)
    assert "holds x_embedder.weight" in refused(capsys, *rest)
    assert not out.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_alpha", "NaN"),
        ("lora_alpha", "Infinity"),
        ("lora_alpha", '"abc"'),
        ("lora_alpha", "0"),
        ("r", "0"),
        ("r", '"x"'),
    ],
)
def test_a_rank_or_alpha_that_is_no_number_to_scale_by(key, value, loras, tmp_path, capsys):
    file, output = tmp_path / "l.safetensors", tmp_path / "k.safetensors"
    said = {"r": "4", "lora_alpha": "8", "target_modules": '["to_q"]', key: value}
    settings = ", ".join(f'"transformer.{name}": {text}' for name, text in said.items())
    save_file(load_file(loras["all"] / tfi.LORA_FILE), file, {"lora_adapter_metadata": f"{{{settings}}}"})
    assert str(file) in refused(capsys, "--lora", file, "--format", "kohya", "--output", output)
    assert not output.exists()
    with pytest.raises(ValueError, match="lora_adapter_metadata"):
        lora_formats.read_lora(file)


def test_what_kohya_cannot_hold(loras, tmp_path, capsys):
    output = tmp_path / "k.safetensors"
    rest = ("--format", "kohya", "--output", output)
    assert "DoRA" in refused(capsys, "--lora", loras["dora"], *rest)
    assert not output.exists()


def test_an_output_that_is_there(loras, tmp_path, capsys):
    lora = ("--lora", loras["all"])
    file = tmp_path / "k.safetensors"
    file.write_bytes(b"mine")
    assert "--overwrite" in refused(capsys, *lora, "--format", "kohya", "--output", file)
    assert file.read_bytes() == b"mine"
    assert run(loras["all"], "kohya", file, "--overwrite") == 0
    assert len(load_file(file)) == 72
    capsys.readouterr()

    assert "is a file" in refused(capsys, *lora, "--format", "peft", "--output", file)
    (tmp_path / "empty").mkdir()
    assert run(loras["all"], "peft", tmp_path / "empty") == 0
    capsys.readouterr()
    assert "--overwrite" in refused(capsys, *lora, "--format", "peft", "--output", tmp_path / "empty")
    assert run(loras["all"], "peft", tmp_path / "empty", "--overwrite") == 0
    capsys.readouterr()
    (tmp_path / "empty" / "thesis.txt").write_text("")
    message = refused(capsys, *lora, "--format", "peft", "--output", tmp_path / "empty", "--overwrite")
    assert "holds other files (thesis.txt)" in message
    assert {path.name for path in tmp_path.iterdir()} == {"k.safetensors", "empty"}


@pytest.mark.parametrize("kind", ["kohya", "peft", "fused"])
def test_the_lora_is_never_replaced(kind, loras, capsys):
    file = loras["all"] / tfi.LORA_FILE
    before = file.read_bytes()
    output = file if kind == "kohya" else loras["all"]
    flags = ("--lora", loras["all"], "--format", kind, "--output", output, "--overwrite")
    assert "would replace the LoRA" in refused(capsys, *flags)
    assert file.read_bytes() == before


def test_a_base_that_does_not_fit(loras, tiny_flux_fill, tmp_path, capsys):
    flags = ("--lora", loras["all"], "--format", "fused", "--output", tmp_path / "f")
    assert "no such folder" in refused(capsys, *flags, "--base", tmp_path / "none")
    assert "holds no FluxTransformer2DModel" in refused(capsys, *flags, "--base", tiny_flux_fill / "vae")
    assert "nobody/nothing is not in the cache" in refused(capsys, *flags, "--base", "nobody/nothing")
    config = FluxTransformer2DModel.load_config(tiny_flux_fill / "transformer")
    FluxTransformer2DModel.from_config({**config, "num_layers": 1}).save_pretrained(tmp_path / "other")
    message = refused(capsys, *flags, "--base", tmp_path / "other")
    assert "transformer_blocks.1" in message and "missing" in message
    message = refused(capsys, *flags[:-1], tiny_flux_fill / "transformer" / "f", "--base", tiny_flux_fill)
    assert "lie in one another" in message
    assert not (tmp_path / "f").exists()


def test_nothing_is_left_of_a_failed_export(loras, tmp_path, capsys, monkeypatch):
    def fail(lora, folder):
        folder.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(lora_files, "write_peft", fail)
    message = refused(capsys, "--lora", loras["all"], "--format", "peft", "--output", tmp_path / "p")
    assert f"{tmp_path / 'p'} could not be written: disk full" in message and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "kohya", "--output", "k.safetensors", "--lora-scale", "2"], "did you mean --lora_scale?"),
        (["--format", "onnx", "--output", "k"], "'onnx'"),
        (["--format", "kohya", "--output", "k"], "ends in .safetensors"),
        (
            ["--format", "peft", "--output", "k", "--dtype", "bf16"],
            "--dtype goes with --format fused or kohya, not peft",
        ),
        (["--format", "peft", "--output", "k", "--lora_scale", "nan"], "nan is not a finite number"),
        (["--format", "peft", "--output", "k", "--single_file"], "--single_file goes with --format fused, not peft"),
        (["--format", "fused", "--output", "k", "--single_file"], "--single_file writes one file"),
        (["--format", "peft"], "--output"),
        (["--lora", "y", "--format", "peft", "--output", "k"], "--lora y: one LoRA is written"),
    ],
)
def test_wrong_use(flags, message, capsys):
    assert command.main(["--lora", "x", *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
