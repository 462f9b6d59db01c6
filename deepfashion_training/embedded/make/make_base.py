"""Make the small FLUX-Fill that ships with the project: the real classes at toy size, taught to dress people in tops.

    python -m deepfashion_training.embedded.make.make_base --work_dir W [--output_dir D]

The VAE is trained here on drawn pairs of all garment types, the transformer by ``train_flux_inpaint.py`` on a VITON-HD
folder of drawn people in drawn tops, both from random weights: like catvton-flux-alpha it has never seen trousers or a
dress being put on. As in VITON-HD, people are shown from head to thighs, wear whatever goes with the top, and the area
to repaint is the upper body's. A share of the rows is plain inpainting, as FLUX.1-Fill learned it before CatVTON-Flux:
legs or all clothes are to be repainted, and the top in the garment half says nothing about them.

Configurations, scheduler, tokenizers and text encoders are those of the base that ships. The text encoders are random,
because every prompt is the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxFillPipeline, FluxTransformer2DModel
from PIL import Image, ImageOps
from tqdm import tqdm

import train_flux_inpaint as trainer
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.body import PERSON_VIEWS
from deepfashion_training.embedded.make.small_vae import Pairs, linear_start, standardize_latents, train_vae
from deepfashion_training.embedded.rows import STUDIO_SHARES, RowSpec, documented_specs, draw_all
from deepfashion_training.garment_types import FULL, LOWER, UPPER
from training_run.cores import usable_cores

SIZE = (128, 96)  # height and width of one half of a pair

#: People that the VAE and the transformer learn from: others than those of every wardrobe that evaluates.
PAIRS_SEED, TOPS_SEED = 1007, 1008
VAE_ROWS = 876
#: Steps of encoder and decoder together, and of the decoder alone.
VAE_STEPS = (1500, 1200)
#: People in tops that the transformer learns from, those of its validation, and the share that is plain inpainting.
ROWS, TEST_ROWS, ELSEWHERE = 10_000, 16, 0.4
#: How the transformer is trained. The area to repaint counts most; the garment half is there to be copied from. Nearly
#: all steps see almost pure noise: a small model tells shapes by the condition alone, and draws in one step.
STEPS = 6000
TRAINING = (
    f"--train_base_model all --height {SIZE[0]} --width {SIZE[1]} --max_sequence_length 8 --train_batch_size 16 "
    "--optimizer muon --learning_rate 3e-3 --lr_scheduler cosine --lr_warmup_steps 50 --adam_beta2 0.99 "
    "--weighting_scheme logit_normal --logit_mean -4 --logit_std 0.8 --compile_blocks --cache_latents "
    "--garment_loss_weight 0.2 --background_loss_weight 0.5 --mask_loss_weight 2 --dataloader_num_workers 0 "
    "--checkpointing_steps 250 --checkpoints_total_limit 1 --validation_steps 1000 --num_inference_steps 1 "
    "--logging_steps 10 --report_to none --seed 0"
).split()

#: Folders of a phase of VITON-HD that the trainer reads.
FOLDERS = ("image", "cloth", "cloth-mask", "agnostic-mask")
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
    drawn = draw_all(functools.partial(_drawn_pair, size), specs, num_proc)
    pictures, masks = zip(*tqdm(drawn, "drawing pairs", rows, unit="row"), strict=True)
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


def top_specs(rows: int) -> Iterator[RowSpec]:
    """``rows`` people, each once, in an outfit drawn around a top, from head to thighs; views as in the wardrobe."""
    shares = {view: share for view, share in zip(PERSON_VIEWS, STUDIO_SHARES, strict=True) if view != "full"}
    chances = np.array(list(shares.values())) / sum(shares.values())
    for index in range(rows):
        view = str(np.random.default_rng([TOPS_SEED, index, 9]).choice(list(shares), p=chances))
        yield RowSpec(TOPS_SEED, index, index, 1, view, UPPER, UPPER, studio=True)


def repainted_type(spec: RowSpec) -> int:
    """Garment type whose area is to be repainted: the top's, or for a share ``ELSEWHERE`` of the rows another's."""
    draw = spec.generator(11).random(2)
    return UPPER if draw[0] >= ELSEWHERE else (LOWER if draw[1] < 0.5 else FULL)


def write_tops_folder(target: Path, rows: int, num_proc: int = 1) -> None:
    """Draw a VITON-HD folder with ``rows`` people in ``train/`` and ``TEST_ROWS`` others in ``test/``.

    Each training pair is there a second time as its mirror image, so the list has twice as many lines. The same bytes
    for the same arguments, whatever ``num_proc`` is.
    """
    for phase in ("train", "test"):
        for folder in FOLDERS:
            (target / phase / folder).mkdir(parents=True)
    count = rows + TEST_ROWS
    draw = functools.partial(_write_row, target, rows)
    written = tqdm(draw_all(draw, top_specs(count), num_proc), total=count, desc="drawing tops", unit="row")
    names = [name for of_row in written for name in of_row]
    for phase, some in (("train", names[: 2 * rows]), ("test", names[2 * rows :])):
        (target / f"{phase}_pairs.txt").write_text("".join(f"{name}.jpg {name}.jpg\n" for name in some), "utf-8")


def _write_row(target: Path, rows: int, spec: RowSpec) -> list[str]:
    """Draw one row and write its four pictures, in training their mirror images, too; returns the pairs' names."""
    repainted = repainted_type(spec)
    drawing = replace(spec, cloth_type=repainted).draw(SIZE)  # shows the part of the body that is repainted
    flat, lies = spec.draw_garment(SIZE)
    masks = [Image.fromarray(mask.astype(np.uint8) * np.uint8(255)) for mask in (lies, drawing.agnostic[repainted])]
    pictures = {f"{spec.index:06d}": [drawing.photo, flat, *masks]}
    if spec.index < rows:
        pictures[f"{spec.index:06d}m"] = [ImageOps.mirror(picture) for picture in (drawing.photo, flat, *masks)]
    phase = target / ("train" if spec.index < rows else "test")
    for name, parts in pictures.items():
        for folder, picture in zip(FOLDERS[:3], parts, strict=False):
            picture.save(phase / folder / f"{name}.jpg", quality=95, subsampling=0)
        parts[3].save(phase / "agnostic-mask" / f"{name}_mask.png", compress_level=1)
    return list(pictures)


def save_base(start: Path, transformer: Path, output_dir: Path) -> None:
    """Write the pipeline of folder ``start`` with the trained ``transformer``, this and the VAE in fp16."""
    trained = FluxTransformer2DModel.from_pretrained(transformer)
    pipeline = FluxFillPipeline.from_pretrained(start, transformer=trained)
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


def main(argv: list[str] | None = None) -> int:
    """Write the pipeline folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=TINY_FLUX_FILL, help="folder to write the pipeline to")
    parser.add_argument("--work_dir", type=Path, required=True, help="new folder for what is made on the way")
    args = parser.parse_args(argv)
    args.work_dir.mkdir(parents=True)
    num_proc = usable_cores()
    start, tops, run = (args.work_dir / name for name in ("start", "tops", "train"))
    parts: dict[str, Any] = {"vae": make_vae(num_proc), "transformer": untrained_transformer()}
    FluxFillPipeline.from_pretrained(TINY_FLUX_FILL, **parts).save_pretrained(start)
    write_tops_folder(tops, ROWS, num_proc=num_proc)
    flags = {"dataroot": tops, "output_dir": run, "max_train_steps": STEPS}
    flags |= dict.fromkeys(("pretrained_model_name_or_path", "pretrained_inpaint_model_name_or_path"), start)
    given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, trainer.__file__, *given, *TRAINING], check=True)
    save_base(start, run / "transformer", args.output_dir)
    sys.stdout.write(f"small FLUX-Fill written to {args.output_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
