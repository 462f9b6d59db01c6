"""The LoRA of a run: which layers of a FLUX transformer get one, and the file that it is written to."""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save

from training_run.atomic import write_file
from training_run.output_dir import LORA_FILE

#: Linear layers inside a double or single block, by the ending of their name.
ATTENTION = (
    "attn.to_q attn.to_k attn.to_v attn.to_out.0 attn.add_q_proj attn.add_k_proj attn.add_v_proj attn.to_add_out"
)
FEED_FORWARD = "ff.net.0.proj ff.net.2 ff_context.net.0.proj ff_context.net.2 proj_mlp proj_out"
LORA_TARGETS = {"attention": ATTENTION.split(), "all": f"{ATTENTION} {FEED_FORWARD}".split()}


def wanted_layers(target_modules: str) -> list[str]:
    """Endings of the names of layers inside blocks that ``--lora_target_modules`` asks for."""
    return LORA_TARGETS.get(target_modules) or [name.strip() for name in target_modules.split(",")]


def lora_pattern(target_modules: str, transformer: torch.nn.Module) -> str:
    """Regular expression for layers inside blocks that ``--lora_target_modules`` names; ``ValueError`` for none."""
    wanted = wanted_layers(target_modules)
    inside = re.compile(r"(?:single_)?transformer_blocks\.\d+\.(.+)")
    layers = [name for name, module in transformer.named_modules() if "Linear" in type(module).__name__]
    endings = {match[1] for name in layers if (match := inside.fullmatch(name))}
    for name in wanted if target_modules not in LORA_TARGETS else []:
        if not name or not any(f".{ending}".endswith(f".{name}") for ending in endings):
            known = ", ".join(["all", "attention", *sorted(endings)])
            raise ValueError(f"--lora_target_modules: no layer named {name!r}; choose from {known}")
    return rf"(?:single_)?transformer_blocks\.\d+\.(?:.+\.)?(?:{'|'.join(map(re.escape, wanted))})"


def lora_config(args: argparse.Namespace, transformer: torch.nn.Module) -> LoraConfig:
    """The LoRA that the flags ask for. Alpha is the rank unless it is given."""
    return LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_rank if args.lora_alpha is None else args.lora_alpha,
        target_modules=lora_pattern(args.lora_target_modules, transformer),
        lora_dropout=args.lora_dropout,
        use_dora=args.use_dora,
        use_rslora=args.use_rslora,
    )


def lora_metadata(transformer: Any, args: argparse.Namespace, published: bool = False) -> dict[str, str]:
    """Metadata of the LoRA file: what diffusers needs to rebuild the adapter, and what a person needs to use it.

    ``published`` is as in ``save_lora``. A wrapper that does not stretch pictures says so in ``args.resize_mode``.
    """
    config = copy.copy(transformer.peft_config["default"])
    config.lora_dropout = 0.0  # it is for training; what a reader adds to a model may be in training mode
    if published:
        config.lora_alpha = config.r
        config.use_rslora = False
    adapter = {f"transformer.{key}": value for key, value in config.to_dict().items()}
    facts = {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "target_modules": args.lora_target_modules,
        "base_model": args.pretrained_model_name_or_path,
        "prompt": args.instance_prompt,
        "transformer": args.pretrained_inpaint_model_name_or_path,
        "use_rslora": config.use_rslora,
        "resize_mode": getattr(args, "resize_mode", "stretch"),
    }
    for name in "use_dora guidance_scale height width max_sequence_length use_captions num_inference_steps".split():
        facts[name] = getattr(args, name)
    adapter_json = json.dumps(adapter, default=sorted, sort_keys=True)  # sets become lists, as in diffusers
    return {"format": "pt", "lora_adapter_metadata": adapter_json, **{key: str(fact) for key, fact in facts.items()}}


def save_lora(transformer: Any, args: argparse.Namespace, folder: Path, published: bool = False) -> Path:
    """Write ``pytorch_lora_weights.safetensors``, which ``FluxFillPipeline.load_lora_weights(folder)`` reads.

    Most readers know neither alpha nor rsLoRA, which are in the metadata only, and take the update as B A. So in a
    ``published`` file B holds the scale and alpha is the rank. Otherwise the file is what is trained, to go on from.
    Raises ``ValueError`` when the LoRA is not finite.
    """
    weights = get_peft_model_state_dict(transformer)
    weights = {f"transformer.{name}": tensor.to("cpu").contiguous() for name, tensor in weights.items()}
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{broken[0]} is not finite, so nothing is saved: lower --learning_rate")
    config = transformer.peft_config["default"]
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    if published and scale != 1:
        weights = {name: tensor * scale if ".lora_B." in name else tensor for name, tensor in weights.items()}
    path = folder / LORA_FILE
    write_file(path, save(weights, lora_metadata(transformer, args, published)))
    return path


def read_checkpoint_lora(transformer: Any, args: argparse.Namespace, folder: Path) -> dict[str, torch.Tensor]:
    """The LoRA that ``save_lora`` wrote to ``folder``; ``ValueError`` where it is not of the adapter's form."""
    with safe_open(folder / LORA_FILE, "pt") as file:
        weights = {name.removeprefix("transformer."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = file.metadata() or {}
    wanted = lora_metadata(transformer, args)
    keys = ("rank", "alpha", "target_modules", "use_dora", "use_rslora")
    if wrong := [f"{key} {written.get(key)}, not {wanted[key]}" for key in keys if written.get(key) != wanted[key]]:
        raise ValueError(f"{folder} holds another LoRA than these flags make: {', '.join(wrong)}")
    shapes = {name: tensor.shape for name, tensor in get_peft_model_state_dict(transformer).items()}
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        raise ValueError(f"{folder} holds another LoRA than these flags make: its layers or ranks are others")
    return weights


def load_transformer_weights(model: torch.nn.Module, folder: Path) -> None:
    """Put the weights that ``--train_base_model`` has saved to ``folder`` into ``model``; others raise."""
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("[!.]*.safetensors")):
        weights |= load_file(file)
    model.load_state_dict(weights)
