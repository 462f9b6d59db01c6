"""Make the small FLUX-Fill that ships with the project: the real classes at toy size, with random weights.

    python -m deepfashion_training.embedded.make_base --output_dir D [--seed 0]

It is a normal diffusers pipeline folder of about 4 MB. It knows nothing about people or clothes: it proves that
training, checkpoints, validation and loading work, with no network, no GPU and no account.
"""

from __future__ import annotations

import argparse
import string
import sys
from pathlib import Path
from typing import Any

from deepfashion_training.embedded.small_vae import VAE_CONFIG

#: Folder of the small FLUX-Fill inside this package.
TINY_FLUX_FILL = Path(__file__).parent / "tiny_flux_fill"

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

#: Words that the toy tokenizers know whole; everything else is spelt letter by letter.
WORDS = (
    "the pair of images highlights a clothing and its styling on model high resolution detailed product shot image "
    "same cloth is worn by in lifestyle setting wears with top shirt trousers shorts skirt dress jumpsuit sleeve "
    "sleeves pattern plain striped dots checks man woman red blue green yellow black white grey pink "
    # The words of the drawn wardrobe's captions that turn up in six rows or more of 720.
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
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

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


def random_fill_pipeline(seed: int = 0) -> Any:
    """A ``FluxFillPipeline`` of about 2M parameters with random weights that follow from ``seed``."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxTransformer2DModel

    torch.manual_seed(seed)
    text_encoder, tokenizer = _clip(TRANSFORMER_CONFIG["pooled_projection_dim"])
    text_encoder_2, tokenizer_2 = _t5(TRANSFORMER_CONFIG["joint_attention_dim"])
    vae = AutoencoderKL(**VAE_CONFIG)
    transformer = FluxTransformer2DModel(**TRANSFORMER_CONFIG)
    # PyTorch's own initial weights make the last layer so weak in most directions that no LoRA before it could reach
    # velocities of variance 2; an orthogonal one passes every direction on alike.
    torch.nn.init.orthogonal_(transformer.proj_out.weight)
    return FluxFillPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def main(argv: list[str] | None = None) -> int:
    """Write the pipeline folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=TINY_FLUX_FILL, help="folder to write the pipeline to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    args = parser.parse_args(argv)
    import torch

    pipeline = random_fill_pipeline(args.seed)
    # diffusers loads half-precision files as fp32 unless told otherwise, transformers leaves them as they are: with the
    # text encoders kept in fp32, a plain from_pretrained gives one precision throughout.
    pipeline.transformer.to(torch.float16)
    pipeline.vae.to(torch.float16)
    pipeline.save_pretrained(args.output_dir, safe_serialization=True)
    sys.stdout.write(f"small FLUX-Fill written to {args.output_dir}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
