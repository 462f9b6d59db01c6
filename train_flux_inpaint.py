"""Train FLUX.1-Fill to dress a person by inpainting the right half of a garment|person picture.

The pair is one picture of H x 2W pixels: the garment on the left, the person on the right. The area of the person
that the garment will cover is masked, and the model learns to repaint it so that the person wears the garment.
By default a LoRA is trained over a frozen base; ``--train_base_model`` trains the base's own weights instead.

This file stands alone, but for ``training_run`` beside it, which keeps a run from losing anything. A wrapper that
brings other data replaces ``VitonHDTestDataset`` in this module and calls
``main(parse_args([...]))``. A replacement is built by keyword (``dataroot_path, phase, order, size, data_list``),
yields the sample dict that ``VitonHDTestDataset`` documents, and may offer four methods, each used when present:
``captions()`` and ``cloth_types()`` (a list with one entry per row, read without opening pictures),
``sampling_weights()`` (a list, or None for uniform sampling) and ``summary()`` (facts for ``run.json``).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, gather_object, set_seed
from diffusers import AutoencoderKL, FluxFillPipeline, FluxTransformer2DModel
from diffusers import FlowMatchEulerDiscreteScheduler as FlowScheduler
from diffusers import training_utils as flow
from diffusers.optimization import get_scheduler
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from training_run import attention, bases, checkpoints, guards, latents, quantization, sharding, speed, trust
from training_run import state as saved_state
from training_run.atomic import replacing, write_file
from training_run.flags import DEFAULT_PROMPT as DEFAULT_PROMPT
from training_run.flags import OneLineParser, add_trainer_flags, refuse_contradictions
from training_run.guards import check_packages
from training_run.hub import subfolder_of_transformer
from training_run.lora_layers import lora_pattern
from training_run.optimizers import make_optimizer, optimizer_settings
from training_run.output_dir import (
    LORA_FILE,
    continues,
    find_checkpoint,
    forget_future,
    prepared,
    refuse_changes,
    refuse_earlier_run,
    refuse_finished,
)  # fmt: skip
from training_run.record import RunRecord, checkpoint_facts, start_curves
from training_run.row_order import PairStream, first_batches, seed_for, validation_rows
from training_run.sheets import labelled_grid, to_picture
from training_run.stopping import StoppedError, Stopping, settle_gloo, worker_ignores_signals

logger = get_logger(__name__)

#: Precision of everything frozen, by ``--mixed_precision``.
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of a run, from ``input_args`` or the command line. Wrong use exits with code 2."""
    parser = OneLineParser(description="Train FLUX.1-Fill on garment|person pairs.")
    add_trainer_flags(parser)
    args = parser.parse_args(input_args)
    refuse_contradictions(parser, args)
    return args


#: Names of this script's own arguments; a wrapper may add others.
OWN_ARGUMENTS = frozenset(vars(parse_args(["--dataroot", ""])))


class VitonHDTestDataset(Dataset):
    """Garment/person pairs of a VITON-HD folder.

    ``dataroot_path`` holds ``train/`` and ``test/``, each with ``image``, ``cloth``, ``cloth-mask`` and
    ``agnostic-mask`` (``<person>_mask.png``), and pair lists of ``person.jpg cloth.jpg`` lines. ``order`` "paired"
    dresses each person in the own garment, "unpaired" in the one that the list names. ``size`` is (height, width).

    A sample, with H, W = ``size`` and all tensors float32: ``image`` [3,H,2W] in [-1,1], garment left, person right;
    ``im_mask`` the same with the person's masked area 0; ``inpaint_mask`` [1,H,2W] in {0,1}, 1 = repaint;
    ``cloth_pure`` [3,H,W] in [-1,1]; ``cloth_mask`` [1,H,W] in {0,1}, 1 = garment; ``c_name``, ``im_name`` and
    ``caption_cloth`` str; ``cloth_type`` 1, an upper-body garment. Raises ``ValueError`` for a missing or malformed
    pair list, a name that leaves the data root, or a missing file.
    """

    def __init__(
        self, dataroot_path: str, phase: Literal["train", "test"], order: Literal["paired", "unpaired"] = "paired",
        size: tuple[int, int] = (768, 576), data_list: str | None = None,
    ) -> None:  # fmt: skip
        self.root, self.phase, (self.height, self.width) = Path(dataroot_path), phase, size
        pair_list = self._inside(data_list or f"{phase}_pairs.txt")
        if not pair_list.is_file():
            raise ValueError(f"no pair list {pair_list}: a VITON-HD folder has one of 'person.jpg cloth.jpg' lines")
        self.pairs: list[tuple[str, str]] = []
        for number, line in enumerate(pair_list.read_text("utf-8-sig").splitlines(), start=1):
            names = line.split()
            if len(names) not in (0, 2):
                raise ValueError(f"{pair_list} line {number}: expected 'person.jpg cloth.jpg', found {line!r}")
            if names:
                self.pairs.append((names[0], names[0] if order == "paired" else names[1]))
        if not self.pairs:
            raise ValueError(f"{pair_list} names no pairs")
        for path in (path for pair in self.pairs for path in self._files(*pair)):
            if not path.is_file():
                raise ValueError(f"{pair_list} names a pair whose file {path} is missing")

    def _inside(self, *parts: str) -> Path:
        """Path of a file under the data root; a name or a link that leads out of it is refused."""
        path = self.root.joinpath(*parts)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f"{'/'.join(parts)!r} leaves the data root {self.root}")
        return path

    def _files(self, person: str, cloth: str) -> tuple[Path, ...]:
        mask = f"{person.rpartition('.')[0]}_mask.png"
        named = {"image": person, "cloth": cloth, "cloth-mask": cloth, "agnostic-mask": mask}
        return tuple(self._inside(self.phase, folder, name) for folder, name in named.items())

    def _read(self, path: Path, mode: str, resample: Image.Resampling) -> torch.Tensor:
        pixels = np.array(guards.read_picture(path, mode).resize((self.width, self.height), resample))
        return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        person_name, cloth_name = self.pairs[index]
        files = self._files(person_name, cloth_name)
        person, cloth = (self._read(file, "RGB", Image.Resampling.LANCZOS) / 127.5 - 1 for file in files[:2])
        cloth_mask, mask = ((self._read(file, "L", Image.Resampling.NEAREST) > 127).float() for file in files[2:])
        pair = {
            "image": torch.cat([cloth, person], dim=2),
            "im_mask": torch.cat([cloth, person * (1 - mask)], dim=2),
            "inpaint_mask": torch.cat([torch.zeros_like(mask), mask], dim=2),
        }
        names = {"c_name": cloth_name, "im_name": person_name, "caption_cloth": "", "cloth_type": 1}
        return {**pair, "cloth_pure": cloth, "cloth_mask": cloth_mask, **names}

    def summary(self) -> dict[str, Any]:
        """Facts for ``run.json``."""
        facts = {"source": str(self.root), "split": self.phase, "rows": len(self), "by_type": {"upper": len(self)}}
        return facts | {"fingerprint": hashlib.sha256(repr(self.pairs).encode()).hexdigest()}

    def content_key(self) -> str:
        """Changes with the pairs and with size or time of change of any of their files."""
        stats = [path.stat() for pair in self.pairs for path in self._files(*pair)]
        return hashlib.sha256(repr((self.pairs, [(s.st_size, s.st_mtime_ns) for s in stats])).encode()).hexdigest()


def build_datasets(args: argparse.Namespace) -> tuple[Any, Any]:
    """Training and validation datasets, through whatever ``VitonHDTestDataset`` now is in this module."""
    common: dict[str, Any] = {"dataroot_path": args.dataroot, "order": "paired", "size": (args.height, args.width)}
    train = VitonHDTestDataset(phase="train", data_list=args.train_data_list, **common)
    return train, VitonHDTestDataset(phase="test", data_list=args.validation_data_list, **common)


def make_loader(dataset: Any, args: argparse.Namespace, accelerator: Accelerator, first_step: int) -> DataLoader:
    """Loader of this rank's batches from optimizer step ``first_step`` to the end of the run."""
    passes, workers = args.gradient_accumulation_steps, args.dataloader_num_workers
    weights = dataset.sampling_weights() if hasattr(dataset, "sampling_weights") else None
    batches = range(first_step * passes, args.max_train_steps * passes)
    ranks = (accelerator.process_index, accelerator.num_processes)
    return DataLoader(
        dataset, batch_sampler=PairStream(len(dataset), args.train_batch_size, batches, args.seed, *ranks, weights),
        num_workers=workers, prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        pin_memory=accelerator.device.type == "cuda", worker_init_fn=worker_ignores_signals if workers else None,
    )  # fmt: skip


def load_vae(args: argparse.Namespace, device: torch.device) -> AutoencoderKL:
    """The frozen VAE of the base pipeline."""
    options = pipeline_options(args, DTYPES[args.mixed_precision])
    vae = AutoencoderKL.from_pretrained(args.pretrained_model_name_or_path, subfolder="vae", **options)
    return vae.to(device, memory_format=torch.channels_last).requires_grad_(False)


def load_transformer(args: argparse.Namespace, dtype: torch.dtype) -> FluxTransformer2DModel:
    """The transformer to train, from files at the root or under ``transformer/``; else raises ``ValueError``."""
    where = args.pretrained_inpaint_model_name_or_path
    hub: dict[str, Any] = {"revision": args.inpaint_revision, "cache_dir": args.cache_dir}
    hub["subfolder"] = subfolder_of_transformer(where, **hub)
    try:
        config = FluxTransformer2DModel.load_config(where, **hub)
    except OSError as error:
        raise ValueError(f"no transformer at the root of {where!r} or under transformer/: {error}") from error
    if config.get("_class_name") != "FluxTransformer2DModel" or config.get("in_channels") != 384:
        raise ValueError(
            f"--pretrained_inpaint_model_name_or_path {where!r} holds a {config.get('_class_name')} with "
            f"{config.get('in_channels')} input channels, not a FLUX.1-Fill transformer, which has 384"
        )
    options = {"variant": args.variant, "quantization_config": quantization.settings(args.quantize_base, dtype)}
    return FluxTransformer2DModel.from_pretrained(where, torch_dtype=dtype, use_safetensors=True, **options, **hub)


def pipeline_options(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """How parts of the base pipeline are loaded."""
    hub = {"revision": args.revision, "variant": args.variant, "cache_dir": args.cache_dir}
    return {**hub, "torch_dtype": dtype, "use_safetensors": True}


def load_text_encoders(args: argparse.Namespace, dtype: torch.dtype) -> FluxFillPipeline:
    """CLIP and T5 with their tokenizers, as a pipeline that holds nothing else."""
    base = args.pretrained_model_name_or_path
    return FluxFillPipeline.from_pretrained(base, transformer=None, vae=None, **pipeline_options(args, dtype))


def encode_prompt(
    text_encoders: FluxFillPipeline, prompts: list[str], max_sequence_length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """T5 embeddings [P, max_sequence_length, D] and pooled CLIP embeddings [P, E] of ``prompts``."""
    with torch.no_grad():
        embeds, pooled, _ = text_encoders.encode_prompt(
            prompt=prompts, prompt_2=prompts, device=device, max_sequence_length=max_sequence_length
        )
    return embeds, pooled


@dataclass
class PromptTable:
    """Embeddings of every distinct prompt of a run: ``embeds`` [P,L,D], ``pooled`` [P,E], and the row of each."""

    rows: dict[str, int]
    embeds: torch.Tensor
    pooled: torch.Tensor

    @classmethod
    def of(cls, prompts: Sequence[str], embeds: torch.Tensor, pooled: torch.Tensor) -> PromptTable:
        """The table of ``prompts``, whose embeddings are in the same order."""
        return cls({prompt: row for row, prompt in enumerate(prompts)}, embeds, pooled)

    def look_up(self, prompts: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of ``prompts`` on ``device``: [B,L,D] and [B,E]."""
        index = speed.to_device(torch.tensor([self.rows[prompt] for prompt in prompts]), self.embeds.device)
        return speed.to_device(self.embeds[index], device), speed.to_device(self.pooled[index], device)


def prompt_of(args: argparse.Namespace, caption: str) -> str:
    """Prompt of a row with ``caption``."""
    return f"{args.instance_prompt} {caption.strip()}".strip() if args.use_captions else args.instance_prompt


def distinct_prompts(args: argparse.Namespace, captions: Sequence[str]) -> list[str]:
    """Every prompt that rows of these ``captions`` need, the bare one first; ``ValueError`` when all are empty."""
    prompts = {prompt_of(args, ""): None}
    if args.use_captions:
        if not any(caption.strip() for caption in captions):
            raise ValueError("--use_captions: this data has no captions; leave the flag out")
        prompts.update({prompt_of(args, caption): None for caption in captions})
    return list(prompts)


def encode_prompts_once(args: argparse.Namespace, prompts: list[str], accelerator: Accelerator) -> PromptTable:
    """Encode every distinct prompt, then let T5 and CLIP leave memory. A small table stays on the device.

    Raises ``ValueError`` when the table would take more than half of the main memory that is free.
    """
    device, dtype = accelerator.device, DTYPES[args.mixed_precision]
    logger.info(f"Encoding {len(prompts)} prompt{'s' * (len(prompts) > 1)} with T5 and CLIP")
    text_encoders = load_text_encoders(args, dtype).to(device)
    size = len(prompts) * args.max_sequence_length * text_encoders.text_encoder_2.config.d_model * dtype.itemsize
    free = psutil.virtual_memory().available
    if size > free / 2:
        raise ValueError(
            f"the embeddings of {len(prompts)} distinct prompts need {size / 2**30:.1f} GiB of memory and "
            f"{free / 2**30:.1f} GiB are free: lower --max_sequence_length, take fewer rows, or drop --use_captions"
        )
    keep = device if size < 2**28 else torch.device("cpu")
    quiet, parts = not accelerator.is_main_process or len(prompts) < 16, []
    for prompt in tqdm(prompts, desc="Encoding prompts", disable=quiet):
        encoded = encode_prompt(text_encoders, [prompt], args.max_sequence_length, device)
        parts.append([tensor.to(keep, dtype) for tensor in encoded])
    del text_encoders
    speed.free_memory()
    return PromptTable.of(prompts, *map(torch.cat, zip(*parts, strict=True)))


def cached_prompts(args: argparse.Namespace, prompts: list[str], accelerator: Accelerator) -> PromptTable:
    """``encode_prompts_once``, kept on disk by ``--cache_latents``: T5 and CLIP are loaded the first time only."""
    known = bases.pipeline_facts(args, bases.TEXT_PARTS)
    facts = {"encoders": known, "variant": args.variant, "dtype": str(DTYPES[args.mixed_precision])}
    facts |= {"length": args.max_sequence_length, "prompts": prompts}
    path = latents_dir(args) / f"prompts-{latents.digest(facts)}.safetensors"

    def encode() -> dict[str, torch.Tensor]:
        table = encode_prompts_once(args, prompts, accelerator)
        return {"embeds": table.embeds, "pooled": table.pooled}

    if not known:  # nothing tells these text encoders from later ones of the same name
        return encode_prompts_once(args, prompts, accelerator)
    found = latents.kept_tensors(path, encode, writes=accelerator.is_main_process)
    return PromptTable.of(prompts, found["embeds"], found["pooled"])


def make_trainable(transformer: FluxTransformer2DModel, args: argparse.Namespace) -> list[torch.nn.Parameter]:
    """Freeze the base, then add the LoRA or unfreeze weights, and return what the optimizer gets, in fp32."""
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(args.train_base_model == "all" or (bool(args.train_base_model) and ".attn." in name))
    if not args.train_base_model:
        alpha = args.lora_rank if args.lora_alpha is None else args.lora_alpha
        targets = lora_pattern(args.lora_target_modules, transformer)
        variants = {"use_dora": args.use_dora, "use_rslora": args.use_rslora}
        transformer.add_adapter(LoraConfig(r=args.lora_rank, lora_alpha=alpha, target_modules=targets, **variants))
    flow.cast_training_params(transformer, dtype=torch.float32)
    if args.gradient_checkpointing != "auto":  # which is decided when there is a step to measure
        blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
        speed.recompute(transformer, speed.recomputed_by(args.gradient_checkpointing, blocks))
    if args.compile_blocks:
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    return [parameter for parameter in transformer.parameters() if parameter.requires_grad]


def lora_metadata(
    transformer: FluxTransformer2DModel, args: argparse.Namespace, published: bool = False
) -> dict[str, str]:
    """Metadata of the LoRA file: what diffusers needs to rebuild the adapter, and what a person needs to use it.

    ``published`` is as in ``save_lora``. A wrapper that does not stretch pictures says so in ``args.resize_mode``.
    """
    config = transformer.peft_config["default"]
    if published:
        config = copy.copy(config)
        config.lora_alpha, config.use_rslora = config.r, False
    adapter = {f"transformer.{key}": value for key, value in config.to_dict().items()}
    facts = {"rank": config.r, "alpha": config.lora_alpha, "target_modules": args.lora_target_modules}
    facts |= {"base_model": args.pretrained_model_name_or_path, "prompt": args.instance_prompt}
    facts |= {"transformer": args.pretrained_inpaint_model_name_or_path}
    names = ("use_dora", "guidance_scale", "height", "width", "max_sequence_length", "use_captions")
    facts |= {name: getattr(args, name) for name in (*names, "num_inference_steps")}
    facts |= {"use_rslora": config.use_rslora, "resize_mode": getattr(args, "resize_mode", "stretch")}
    adapter_json = json.dumps(adapter, default=sorted, sort_keys=True)  # sets become lists, as in diffusers
    return {"format": "pt", "lora_adapter_metadata": adapter_json, **{key: str(fact) for key, fact in facts.items()}}


def update_scale(config: LoraConfig) -> float:
    """What the LoRA's update B A is multiplied with."""
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)


def save_lora(
    transformer: FluxTransformer2DModel,
    args: argparse.Namespace,
    folder: Path,
    moved: bool = False,
    published: bool = False,
) -> Path:
    """Write ``pytorch_lora_weights.safetensors``, which ``FluxFillPipeline.load_lora_weights(folder)`` reads.

    A ``published`` one is for every reader: most know neither alpha nor rsLoRA, which only metadata tell, and take the
    update as B A. So its B holds the scale, and its alpha is its rank. Without, it is what is trained, to go on from.

    Raises ``ValueError`` when it is not finite, when a layer has learned nothing although it has ``moved``, and when
    the file does not read back as it is in memory.
    """
    weights = get_peft_model_state_dict(transformer)
    weights = {f"transformer.{name}": tensor.to("cpu").contiguous() for name, tensor in weights.items()}
    guards.check_lora(weights, moved)
    if published and (scale := update_scale(transformer.peft_config["default"])) != 1:
        weights = {name: tensor * scale if ".lora_B." in name else tensor for name, tensor in weights.items()}
    write_file(folder / LORA_FILE, serialize(weights, lora_metadata(transformer, args, published)))
    saved_state.loads_back(lambda: load_file(folder / LORA_FILE), weights, LORA_FILE)
    return folder / LORA_FILE


def read_lora(transformer: FluxTransformer2DModel, args: argparse.Namespace, folder: Path) -> dict[str, torch.Tensor]:
    """The LoRA that ``save_lora`` wrote to ``folder``; ``ValueError`` where it is not of the adapter's form."""
    with safe_open(folder / LORA_FILE, "pt") as file:
        weights = {name.removeprefix("transformer."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written, here = file.metadata() or {}, lora_metadata(transformer, args)
    keys = ("rank", "alpha", "target_modules", "use_dora", "use_rslora")
    if wrong := [f"{key} {written.get(key)}, not {here[key]}" for key in keys if written.get(key) != here[key]]:
        raise ValueError(f"{folder} holds another LoRA than these flags make: {', '.join(wrong)}")
    shapes = {name: tensor.shape for name, tensor in get_peft_model_state_dict(transformer).items()}
    there = {name: tensor.shape for name, tensor in weights.items()}
    if wrong := [name for name in shapes | there if shapes.get(name) != there.get(name)]:
        raise ValueError(f"{folder} holds another LoRA than these flags make: {wrong[0]} and {len(wrong) - 1} others")
    return weights


def encode_images_to_latents(
    vae: AutoencoderKL, pixel_values: torch.Tensor, dtype: torch.dtype, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Latents [B,16,h,w] of pictures [B,3,8h,8w] in [-1,1]: a draw from the VAE's posterior, shifted and scaled."""
    return draw_latents(encode_posterior(vae, pixel_values), vae.config, dtype, generator)


def encode_posterior(vae: AutoencoderKL, pixel_values: torch.Tensor) -> torch.Tensor:
    """The VAE's posterior of pictures [B,3,8h,8w] in [-1,1]: mean and standard deviation, [B,2,16,h,w]."""
    with torch.no_grad():
        found = vae.encode(pixel_values.to(vae.device, vae.dtype)).latent_dist
    return torch.stack([found.mean, found.std], dim=1)


def draw_latents(
    posterior: torch.Tensor, vae_config: Any, dtype: torch.dtype, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Latents [B,16,h,w] drawn from a posterior of ``encode_posterior``, shifted and scaled."""
    mean, deviation = posterior.unbind(1)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return ((mean + deviation * noise - vae_config.shift_factor) * vae_config.scaling_factor).to(dtype)


def pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """[B,C,h,w] to [B, h/2 * w/2, 4C]: each token holds a 2x2 patch."""
    return FluxFillPipeline._pack_latents(latents, *latents.shape)


def prepare_fill_with_mask(
    vae: AutoencoderKL, masked_image: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype,
    generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Fill conditioning [B, h/2 * w/2, 64 + 256], equal to what ``FluxFillPipeline`` builds.

    ``masked_image`` [B,3,8h,8w] in [-1,1] with the masked area 0, ``mask`` [B,1,8h,8w] in {0,1}. 64 channels are the
    packed latents of the masked picture, 256 the mask: 8x8 pixels un-shuffled into 64 channels and packed alike.
    """
    return fill_conditioning(encode_images_to_latents(vae, masked_image, dtype, generator), mask, dtype)


def fill_conditioning(image_latents: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What ``prepare_fill_with_mask`` returns, from the latents [B,16,h,w] of the masked picture."""
    scale = mask.shape[-1] // image_latents.shape[-1]
    mask_blocks = torch.nn.functional.pixel_unshuffle(mask, scale).to(image_latents.device, dtype)
    return torch.cat([pack_latents(image_latents), pack_latents(mask_blocks)], dim=2)


def encode_rows(vae: AutoencoderKL, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Posteriors of collated samples, each [B,2,16,h,w]: ``target`` of the pair, ``masked`` of the masked pair."""
    return {"target": encode_posterior(vae, samples["image"]), "masked": encode_posterior(vae, samples["im_mask"])}


def cache_latents(args: argparse.Namespace, data: Any, accelerator: Accelerator) -> tuple[latents.CachedRows, Any]:
    """The rows of ``data`` with their posteriors in the place of pictures, and the settings of the VAE.

    Encodes what the cache lacks; the VAE leaves memory then.
    """
    vae = load_vae(args, accelerator.device)
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = args.height, 2 * args.width
    facts = {"vae": latents.weights_digest(vae), "dtype": str(vae.dtype)}
    rows = latents.cached_rows(
        data, latents_dir(args), facts, functools.partial(encode_rows, vae), accelerator,
        latent_shape=(vae.config.latent_channels, height // scale, width // scale), mask_shape=(height, width),
        dtype=vae.dtype, batch_size=args.train_batch_size, workers=args.dataloader_num_workers,
    )  # fmt: skip
    return rows, vae.config


def latents_dir(args: argparse.Namespace) -> Path:
    """Where ``--cache_latents`` keeps what it has encoded."""
    return Path(args.latents_dir or Path(args.output_dir, "latents"))


def region_maps(inpaint_mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[B,3,h,w] of 0 and 1, summing to 1: latent cells of the garment half, with a masked pixel, of the rest."""
    masked = torch.nn.functional.adaptive_max_pool2d(inpaint_mask, (height, width))
    garment = torch.zeros_like(masked)
    garment[..., : width // 2], masked[..., : width // 2] = 1, 0
    return torch.cat([garment, masked, 1 - garment - masked], dim=1)


@dataclass
class FillBatch:
    """One forward pass worth of pairs, encoded: what the model sees and what it has to predict."""

    latents: torch.Tensor  # [B,16,h,w] of the whole pair
    conditioning: torch.Tensor  # [B,N,320] of prepare_fill_with_mask
    regions: torch.Tensor  # [B,3,h,w] of region_maps
    prompt_embeds: torch.Tensor  # [B,L,D]
    pooled_embeds: torch.Tensor  # [B,E]
    noise: torch.Tensor  # [B,16,h,w], standard normal
    timesteps: torch.Tensor  # [B] in (0, 1000]
    sigmas: torch.Tensor  # [B], the share of noise at that timestep
    names: Sequence[str] = ()  # of the rows, for who has to look at them


def sample_timesteps(
    scheduler: FlowScheduler, count: int, args: argparse.Namespace, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` timesteps and their sigmas, drawn from the scheduler's training steps by ``--weighting_scheme``."""
    how = {"logit_mean": args.logit_mean, "logit_std": args.logit_std, "mode_scale": args.mode_scale}
    u = flow.compute_density_for_timestep_sampling(args.weighting_scheme, count, generator=generator, **how)
    steps = scheduler.config.num_train_timesteps
    index = (u * steps).long().clamp(0, steps - 1)
    return scheduler.timesteps[index], scheduler.sigmas[index]


@functools.lru_cache(maxsize=4)
def image_ids(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Positions of the tokens of a pair, [rows * columns, 3]; made once, as that takes a copy from the host."""
    return FluxFillPipeline._prepare_latent_image_ids(1, rows, columns, device, dtype)


def predict_velocity(
    transformer: torch.nn.Module, batch: FillBatch, guidance_scale: float, takes_guidance: bool
) -> torch.Tensor:
    """The model's prediction of ``noise - latents``, [B,16,h,w]."""
    sigmas = batch.sigmas.to(batch.latents.dtype).view(-1, 1, 1, 1)
    noisy = (1 - sigmas) * batch.latents + sigmas * batch.noise
    (size, _, h, w), device, dtype = noisy.shape, noisy.device, noisy.dtype
    packed = transformer(
        hidden_states=torch.cat([pack_latents(noisy), batch.conditioning], dim=2),
        timestep=batch.timesteps / 1000,
        guidance=torch.full([size], guidance_scale, device=device) if takes_guidance else None,
        pooled_projections=batch.pooled_embeds,
        encoder_hidden_states=batch.prompt_embeds,
        txt_ids=torch.zeros(batch.prompt_embeds.shape[1], 3, device=device, dtype=dtype),
        img_ids=image_ids(h // 2, w // 2, device, dtype),
        return_dict=False,
    )[0]
    return FluxFillPipeline._unpack_latents(packed, h, w, vae_scale_factor=1)


def flow_matching_loss(
    prediction: torch.Tensor, batch: FillBatch, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss to minimise, and a [3,2] tensor of squared error and count in each region, unweighted.

    The loss is the mean over the whole pair of the squared error against ``noise - latents``, times the weighting
    of ``--weighting_scheme``, times the weight of the region. With region weights 1 it is plain flow matching.
    """
    error = (prediction.float() - (batch.noise.float() - batch.latents.float())) ** 2
    weights = (args.garment_loss_weight, args.mask_loss_weight, args.background_loss_weight)
    weighted = [weight * batch.regions[:, k : k + 1] for k, weight in enumerate(weights)]
    region_weight = weighted[0] + weighted[1] + weighted[2]
    scheme = flow.compute_loss_weighting_for_sd3(args.weighting_scheme, sigmas=batch.sigmas).view(-1, 1, 1, 1)
    loss = (scheme.float() * region_weight * error).mean()
    with torch.no_grad():
        sums = (error.sum(dim=1, keepdim=True) * batch.regions).sum(dim=(0, 2, 3))
        counts = batch.regions.sum(dim=(0, 2, 3)) * error.shape[1]
    return loss, torch.stack([sums, counts], dim=1)


def start(args: argparse.Namespace) -> Accelerator:
    """Accelerator of this process, with seeds set."""
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps, mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/logs"),
        # One rank draws, saves or reads a base while the others wait: NCCL's own 10 minutes can be too short.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )  # fmt: skip
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32
    set_seed(args.seed)
    return accelerator


class Run:
    """A training run: the models, what is trained, and how a step is taken. ``main`` builds one and drives it."""

    def __init__(
        self, args: argparse.Namespace, accelerator: Accelerator, prompts: PromptTable, vae_config: Any = None,
        attention_backend: str | None = None,
    ) -> None:  # fmt: skip
        """Load the models. With ``vae_config`` the VAE stays away, as samples have its posteriors already.

        ``attention_backend`` is the one that a run to be continued has had.
        """
        self.args, self.accelerator, self.prompts, self.step = args, accelerator, prompts, 0
        self.skipped = guards.SkippedSteps(args.max_skipped_steps, Path(args.output_dir))
        self.moved, self.saved_at, self.spikes, self.stopping = False, 0, guards.SpikeWatch(), Stopping()
        self.quantized: dict[str, Any] | None = None  # what see_quantization has found
        self.unread = list[guards.UnreadStep]()  # steps that the host has not waited for
        self.unlogged = torch.zeros(4, 2, device=accelerator.device)  # sums of optimizer_step since the last reading
        self.folder, base = Path(args.output_dir), args.pretrained_model_name_or_path
        dtype = DTYPES[args.mixed_precision]
        hub = {"revision": args.revision, "cache_dir": args.cache_dir}
        self.scheduler = FlowScheduler.from_pretrained(base, subfolder="scheduler", **hub)
        self.vae = load_vae(args, accelerator.device) if vae_config is None else None
        self.vae_config = vae_config if self.vae is None else self.vae.config
        transformer = load_transformer(args, dtype)
        if not args.shard_base:  # else it goes there in parts
            quantization.to_device(transformer, args.quantize_base, accelerator.device)
        shape = attention.shape_of(args, transformer.config)
        wanted = attention_backend or args.attention_backend
        self.attention = attention.choose_backend(transformer, wanted, shape, dtype, accelerator)
        set_seed(args.seed)  # whatever was loaded or encoded before, on every rank: the LoRA begins the same
        self.parameters = make_trainable(transformer, args)
        if args.shard_base:
            sharding.place_trained(self.parameters, accelerator.device)
        speed.leave_frozen_out_of_broadcast(transformer)
        self.takes_guidance = transformer.config.guidance_embeds
        optimizer = make_optimizer(transformer, args)
        steps = (args.lr_warmup_steps, args.max_train_steps, args.lr_num_cycles, args.lr_power)
        self.lr_scheduler = get_scheduler(args.lr_scheduler, optimizer, None, *steps)
        placed = [not args.shard_base, True]
        self.transformer, self.optimizer = accelerator.prepare(transformer, optimizer, device_placement=placed)
        self.model: FluxTransformer2DModel = accelerator.unwrap_model(self.transformer)
        if args.shard_base:
            sharding.shard_frozen(self.model, accelerator)
        self.fused = accelerator.scaler is None and bool(optimizer.defaults.get("fused"))
        self.base_facts = bases.base_facts(args)

    def encode(self, samples: dict[str, Any], forward_pass: int) -> FillBatch:
        """Encode collated samples; every random draw follows from seed, rank and the number of the forward pass."""
        args, device, dtype = self.args, self.accelerator.device, DTYPES[self.args.mixed_precision]
        draw = seed_for(args.seed, self.accelerator.process_index, forward_pass)
        on_device, on_cpu = torch.Generator(device).manual_seed(draw), torch.Generator().manual_seed(draw)
        mask = samples["inpaint_mask"].to(device, non_blocking=True)
        posteriors = samples if self.vae is None else encode_rows(self.vae, samples)
        target, masked = (posteriors[name].to(device, non_blocking=True) for name in ("target", "masked"))
        latents = draw_latents(target, self.vae_config, dtype, on_device)
        conditioning = fill_conditioning(draw_latents(masked, self.vae_config, dtype, on_device), mask, dtype)
        noise = torch.randn(latents.shape, generator=on_device, device=device, dtype=dtype)
        timesteps, sigmas = sample_timesteps(self.scheduler, len(latents), args, on_cpu)
        keep = (torch.rand(len(latents), generator=on_cpu) >= args.caption_dropout).tolist()
        captions = [caption if kept else "" for caption, kept in zip(samples["caption_cloth"], keep, strict=True)]
        text = self.prompts.look_up([prompt_of(args, caption) for caption in captions], device)
        regions, names = region_maps(mask, *latents.shape[-2:]), samples.get("im_name", ())
        times = speed.to_device(timesteps, device), speed.to_device(sigmas, device)
        return FillBatch(latents, conditioning, regions, *text, noise, *times, names)

    def fit_memory(self, samples: dict[str, Any]) -> None:
        """For ``--gradient_checkpointing auto``: measure forward and backward passes on ``samples``, train nothing."""

        def step() -> None:
            try:  # each rank tries by itself, so nothing may be sent; and a trial that fails leaves nothing behind
                with getattr(self.transformer, "no_sync", contextlib.nullcontext)():
                    made = predict_velocity(self.transformer, batch, self.args.guidance_scale, self.takes_guidance)
                    self.accelerator.backward(flow_matching_loss(made, batch, self.args)[0])
            finally:
                self.optimizer.zero_grad()

        batch = self.encode(samples, 0)
        moments = 2 * sum(parameter.numel() * 4 for parameter in self.parameters)
        self.recomputed = speed.choose_recomputed(self.model, step, moments, self.accelerator)

    def see_quantization(self, batches: Iterable[dict[str, Any]]) -> None:
        """Tell the loss of collated ``batches`` beside the unquantized base's. For a LoRA that changes nothing yet."""
        args, dtype = self.args, DTYPES[self.args.mixed_precision]
        encoded = [self.encode(batch, number) for number, batch in enumerate(batches)]
        load = functools.partial(load_transformer, argparse.Namespace(**{**vars(args), "quantize_base": None}), dtype)

        def losses_of(transformer: torch.nn.Module) -> list[torch.Tensor]:
            how = (self.args.guidance_scale, self.takes_guidance)
            with torch.no_grad(), self.accelerator.autocast():
                made = [predict_velocity(transformer, batch, *how) for batch in encoded]
            return [flow_matching_loss(*pair, self.args)[0] for pair in zip(made, encoded, strict=True)]

        device, pairs = self.accelerator.device, sum(len(batch.latents) for batch in encoded)
        self.quantized = quantization.compare(args.quantize_base, self.model, load, losses_of, dtype, device, pairs)

    def optimizer_step(self, batches: Iterable[FillBatch]) -> torch.Tensor:
        """Take one step over ``batches``, unless loss or gradient is not finite; ``read_back`` says whether they were.

        Returns [4,2]: error and count of each region, loss and number of passes; zeros where no step was taken. With a
        fused optimizer and without fp16's scaler the host waits for nothing.
        """
        totals, rows, parts = torch.zeros(4, 2, device=self.accelerator.device), list[str](), self.parameters
        for batch in batches:
            rows += batch.names
            with self.accelerator.accumulate(self.transformer):
                prediction = predict_velocity(self.transformer, batch, self.args.guidance_scale, self.takes_guidance)
                loss, regions = flow_matching_loss(prediction, batch, self.args)
                self.accelerator.backward(loss)
                totals[:3] += regions
                totals[3] += torch.stack([loss.detach(), torch.ones_like(loss)])
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(parts, self.args.max_grad_norm or math.inf)
                    wrong, scale = self.is_wrong(totals, norm), guards.scale_of(self.accelerator.scaler)
                    if self.fused:  # which leaves a wrong step out by itself, on the device
                        self.optimizer.optimizer.found_inf = wrong
                    if self.fused or self.accelerator.scaler is not None or not wrong.item():
                        self.optimizer.step()
                    self.optimizer.zero_grad()
        self.step += 1
        left_out = guards.scale_of(self.accelerator.scaler) < scale
        self.skipped.see_scaler(self.step, left_out)
        moves = not left_out and any(group["lr"] > 0 for group in self.optimizer.param_groups)
        found = torch.stack([wrong, totals[3, 0] / totals[3, 1], norm])
        self.unread.append(guards.UnreadStep(self.step, rows, moves, found))
        if not left_out:
            self.lr_scheduler.step()
        return torch.where(wrong > 0, torch.zeros_like(totals), totals)

    def is_wrong(self, totals: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """1.0 when losses or gradient of a step are not finite on any rank, else 0.0; a scaler mends an overflow."""
        checked = totals if self.accelerator.scaler is not None else torch.cat([totals.flatten(), norm.view(1)])
        return self.accelerator.reduce((~checked.isfinite()).any().float(), "sum").clamp(max=1)

    def read_back(self) -> None:
        """Wait for the steps taken since the last call, and note which were not finite. All ranks call this.

        ``ValueError`` when there were more than ``--max_skipped_steps``.
        """
        steps, self.unread = self.unread, []
        found = torch.stack([step.found for step in steps]).tolist() if steps else []
        for step, (wrong, loss, norm) in zip(steps, found, strict=True):
            if wrong:
                rows = gather_object(list(step.rows))
                self.skipped.add(step.number, rows, loss, norm, writes=self.accelerator.is_main_process)
            else:
                self.moved = self.moved or step.moves

    def log(self, progress: tqdm) -> None:
        """Log the losses of all ranks since the last reading; a region without pixels is left out."""
        self.read_back()
        sums = self.accelerator.reduce(self.unlogged, "sum").tolist()
        self.unlogged.zero_()
        names = ("loss_garment", "loss_mask", "loss_background", "loss")
        curves = {name: total / count for name, (total, count) in zip(names, sums, strict=True) if count}
        if not curves:  # all steps were skipped
            return
        if told := self.spikes.see(self.step, curves["loss"]):
            logger.warning(told)
        curves["lr"] = self.lr_scheduler.get_last_lr()[0]
        progress.set_postfix_str(f"loss {curves['loss']:.4f}, lr {curves['lr']:.2g}")
        self.accelerator.log(curves, step=self.step)
        if self.accelerator.is_main_process:
            with (self.folder / "logs" / "losses.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"step": self.step, **curves}) + "\n")

    def validate(self, samples: Sequence[dict[str, Any]]) -> None:
        """Draw the validation pictures of this step, on fixed samples and seeds; none when the run is to stop.

        With ``--shard_base`` all ranks call this, as each has a part of the base; the main process writes.
        """
        args, device, rows = self.args, self.accelerator.device, []
        no_text = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        scheduler = FlowScheduler.from_config(self.scheduler.config)  # sampling changes timesteps, training draws them
        vae = self.vae or load_vae(args, device)  # with cached latents it is here for these pictures alone
        pipeline = FluxFillPipeline(scheduler=scheduler, vae=vae, transformer=self.model, **no_text)
        pipeline.set_progress_bar_config(disable=True)
        shows, title = self.accelerator.is_main_process, f"Validation at step {self.step}"
        for number, sample in enumerate(tqdm(samples, desc=title, leave=False, disable=not shows)):
            embeds, pooled = self.prompts.look_up([prompt_of(args, sample["caption_cloth"])], device)
            packed = pipeline(
                image=(sample["im_mask"][None] + 1) / 2, mask_image=sample["inpaint_mask"][None],
                prompt_embeds=embeds, pooled_prompt_embeds=pooled, height=args.height, width=2 * args.width,
                guidance_scale=args.guidance_scale, num_inference_steps=args.num_inference_steps,
                generator=torch.Generator(device=device).manual_seed(seed_for(args.seed, number)), output_type="latent",
                callback_on_step_end=self.interrupt,
            ).images  # fmt: skip
            if pipeline.interrupt:
                return
            if not shows:
                continue
            # Decoded here and not by the pipeline, because the prediction can be fp32 over a bf16 VAE.
            drawn = pipeline._unpack_latents(packed, args.height, 2 * args.width, pipeline.vae_scale_factor)
            drawn = drawn / vae.config.scaling_factor + vae.config.shift_factor
            with torch.no_grad():
                pair = vae.decode(drawn.to(vae.dtype)).sample[0]
            person = [tensor[..., args.width :] for tensor in (sample["im_mask"], pair, sample["image"])]
            rows.append([to_picture(tensor) for tensor in (sample["cloth_pure"], *person)])
        if not shows:
            return
        labels = [f"{sample['im_name']}  {sample['caption_cloth']}" for sample in samples]
        sheet = labelled_grid(rows, ["garment", "masked person", f"result, step {self.step}", "truth"], labels)
        path = self.folder / "validation" / f"step-{self.step}.png"
        path.parent.mkdir(exist_ok=True)
        sheet.save(path)
        for tracker in self.accelerator.trackers:
            form = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation": np.asarray(sheet)[None]}, step=self.step, **form)

    def interrupt(self, pipeline: Any, *_: Any) -> dict[str, Any]:
        """Between denoising steps: draw no further when the run is to stop."""
        split = self.args.shard_base  # then ranks stop drawing together, or some would wait for the others
        pipeline._interrupt = bool(self.stopping.agreed(self.accelerator)[0] if split else self.stopping.asked)
        return {}

    def save_checkpoint(self, data: Any, random: dict[str, Any]) -> None:
        """Write ``checkpoint-<step>`` complete or not at all, then delete the oldest ones. All ranks call this.

        ``random`` is this rank's random state as it was after the last whole step.
        """
        self.read_back()
        ranks = gather_object([{"random": random, "unlogged": self.unlogged.cpu()}])
        self.saved_at, self.stopping.saved_at = self.step, time.monotonic()
        if not self.accelerator.is_main_process:
            return
        final = self.folder / f"checkpoint-{self.step}"
        with checkpoints.staged(final) as draft:
            self.save_weights(draft)
            parts = {name: part.state_dict() for name, part in self.stateful().items()}
            saved_state.write_state(draft, {**checkpoint_facts(self, data, OWN_ARGUMENTS), "ranks": ranks, **parts})
        checkpoints.prune(final, self.args.checkpoints_total_limit)

    def stateful(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights."""
        parts = {"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler, "scaler": self.accelerator.scaler}
        return {name: part for name, part in parts.items() if part is not None}

    def save_weights(self, folder: Path) -> Path:
        """Write what was trained to ``folder``: the LoRA file, or the whole transformer."""
        if not self.args.train_base_model:
            return save_lora(self.model, self.args, folder, self.moved, published=folder == self.folder)
        with replacing(folder / "transformer") as draft:
            self.model.save_pretrained(draft)
        return folder / "transformer"

    def resume(self, checkpoint: Path, saved: dict[str, Any]) -> None:
        """Continue from ``checkpoint``, whose state is ``saved``, but for the random numbers: the loader draws one."""
        guards.check_files(checkpoint, "continue from another checkpoint")
        lora = None if self.args.train_base_model else read_lora(self.model, self.args, checkpoint)
        trust.check(self, checkpoint, saved)
        if lora is None:
            trust.load_transformer(self.model, checkpoint)
        else:
            set_peft_model_state_dict(self.model, lora)
        for name, part in self.stateful().items():
            part.load_state_dict(saved[name])
        for group in self.optimizer.param_groups:  # of this device, whatever the checkpoint was written on
            group |= {name: self.optimizer.defaults[name] for name in ("fused",) if name in group}
        for group in self.optimizer.param_groups if self.args.allow_changed_arguments else []:
            factor = group["lr"] / (group["initial_lr"] or 1)
            group |= optimizer_settings(self.args) | {"initial_lr": self.args.learning_rate}
            group["lr"] = self.args.learning_rate * factor
            self.lr_scheduler.base_lrs = [self.args.learning_rate] * len(self.lr_scheduler.base_lrs)
        self.step, here = saved["step"], checkpoint.resolve().parent == self.folder.resolve()
        self.saved_at = self.step if here else -1  # a checkpoint of elsewhere is not yet in this directory
        self.moved, self.skipped.count = saved["moved"], saved["skipped_steps"]
        self.quantized = saved.get("quantized")
        self.skipped.by_scaler = saved.get("scaler_skips", 0)  # earlier versions did not count them
        if self.accelerator.is_main_process:
            forget_future(self.folder, self.step)
        if len(saved["ranks"]) == self.accelerator.num_processes:
            self.unlogged.copy_(saved["ranks"][self.accelerator.process_index]["unlogged"])


def measure_first(run: Run, data: Any) -> None:
    """What is to be known before the first step: how many blocks to recompute, what a quantized base changes."""
    args = run.args
    if args.gradient_checkpointing == "auto":
        run.fit_memory(first_batches(data, args.train_batch_size, 1)[0])
    if args.quantize_base and args.quantization_loss and run.step == 0 and run.accelerator.is_main_process:
        run.see_quantization(first_batches(data, args.train_batch_size, quantization.PAIRS))
    run.accelerator.wait_for_everyone()


def train(
    run: Run, loader: DataLoader, pictures: Sequence[dict[str, Any]], record: RunRecord, saved: dict[str, Any] | None
) -> None:
    """Take the remaining steps, with progress, curves, validation pictures and checkpoints on the way.

    ``saved`` is the state that the run continues from. Raises ``StoppedError`` after a signal, with the checkpoint of
    the last whole step written.
    """
    args, accelerator, main_process = run.args, run.accelerator, run.accelerator.is_main_process
    start_curves(run)
    measure_first(run, loader.dataset)
    passes, batches = args.gradient_accumulation_steps, cast(Iterator[dict[str, Any]], iter(loader))
    if saved and accelerator.num_processes == len(saved["ranks"]):
        saved_state.set_random_state(saved["ranks"][accelerator.process_index]["random"])
    progress = tqdm(total=args.max_train_steps, desc="Training", initial=run.step, disable=not main_process)
    run.stopping.saving = True
    draws_here = main_process or args.shard_base
    if draws_here and run.step == 0 and pictures:
        run.validate(pictures)

    def save(random: dict[str, Any] | None = None) -> None:
        run.save_checkpoint(loader.dataset, random or saved_state.random_state())
        record.write()

    def encoded() -> Iterator[FillBatch]:
        for forward_pass in range(run.step * passes, (run.step + 1) * passes):
            if signum := run.stopping.agreed(accelerator)[0]:
                progress.close()
                began_reading = time.perf_counter()
                run.read_back()
                record.settle(time.perf_counter() - began_reading)
                if run.step > run.saved_at:
                    save(before)  # not as they are after passes that will be taken again
                accelerator.wait_for_everyone()  # whoever ends first lets elastic count 30 s for the others
                raise StoppedError(signum, run.step)
            yield run.encode(guards.next_batch(batches), forward_pass)

    try:
        while run.step < args.max_train_steps:
            began, before = time.perf_counter(), saved_state.random_state()
            run.unlogged += run.optimizer_step(encoded())
            progress.update()
            last = run.step == args.max_train_steps
            saves = args.checkpointing_steps and (run.step % args.checkpointing_steps == 0 or last)
            saves = saves or run.stopping.agreed(accelerator)[1]
            draws = bool(pictures) and (run.step % args.validation_steps == 0 or last)
            if run.step % args.logging_steps == 0 or last:
                run.log(progress)
            elif saves or draws or not record.seconds:  # their time, and that of compiling, is not that of steps
                run.read_back()
            record.took(time.perf_counter() - began, known=not run.unread)
            if saves:
                save()
            if draws_here and draws:
                run.validate(pictures)
            accelerator.wait_for_everyone()
    finally:
        batches = iter(())  # an error that somebody keeps would keep the processes that load rows, too
    progress.close()
    run.skipped.check_end(run.moved, args.learning_rate)


def main(args: argparse.Namespace) -> None:
    """Train as ``args`` of ``parse_args`` say. Raises ``ValueError`` for what the user can mend, early where it can.

    A signal ends it with ``StoppedError``, exit code 143 or 130, after the checkpoint of the last whole step.
    """
    guards.check_cached_base(bases.models_of(args).values(), args.cache_dir)
    with Stopping(args.save_every_minutes) as stopping:
        try:
            run_with(args, stopping)
        except torch.OutOfMemoryError as error:
            raise guards.out_of_memory(0, args) from error


def stand_up(
    args: argparse.Namespace, accelerator: Accelerator, checkpoint: Path | None, saved: dict[str, Any] | None
) -> tuple[Run, DataLoader, list[dict[str, Any]], RunRecord]:
    """Data, models and record of a run, at the step of ``checkpoint``; whatever can refuse it does so here."""
    train_data, validation_data = build_datasets(args)
    rows_per_step = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    args.max_train_steps = args.max_train_steps or math.ceil(args.num_train_epochs * len(train_data) / rows_per_step)
    if saved is not None:
        refuse_changes(args, OWN_ARGUMENTS, saved, train_data, accelerator)
        refuse_finished(args, saved["step"])
    shown = validation_rows(validation_data, args.num_validation_images) if args.validation_steps else []
    pictures = [validation_data[row] for row in shown]
    captions = train_data.captions() if args.use_captions and hasattr(train_data, "captions") else []
    captions = [*captions, *(sample["caption_cloth"] for sample in pictures)]
    make_table = cached_prompts if args.cache_latents else encode_prompts_once
    prompts = make_table(args, distinct_prompts(args, captions), accelerator)
    rows, vae_config = cache_latents(args, train_data, accelerator) if args.cache_latents else (train_data, None)
    speed.free_memory()
    logger.info(f"Loading the transformer {args.pretrained_inpaint_model_name_or_path}")
    run = Run(args, accelerator, prompts, vae_config, attention.wanted_by(args, saved))
    if checkpoint and saved is not None:
        run.resume(checkpoint, saved)
    elif accelerator.is_main_process and continues(args):
        forget_future(run.folder, 0)
    record = RunRecord(run, {"train": train_data, "validation": validation_data})
    return run, make_loader(rows, args, accelerator, run.step), pictures, record


def drive(args: argparse.Namespace, accelerator: Accelerator, stopping: Stopping) -> tuple[int, int]:
    """A whole run on ``accelerator``: the signal of its last step, or 0, and the number of that step."""
    if accelerator.is_main_process and continues(args):
        checkpoints.restore_replaced(Path(args.output_dir))
    accelerator.wait_for_everyone()
    checkpoint = find_checkpoint(args)
    saved = saved_state.read_state(checkpoint) if checkpoint else None
    with prepared(args, accelerator.is_main_process):
        accelerator.wait_for_everyone()
        run, loader, pictures, record = stand_up(args, accelerator, checkpoint, saved)
    run.stopping = stopping
    try:
        train(run, loader, pictures, record, saved)
        if accelerator.is_main_process:
            record.facts["weights"] = run.save_weights(run.folder).name
        accelerator.wait_for_everyone()
        record.see_losses()
        record.facts["status"], asked = "done", stopping.agreed(accelerator)[0]
        record.write()
    except StoppedError as stopped:
        record.end(f"stopped by {stopped}")
        logger.info(stopped.told(checkpoints.checkpoints_in(run.folder)))
        raise
    except torch.OutOfMemoryError as error:
        record.end("failed")
        raise guards.out_of_memory(run.step + 1, args) from error
    except BaseException:
        record.end("failed")
        raise
    return asked, run.step


def run_with(args: argparse.Namespace, stopping: Stopping) -> None:
    """What ``main`` does while ``stopping`` is listened to."""
    check_packages(args)
    guards.check_base(args.pretrained_model_name_or_path, args.pretrained_inpaint_model_name_or_path)
    refuse_earlier_run(args)
    accelerator = start(args)
    sharding.check_processes(args, accelerator)
    try:
        asked, step = drive(args, accelerator, stopping)
    finally:
        settle_gloo()
        accelerator.end_training()
    if asked:  # in the last step: all is done, and nothing else is to begin
        raise StoppedError(asked, step)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"train_flux_inpaint.py: {str(error).strip().splitlines()[-1]}")  # a worker's traceback comes first
