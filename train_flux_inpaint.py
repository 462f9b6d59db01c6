"""Train FLUX.1-Fill to dress a person by inpainting the right half of a garment|person picture.

The pair is one picture of H x 2W pixels: the garment on the left, the person on the right. The area of the person
that the garment will cover is masked, and the model learns to repaint it so that the person wears the garment.
By default a LoRA is trained over a frozen base; ``--train_base_model`` trains the base's own weights instead.

The file reads top to bottom: flags, data, models, what the model sees, loss, the run with ``train``, ``main``. It needs
only ``training_run`` beside it. A wrapper that brings other data replaces ``VitonHDTestDataset`` in this module and
calls ``main(parse_args([...]))``. A replacement is built by keyword (``dataroot_path, phase, order, size, data_list``),
yields the sample dict that ``VitonHDTestDataset`` documents, and may offer five methods, each used when present:
``captions()`` and ``cloth_types()`` (a list with one entry per row, read without opening pictures),
``sampling_weights()`` (a list, or None for uniform sampling), ``final_sampling_weights()`` (a list to which they move
linearly over the run, or None) and ``summary()`` (facts for ``run.json``).
"""

from __future__ import annotations

import training_run  # noqa: F401  (first, as torch reads what it sets when it is loaded)

# isort: split
import argparse
import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch._functorch.config
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import (
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from diffusers import AutoencoderKL, FluxFillPipeline, FluxTransformer2DModel
from diffusers import FlowMatchEulerDiscreteScheduler as FlowScheduler
from diffusers import training_utils as flow
from diffusers.models.attention_dispatch import attention_backend
from diffusers.optimization import get_scheduler
from diffusers.pipelines.flux.pipeline_flux_fill import calculate_shift
from peft import set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from training_run import bases, blocks, checkpoints, guards, latents, output_dir, quantization, speed
from training_run.atomic import replacing, write_file
from training_run.cores import usable_cores
from training_run.flags import DEFAULT_PROMPT as DEFAULT_PROMPT  # for wrappers of this script
from training_run.flags import OneLineParser, add_trainer_flags, refuse_contradictions
from training_run.hub import subfolder_of_transformer
from training_run.lock import only_writer
from training_run.lora import load_transformer_weights, lora_config, read_checkpoint_lora, save_lora
from training_run.memory import optimizer_bytes
from training_run.not_data import check_no_pointer
from training_run.optimizers import check_optimizer_state, make_optimizer, optimizer_settings
from training_run.output_dir import LORA_FILE as LORA_FILE  # for wrappers of this script
from training_run.processes import RANKS_WAIT
from training_run.record import RunRecord
from training_run.row_order import PairStream, seed_for, validation_rows, weights_of
from training_run.sheets import sheet_path, to_picture, write_sheet
from training_run.start_lora import read_start, settings_of_start, start_from
from training_run.state import random_state, read_state, set_random_state, write_state
from training_run.stopping import StoppedError, Stopping, settle_gloo, worker_ignores_signals
from training_run.transfer import bytes_of_pair, collate, to_floats

logger = get_logger(__name__)

#: Precision of everything frozen, by ``--mixed_precision``.
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: The gradient scaler of fp16 begins at 2**16 and halves that until no gradient overflows; at this one none can.
SMALLEST_SCALE = 2.0**-34


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of a run, from ``input_args`` or the command line. Wrong use exits with code 2."""
    parser = OneLineParser(description="Train FLUX.1-Fill on garment|person pairs.")
    add_trainer_flags(parser)
    args = parser.parse_args(input_args)
    typed = parser.given(input_args)[0]
    if args.lora and not args.train_base_model:
        vars(args).update(settings_of_start(args.lora, typed) | typed)
    refuse_contradictions(parser, args, typed)
    return args


#: Names of this script's own arguments; a wrapper may add others.
OWN_ARGUMENTS = frozenset(vars(parse_args(["--dataroot", "."])))


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
        self.root = Path(dataroot_path)
        self.phase = phase
        self.height, self.width = size
        pair_list = self._inside(data_list or f"{phase}_pairs.txt")
        if not pair_list.is_file():
            raise ValueError(f"no pair list {pair_list}: a VITON-HD folder has one of 'person.jpg cloth.jpg' lines")
        check_no_pointer(pair_list)
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


def types_to_keep(args: argparse.Namespace) -> set[int]:
    """Garment types whose rows ``--prior_loss_weight`` is for; none without it."""
    return {int(number) for number in args.prior_cloth_types.split(",")} if args.prior_loss_weight else set()


def check_types_to_keep(args: argparse.Namespace, data: Any) -> None:
    """Raise ``ValueError`` where ``--prior_loss_weight`` would do nothing, as no row drawn is of its garment types."""
    types = data.cloth_types() if hasattr(data, "cloth_types") else [1] * len(data)
    weights = [some for some in weights_of(data) if some is not None] or [[1.0] * len(types)]
    drawn = {kind for kind, *of_row in zip(types, *weights, strict=True) if any(of_row)}
    if args.prior_loss_weight and not drawn & types_to_keep(args):
        found = ", ".join(map(str, sorted(drawn)))
        raise ValueError(
            f"--prior_loss_weight: no row is of --prior_cloth_types {args.prior_cloth_types}, all that are drawn are "
            f"of {found} (1 upper, 2 lower, 3 full): add such rows, name other types, or leave the flag out"
        )


def make_loader(dataset: Any, args: argparse.Namespace, accelerator: Accelerator, first_step: int) -> DataLoader:
    """Loader of this rank's batches from optimizer step ``first_step`` to the end of the run."""
    passes = args.gradient_accumulation_steps
    workers = args.dataloader_num_workers
    batches = range(first_step * passes, args.max_train_steps * passes)
    ranks = (accelerator.process_index, accelerator.num_processes)
    rows = PairStream(len(dataset), args.train_batch_size, batches, args.seed, *ranks, *weights_of(dataset))
    return DataLoader(
        dataset, batch_sampler=rows, collate_fn=collate, num_workers=workers,
        prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        pin_memory=accelerator.device.type == "cuda", worker_init_fn=worker_ignores_signals if workers else None,
    )  # fmt: skip


def load_vae(args: argparse.Namespace, device: torch.device, compiled: bool = False) -> AutoencoderKL:
    """The frozen VAE of the base pipeline, its encoder ``compiled`` when it is first called."""
    options = pipeline_options(args, DTYPES[args.mixed_precision])
    vae = AutoencoderKL.from_pretrained(args.pretrained_model_name_or_path, subfolder="vae", **options)
    if compiled:
        vae.encoder.compile(fullgraph=True, dynamic=False)
    return vae.to(device, memory_format=torch.channels_last).requires_grad_(False)


def load_transformer(
    args: argparse.Namespace, dtype: torch.dtype, device: torch.device | None = None
) -> FluxTransformer2DModel:
    """The transformer to train, from files at the root or under ``transformer/``; ``ValueError`` for another kind.

    It goes to ``device``, where it is quantized if it is to be; without one it stays in main memory.
    """
    where = args.pretrained_inpaint_model_name_or_path
    hub: dict[str, Any] = {"revision": args.inpaint_revision, "cache_dir": args.cache_dir}
    hub["subfolder"] = subfolder_of_transformer(where, **hub)
    config = FluxTransformer2DModel.load_config(where, **hub)
    if config.get("_class_name") != "FluxTransformer2DModel" or config.get("in_channels") != 384:
        raise ValueError(
            f"--pretrained_inpaint_model_name_or_path {where!r} holds a {config.get('_class_name')} with "
            f"{config.get('in_channels')} input channels, not a FLUX.1-Fill transformer, which has 384"
        )
    options = {"variant": args.variant, "torch_dtype": dtype, "use_safetensors": True}
    transformer = FluxTransformer2DModel.from_pretrained(where, **options, **hub)
    if args.quantize_base:
        quantization.quantize(transformer, args.quantize_base, device)
    return transformer if device is None else transformer.to(device)


def pipeline_options(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """How parts of the base pipeline are loaded."""
    hub = {"revision": args.revision, "variant": args.variant, "cache_dir": args.cache_dir}
    return {**hub, "torch_dtype": dtype, "use_safetensors": True}


class PromptTable:
    """Embeddings of every distinct prompt of a run, ``embeds`` [P,L,D] and ``pooled`` [P,E], in their order."""

    def __init__(self, prompts: Iterable[str], embeds: torch.Tensor, pooled: torch.Tensor) -> None:
        self.rows = {prompt: row for row, prompt in enumerate(prompts)}
        self.embeds = embeds
        self.pooled = pooled

    def look_up(self, prompts: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of ``prompts`` on ``device``: [B,L,D] and [B,E]."""
        rows = [self.rows[prompt] for prompt in prompts]
        return speed.to_device(self.embeds[rows], device), speed.to_device(self.pooled[rows], device)


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


def encode_prompts(
    args: argparse.Namespace, prompts: list[str], device: torch.device, dtype: torch.dtype, hidden: bool = True
) -> PromptTable:
    """Encode distinct ``prompts`` with T5, then with CLIP; each leaves memory. The table is in main memory.

    An encoder that does not fit what is free of the GPU runs in main memory. ``hidden`` shows no progress. Raises
    ``ValueError`` when the table would take more than half of the main memory that is free.
    """
    columns = []
    for part, tokenizer in (("text_encoder_2", "tokenizer_2"), ("text_encoder", "tokenizer")):
        options = dict.fromkeys({"transformer", "vae", *bases.TEXT_PARTS} - {part, tokenizer})
        options |= pipeline_options(args, dtype)
        pipeline = FluxFillPipeline.from_pretrained(args.pretrained_model_name_or_path, **options)
        encoder, encode = speed.place_encoder(getattr(pipeline, part), device), pipeline._get_clip_prompt_embeds
        if part == "text_encoder_2":
            check_table_size(args, len(prompts), encoder.config.d_model * dtype.itemsize)
            length = {"max_sequence_length": args.max_sequence_length, "dtype": dtype}
            encode = functools.partial(pipeline._get_t5_prompt_embeds, **length)
        column = []
        for prompt in tqdm(prompts, desc="Encoding prompts", disable=hidden or len(prompts) < 16):
            with torch.no_grad():
                column.append(encode(prompt, device=encoder.device).to("cpu", dtype))
        columns.append(torch.cat(column))
        del pipeline, encoder, encode
        speed.free_memory()
    return PromptTable(prompts, *columns)


def check_table_size(args: argparse.Namespace, prompts: int, bytes_of_token: int) -> None:
    """Raise ``ValueError`` when embeddings of so many prompts take more than half of the main memory that is free."""
    size = prompts * args.max_sequence_length * bytes_of_token
    free = guards.available_memory()
    if size > free / 2:
        raise ValueError(
            f"the embeddings of {prompts} distinct prompts need {size / 2**30:.1f} GiB of memory and "
            f"{free / 2**30:.1f} GiB are free: lower --max_sequence_length, take fewer rows, or drop --use_captions"
        )


def prompts_of_run(args: argparse.Namespace, prompts: list[str], accelerator: Accelerator) -> PromptTable:
    """``encode_prompts``, kept on disk by ``--cache_latents``: T5 and CLIP are loaded the first time only.

    They are not kept where these text encoders cannot be told from later ones of the same name.
    """
    dtype = DTYPES[args.mixed_precision]
    encoders = bases.pipeline_facts(args, bases.TEXT_PARTS) if args.cache_latents else {}
    facts = {"encoders": encoders, "variant": args.variant, "dtype": str(dtype)}
    facts |= {"length": args.max_sequence_length, "prompts": prompts}
    path = latents.cache_dir(args) / f"prompts-{latents.digest(facts)}.safetensors"
    if encoders and path.is_file():
        found = load_file(path)
        return PromptTable(prompts, found["embeds"], found["pooled"])
    logger.info(f"Encoding {len(prompts)} prompt{'s' * (len(prompts) > 1)} with T5 and CLIP")
    table = encode_prompts(args, prompts, accelerator.device, dtype, not accelerator.is_main_process)
    if encoders and accelerator.is_main_process:
        write_file(path, save({"embeds": table.embeds, "pooled": table.pooled}))
    return table


def make_trainable(transformer: FluxTransformer2DModel, args: argparse.Namespace) -> list[torch.nn.Parameter]:
    """Freeze the base, then add the LoRA or unfreeze weights, and return what the optimizer gets, in fp32."""
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(args.train_base_model == "all" or (bool(args.train_base_model) and ".attn." in name))
    if not args.train_base_model:
        transformer.add_adapter(lora_config(args, transformer))
    transformer.train()  # for dropout, which the base does without
    flow.cast_training_params(transformer, dtype=torch.float32)
    if args.mixed_precision != "no":
        blocks.in_one_precision(transformer)
    if args.gradient_checkpointing != "auto":  # which is decided when there is a step to measure
        total = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
        speed.recompute(transformer, speed.recomputed_by(args.gradient_checkpointing, total))
    if args.compile_blocks:
        speed.compile_blocks(transformer)
    return [parameter for parameter in transformer.parameters() if parameter.requires_grad]


def encode_posterior(vae: AutoencoderKL, pixel_values: torch.Tensor) -> torch.Tensor:
    """The VAE's posterior of pictures [B,3,8h,8w] in [-1,1]: mean and standard deviation, [B,2,16,h,w]."""
    with torch.no_grad():
        found = vae.encode(speed.to_device(pixel_values, vae.device).to(vae.dtype)).latent_dist
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


def fill_conditioning(image_latents: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Fill conditioning [B, h/2 * w/2, 64 + 256], equal to what ``FluxFillPipeline`` builds.

    ``image_latents`` [B,16,h,w] are those of the picture with the masked area 0, ``mask`` is [B,1,8h,8w] in {0,1}. 64
    channels are the packed latents, 256 the mask: 8x8 pixels un-shuffled into 64 channels and packed alike.
    """
    scale = mask.shape[-1] // image_latents.shape[-1]
    mask_blocks = torch.nn.functional.pixel_unshuffle(mask, scale).to(image_latents.device, dtype)
    return torch.cat([pack_latents(image_latents), pack_latents(mask_blocks)], dim=2)


def encode_rows(vae: AutoencoderKL, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Posteriors of collated samples, each [B,2,16,h,w]: ``target`` of the pair, ``masked`` of the masked pair."""
    samples = to_floats(samples, vae.device)
    return {"target": encode_posterior(vae, samples["image"]), "masked": encode_posterior(vae, samples["im_mask"])}


def cache_latents(args: argparse.Namespace, data: Any, accelerator: Accelerator) -> tuple[latents.CachedRows, Any]:
    """The rows of ``data`` with their posteriors in the place of pictures, and the settings of the VAE.

    Encodes what the cache lacks; the VAE leaves memory then.
    """
    vae = load_vae(args, accelerator.device, args.compile_blocks)
    facts = {"vae": bases.pipeline_facts(args, ["vae"]), "variant": args.variant, "dtype": str(vae.dtype)}
    facts["size"] = [args.height, args.width]
    return latents.cached_rows(data, args, facts, functools.partial(encode_rows, vae), accelerator), vae.config


def region_maps(inpaint_mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[B,3,h,w] of 0 and 1, summing to 1: latent cells of the garment half, with a masked pixel, of the rest."""
    masked = torch.nn.functional.adaptive_max_pool2d(inpaint_mask, (height, width))
    garment = torch.zeros_like(masked)
    garment[..., : width // 2] = 1
    masked[..., : width // 2] = 0
    return torch.cat([garment, masked, 1 - garment - masked], dim=1)


@dataclass
class FillBatch:
    """One forward pass worth of pairs, encoded: what the model sees and what it has to predict."""

    latents: torch.Tensor  # [B,16,h,w] of the whole pair
    conditioning: torch.Tensor  # [B,N,320] of fill_conditioning
    regions: torch.Tensor  # [B,3,h,w] of region_maps
    prompt_embeds: torch.Tensor  # [B,L,D]
    pooled_embeds: torch.Tensor  # [B,E]
    noise: torch.Tensor  # [B,16,h,w], standard normal
    timesteps: torch.Tensor  # [B] in (0, 1000]
    sigmas: torch.Tensor  # [B], the share of noise at that timestep
    names: Sequence[str] = ()  # of the rows
    known: torch.Tensor | None = None  # [K] numbers of the rows of --prior_cloth_types; None without a prior loss

    def rows(self, numbers: torch.Tensor) -> FillBatch:
        """These rows alone."""
        return FillBatch(**{k: part[numbers] for k, part in vars(self).items() if k not in ("names", "known")})


def load_scheduler(args: argparse.Namespace) -> FlowScheduler:
    """The scheduler of the base pipeline."""
    where = {"revision": args.revision, "cache_dir": args.cache_dir}
    return FlowScheduler.from_pretrained(args.pretrained_model_name_or_path, subfolder="scheduler", **where)


def training_schedule(scheduler: FlowScheduler, args: argparse.Namespace) -> FlowScheduler:
    """The steps that timesteps are drawn from: those of ``scheduler``, shifted as ``--timestep_shift`` says.

    "tokens" gives what ``FluxFillPipeline`` draws a pair of this size with, in as many steps as training has. Raises
    ``ValueError`` where it does not shift by the number of tokens.
    """
    config, shift = scheduler.config, args.timestep_shift
    steps = config.num_train_timesteps
    if shift == "none":
        return scheduler
    if shift != "tokens":
        return FlowScheduler(steps, shift)
    if not config.use_dynamic_shifting:
        raise ValueError(
            f"--timestep_shift tokens: the scheduler of {args.pretrained_model_name_or_path} has no "
            "use_dynamic_shifting, so drawing shifts no more than training does: leave the flag out, or give a number"
        )
    tokens = args.height // 16 * (2 * args.width // 16)
    known = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    shifted = FlowScheduler.from_config(config)
    shifted.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=calculate_shift(tokens, *known))
    return shifted


def sample_timesteps(
    scheduler: FlowScheduler, count: int, args: argparse.Namespace, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` timesteps and their sigmas, drawn from the scheduler's steps by ``--weighting_scheme``."""
    how = {"logit_mean": args.logit_mean, "logit_std": args.logit_std, "mode_scale": args.mode_scale}
    u = flow.compute_density_for_timestep_sampling(args.weighting_scheme, count, generator=generator, **how)
    steps = scheduler.config.num_train_timesteps
    index = (u * steps).long().clamp(0, steps - 1)
    return scheduler.timesteps[index], scheduler.sigmas[index]


@functools.lru_cache(maxsize=4)
def image_ids(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Positions of the tokens of a pair, [rows * columns, 3]; made once, as that takes a copy from the host."""
    return FluxFillPipeline._prepare_latent_image_ids(1, rows, columns, device, dtype)


def transformer_inputs(batch: FillBatch, guidance_scale: float, takes_guidance: bool) -> dict[str, Any]:
    """Keyword arguments of the transformer: noisy latents beside the conditioning, and what goes with them."""
    sigmas = batch.sigmas.to(batch.latents.dtype).view(-1, 1, 1, 1)
    noisy = (1 - sigmas) * batch.latents + sigmas * batch.noise
    size, _, h, w = noisy.shape
    device = noisy.device
    dtype = noisy.dtype
    return {
        "hidden_states": torch.cat([pack_latents(noisy), batch.conditioning], dim=2),
        "timestep": batch.timesteps / 1000,
        "guidance": torch.full([size], guidance_scale, device=device) if takes_guidance else None,
        "pooled_projections": batch.pooled_embeds,
        "encoder_hidden_states": batch.prompt_embeds,
        "txt_ids": torch.zeros(batch.prompt_embeds.shape[1], 3, device=device, dtype=dtype),
        "img_ids": image_ids(h // 2, w // 2, device, dtype),
        "return_dict": False,
    }


def predict_velocity(
    transformer: torch.nn.Module, batch: FillBatch, guidance_scale: float, takes_guidance: bool
) -> torch.Tensor:
    """The model's prediction of ``noise - latents``, [B,16,h,w]."""
    packed = transformer(**transformer_inputs(batch, guidance_scale, takes_guidance))[0]
    return FluxFillPipeline._unpack_latents(packed, *batch.latents.shape[-2:], vae_scale_factor=1)


def loss_weights(batch: FillBatch, args: argparse.Namespace) -> torch.Tensor:
    """Weights of squared errors, [B,1,h,w]: that of ``--weighting_scheme`` times that of the region."""
    weights = (args.garment_loss_weight, args.mask_loss_weight, args.background_loss_weight)
    weighted = [weight * batch.regions[:, k : k + 1] for k, weight in enumerate(weights)]
    scheme = flow.compute_loss_weighting_for_sd3(args.weighting_scheme, sigmas=batch.sigmas).view(-1, 1, 1, 1)
    return scheme.float() * (weighted[0] + weighted[1] + weighted[2])


def flow_matching_loss(
    prediction: torch.Tensor, batch: FillBatch, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss to minimise, and a [3,2] tensor of squared error and count in each region, unweighted.

    The loss is the mean over the whole pair of the squared error against ``noise - latents``, times the weighting
    of ``--weighting_scheme``, times the weight of the region. With region weights 1 it is plain flow matching.
    """
    error = (prediction.float() - (batch.noise.float() - batch.latents.float())) ** 2
    loss = (loss_weights(batch, args) * error).mean()
    with torch.no_grad():
        sums = (error.sum(dim=1, keepdim=True) * batch.regions).sum(dim=(0, 2, 3))
        counts = batch.regions.sum(dim=(0, 2, 3)) * error.shape[1]
    return loss, torch.stack([sums, counts], dim=1)


def prior_loss(
    prediction: torch.Tensor, of_base: torch.Tensor, batch: FillBatch, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance to the base on the rows ``batch.known``, and a [1,2] tensor of its squares' sum and count, unweighted.

    ``of_base`` [K,16,h,w] is what the base predicts for them. The distance is weighted as ``flow_matching_loss`` is,
    and a mean over the whole batch, to which other rows add 0.
    """
    squares = (prediction[batch.known].float() - of_base.float()) ** 2
    distance = (loss_weights(batch, args)[batch.known] * squares).sum() / prediction.numel()
    return distance, torch.stack([squares.detach().sum(), squares.new_full((), squares.numel())])[None]


def start(args: argparse.Namespace) -> Accelerator:
    """Accelerator of this process, with seeds set."""
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps, mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/logs"),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=RANKS_WAIT)],
    )  # fmt: skip
    if usable_cores() < torch.get_num_threads():
        torch.set_num_threads(usable_cores())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32
    torch._functorch.config.activation_memory_budget = args.activation_memory_budget
    set_seed(args.seed)
    return accelerator


class Run:
    """A training run: its models, what is trained, and the state that a checkpoint keeps. ``build_run`` makes one.

    ``rows`` are what the loader reads, ``pictures`` the samples of the validation picture. With ``vae_config`` the VAE
    stays away, as samples have its posteriors already. ``base_facts`` tell its models from others.
    """

    def __init__(
        self, args: argparse.Namespace, accelerator: Accelerator, prompts: PromptTable, rows: Any = None,
        pictures: Sequence[dict[str, Any]] = (), vae_config: Any = None, base_facts: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.args = args
        self.accelerator = accelerator
        self.prompts = prompts
        self.rows = rows
        self.pictures = pictures
        self.base_facts = base_facts
        self.folder = Path(args.output_dir)
        self.step = 0
        self.saved_at = 0  # step of the last checkpoint in this directory
        self.moved = False  # whether any step has changed the weights
        self.skipped_steps = 0  # as their loss or gradient was not finite
        self.stopping = Stopping()
        self.random_state: dict[str, Any] | None = None  # to go on from, of a run that is continued
        dtype = DTYPES[args.mixed_precision]
        self.scheduler = load_scheduler(args)
        self.schedule = training_schedule(self.scheduler, args)
        self.vae = load_vae(args, accelerator.device, args.compile_blocks) if vae_config is None else None
        self.vae_config = vae_config if self.vae is None else self.vae.config
        # Where all weights are trained, in fp32, they are read so: rounded first, they would begin elsewhere. With
        # --shard_base the base goes to its device in parts.
        kept = torch.float32 if args.train_base_model == "all" else dtype
        transformer = load_transformer(args, kept, None if args.shard_base else accelerator.device)
        if args.attention_backend != "native":
            with attention_backend("native"):  # else it would be the default of every other model in the process
                transformer.set_attention_backend(args.attention_backend)
        set_seed(args.seed)  # whatever was loaded or encoded before, on every rank: the LoRA begins the same
        self.parameters = make_trainable(transformer, args)
        if accelerator.device.type == "cpu":
            blocks.attend_in_fp32(transformer)
        self.start = start_from(transformer, args) if args.lora else None
        if args.shard_base:
            for parameter in self.parameters:
                parameter.data = parameter.data.to(accelerator.device)
        self.average = self.new_average()
        speed.leave_frozen_out_of_broadcast(transformer)
        self.takes_guidance = transformer.config.guidance_embeds
        optimizer = make_optimizer(transformer, args)
        schedule = (args.lr_warmup_steps, args.max_train_steps, args.lr_num_cycles, args.lr_power)
        self.lr_scheduler = get_scheduler(args.lr_scheduler, optimizer, None, *schedule)
        placed = [not args.shard_base, True]
        self.transformer, self.optimizer = accelerator.prepare(transformer, optimizer, device_placement=placed)
        self.model: FluxTransformer2DModel = accelerator.unwrap_model(self.transformer)
        if args.shard_base:
            speed.shard_frozen(self.model, accelerator)

    def encode(self, samples: dict[str, Any], forward_pass: int) -> FillBatch:
        """Encode collated samples; every random draw follows from seed, rank and the number of the forward pass."""
        args = self.args
        device = self.accelerator.device
        dtype = DTYPES[args.mixed_precision]
        seed = seed_for(args.seed, self.accelerator.process_index, forward_pass)
        on_device = torch.Generator(device).manual_seed(seed)
        on_cpu = torch.Generator().manual_seed(seed)
        if args.lora_dropout:
            # peft draws from the global generators, and must not repeat the draws of these two.
            torch.manual_seed(seed_for(args.seed, self.accelerator.process_index, forward_pass, 1))
        samples = to_floats(samples, device)
        mask = samples["inpaint_mask"]
        posteriors = samples if self.vae is None else encode_rows(self.vae, samples)
        pair = draw_latents(posteriors["target"], self.vae_config, dtype, on_device)
        masked = draw_latents(posteriors["masked"], self.vae_config, dtype, on_device)
        conditioning = fill_conditioning(masked, mask, dtype)
        noise = torch.randn(pair.shape, generator=on_device, device=device, dtype=dtype)
        timesteps, sigmas = sample_timesteps(self.schedule, len(pair), args, on_cpu)
        keep = (torch.rand(len(pair), generator=on_cpu) >= args.caption_dropout).tolist()
        captions = [caption if kept else "" for caption, kept in zip(samples["caption_cloth"], keep, strict=True)]
        embeds, pooled = self.prompts.look_up([prompt_of(args, caption) for caption in captions], device)
        known, kept = None, types_to_keep(args)
        if kept:
            rows = [row for row, kind in enumerate(samples["cloth_type"]) if int(kind) in kept]
            known = speed.to_device(torch.tensor(rows, dtype=torch.long), device)
        return FillBatch(
            latents=pair, conditioning=conditioning, regions=region_maps(mask, *pair.shape[-2:]), prompt_embeds=embeds,
            pooled_embeds=pooled, noise=noise, timesteps=speed.to_device(timesteps, device),
            sigmas=speed.to_device(sigmas, device), names=samples.get("im_name", ()), known=known,
        )  # fmt: skip

    def loss_of(self, batch: FillBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """A forward pass on ``batch``: the loss to minimise, and a [4,2] tensor of squared error and count.

        These are of the three regions, and of the distance to the base where ``--prior_loss_weight`` asks for it.
        """
        args = self.args
        of_base = None if batch.known is None else self.predict_as_base(batch)  # first: nothing is kept for it
        prediction = predict_velocity(self.transformer, batch, args.guidance_scale, self.takes_guidance)
        loss, regions = flow_matching_loss(prediction, batch, args)
        if of_base is None:
            return loss, torch.cat([regions, regions.new_zeros(1, 2)])
        distance, sums = prior_loss(prediction, of_base, batch, args)
        return loss + args.prior_loss_weight * distance, torch.cat([regions, sums])

    @torch.no_grad()
    def predict_as_base(self, batch: FillBatch) -> torch.Tensor:
        """What the base without any LoRA predicts on the rows ``batch.known``, [K,16,h,w].

        With ``--shard_base`` each rank has a part of the base, so that none may leave a pass out.
        """
        assert batch.known is not None
        count, rows = len(batch.known), batch.known
        if not count and not self.args.shard_base:
            return batch.latents[:0]
        # Compiled blocks are compiled for each number of rows: there all rows go through, as in training.
        compiled = self.args.compile_blocks
        part = batch if compiled else batch.rows(rows if count else rows.new_zeros(1))
        self.model.eval()
        self.model.disable_adapters()
        try:
            predicted = predict_velocity(self.model, part, self.args.guidance_scale, self.takes_guidance)
            return predicted[rows] if compiled else predicted[:count]
        finally:
            self.model.enable_adapters()
            self.model.train()

    def optimizer_step(self, losses: Sequence[Sequence[float]], norm: float, rows: Sequence[str]) -> bool:
        """Take an optimizer step, unless the ``losses`` of all ranks or the ``norm`` of the gradient are not finite.

        ``rows`` are the names of this rank's rows. Returns whether all were finite. The gradient scaler of fp16 leaves
        out by itself a step whose gradient overflows. Raises ``ValueError`` when too many steps were left out.
        """
        scaler = self.accelerator.scaler
        scale = scaler.get_scale() if scaler is not None else 0.0
        checked = [total for total, _ in losses] + ([norm] if scaler is None else [])
        finite = all(map(math.isfinite, checked))
        if finite or scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        left_out = scaler is not None and scaler.get_scale() < scale  # it falls exactly when a step was left out
        if left_out and scaler.get_scale() < SMALLEST_SCALE:
            raise ValueError("gradients overflow fp16 at any scale: use --mixed_precision bf16")
        if not finite:
            self.note_skipped(losses[-1][0] / losses[-1][1], norm, gather_object(list(rows)))
        elif not left_out:
            self.moved = self.moved or any(group["lr"] > 0 for group in self.optimizer.param_groups)
            if self.average:
                self.average.step(self.parameters)
        if not left_out:
            self.lr_scheduler.step()
        return finite

    def new_average(self) -> flow.EMAModel | None:
        """For ``--ema_decay``: an average of what is trained that begins with how that is now."""
        settings = {"decay": self.args.ema_decay, "use_ema_warmup": True, "foreach": True}
        return flow.EMAModel(self.parameters, **settings) if self.args.ema_decay else None

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model have the average of ``--ema_decay``, where there is one, and then what is trained again."""
        if self.average:
            self.average.store(self.parameters)
            self.average.copy_to(self.parameters)
        try:
            yield
        finally:
            if self.average:
                self.average.restore(self.parameters)

    def note_skipped(self, loss: float, norm: float, rows: Sequence[str]) -> None:
        """Keep a line on a step that was not taken. Raises ``ValueError`` when it is one too many."""
        self.skipped_steps += 1
        facts = {"step": self.step, "rows": rows, "loss": str(loss), "norm": str(norm)}
        logger.warning(f"Skipping a step that is not finite: {facts}")
        if self.accelerator.is_main_process:
            with (self.folder / "logs" / "skipped.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(facts) + "\n")
        if self.skipped_steps > self.args.max_skipped_steps:
            raise ValueError(
                f"loss or gradient is not finite at step {self.step}: loss {loss}, gradient norm {norm}, rows "
                f"{', '.join(rows)}; {self.skipped_steps} steps were skipped, and --max_skipped_steps is "
                f"{self.args.max_skipped_steps}: lower --learning_rate, or look at these rows"
            )

    def log(self, losses: Sequence[Sequence[float]], progress: tqdm) -> None:
        """Log the losses of a step, sum and count of each; what has a count of 0 is left out."""
        names = ("loss_garment", "loss_mask", "loss_background", "loss_prior", "loss")
        curves = {name: total / count for name, (total, count) in zip(names, losses, strict=True) if count}
        curves["lr"] = self.lr_scheduler.get_last_lr()[0]
        progress.set_postfix_str(f"loss {curves['loss']:.4f}, lr {curves['lr']:.2g}")
        self.accelerator.log(curves, step=self.step)
        if self.accelerator.is_main_process:
            with (self.folder / "logs" / "losses.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"step": self.step, **curves}) + "\n")

    def validation_due(self) -> bool:
        """Whether the step just taken is one whose validation picture ``--validation_steps`` asks for."""
        every, last = self.args.validation_steps, self.step == self.args.max_train_steps
        return bool(every) and (self.step % every == 0 or last)

    def lacks_picture(self) -> bool:
        """Whether this step's validation picture is due and not there; on every rank as the main process finds it."""
        there = sheet_path(self.folder, self.step).is_file() or not self.pictures
        (lacks,) = broadcast_object_list([self.validation_due() and not there])
        return bool(lacks)

    def validate(self) -> None:
        """Draw the validation picture of this step, on fixed samples and seeds; none when the run is to stop.

        With ``--shard_base`` all ranks draw, as each has a part of the base; otherwise the main process alone.
        """
        shows = self.accelerator.is_main_process
        if not self.pictures or not (shows or self.args.shard_base):
            return
        self.model.eval()
        with self.averaged():
            results = self.draw_results()
        self.model.train()
        if not results or not shows:
            return
        sheet = write_sheet(self.folder, self.step, self.pictures, results)
        for tracker in self.accelerator.trackers:
            form = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation": np.asarray(sheet)[None]}, step=self.step, **form)

    def draw_results(self) -> list[Image.Image]:
        """The person of each sample of ``pictures`` as the model draws it; empty when the run is to stop."""
        args = self.args
        device = self.accelerator.device
        no_text = dict.fromkeys(bases.TEXT_PARTS)
        scheduler = FlowScheduler.from_config(self.scheduler.config)  # sampling changes timesteps, training draws them
        vae = self.vae or load_vae(args, device)  # with cached latents it is here for these pictures alone
        pipeline = FluxFillPipeline(scheduler=scheduler, vae=vae, transformer=self.model, **no_text)
        pipeline.set_progress_bar_config(disable=True)
        results = []
        hidden = not self.accelerator.is_main_process
        progress = tqdm(self.pictures, desc=f"Validation at step {self.step}", leave=False, disable=hidden)
        for number, sample in enumerate(progress):
            embeds, pooled = self.prompts.look_up([prompt_of(args, sample["caption_cloth"])], device)
            packed = pipeline(
                image=(sample["im_mask"][None] + 1) / 2, mask_image=sample["inpaint_mask"][None],
                prompt_embeds=embeds, pooled_prompt_embeds=pooled, height=args.height, width=2 * args.width,
                guidance_scale=args.guidance_scale, num_inference_steps=args.num_inference_steps,
                generator=torch.Generator(device=device).manual_seed(seed_for(args.seed, number)), output_type="latent",
                callback_on_step_end=self.interrupt,
            ).images  # fmt: skip
            if pipeline.interrupt:
                return []
            # Decoded here and not by the pipeline, because the prediction can be fp32 over a bf16 VAE.
            drawn = pipeline._unpack_latents(packed, args.height, 2 * args.width, pipeline.vae_scale_factor)
            drawn = drawn / vae.config.scaling_factor + vae.config.shift_factor
            with torch.no_grad():
                pair = vae.decode(drawn.to(vae.dtype)).sample[0]
            results.append(to_picture(pair[..., args.width :]))
        return results

    def interrupt(self, pipeline: Any, *_: Any) -> dict[str, Any]:
        """Between denoising steps: draw no further when the run is to stop."""
        together = self.args.shard_base  # ranks that draw together stop together, or some would wait for the others
        pipeline._interrupt = bool(self.stopping.agreed(self.accelerator)[0] if together else self.stopping.asked)
        return {}

    def stop_if_asked(self, random: dict[str, Any]) -> None:
        """Between forward passes: after a signal, write the checkpoint of the last whole step and end the run.

        ``random`` is this rank's random state after that step. Raises ``StoppedError`` after a signal on any rank.
        """
        signum, _ = self.stopping.agreed(self.accelerator)
        if signum:
            if self.step > self.saved_at:
                self.save_checkpoint(random)
            self.accelerator.wait_for_everyone()  # after the first rank has ended, elastic gives the others 30 s
            logger.info(f"Stopped at step {self.step}; --resume_from_checkpoint latest continues")
            raise StoppedError(signum)

    def save_checkpoint(self, random: dict[str, Any]) -> None:
        """Write ``checkpoint-<step>`` complete or not at all, then delete the oldest ones. All ranks call this.

        ``random`` is this rank's random state after the last whole step.
        """
        args = self.args
        ranks = gather_object([{"random": random}])
        self.saved_at = self.step
        self.stopping.saved_at = time.monotonic()
        if not self.accelerator.is_main_process:
            return
        state = {
            "step": self.step,
            "moved": self.moved,
            "skipped_steps": self.skipped_steps,
            "processes": self.accelerator.num_processes,
            "arguments": {name: value for name, value in vars(args).items() if name in OWN_ARGUMENTS},
            "data": output_dir.data_facts(self.rows),
            "base": self.base_facts,
            "ranks": ranks,
        }
        final = self.folder / f"checkpoint-{self.step}"
        with checkpoints.staged(final) as draft:
            self.save_weights(draft)
            write_state(draft, {**state, **{name: part.state_dict() for name, part in self.stateful().items()}})
        checkpoints.prune(final, args.checkpoints_total_limit)

    def stateful(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights."""
        parts = {"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler, "scaler": self.accelerator.scaler}
        parts["average"] = self.average
        return {name: part for name, part in parts.items() if part is not None}

    def save_weights(self, folder: Path) -> Path:
        """Write what was trained to ``folder``: the LoRA file, or the whole transformer."""
        if not self.args.train_base_model:
            return save_lora(self.model, self.args, folder, published=folder == self.folder)
        with replacing(folder / "transformer") as draft:
            self.model.save_pretrained(draft)
        return folder / "transformer"

    def resume(self, checkpoint: Path, saved: dict[str, Any]) -> None:
        """Continue from ``checkpoint``, whose state is ``saved``. ``ValueError`` where it does not fit this run."""
        args = self.args
        if args.train_base_model:
            load_transformer_weights(self.model, checkpoint / "transformer")
        else:
            set_peft_model_state_dict(self.model, read_checkpoint_lora(self.model, args, checkpoint))
        check_optimizer_state(self.optimizer, saved["optimizer"], checkpoint)
        self.average = self.new_average()
        for name, part in self.stateful().items():
            if name != "average" or name in saved:  # one that the run before did without begins here
                part.load_state_dict(saved[name])
        if self.average:
            self.average.to(self.accelerator.device)
            self.average.decay = args.ema_decay
        if args.allow_changed_arguments:  # what was loaded has the settings of before
            for group in self.optimizer.param_groups:
                factor = group["lr"] / group["initial_lr"]
                group |= optimizer_settings(args) | {"initial_lr": args.learning_rate}
                group["lr"] = args.learning_rate * factor
            self.lr_scheduler.base_lrs = [args.learning_rate] * len(self.lr_scheduler.base_lrs)
        self.step = saved["step"]
        here = checkpoint.resolve().parent == self.folder.resolve()
        self.saved_at = self.step if here else -1  # a checkpoint of elsewhere is not yet in this directory
        self.moved = saved["moved"]
        self.skipped_steps = saved["skipped_steps"]
        if len(saved["ranks"]) == self.accelerator.num_processes:
            self.random_state = saved["ranks"][self.accelerator.process_index]["random"]

    def fit_memory(self) -> int:
        """For ``--gradient_checkpointing auto``: try passes over the first rows; how many blocks are checkpointed."""
        samples = collate([self.rows[row % len(self.rows)] for row in range(self.args.train_batch_size)])
        batch = self.encode(samples, 0)

        def attempt() -> None:
            """A forward and a backward pass. Each rank tries alone and sends nothing; no gradient stays."""
            try:
                with getattr(self.transformer, "no_sync", contextlib.nullcontext)():
                    self.accelerator.backward(self.loss_of(batch)[0])
            finally:
                self.optimizer.zero_grad()

        state = 0  # of a run that is continued, it is there already
        if self.step == 0:
            state = optimizer_bytes(self.args) * sum(parameter.numel() for parameter in self.parameters)
        return speed.choose_recomputed(self.model, attempt, state, self.accelerator)


def build_run(args: argparse.Namespace, accelerator: Accelerator, stopping: Stopping) -> tuple[Run, RunRecord]:
    """Data, models and record of the run that ``args`` ask for, at the step of the checkpoint that it continues from.

    Raises ``ValueError`` for whatever does not fit, before anything in the output directory has changed.
    """
    if args.shard_base and accelerator.num_processes == 1:
        raise ValueError(
            "--shard_base splits the base over several processes, and this is the only one: start them with "
            "accelerate launch --num_processes N, or leave it out"
        )
    checkpoint = output_dir.find_checkpoint(args)
    saved = read_state(checkpoint) if checkpoint else None
    train_data, validation_data = build_datasets(args)
    check_types_to_keep(args, train_data)
    training_schedule(load_scheduler(args), args)  # refuses what it cannot shift
    rows_per_step = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    args.max_train_steps = args.max_train_steps or math.ceil(args.num_train_epochs * len(train_data) / rows_per_step)
    base = bases.base_facts(args)
    if saved is not None:
        output_dir.refuse_changes(args, saved, train_data, base, accelerator)
        output_dir.refuse_finished(args, saved["step"])
    shown = validation_rows(validation_data, args.num_validation_images) if args.validation_steps else []
    pictures = [validation_data[row] for row in shown]
    captions = train_data.captions() if args.use_captions and hasattr(train_data, "captions") else []
    captions = [*captions, *(sample["caption_cloth"] for sample in pictures)]
    prompts = prompts_of_run(args, distinct_prompts(args, captions), accelerator)
    rows, vae_config = cache_latents(args, train_data, accelerator) if args.cache_latents else (train_data, None)
    speed.free_memory()
    logger.info(f"Loading the transformer {args.pretrained_inpaint_model_name_or_path}")
    run = Run(args, accelerator, prompts, rows, pictures, vae_config, base)
    run.stopping = stopping
    if checkpoint and saved is not None:
        run.resume(checkpoint, saved)
    elif run.start:
        logger.info(run.start.line(args))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        output_dir.prepare_output_dir(args)
        output_dir.forget_future(run.folder, run.step if output_dir.continues(args) else 0)
    accelerator.wait_for_everyone()
    return run, RunRecord(run, {"train": train_data, "validation": validation_data})


def train(run: Run, record: RunRecord) -> None:
    """Take the remaining steps, with curves, checkpoints and validation pictures on the way.

    Raises ``StoppedError`` after a signal, with the checkpoint of the last whole step written.
    """
    args = run.args
    accelerator = run.accelerator
    passes = args.gradient_accumulation_steps
    scalars = {name: value for name, value in vars(args).items() if isinstance(value, (bool, int, float, str))}
    accelerator.init_trackers("catvton-flux-lora", scalars, {"tensorboard": {"purge_step": run.step + 1}})
    if args.gradient_checkpointing == "auto":
        record.facts["recomputed_blocks"] = run.fit_memory()
    batches = iter(make_loader(run.rows, args, accelerator, run.step))
    if run.random_state is not None:
        set_random_state(run.random_state)
    run.stopping.saving = True
    if run.step == 0 or run.lacks_picture():  # of a checkpoint it is drawn last: a run may have ended in between
        run.validate()
    hidden = not accelerator.is_main_process
    try:
        with tqdm(total=args.max_train_steps, desc="Training", initial=run.step, disable=hidden) as progress:
            while run.step < args.max_train_steps:
                began = time.perf_counter()
                before = random_state()
                sums = torch.zeros(5, 2, device=accelerator.device)  # those of loss_of, then loss and passes
                names: list[str] = []
                for number in range(passes):
                    run.stop_if_asked(before)
                    batch = run.encode(next(batches), run.step * passes + number)
                    with accelerator.accumulate(run.transformer):
                        loss, parts = run.loss_of(batch)
                        accelerator.backward(loss)
                    sums[:4] += parts
                    sums[4] += torch.stack([loss.detach(), torch.ones_like(loss)])
                    names += batch.names
                norm = accelerator.clip_grad_norm_(run.parameters, args.max_grad_norm or math.inf)
                losses = accelerator.reduce(sums, "sum").tolist()
                finite = run.optimizer_step(losses, float(norm), names)
                record.seconds.append(time.perf_counter() - began)
                progress.update()
                last = run.step == args.max_train_steps
                if finite and (run.step % args.logging_steps == 0 or last):
                    run.log(losses, progress)
                due = args.checkpointing_steps and (run.step % args.checkpointing_steps == 0 or last)
                if due or run.stopping.agreed(accelerator)[1]:
                    run.save_checkpoint(random_state())
                    record.write()
                if run.validation_due():
                    run.validate()
                accelerator.wait_for_everyone()
    finally:
        del batches  # the traceback of an error would keep them, and with them the loader's processes
    if not run.moved and (run.skipped_steps or accelerator.scaler is not None):
        raise ValueError(
            f"no step was taken, as no loss or gradient was finite (see {run.folder}/logs/skipped.jsonl): lower "
            "--learning_rate or the weights of the loss"
        )


def main(args: argparse.Namespace) -> None:
    """Train as ``args`` of ``parse_args`` say. Raises ``ValueError`` for what the user can fix, early where it can.

    A signal ends it with ``StoppedError``, exit code 143 or 130, after the checkpoint of the last whole step.
    """
    guards.check_packages(args)
    guards.check_compiler(args)
    guards.check_shared_memory(args, bytes_of_pair(args.height, args.width))
    models = (args.pretrained_model_name_or_path, args.pretrained_inpaint_model_name_or_path)
    bases.check_base(*models, args.revision, args.inpaint_revision, args.cache_dir)
    if args.lora:
        read_start(args)
    first = os.environ.get("RANK", "0") == "0"
    with (
        only_writer(Path(args.output_dir)) if first else contextlib.nullcontext(),
        Stopping(args.save_every_minutes) as stopping,
    ):
        output_dir.refuse_earlier_run(args)
        accelerator = start(args)
        try:
            run, record = build_run(args, accelerator, stopping)
            with record.ending():
                train(run, record)
                if accelerator.is_main_process:
                    with run.averaged():
                        record.facts["weights"] = run.save_weights(run.folder).name
                accelerator.wait_for_everyone()
                asked, _ = stopping.agreed(accelerator)
                if asked and run.lacks_picture():  # it was being drawn: not done yet, and to be continued
                    run.stop_if_asked(random_state())
        except RuntimeError as error:
            if guards.is_out_of_memory(error):
                raise guards.training_out_of_memory(args, error) from error
            raise
        finally:
            settle_gloo()
            accelerator.end_training()
    if asked:  # in the last step: all is done, and nothing else is to begin
        raise StoppedError(asked)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"train_flux_inpaint.py: {str(error).strip().splitlines()[-1]}")  # a worker's traceback comes first
