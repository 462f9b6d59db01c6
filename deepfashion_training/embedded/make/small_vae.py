"""The VAE of the small FLUX-Fill: its start from principal components, and its training on drawn pairs.

It has the form of FLUX.1's: 16 latent channels, 8x down, no quantization convolutions. With no residual blocks between
the encoder's downsamplers a pair takes a few milliseconds. It is trained on crops of pairs, half of them with the
person's area to repaint grey, because that is what it encodes.

Two choices make it quick to train and keep its latents plain. The encoder starts as a linear transform: patches of
2x2, 4x4 and 8x8 pixels one after another, each reduced to its principal components; what it learns on top is a
correction. And one channel carries a large constant through every layer up to the last normalization of encoder
and decoder, so that the statistics of group normalization hardly depend on the picture: bright stays bright, in a
single picture, a pair and a crop alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.optimization import get_scheduler
from torch.nn import functional
from tqdm import trange

_CONSTANT = 32.0  # of the last channel: far above the 0.1 to 6 of the others
_OFFSET = 3.0  # SiLU is nearly linear around it
#: Of the posterior: a standard deviation of 0.05, where the weakest of the latents' components have about 0.5.
_POSTERIOR_LOG_VARIANCE = -6.0
#: Weight of 1-SSIM beside the absolute errors, where the decoder learns from what a transformer painted.
STRUCTURE = 0.2


@dataclass(frozen=True)
class Pairs:
    """Drawn pairs: ``pictures`` uint8 [n,H,2W,3], garment left; ``masks`` bool [n,H,W], the area to repaint.

    ``painted`` are latents [n,16,H/8,2W/8] of what a transformer makes of the masked pairs, unscaled.
    """

    pictures: np.ndarray
    masks: np.ndarray
    painted: torch.Tensor | None = None

    def batch(
        self, rng: np.random.Generator, size: int, crop: int | None = None, on_clothes: float = 1.0
    ) -> torch.Tensor:
        """``size`` pictures [size,3,h,w] in [-1,1], a half of them masked; ``crop`` x ``crop`` pixels or whole pairs.

        A share ``on_clothes`` of the crops shows a point of the area to repaint, or of where garment pictures have
        their garment; the others may show walls and white paper, which are easy. Channels are permuted at random,
        and pictures mirrored: colours and sides that were not drawn.
        """
        batch = []
        for place, row in enumerate(rng.integers(len(self.pictures), size=size)):
            pair, mask = self.pictures[row].astype(np.float32) / 127.5 - 1, self.masks[row]
            height, width = mask.shape
            if place % 2 == 0:
                pair[:, width:][mask] = 0
            if crop:
                if place < on_clothes * size:
                    ys, xs = np.nonzero(mask)
                    point, on_person = rng.integers((len(ys), 2))
                    centre = np.array([ys[point], xs[point] + width * on_person]) + rng.integers(-16, 17, 2)
                    top, left = np.clip(centre - crop // 2, 0, (height - crop, 2 * width - crop))
                else:
                    top, left = rng.integers((height - crop + 1, 2 * width - crop + 1))
                pair = pair[top : top + crop, left : left + crop]
            batch.append(pair[:, :: rng.choice((-1, 1)), rng.permutation(3)])
        return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous()

    def painted_batch(self, rng: np.random.Generator, size: int, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``size`` crops of ``painted`` around areas to repaint, and of the pictures that they stand for."""
        assert self.painted is not None
        height, width = self.masks.shape[1:]
        latents, pictures = [], []
        for row in rng.integers(len(self.pictures), size=size):
            ys, xs = np.nonzero(self.masks[row])
            point = rng.integers(len(ys))
            corner = np.array([ys[point], width + xs[point]]) - crop // 2 + rng.integers(-16, 17, 2)
            top, left = np.clip(corner, (0, width), (height - crop, 2 * width - crop)) // 8  # latents are whole
            latents.append(self.painted[row, :, top : top + crop // 8, left : left + crop // 8])
            pictures.append(self.pictures[row, 8 * top : 8 * top + crop, 8 * left : 8 * left + crop])
        wanted = torch.from_numpy(np.stack(pictures).astype(np.float32) / 127.5 - 1)
        return torch.stack(latents), wanted.permute(0, 3, 1, 2)


def _principal(maps: torch.Tensor, count: int) -> torch.Tensor:
    """The first ``count`` principal directions of ``maps`` [B,d,h,w], as rows [count,d], the strongest first."""
    features = maps.permute(0, 2, 3, 1).flatten(0, 2)
    centred = features - features.mean(dim=0)
    vectors = torch.linalg.eigh(centred.T @ centred / len(centred)).eigenvectors
    directions = vectors.flip(1)[:, :count].T
    # The sign is free: it follows from the weights alone, so that it does not depend on the solver.
    return directions * directions.sum(dim=1, keepdim=True).sign()


@torch.no_grad()
def linear_start(vae: Any, pictures: torch.Tensor) -> None:
    """Set encoder and decoder to linear transforms that fit ``pictures`` [B,3,H,W]; residual blocks start as nothing.

    The encoder goes from patch to larger patch by principal components. Each layer of the decoder is fitted by least
    squares to what the encoder had at that resolution.
    """
    width = vae.config.block_out_channels[0]
    for module in vae.modules():
        if isinstance(module, torch.nn.GroupNorm):  # natural scale again, and without the constant
            module.weight[:-1] = _CONSTANT * (width - 1) ** 0.5 / width
            module.bias[:-1] = _CONSTANT / width
            module.weight[-1] = module.bias[-1] = 0.0
    for part in (vae.encoder.mid_block, vae.decoder.mid_block, *vae.decoder.up_blocks):
        for block in part.resnets:
            _make_constant(block.conv1)
            _clear(block.conv2)
    levels = _start_encoder(vae, pictures)
    _start_decoder(vae, levels)


def _start_encoder(vae: Any, pictures: torch.Tensor) -> list[torch.Tensor]:
    """Returns latents [B,16,h,w] and what they were made from, at an eighth, a quarter, a half and full size."""
    encoder, width, latent = vae.encoder, vae.config.block_out_channels[0], vae.config.latent_channels
    for conv in (encoder.conv_in, encoder.conv_out, *(block.downsamplers[0].conv for block in encoder.down_blocks[:3])):
        _clear(conv)
    levels = [pictures]
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1.0
    encoder.conv_in.bias[-1] = _CONSTANT
    for block in encoder.down_blocks[:3]:
        conv, maps = block.downsamplers[0].conv, levels[0]
        patches, known = functional.pixel_unshuffle(maps, 2), maps.shape[1]  # in the order of Conv2d's weights
        kept = min(width - 1, patches.shape[1])
        directions = _principal(patches, kept)
        conv.weight[:kept, :known, :2, :2] = directions.view(kept, known, 2, 2)
        conv.weight[-1, -1, 0, 0] = 1.0
        levels.insert(0, torch.einsum("kd,bdhw->bkhw", directions, patches))
    encoder.conv_norm_out.weight /= 8  # into the range where SiLU is nearly linear
    encoder.conv_norm_out.bias.fill_(_OFFSET)
    encoder.conv_norm_out.bias[-1] = 0.0
    wanted = levels[0][:, :latent] - levels[0][:, :latent].mean(dim=(0, 2, 3), keepdim=True)
    wanted = wanted / wanted.std(dim=(0, 2, 3), keepdim=True).sqrt()
    conv_out, encoder.conv_out = encoder.conv_out, torch.nn.Identity()
    reached = torch.cat([encoder(some) for some in pictures.split(16)])
    encoder.conv_out = conv_out
    weight, bias = _fitted(reached, wanted, 1)
    encoder.conv_out.weight[:latent, :, 1:2, 1:2], encoder.conv_out.bias[:latent] = weight, bias
    encoder.conv_out.bias[latent:] = _POSTERIOR_LOG_VARIANCE
    return [wanted, *levels]


def _start_decoder(vae: Any, levels: list[torch.Tensor]) -> None:
    decoder = vae.decoder
    latents, *levels = levels
    levels[-1] = torch.cat([levels[-1], -levels[-1]], dim=1)  # SiLU(x) - SiLU(-x) = x
    maps = latents
    convs = [decoder.conv_in, *(block.upsamplers[0].conv for block in decoder.up_blocks[:3])]
    for number, (conv, wanted) in enumerate(zip(convs, levels, strict=True)):
        if number:
            maps = functional.interpolate(maps, scale_factor=2, mode="nearest")
        known = wanted.shape[1]
        conv.weight[:known], conv.bias[:known] = _fitted(maps, wanted, 3)
        _make_constant(conv)
        maps = conv(maps)
    _clear(decoder.conv_out)
    decoder.conv_out.weight[range(3), range(3), 1, 1] = 1.0
    decoder.conv_out.weight[range(3), range(3, 6), 1, 1] = -1.0


def _clear(conv: Any) -> None:
    conv.weight.zero_()
    conv.bias.zero_()


def _make_constant(conv: Any) -> None:
    """Let the last channel be the constant, and nothing else depend on it."""
    if conv.in_channels == conv.out_channels:
        conv.weight[:, -1] = 0.0
    conv.weight[-1] = 0.0
    conv.bias[-1] = _CONSTANT


def _fitted(given: torch.Tensor, wanted: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [c,C,side,side] and biases [c] of the convolution that turns ``given`` [B,C,h,w] into ``wanted`` best."""
    count = given.shape[1] * side**2 + 1
    squares = torch.zeros(count, count, dtype=torch.float64)
    products = torch.zeros(count, wanted.shape[1], dtype=torch.float64)
    for some, goal in zip(given, wanted, strict=True):
        columns = functional.unfold(some[None], side, padding=side // 2)[0]
        columns = torch.cat([columns, torch.ones_like(columns[:1])]).double()
        squares += columns @ columns.T
        products += columns @ goal.flatten(1).T.double()
    squares += torch.eye(count) * squares.diagonal().mean() * 1e-6
    found = torch.linalg.solve(squares, products).float()
    return found[:-1].T.reshape(wanted.shape[1], given.shape[1], side, side), found[-1]


@torch.no_grad()
def standardize_latents(vae: Any, pictures: torch.Tensor) -> None:
    """Choose shift and scale so that latents of ``pictures`` [B,3,H,W] have mean 0 and standard deviation 1."""
    latents = torch.cat([vae.encode(some).latent_dist.mean for some in pictures.split(16)])
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


def reconstruction_loss(made: torch.Tensor, wanted: torch.Tensor, structure: float = 0.0) -> torch.Tensor:
    """Mean absolute error, and that of the differences between neighbours: edges count once more.

    ``structure`` times 1-SSIM is added: the absolute error alone makes grey of a pattern that lies a pixel beside.
    """
    loss = (made - wanted).abs().mean()
    for dim in (2, 3):
        loss = loss + 0.5 * (made.diff(dim=dim) - wanted.diff(dim=dim)).abs().mean()
    if structure:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        similarity: Any = ssim(made, wanted, data_range=2.0)
        loss = loss + structure * (1 - similarity)
    return loss


def train_vae(
    vae: Any, pairs: Pairs, steps: int, seed: int, decoder_only: bool = False, batch_size: int = 16, crop: int = 64
) -> None:
    """Train ``vae`` on crops of clothes, or with ``decoder_only`` its decoder alone, on walls, too; latents then stay.

    The decoder alone also learns to make pictures of ``pairs.painted``, where there are any: half of its batches then,
    and 1-SSIM counts. AdamW with a cosine schedule. The noise of the posterior keeps its variance: the decoder has to
    bear it, which keeps neighbouring latents alike. The constant channel is held.
    """
    rng = np.random.default_rng([seed, 21])
    torch.manual_seed(seed)
    vae.encoder.requires_grad_(False)
    at_full_size = vae.decoder.up_blocks[-1]
    blocks, learned = at_full_size.resnets, [vae.decoder]
    if not decoder_only:
        # They are half of all the work, and start as nothing: they learn with the decoder alone.
        at_full_size.resnets = torch.nn.ModuleList()
        learned.append(vae.encoder.mid_block)
        # Only the middle learns, but PyTorch 2.13's group normalization crashes on CPUs without all the gradients.
        for part in (*learned[1:], vae.encoder.conv_norm_out, vae.encoder.down_blocks[2].downsamplers[0].conv):
            part.requires_grad_(True)
    hooks = []
    for name, weight in vae.named_parameters():
        if weight.requires_grad and "conv_out" not in name:
            free = torch.ones_like(weight)
            free[-1] = 0.0
            if weight.ndim == 4 and "decoder.conv_in" not in name:
                free[:, -1] = 0.0
            hooks.append(weight.register_hook(free.mul))
    weights = [weight for part in learned for weight in part.parameters()]
    rate = 1.5e-3 if decoder_only else 2e-3
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=max(1, steps // 50), num_training_steps=steps)
    progress = trange(steps, desc="training the VAE", unit="step", mininterval=5)
    for _ in progress:
        paints = decoder_only and pairs.painted is not None
        pictures = pairs.batch(rng, batch_size // 2 if paints else batch_size, crop, 0.5 if decoder_only else 1.0)
        pictures = pictures.to(memory_format=torch.channels_last)
        with torch.set_grad_enabled(not decoder_only):
            mean = vae.encode(pictures).latent_dist.mean
        latents = mean + torch.randn_like(mean) * np.exp(_POSTERIOR_LOG_VARIANCE / 2)
        if paints:
            painted, wanted = pairs.painted_batch(rng, batch_size // 2, crop)
            latents, pictures = torch.cat([latents, painted]), torch.cat([pictures, wanted])
        loss = reconstruction_loss(vae.decode(latents).sample, pictures, STRUCTURE if paints else 0.0)
        vae.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    for hook in hooks:
        hook.remove()
    vae.requires_grad_(True)
    at_full_size.resnets = blocks
