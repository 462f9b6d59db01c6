"""The trainer's flags, the models it loads, what it makes trainable, and its prompts."""

from __future__ import annotations

import ast
import copy
import gc
import importlib.util
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from diffusers import AutoencoderKL, FluxFillPipeline, FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file

import train_flux_inpaint as tfi
from training_run import guards
from training_run.lora import lora_pattern

DATA = ["--dataroot", "data"]


# ---------------------------------------------------------------------------------------------------------- flags


def test_defaults_are_the_published_models_and_catvtons_prompt():
    args = tfi.parse_args(DATA)
    assert args.pretrained_model_name_or_path == "black-forest-labs/FLUX.1-Fill-dev"
    assert args.pretrained_inpaint_model_name_or_path == "xiaozaa/catvton-flux-alpha"
    assert args.instance_prompt == (
        "The pair of images highlights a clothing and its styling on a model, high resolution, 4K, 8K; [IMAGE1] "
        "Detailed product shot of a clothing[IMAGE2] The same cloth is worn by a model in a lifestyle setting."
    )
    assert (args.height, args.width, args.max_sequence_length) == (768, 576, 512)
    assert (args.lora_rank, args.lora_alpha, args.lora_target_modules) == (16, None, "all")
    assert (args.garment_loss_weight, args.mask_loss_weight, args.background_loss_weight) == (1, 1, 1)
    assert (args.learning_rate, args.optimizer, args.mixed_precision) == (1e-4, "adamw", "no")
    assert not (args.train_base_model or args.use_captions or args.use_dora or args.gradient_checkpointing)


@pytest.mark.parametrize(
    ("unknown", "near"),
    [("--lora_rnk", "--lora_rank"), ("--learning-rate", "--learning_rate"), ("--heigth=64", "--height")],
)
def test_an_unknown_flag_is_answered_with_the_nearest(unknown, near, capsys):
    with pytest.raises(SystemExit) as stop:
        tfi.parse_args([*DATA, unknown, "4"])
    assert stop.value.code == 2
    assert f"unknown argument {unknown.split('=')[0]}: did you mean {near}?" in capsys.readouterr().err


def test_flags_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit) as stop:
        tfi.parse_args([*DATA, "--lora_ran", "4"])
    assert stop.value.code == 2
    assert "--lora_ran: did you mean --lora_rank?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--height 100", "--height"),
        ("--width 0", "--width"),
        ("--learning_rate -1e-4", "--learning_rate"),
        ("--learning_rate nan", "--learning_rate"),
        ("--max_grad_norm inf", "--max_grad_norm"),
        ("--lora_rank 0", "--lora_rank"),
        ("--lora_rank 2.5", "--lora_rank"),
        ("--lora_rank", "--lora_rank"),
        ("--lora_dropout 1", "--lora_dropout"),
        ("--lora_dropout -0.1", "--lora_dropout"),
        ("--train_base_model --lora_dropout 0.1", "--lora_dropout"),
        ("--max_sequence_length 513", "--max_sequence_length"),
        ("--seed -1", "--seed"),
        ("--adam_beta1 2", "--adam_beta1"),
        ("--logging_steps 0", "--logging_steps"),
        ("--lr_scheduler triangle", "--lr_scheduler"),
        ("--weighting_scheme flat", "--weighting_scheme"),
        ("--report_to paper", "--report_to"),
        ("--timestep_shift 0", "--timestep_shift"),
        ("--ema_decay 1", "--ema_decay"),
        ("--prior_loss_weight 1 --prior_cloth_types 1,4", "--prior_cloth_types"),
        ("--prior_cloth_types 2", "--prior_cloth_types does nothing"),
        ("--train_base_model --prior_loss_weight 1", "--prior_loss_weight"),
        ("--timestep_shift token", "--timestep_shift"),
        ("--caption_dropout 0.1", "--caption_dropout"),
        ("--use_captions --caption_dropout 1.5", "--caption_dropout"),
        ("--optimizer prodigy --use_8bit_adam", "--use_8bit_adam"),
        ("--train_base_model --quantize_base nf4", "--train_base_model"),
    ],
)
def test_a_bad_value_is_wrong_use_and_names_its_flag(flags, named, capsys):
    with pytest.raises(SystemExit) as stop:
        tfi.parse_args([*DATA, *flags.split()])
    assert stop.value.code == 2
    assert named in capsys.readouterr().err


def test_the_data_root_is_required(capsys):
    with pytest.raises(SystemExit) as stop:
        tfi.parse_args([])
    assert stop.value.code == 2
    assert "--dataroot" in capsys.readouterr().err


def test_a_switch_can_be_turned_off_again():
    """A preset may switch something on that the user's later flag switches off."""
    on = tfi.parse_args([*DATA, "--use_dora", "--use_captions", "--gradient_checkpointing"])
    off = tfi.parse_args([*DATA, "--use_dora", "--no-use_dora", "--use_captions", "--no-use_captions"])
    assert on.use_dora and on.use_captions and on.gradient_checkpointing
    assert not off.use_dora and not off.use_captions


def test_every_flag_does_something():
    script = Path(tfi.__file__)
    trees = [ast.parse(path.read_text("utf-8")) for path in (script, *(script.parent / "training_run").glob("*.py"))]
    nodes = [node for tree in trees for node in tree.body if getattr(node, "name", "") != "parse_args"]
    used = {  # outside parse_args: checking is not using
        node.attr
        for top in nodes
        for node in ast.walk(top)
        if isinstance(node, ast.Attribute)
        and (getattr(node.value, "id", None) == "args" or getattr(node.value, "attr", None) == "args")
        and isinstance(node.ctx, ast.Load)
    }
    assert set(vars(tfi.parse_args(DATA))) - used == set()


@pytest.mark.parametrize(
    ("flags", "package"),
    [
        (["--optimizer", "prodigy"], "prodigyopt"),
        (["--use_8bit_adam"], "bitsandbytes"),
        (["--quantize_base", "fp8"], "torchao"),
        (["--report_to", "wandb"], "wandb"),
        (["--attention_backend", "flash"], "flash_attn"),
        ([], "tensorboard"),
    ],
)
def test_a_missing_package_is_named_before_anything_starts(flags, package, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # without a GPU bitsandbytes is not asked for
    monkeypatch.setattr(tfi, "start", lambda args: pytest.fail("started"))
    with pytest.raises(ValueError, match=f"{flags[0] if flags else '--report_to'}.* pip install {package}"):
        tfi.main(tfi.parse_args([*DATA, *flags]))


def test_half_precision_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--mixed_precision fp16 needs a CUDA GPU"):
        guards.check_packages(tfi.parse_args([*DATA, "--mixed_precision", "fp16"]))
    guards.check_packages(tfi.parse_args([*DATA, "--mixed_precision", "bf16"]))


# --------------------------------------------------------------------------------------------------------- models


def load(where: Path) -> FluxTransformer2DModel:
    args = tfi.parse_args([*DATA, "--pretrained_inpaint_model_name_or_path", str(where)])
    return tfi.load_transformer(args, torch.float32)


def test_a_transformer_loads_from_a_subfolder_and_from_the_root(tiny_flux_fill):
    below, at_root = load(tiny_flux_fill), load(tiny_flux_fill / "transformer")
    assert below.config.in_channels == at_root.config.in_channels == 384
    assert all(torch.equal(a, b) for a, b in zip(below.parameters(), at_root.parameters(), strict=True))


def test_a_folder_without_a_transformer_is_named(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):
        load(tmp_path)


def test_another_kind_of_model_is_refused(tiny_flux_fill):
    with pytest.raises(ValueError, match=r"holds an? AutoencoderKL .* not a FLUX\.1-Fill transformer"):
        load(tiny_flux_fill / "vae")


def test_a_flux_without_fill_channels_is_refused(tiny_flux_fill, tmp_path):
    config = json.loads((tiny_flux_fill / "transformer" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "in_channels": 64}))
    with pytest.raises(ValueError, match=r"64 input channels, not a FLUX\.1-Fill transformer, which has 384"):
        load(tmp_path)


# --------------------------------------------------------------------------------------------------- LoRA targets

DOUBLE_ATTENTION = "to_q to_k to_v to_out.0 add_q_proj add_k_proj add_v_proj to_add_out".split()
DOUBLE_FEED_FORWARD = "ff.net.0.proj ff.net.2 ff_context.net.0.proj ff_context.net.2".split()
ATTENTION = {f"transformer_blocks.{i}.attn.{name}" for i in range(2) for name in DOUBLE_ATTENTION} | {
    f"single_transformer_blocks.{i}.attn.{name}" for i in range(4) for name in ("to_q", "to_k", "to_v")
}
FEED_FORWARD = {f"transformer_blocks.{i}.{name}" for i in range(2) for name in DOUBLE_FEED_FORWARD} | {
    f"single_transformer_blocks.{i}.{name}" for i in range(4) for name in ("proj_mlp", "proj_out")
}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all", ATTENTION | FEED_FORWARD),
        ("attention", ATTENTION),
        ("to_q, proj_out", {name for name in ATTENTION | FEED_FORWARD if name.endswith((".to_q", "s.0.proj_out"))}
         | {f"single_transformer_blocks.{block}.proj_out" for block in range(1, 4)}),
        ("ff.net.2", {"transformer_blocks.0.ff.net.2", "transformer_blocks.1.ff.net.2"}),
    ],
)  # fmt: skip
def test_an_adapter_sits_on_exactly_the_wanted_layers(targets, expected, tiny_flux_fill):
    transformer = load(tiny_flux_fill)
    tfi.make_trainable(transformer, tfi.parse_args([*DATA, "--lora_rank", "2", "--lora_target_modules", targets]))
    adapted = {name for name, module in transformer.named_modules() if hasattr(module, "lora_A")}
    assert adapted == expected  # so neither the top-level proj_out nor an embedder nor a norm


@pytest.mark.parametrize("targets", ["to_qq", "to_q,", "x_embedder", "q"])
def test_an_unknown_target_is_answered_with_the_known_ones(targets, tiny_flux_fill):
    with pytest.raises(
        ValueError, match=r"--lora_target_modules: no layer named .* choose from all, attention, .*to_q"
    ):
        lora_pattern(targets, load(tiny_flux_fill))


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        # Per rank: 8 layers 192 -> 192 and 4 between 192 and 768 in each of 2 double blocks; 3 of 192 -> 192, one
        # 192 -> 768 and one 960 -> 192 in each of 4 single blocks. A layer has in + out numbers per rank.
        (["--lora_rank", "4"], 4 * (2 * (8 * 384 + 4 * 960) + 4 * (3 * 384 + 960 + 1152))),
        (["--lora_rank", "3", "--lora_target_modules", "attention"], 3 * (2 * 8 * 384 + 4 * 3 * 384)),
        # DoRA adds a magnitude for each output: 8 of 192, 2 of 768 and 2 of 192; 3 of 192, 768 and 192.
        (["--lora_rank", "4", "--use_dora"], 4 * 26880 + 2 * (10 * 192 + 2 * 768) + 4 * (4 * 192 + 768)),
        # 8 and 3 layers of 192 x 192 with bias, and 4 and 2 norms over a head's 32 numbers.
        (["--train_base_model"], 2 * (8 * (192 * 192 + 192) + 4 * 32) + 4 * (3 * (192 * 192 + 192) + 2 * 32)),
        (["--train_base_model", "all"], None),
    ],
)
def test_what_trains_is_fp32_over_a_frozen_bf16_base(flags, count, tiny_flux_fill):
    transformer = load(tiny_flux_fill).to(torch.bfloat16)
    trained = tfi.make_trainable(transformer, tfi.parse_args([*DATA, *flags]))
    count = sum(parameter.numel() for parameter in transformer.parameters()) if count is None else count
    assert sum(parameter.numel() for parameter in trained) == count
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    is_trained = {id(parameter) for parameter in trained}
    for name, parameter in transformer.named_parameters():
        wanted = (".attn." in name or "all" in flags) if "--train_base_model" in flags else "lora_" in name
        assert (id(parameter) in is_trained) == parameter.requires_grad == wanted, name
        assert wanted or parameter.dtype == torch.bfloat16, name


def trained_lora(tiny_flux_fill: Path, *flags: str, size: float = 0.1) -> tuple[FluxTransformer2DModel, object]:
    """A transformer whose LoRA matrices are ``size`` from zero, as after training."""
    args = tfi.parse_args([*DATA, "--pretrained_inpaint_model_name_or_path", str(tiny_flux_fill), *flags])
    transformer = load(tiny_flux_fill)
    torch.manual_seed(0)
    for parameter in tfi.make_trainable(transformer, args):
        parameter.data += size * torch.randn_like(parameter)
    return transformer, args


def forward(transformer: FluxTransformer2DModel, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Output on fixed random input: 2 pairs of 12 image tokens and 5 text tokens."""
    draw = torch.Generator().manual_seed(1)
    shapes = {"hidden_states": (2, 12, 384), "encoder_hidden_states": (2, 5, 32), "pooled_projections": (2, 32)}
    inputs = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    ids = {
        "txt_ids": torch.zeros(5, 3),
        "img_ids": torch.stack(torch.meshgrid(*map(torch.arange, (1, 3, 4)), indexing="ij"), -1),
    }
    ids["img_ids"] = ids["img_ids"].reshape(12, 3).float()
    with torch.no_grad():
        return transformer(**inputs, **ids, timestep=torch.tensor([0.3, 0.9]), guidance=torch.ones(2)).sample


@pytest.mark.parametrize("variant", [[], ["--use_dora"], ["--use_rslora"], ["--lora_target_modules", "to_q,proj_mlp"]])
def test_a_saved_lora_means_the_same_to_diffusers(variant, tiny_flux_fill, tmp_path):
    transformer, args = trained_lora(tiny_flux_fill, "--lora_rank", "4", "--lora_alpha", "6", *variant)
    tfi.save_lora(transformer, args, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]

    no_text = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = FluxFillPipeline.from_pretrained(tiny_flux_fill, torch_dtype=torch.float32, **no_text)
    bare = forward(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path)
    trained, loaded = forward(transformer), forward(pipeline.transformer)
    assert (trained - bare).abs().max() > 0.1
    torch.testing.assert_close(loaded, trained, rtol=0, atol=1e-5)


def without_metadata(tiny_flux_fill: Path, file: Path) -> FluxTransformer2DModel:
    """The base with B A added to each layer, as by readers that know nothing but the file's tensors: alpha = rank."""
    transformer, weights = load(tiny_flux_fill), load_file(file)
    for name, up in weights.items():
        if name.endswith(".lora_B.weight"):
            layer = name.removeprefix("transformer.").removesuffix(".lora_B.weight")
            transformer.get_submodule(layer).weight.data += up @ weights[name.replace("lora_B", "lora_A")]
    return transformer


@pytest.mark.parametrize(
    "variant",
    [
        *("--lora_alpha 6", "--lora_alpha 6 --use_rslora", "--lora_alpha 6 --use_dora"),
        *(
            pytest.param(flags, marks=pytest.mark.long)
            for flags in ("--lora_alpha 1", "", "--use_rslora", "--lora_alpha 8 --lora_target_modules attention")
        ),
    ],
)
def test_a_published_lora_means_the_same_to_every_reader(variant, tiny_flux_fill, tmp_path):
    transformer, args = trained_lora(tiny_flux_fill, "--lora_rank", "4", *variant.split(), size=0.03)
    file, trained = tfi.save_lora(transformer, args, tmp_path, published=True), forward(transformer)
    no_text = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = FluxFillPipeline.from_pretrained(tiny_flux_fill, torch_dtype=torch.float32, **no_text)
    pipeline.load_lora_weights(tmp_path)
    readers = [pipeline.transformer]
    readers += [] if "dora" in variant else [without_metadata(tiny_flux_fill, file)]
    exact = forward(copy.deepcopy(transformer).double(), torch.float64)  # where adding in another order is the same
    for reader in readers:
        torch.testing.assert_close(forward(reader.double(), torch.float64), exact, rtol=0, atol=1e-5)
    with safe_open(file, "pt") as stored:
        said = stored.metadata()
    adapter = json.loads(said["lora_adapter_metadata"])
    assert (said["rank"], said["alpha"], said["use_rslora"]) == ("4", "4", "False")
    assert (adapter["transformer.lora_alpha"], adapter["transformer.use_rslora"]) == (4, False)
    # What training goes on from keeps alpha and B as they are, and the model in memory is left alone.
    assert transformer.peft_config["default"].lora_alpha == (args.lora_alpha or 4)
    again = tfi.read_checkpoint_lora(transformer, args, tfi.save_lora(transformer, args, tmp_path).parent)
    tfi.set_peft_model_state_dict(transformer, again)
    assert torch.equal(forward(transformer), trained)


@pytest.mark.parametrize("published", [True, False])
def test_no_file_has_a_dropout_that_a_reader_applies(published, tiny_flux_fill, tmp_path):
    transformer, args = trained_lora(tiny_flux_fill, "--lora_rank", "4", "--lora_dropout", "0.5")
    file = tfi.save_lora(transformer, args, tmp_path, published)
    with safe_open(file, "pt") as stored:
        assert json.loads(stored.metadata()["lora_adapter_metadata"])["transformer.lora_dropout"] == 0
    assert transformer.peft_config["default"].lora_dropout == 0.5
    assert not torch.equal(forward(transformer), forward(transformer))
    reader = load(tiny_flux_fill).train()
    reader.load_lora_adapter(tmp_path, weight_name=file.name)
    torch.testing.assert_close(forward(reader), forward(transformer.eval()), rtol=0, atol=1e-5)


def test_alpha_scales_the_update(tiny_flux_fill):
    """The update is alpha / rank of the product of the matrices; with rsLoRA alpha / sqrt(rank)."""
    layer = "transformer_blocks.0.attn.to_q"
    for flags, scale in ((["--lora_alpha", "6"], 6 / 4), ([], 1), (["--lora_alpha", "6", "--use_rslora"], 6 / 2)):
        transformer, _ = trained_lora(tiny_flux_fill, "--lora_rank", "4", *flags)
        linear, x = transformer.get_submodule(layer), torch.randn(3, 192, generator=torch.Generator().manual_seed(2))
        down, up = linear.lora_A["default"].weight, linear.lora_B["default"].weight
        torch.testing.assert_close(linear(x) - linear.base_layer(x), scale * (x @ down.T @ up.T), rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------------- prompts


def test_one_constant_prompt_is_encoded_once(tiny_args, accelerator, monkeypatch):
    args, encoded = tiny_args(), []
    for name in ("_get_t5_prompt_embeds", "_get_clip_prompt_embeds"):
        real = getattr(FluxFillPipeline, name)
        monkeypatch.setattr(
            FluxFillPipeline,
            name,
            lambda self, prompt, real=real, **k: encoded.append(prompt) or real(self, prompt, **k),
        )
    prompts = tfi.distinct_prompts(args, ["a", "b", "c"])
    table = tfi.prompts_of_run(args, prompts, accelerator)
    assert prompts == [tfi.DEFAULT_PROMPT] and encoded == [tfi.DEFAULT_PROMPT] * 2  # by T5 and by CLIP
    assert table.embeds.shape == (1, 96, 32) and table.pooled.shape == (1, 32)


def test_each_distinct_caption_is_encoded_once_after_the_bare_prompt(tiny_args, accelerator):
    args = tiny_args("--use_captions", "--instance_prompt", "a pair.")
    prompts = tfi.distinct_prompts(args, ["red top", " red top ", "", "red top", "blue skirt"])
    assert prompts == ["a pair.", "a pair. red top", "a pair. blue skirt"]
    table = tfi.prompts_of_run(args, prompts, accelerator)
    assert table.embeds.shape == (3, 96, 32)
    embeds, pooled = table.look_up(["a pair. blue skirt", "a pair.", "a pair. blue skirt"], accelerator.device)
    assert torch.equal(embeds, table.embeds[[2, 0, 2]]) and torch.equal(pooled, table.pooled[[2, 0, 2]])
    assert not torch.equal(table.embeds[1], table.embeds[2])


def test_a_prompts_embedding_is_the_pipelines_own(tiny_args, accelerator, tiny_flux_fill):
    table = tfi.prompts_of_run(tiny_args(), ["red top"], accelerator)
    pipeline = FluxFillPipeline.from_pretrained(tiny_flux_fill, torch_dtype=torch.float32)
    with torch.no_grad():
        embeds, pooled, _ = pipeline.encode_prompt("red top", None, max_sequence_length=96)
    torch.testing.assert_close(table.embeds, embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(table.pooled, pooled, rtol=0, atol=1e-5)


def test_text_encoders_that_the_gpu_cannot_hold_give_the_same_from_main_memory(
    tiny_args, tiny_flux_fill, monkeypatch, caplog
):
    """The GPU is a pretended one: an encoder that went there would fail."""
    args = tiny_args("--use_captions", "--mixed_precision", "bf16")
    prompts = ["a pair", "a pair. red top", ""]
    pipeline = FluxFillPipeline.from_pretrained(tiny_flux_fill, torch_dtype=torch.bfloat16)
    monkeypatch.setattr(tfi.speed, "free_to_use", lambda device: 0)
    with caplog.at_level("INFO"):
        there = tfi.encode_prompts(args, prompts, torch.device("cuda"), torch.bfloat16)
    assert [name for name in ("T5EncoderModel", "CLIPTextModel") if name in caplog.text] == [
        "T5EncoderModel", "CLIPTextModel",
    ]  # fmt: skip
    here = tfi.encode_prompts(args, prompts, torch.device("cpu"), torch.bfloat16)
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            embeds, pooled, _ = pipeline.encode_prompt(prompt, None, max_sequence_length=96)
        for table in (there, here):
            assert torch.equal(table.embeds[row], embeds[0]) and torch.equal(table.pooled[row], pooled[0])


@pytest.mark.parametrize(("free", "kind"), [(1000 / 0.95 + 1, "cuda"), (1000 / 0.95 - 1, "cpu")])
def test_a_text_encoder_goes_to_a_gpu_that_it_fits(free, kind, monkeypatch):
    """250 weights of 4 bytes may fill 95% of what is free."""
    monkeypatch.setattr(tfi.speed, "free_to_use", lambda device: free)
    went = []
    encoder = SimpleNamespace(parameters=lambda: [torch.zeros(250)])
    encoder.to = lambda device: went.append(device.type) or encoder
    assert tfi.speed.place_encoder(encoder, torch.device("cuda")) is encoder
    assert went == (["cuda"] if kind == "cuda" else [])


@pytest.mark.parametrize("captions", [[], ["", "  "]])
def test_captions_are_not_used_where_there_are_none(captions, tiny_args):
    with pytest.raises(ValueError, match="--use_captions: this data has no captions"):
        tfi.distinct_prompts(tiny_args("--use_captions"), captions)


def test_the_text_encoders_leave_memory(tiny_args, accelerator, monkeypatch):
    seen, real = [], FluxFillPipeline.from_pretrained

    def watched(*args, **parts):
        gc.collect()
        assert all(reference() is None for reference in seen)  # one after the other
        pipeline = real(*args, **parts)
        assert pipeline.transformer is None and pipeline.vae is None
        (encoder,) = filter(None, (pipeline.text_encoder, pipeline.text_encoder_2))
        seen.append(weakref.ref(encoder))
        return pipeline

    monkeypatch.setattr(FluxFillPipeline, "from_pretrained", watched)
    gc.collect()
    table = tfi.prompts_of_run(tiny_args(), ["red top"], accelerator)
    assert len(seen) == 2 and [reference() for reference in seen] == [None, None]
    assert table.embeds.numel()


@pytest.mark.parametrize(("free", "fits"), [(2 * 3 * 96 * 32 * 4, True), (2 * 3 * 96 * 32 * 4 - 1, False)])
def test_embeddings_that_memory_cannot_hold_are_refused(free, fits, tiny_args, accelerator, monkeypatch):
    """3 prompts of 96 tokens of 32 fp32 numbers may take half of what is free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    if fits:
        assert len(tfi.prompts_of_run(tiny_args(), ["a", "b", "c"], accelerator).rows) == 3
    else:
        with pytest.raises(ValueError, match=r"3 distinct prompts need .* lower --max_sequence_length"):
            tfi.prompts_of_run(tiny_args(), ["a", "b", "c"], accelerator)


def test_the_vae_keeps_its_own_shift_and_scale(tiny_flux_fill):
    vae = AutoencoderKL.from_pretrained(tiny_flux_fill, subfolder="vae")
    vae.register_to_config(shift_factor=0.5, scaling_factor=3.0)
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    draw = torch.Generator().manual_seed(0)
    latents = tfi.draw_latents(tfi.encode_posterior(vae, picture), vae.config, torch.float32, draw)
    with torch.no_grad():
        plain = vae.encode(picture).latent_dist.sample(torch.Generator().manual_seed(0))
    assert latents.shape == (1, 16, 4, 4)
    torch.testing.assert_close(latents, (plain - 0.5) * 3)
