"""Make the small FLUX-Fill that ships with the project: the real classes at toy size, taught to dress people in tops.

    python -m deepfashion_training.embedded.make.make_base --work_dir W [--output_dir D] [--num_proc 2]

The VAE is trained here on drawn pairs of all garment types, the transformer by ``train_flux_inpaint.py`` on a VITON-HD
folder of drawn tops, from random weights: like catvton-flux-alpha it has never seen trousers or a dress being put on.
At the end the VAE's decoder learns once more, on what the transformer paints; latents stay what they were.
The text encoders stay random, because every prompt is the same. Every step leaves its result in the work folder: given
again, the command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxTransformer2DModel
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

import train_flux_inpaint as trainer
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.make.small_vae import (
    VAE_CONFIG,
    Painted,
    Pairs,
    linear_start,
    polish_decoder,
    standardize_latents,
    train_vae,
)
from deepfashion_training.embedded.make.tops_folder import SEED, repainted_type, top_specs, write_tops_folder
from deepfashion_training.embedded.rows import RowSpec, documented_specs, draw_all
from deepfashion_training.garment_types import UPPER
from training_run.atomic import replacing

SIZE = (128, 96)  # height and width of one half of a pair

#: People that the VAE learns from: others than those of ``tops_folder`` and of every wardrobe.
PAIRS_SEED = 1007
VAE_ROWS = 876
#: Steps of encoder and decoder together, and of the decoder alone.
VAE_STEPS = (1500, 1200)
#: Steps of the decoder at the end, and of how many pairs it sees the latents and what the transformer paints for them.
POLISH_STEPS = 1500
POLISH_ROWS = 3000
#: People in tops, and the share of rows that are plain inpainting: legs and outfits that no garment picture shows.
ROWS = 10_000
ELSEWHERE = 0.4
#: How the transformer is trained. The area to repaint counts most; the garment half is there to be copied from. Nearly
#: all steps see almost pure noise: a small model tells shapes by the condition alone, and draws in one step.
STEPS = 6000
TRAINING = (
    f"--train_base_model all --height {SIZE[0]} --width {SIZE[1]} --max_sequence_length 8 --train_batch_size 16 "
    "--optimizer muon --learning_rate 3e-3 --lr_scheduler cosine --lr_warmup_steps 50 --adam_beta2 0.99 "
    "--weighting_scheme logit_normal --logit_mean -4 --logit_std 0.8 --compile_blocks --cache_latents "
    "--garment_loss_weight 0.2 --background_loss_weight 0.5 --mask_loss_weight 2 --dataloader_num_workers 0 "
    "--checkpointing_steps 250 --checkpoints_total_limit 1 --validation_steps 1000 --num_inference_steps 1 "
    "--logging_steps 10 --report_to none"
).split()

#: 384 input channels as in FLUX.1-Fill: 64 noisy, 64 of the masked picture, 256 of the mask.
TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 384,
    "out_channels": 64,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 14, 14),
}

#: How the transformer begins, see ``_linear_start``.
ANCHOR = 12.0
SHARPNESS = 2.0

#: Words that the toy tokenizers know whole; everything else is spelt letter by letter.
WORDS = (
    "the pair of images highlights a clothing and its styling on model high resolution detailed product shot image "
    "same cloth is worn by in lifestyle setting wears with top shirt trousers shorts skirt dress jumpsuit sleeve "
    "sleeves pattern plain striped dots checks man woman red blue green yellow black white grey pink "
    # The words of the drawn wardrobe's captions that turn up often.
    "patterns long length has stripe neckline there are feet wearing dressed her ankle sleeveless round t short knee "
    "wide leg tank three straight brown horizontal vertical slim denim navy dotted medium cropped color block beige "
    "pencil line plaid mini magenta point sneakers his jeans jacket coral forest rust turquoise low teal orange "
    "burgundy checked boots sweater diagonal lime ivory mint flared blouse plum olive hoodie peach floral quarter "
    "sandals lapel collar romper purple charcoal star chocolate midi suit silver boat sweatshirt v shaped mustard "
    "light leaf camel sky lavender heels pleated graphic chest also hat flats dark polo leggings maxi square cardigan "
    "loafers an vest ring heart"
).split()

#: The scheduler settings of FLUX.1-Fill-dev.
SCHEDULER_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def _clip(width: int) -> tuple[Any, Any]:
    letters = string.ascii_lowercase + string.digits + string.punctuation
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for end in range(1, len(parts)):
            merges[("".join(parts[:end]), parts[end])] = None
    joined = dict.fromkeys("".join(pair) for pair in merges)
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    return CLIPTextModel(config), tokenizer


def _t5(width: int) -> tuple[Any, Any]:
    letters = string.ascii_letters + string.digits + string.punctuation
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -9.0) for letter in letters] + [(f"▁{word}", -5.0) for word in (*WORDS, "The", "There")]
    tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)
    config = T5Config(
        vocab_size=len(pieces),
        d_model=width,
        d_kv=width // 2,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config), tokenizer


def random_fill_pipeline(seed: int = 0) -> FluxFillPipeline:
    """A ``FluxFillPipeline`` with a transformer of 5.3M parameters and random weights that follow from ``seed``."""
    torch.manual_seed(seed)
    text_encoder, tokenizer = _clip(TRANSFORMER_CONFIG["pooled_projection_dim"])
    text_encoder_2, tokenizer_2 = _t5(TRANSFORMER_CONFIG["joint_attention_dim"])
    vae = AutoencoderKL(**VAE_CONFIG)
    transformer = FluxTransformer2DModel(**TRANSFORMER_CONFIG)
    _plain_start(transformer)
    _linear_start(transformer)
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG)
    return FluxFillPipeline(scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer)


def _plain_start(transformer: Any) -> None:
    """Let the transformer begin without modulation: shifts and scales 0, gates 1, whatever the timestep.

    Zero modulation is what makes diffusion transformers learn quickly (Peebles and Xie 2023, adaLN-Zero). What closes a
    block in the beginning is not its gate, but the layer before it: see ``_linear_start``.
    """
    for name, module in transformer.named_modules():
        if re.fullmatch(r".*blocks\.\d+\.norm1?(_context)?\.linear", name):
            torch.nn.init.zeros_(module.weight)
            shift_scale_gate = torch.tensor([0.0, 0.0, 1.0]).repeat(module.out_features // module.in_features // 3)
            module.bias.data = shift_scale_gate.repeat_interleave(module.in_features)


def _linear_start(transformer: Any) -> None:
    """Let the transformer begin with the velocity of a picture that is repainted grey: noise minus masked picture.

    That is right wherever nothing is repainted, so all of the learning goes to where something is. The first 64
    channels carry the noisy latents, the next 64 those of the masked picture, the rest begins with the mask; blocks add
    nothing yet, and the last layer takes the one from the other. Between them LayerNorm divides each token by its
    deviation, which would make that as crooked as tokens differ in size; so the last two channels hold ``ANCHOR`` and
    minus that, which outweigh the others: what is left of the differences is 2%. Queries and keys begin ``SHARPNESS``
    times as large as theirs usually are, because of 96 tokens a few are to be looked at.
    """
    tokens, width = transformer.config.out_channels, transformer.inner_dim
    own, deviation = torch.eye(tokens), math.sqrt((2 * ANCHOR**2 + 2 * tokens) / width)
    with torch.no_grad():
        first, last = transformer.x_embedder, transformer.proj_out
        first.weight[:, : 2 * tokens] = 0
        first.weight[: 2 * tokens] = 0
        first.weight[:tokens, :tokens] = own
        first.weight[tokens : 2 * tokens, tokens : 2 * tokens] = own
        first.weight[-2:] = 0
        first.bias.zero_()
        first.bias[-2:] = torch.tensor([ANCHOR, -ANCHOR])
        for layer in (transformer.norm_out.linear, last):
            layer.weight.zero_()
            layer.bias.zero_()
        last.weight[:, :tokens] = own * deviation
        last.weight[:, tokens : 2 * tokens] = -own * deviation
        for name, module in transformer.named_modules():
            if re.search(r"blocks\.\d+\..*(to_q|to_k|to_v|net\.0\.proj|proj_mlp)$", name):
                module.weight[:, -2:] = 0  # they are there for LayerNorm alone
            if re.search(r"blocks\.\d+\.(.*to_out\.0|ff\.net\.2|proj_out)$", name):
                module.weight.zero_()
                module.bias.zero_()
            if re.search(r"norm_(q|k)$", name):
                module.weight.fill_(SHARPNESS)


def drawn_pairs(rows: int, seed: int, num_proc: int, size: tuple[int, int] = SIZE, studio: bool = False) -> Pairs:
    """Pairs of all garment types: with all their patterns and seen anywhere, or as the wardrobe has them (``studio``).

    Plain cloth in a studio is easy, so a VAE learns more from the others.
    """
    specs = list(documented_specs(rows, seed))
    if not studio:
        specs = [replace(spec, patterned=1.0, studio=False) for spec in specs]
    drawn = draw_all(functools.partial(_drawn_pair, size), specs, num_proc)
    pictures, masks = zip(*tqdm(drawn, "drawing pairs", rows, unit="row"), strict=True)
    return Pairs(np.stack(pictures), np.stack(masks))


def _drawn_pair(size: tuple[int, int], spec: RowSpec) -> tuple[np.ndarray, np.ndarray]:
    drawing = spec.draw(size)
    flat, _ = spec.draw_garment(size)
    return np.concatenate([np.asarray(flat), np.asarray(drawing.photo)], axis=1), drawing.agnostic[spec.cloth_type]


def make_vae(num_proc: int) -> AutoencoderKL:
    """A VAE trained on drawn pairs; its latents have mean 0 and deviation 1."""
    pairs = drawn_pairs(VAE_ROWS, PAIRS_SEED, num_proc)
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE_CONFIG)
    linear_start(vae, pairs.batch(np.random.default_rng(1), 48))
    vae.to(memory_format=torch.channels_last)
    train_vae(vae, pairs, VAE_STEPS[0], seed=0)
    train_vae(vae, pairs, VAE_STEPS[1], seed=1, decoder_only=True)
    standardize_latents(vae, pairs.batch(np.random.default_rng(1), 64))
    return vae


def painted_tops(start: Path, transformer: Path, tops: Path) -> Painted:
    """What the trained ``transformer`` paints in one step, for ``POLISH_ROWS`` of the pairs in ``tops``.

    Plain inpainting is left out: nobody could tell from what is shown there which trousers are to be painted.
    """
    trained = FluxTransformer2DModel.from_pretrained(transformer)
    pipeline = FluxFillPipeline.from_pretrained(start, transformer=trained)
    pipeline.set_progress_bar_config(disable=True)
    samples = trainer.VitonHDTestDataset(str(tops), "train", size=SIZE)
    specs = top_specs(len(samples) // 2, SEED)  # each is there twice, the second time mirrored
    worn = [row for spec in specs if repainted_type(spec, ELSEWHERE) == UPPER
            for row in (2 * spec.index, 2 * spec.index + 1)]  # fmt: skip
    order = np.random.default_rng([0, 23]).permutation(worn)[:POLISH_ROWS].tolist()
    latents, pictures, masks = [], [], []
    for first in tqdm(range(0, len(order), 16), "painting tops", unit="batch"):
        rows = order[first : first + 16]
        some = [samples[row] for row in rows]
        image, masked, mask = (
            torch.stack([sample[name] for sample in some]) for name in ("image", "im_mask", "inpaint_mask")
        )
        packed = pipeline(
            prompt=[trainer.DEFAULT_PROMPT] * len(some), image=masked / 2 + 0.5, mask_image=mask, height=SIZE[0],
            width=2 * SIZE[1], guidance_scale=1.0, max_sequence_length=8, num_inference_steps=1, output_type="latent",
            generator=[torch.Generator().manual_seed(row) for row in rows],
        ).images  # fmt: skip
        unpacked = pipeline._unpack_latents(packed, SIZE[0], 2 * SIZE[1], pipeline.vae_scale_factor)
        latents.append(unpacked / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor)
        pictures.append(((image + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
        masks.append(mask[:, 0, :, SIZE[1] :].numpy() > 0.5)
    return Painted(torch.cat(latents), Pairs(np.concatenate(pictures), np.concatenate(masks)))


def save_base(start: Path, transformer: Path, vae: Path, output_dir: Path) -> None:
    """Write the pipeline of folder ``start`` with the trained ``transformer`` and ``vae``, both in fp16."""
    trained = FluxTransformer2DModel.from_pretrained(transformer)
    pipeline = FluxFillPipeline.from_pretrained(start, transformer=trained, vae=AutoencoderKL.from_pretrained(vae))
    # diffusers loads half-precision files as fp32 by default, transformers leaves them as they are: with the text
    # encoders kept in fp32, a plain from_pretrained gives one precision throughout.
    pipeline.transformer.to(torch.float16)
    pipeline.vae.to(torch.float16)
    pipeline.save_pretrained(output_dir)
    for file in output_dir.rglob("*.json"):  # where on this machine its parts were loaded from is nobody's business
        settings = json.loads(file.read_text("utf-8"))
        kept = {name: value for name, value in settings.items()
                if name not in ("_name_or_path", "is_local", "local_files_only")}  # fmt: skip
        if kept != settings:
            file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")


def main(argv: list[str] | None = None) -> int:
    """Write the pipeline folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=TINY_FLUX_FILL, help="folder to write the pipeline to")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/make_base"), help="what is made on the way")
    parser.add_argument("--num_proc", type=int, default=2, help="processes that draw")
    args = parser.parse_args(argv)
    start, tops, run, polished = (args.work_dir / name for name in ("start", "tops", "train", "vae"))
    if not start.exists():
        pipeline = random_fill_pipeline()
        pipeline.vae = make_vae(args.num_proc)
        with replacing(start) as draft:
            pipeline.save_pretrained(draft)
    if not tops.exists():
        write_tops_folder(tops, ROWS, num_proc=args.num_proc, elsewhere=ELSEWHERE)
    if not (run / "transformer").exists():
        flags = {"dataroot": tops, "output_dir": run, "max_train_steps": STEPS, "seed": 0}
        flags |= dict.fromkeys(("pretrained_model_name_or_path", "pretrained_inpaint_model_name_or_path"), start)
        given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, trainer.__file__, *given, *TRAINING, "--resume_from_checkpoint", "latest"]
        subprocess.run(command, check=True)
    if not polished.exists():
        vae = AutoencoderKL.from_pretrained(start, subfolder="vae").to(memory_format=torch.channels_last)
        pairs = drawn_pairs(POLISH_ROWS, PAIRS_SEED, args.num_proc, studio=True)
        polish_decoder(vae, pairs, painted_tops(start, run / "transformer", tops), POLISH_STEPS, seed=0)
        with replacing(polished) as draft:
            vae.save_pretrained(draft)
    save_base(start, run / "transformer", polished, args.output_dir)
    sys.stdout.write(f"small FLUX-Fill written to {args.output_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
