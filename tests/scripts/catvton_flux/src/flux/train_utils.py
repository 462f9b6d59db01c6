"""What the re-created training script does to pictures before the transformer sees them."""

import torch
from diffusers import FluxFillPipeline


def _latents(vae, pixels):
    encoded = vae.encode(pixels).latent_dist.sample()
    return (encoded - vae.config.shift_factor) * vae.config.scaling_factor


def encode_images_to_latents(vae, pixels, weight_dtype, height, width):
    """Latents [B, 16, H/8, W/8] of pictures [B, 3, H, W]."""
    if pixels.shape[-2:] != (height, width):
        raise ValueError(f"pictures of {tuple(pixels.shape[-2:])}, expected {(height, width)}")
    return _latents(vae, pixels.to(vae.dtype)).to(weight_dtype)


def prepare_latents(vae_scale_factor, batch_size, height, width, dtype, device):
    """Position ids [tokens, 3] of the packed latents; every picture of a batch shares them."""
    rows, columns = height // (2 * vae_scale_factor), width // (2 * vae_scale_factor)
    return FluxFillPipeline._prepare_latent_image_ids(batch_size, rows, columns, device, dtype)


def prepare_fill_with_mask(
    image_processor,
    mask_processor,
    vae,
    vae_scale_factor,
    image,
    mask,
    width,
    height,
    batch_size,
    num_images_per_prompt,
    device,
    dtype,
):
    """Conditioning [B, tokens, 64 + 256] of masked pictures, and the height and width that it stands for."""
    image = image_processor.preprocess(image, height=height, width=width).to(device=device, dtype=dtype)
    mask = mask_processor.preprocess(mask, height=height, width=width).to(device=device, dtype=dtype)
    image, mask = (x.repeat_interleave(num_images_per_prompt, dim=0) for x in (image, mask))
    latents = _latents(vae, image * (1 - mask)).to(dtype)
    # Each latent pixel gets the 8x8 mask pixels that it covers as channels.
    masks = torch.nn.functional.pixel_unshuffle(mask, vae_scale_factor)
    count, (rows, columns) = batch_size * num_images_per_prompt, latents.shape[-2:]
    packed = [FluxFillPipeline._pack_latents(x, count, x.shape[1], rows, columns) for x in (latents, masks)]
    return torch.cat(packed, dim=-1), height, width
