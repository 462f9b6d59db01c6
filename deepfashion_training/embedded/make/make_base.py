"""Make the small FLUX-Fill that ships with the project: the real classes at toy size, taught to dress people in tops.

    python -m deepfashion_training.embedded.make.make_base --work_dir W [--output_dir D]

The VAE is trained here on drawn pairs of all garment types, the transformer by ``train_flux_inpaint.py`` on a VITON-HD
folder of drawn people, most of them about a top (``top_rows.py``), both from random weights: like catvton-flux-alpha it
has never seen trousers or a dress being put on.

Configurations, scheduler, tokenizers and text encoders are those of the base that ships. The text encoders are random,
because every prompt is the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxFillPipeline, FluxTransformer2DModel
from tqdm import tqdm, trange

import train_flux_inpaint as trainer
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.make.small_vae import Pairs, linear_start, standardize_latents, train_vae
from deepfashion_training.embedded.make.top_rows import SIZE, top_specs, write_tops_folder
from deepfashion_training.embedded.rows import RowSpec, documented_specs, draw_all
from training_run.cores import ON_CPU, usable_cores

#: Seeds of people that VAE and decoder learn from: others than those of every wardrobe that evaluates.
PAIRS_SEED, PAINTED_SEED = 1007, 1010
VAE_ROWS = 876
#: Steps of encoder and decoder together, and of the decoder alone.
VAE_STEPS = (1500, 1200)
#: People that the transformer learns from.
ROWS = 30_000
#: People in tops whose painted latents the decoder learns from, and its steps.
PAINTED_ROWS, PAINTED_STEPS = 1500, 1500
#: How the transformer is trained. The area to repaint counts most; the garment half is there to be copied from. Nearly
#: all steps see almost pure noise: a small model tells shapes by the condition alone, and draws in one step. CPUs
#: with products in bf16 are quickest in it. ``PAIRS`` of a step are shared evenly by as many processes as cores
#: allow, one on a GPU.
STEPS, PAIRS = 8000, 48
TRAINING = (
    f"--train_base_model all --height {SIZE[0]} --width {SIZE[1]} --max_sequence_length 8 --mixed_precision bf16 "
    "--optimizer muon --learning_rate 2e-3 --lr_scheduler cosine --lr_warmup_steps 100 --adam_beta2 0.99 "
    "--weighting_scheme logit_normal --logit_mean -4 --logit_std 0.8 --compile_blocks --cache_latents "
    "--garment_loss_weight 0.2 --background_loss_weight 0.5 --mask_loss_weight 2 --dataloader_num_workers 0 "
    "--checkpointing_steps 250 --checkpoints_total_limit 1 --validation_steps 1000 --num_inference_steps 1 "
    "--logging_steps 10 --report_to none --seed 0"
).split()

#: How the transformer begins, see ``untrained_transformer``.
ANCHOR = 12.0
SHARPNESS = 2.0


@torch.no_grad()
def untrained_transformer(seed: int = 0) -> Any:
    """A transformer of 5.3M parameters that begins with the velocity of a picture that is repainted grey.

    That velocity, noise minus masked picture, is right wherever nothing is repainted, so all of the learning goes to
    where something is. The first 64 channels carry the noisy latents, the next 64 those of the masked picture, the rest
    begins with the mask; blocks add nothing yet, and the last layer takes the one from the other. Between them
    LayerNorm divides each token by its deviation, which would make that as crooked as tokens differ in size; so the
    last two channels hold ``ANCHOR`` and minus that, which outweigh the others: what is left of the differences is 2%.
    Queries and keys begin ``SHARPNESS`` times as large as usual, because of 96 tokens a few are to be looked at.

    Shifts and scales are 0 and gates 1, whatever the timestep: zero modulation is what makes diffusion transformers
    learn quickly (Peebles and Xie 2023, adaLN-Zero).
    """
    torch.manual_seed(seed)
    config = FluxTransformer2DModel.load_config(TINY_FLUX_FILL, subfolder="transformer")
    transformer: Any = FluxTransformer2DModel.from_config(config)
    tokens, width = transformer.config.out_channels, transformer.inner_dim
    own, deviation = torch.eye(tokens), math.sqrt((2 * ANCHOR**2 + 2 * tokens) / width)
    first, last = transformer.x_embedder, transformer.proj_out
    first.weight[:, : 2 * tokens] = 0
    first.weight[: 2 * tokens] = 0
    first.weight[:tokens, :tokens] = own
    first.weight[tokens : 2 * tokens, tokens : 2 * tokens] = own
    first.weight[-2:] = 0
    first.bias.zero_()
    first.bias[-2:] = torch.tensor([ANCHOR, -ANCHOR])
    for name, module in transformer.named_modules():
        if re.fullmatch(r".*blocks\.\d+\.norm1?(_context)?\.linear", name):
            shift_scale_gate = torch.tensor([0.0, 0.0, 1.0]).repeat(module.out_features // module.in_features // 3)
            module.weight.zero_()
            module.bias.copy_(shift_scale_gate.repeat_interleave(module.in_features))
        elif re.search(r"blocks\.\d+\..*(to_q|to_k|to_v|net\.0\.proj|proj_mlp)$", name):
            module.weight[:, -2:] = 0  # they are there for LayerNorm alone
        elif re.search(r"blocks\.\d+\.(.*to_out\.0|ff\.net\.2|proj_out)$|^norm_out\.linear$|^proj_out$", name):
            module.weight.zero_()
            module.bias.zero_()
        elif re.search(r"norm_(q|k)$", name):
            module.weight.fill_(SHARPNESS)
    last.weight[:, :tokens] = own * deviation
    last.weight[:, tokens : 2 * tokens] = -own * deviation
    return transformer


def drawn_pairs(rows: int, seed: int, num_proc: int, size: tuple[int, int] = SIZE) -> Pairs:
    """Pairs of all garment types, with all their patterns and seen anywhere: plain cloth in a studio is easy."""
    specs = [replace(spec, patterned=1.0, studio=False) for spec in documented_specs(rows, seed)]
    return _pairs_of(specs, num_proc, size)


def _pairs_of(specs: list[RowSpec], num_proc: int, size: tuple[int, int]) -> Pairs:
    drawn = draw_all(functools.partial(_drawn_pair, size), specs, num_proc)
    pictures, masks = zip(*tqdm(drawn, "drawing pairs", len(specs), unit="row"), strict=True)
    return Pairs(np.stack(pictures), np.stack(masks))


def _drawn_pair(size: tuple[int, int], spec: RowSpec) -> tuple[np.ndarray, np.ndarray]:
    drawing = spec.draw(size)
    flat, _ = spec.draw_garment(size)
    return np.concatenate([np.asarray(flat), np.asarray(drawing.photo)], axis=1), drawing.agnostic[spec.cloth_type]


def make_vae(num_proc: int) -> Any:
    """A VAE trained on drawn pairs; its latents have mean 0 and deviation 1."""
    pairs = drawn_pairs(VAE_ROWS, PAIRS_SEED, num_proc)
    torch.manual_seed(0)
    vae: Any = AutoencoderKL.from_config(AutoencoderKL.load_config(TINY_FLUX_FILL, subfolder="vae"))
    linear_start(vae, pairs.batch(np.random.default_rng(1), 48))
    vae.to(memory_format=torch.channels_last)
    train_vae(vae, pairs, VAE_STEPS[0], seed=0)
    train_vae(vae, pairs, VAE_STEPS[1], seed=1, decoder_only=True)
    standardize_latents(vae, pairs.batch(np.random.default_rng(1), 64))
    return vae


@torch.no_grad()
def painted_pairs(pipeline: Any, rows: int, num_proc: int) -> Pairs:
    """Drawn pairs of people in tops that nothing was trained on, with the latents that ``pipeline`` paints of them."""
    pairs = _pairs_of([replace(spec, seed=PAINTED_SEED) for spec in top_specs(rows)], num_proc, SIZE)
    latents, width = [], SIZE[1]
    pipeline.set_progress_bar_config(disable=True)
    for first in trange(0, rows, 16, desc="painting"):
        some = slice(first, first + 16)
        area = torch.from_numpy(pairs.masks[some]).float()[:, None]
        area = torch.cat([torch.zeros_like(area), area], dim=3)
        pair = torch.from_numpy(pairs.pictures[some]).permute(0, 3, 1, 2) / 255
        packed = pipeline(
            prompt=[trainer.DEFAULT_PROMPT] * len(pair), image=pair * (1 - area) + 0.5 * area, mask_image=area,
            height=SIZE[0], width=2 * width, num_inference_steps=1, guidance_scale=1, max_sequence_length=8,
            generator=torch.Generator().manual_seed(first), output_type="latent",
        ).images  # fmt: skip
        latents.append(pipeline._unpack_latents(packed, SIZE[0], 2 * width, pipeline.vae_scale_factor))
    config = pipeline.vae.config
    return replace(pairs, painted=torch.cat(latents) / config.scaling_factor + config.shift_factor)


def save_base(start: Path, transformer: Path, output_dir: Path, num_proc: int) -> None:
    """Write the pipeline of folder ``start`` with the trained ``transformer``, this and the VAE in fp16.

    The decoder first learns to make pictures of what the transformer paints.
    """
    trained = FluxTransformer2DModel.from_pretrained(transformer)
    pipeline = FluxFillPipeline.from_pretrained(start, transformer=trained)
    pairs = painted_pairs(pipeline, PAINTED_ROWS, num_proc)
    train_vae(pipeline.vae, pairs, PAINTED_STEPS, seed=2, decoder_only=True)
    # diffusers loads half-precision files as fp32 by default, transformers leaves them as they are: with the text
    # encoders kept in fp32, a plain from_pretrained gives one precision throughout.
    pipeline.transformer.to(torch.float16)
    pipeline.vae.to(torch.float16)
    pipeline.save_pretrained(output_dir)
    for file in output_dir.rglob("*.json"):  # paths of this machine do not belong into a release
        settings = json.loads(file.read_text("utf-8"))
        for name in ("_name_or_path", "is_local", "local_files_only"):
            settings.pop(name, None)
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def processes_for(cores: int) -> int:
    """The most processes, no more than ``cores``, that share the ``PAIRS`` of a step evenly."""
    return max(count for count in range(1, min(cores, PAIRS) + 1) if PAIRS % count == 0)


def main(argv: list[str] | None = None) -> int:
    """Write the pipeline folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=TINY_FLUX_FILL, help="folder to write the pipeline to")
    parser.add_argument("--work_dir", type=Path, required=True, help="new folder for what is made on the way")
    parser.add_argument("--start", type=Path, help="pipeline folder to go on from (default: random weights)")
    args = parser.parse_args(argv)
    if args.start and not (args.start / "model_index.json").is_file():
        parser.error(f"--start {args.start} is no pipeline folder: it has no model_index.json")
    args.work_dir.mkdir(parents=True)
    num_proc = usable_cores()
    start, tops, run = (args.work_dir / name for name in ("start", "tops", "train"))
    if args.start:
        start = args.start
    else:
        parts: dict[str, Any] = {"vae": make_vae(num_proc), "transformer": untrained_transformer()}
        FluxFillPipeline.from_pretrained(TINY_FLUX_FILL, **parts).save_pretrained(start)
    write_tops_folder(tops, ROWS, num_proc=num_proc)
    flags = {"dataroot": tops, "output_dir": run, "max_train_steps": STEPS}
    flags |= dict.fromkeys(("pretrained_model_name_or_path", "pretrained_inpaint_model_name_or_path"), start)
    given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    on_cpu = not torch.cuda.is_available()
    count = processes_for(num_proc) if on_cpu else 1
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    size = ["--train_batch_size", str(PAIRS // count)]
    environment = {**(ON_CPU if on_cpu else {}), **os.environ}
    subprocess.run([*torchrun, trainer.__file__, *given, *TRAINING, *size], check=True, env=environment)
    save_base(start, run / "transformer", args.output_dir, num_proc)
    sys.stdout.write(f"small FLUX-Fill written to {args.output_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
