"""The VAE of the small FLUX-Fill: its form, its start from principal components, and its training on drawn pairs.

It is trained on pairs, whole and cut, and with the person's area to repaint grey, because that is what it encodes; its
decoder in the end on what the trained transformer paints, because that is what it decodes.

Two choices make it quick to train and keep its latents plain. The encoder starts as a linear transform: patches of
2x2, 4x4 and 8x8 pixels one after another, each reduced to its principal components; what it learns on top is a
correction. And one channel carries a large constant through every layer up to the last normalization of encoder
and decoder, so that the statistics of group normalization hardly depend on the picture: bright stays bright, in a
single picture, a pair and a crop alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

#: 16 latent channels, 8x down, no quantization convolutions: the form of FLUX.1's VAE. With no residual blocks between
#: the encoder's downsamplers, a pair takes a few milliseconds: the trainer encodes two pictures a row and step.
VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": (32, 32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 0,
    "latent_channels": 16,
    "norm_num_groups": 1,
    "sample_size": 128,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
    "shift_factor": 0.0,
    "scaling_factor": 1.0,
}
_CONSTANT = 32.0  # of the last channel: far above the 0.1 to 6 of the others
_OFFSET = 3.0  # SiLU is nearly linear around it
#: Of the posterior: a standard deviation of 0.05, where the weakest of the latents' components have about 0.5.
_POSTERIOR_LOG_VARIANCE = -6.0


@dataclass(frozen=True)
class Pairs:
    """Drawn pairs: ``pictures`` uint8 [n,H,2W,3], garment left; ``masks`` bool [n,H,W], the area to repaint."""

    pictures: np.ndarray
    masks: np.ndarray

    def batch(
        self, rng: np.random.Generator, size: int, crop: int | None = None, on_clothes: float = 1.0
    ) -> torch.Tensor:
        """``size`` pictures [size,3,h,w] in [-1,1], a half of them masked; ``crop`` x ``crop`` pixels or whole pairs.

        A share ``on_clothes`` of the crops shows a point of the area to repaint, or of where garment pictures have
        their garment; the others may show walls and white paper, which are easy. Channels are permuted at random,
        and pictures mirrored: colours and sides that were not drawn.
        """
        rows = rng.integers(len(self.pictures), size=size)
        pairs = self.pictures[rows].astype(np.float32) / 127.5 - 1
        half = pairs.shape[2] // 2
        for place in range(0, size, 2):
            pairs[place, :, half:][self.masks[rows[place]]] = 0
        if crop:
            cut = []
            for place, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
                free = np.array(pair.shape[:2]) - crop
                if place < on_clothes * size:
                    ys, xs = np.nonzero(self.masks[row])
                    point = rng.integers(len(ys))
                    centre = np.array([ys[point], xs[point] + half * rng.integers(2)]) + rng.integers(-16, 17, 2)
                    top, left = np.clip(centre - crop // 2, 0, free)
                else:
                    top, left = rng.integers(free + 1)
                cut.append(pair[top : top + crop, left : left + crop])
            pairs = np.stack(cut)
        pairs = np.stack([pair[:, :: rng.choice((-1, 1)), rng.permutation(3)] for pair in pairs])
        return torch.from_numpy(pairs).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Painted:
    """``latents`` float32 [n,16,H/8,2W/8] that a transformer painted, as the decoder is given them, for ``pairs``."""

    latents: torch.Tensor
    pairs: Pairs

    def batch(self, rng: np.random.Generator, size: int, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``size`` crops around a point of the area to repaint: latents, and the pictures [size,3,crop,crop]."""
        rows = rng.integers(len(self.latents), size=size)
        latents, pictures = [], []
        for row in rows:
            ys, xs = np.nonzero(self.pairs.masks[row])
            point = rng.integers(len(ys))
            centre = np.array([ys[point], xs[point] + self.pairs.masks.shape[2]]) + rng.integers(-16, 17, 2)
            free = np.array(self.latents.shape[2:]) - crop // 8
            top, left = np.clip(centre // 8 - crop // 16, 0, free)
            latents.append(self.latents[row, :, top : top + crop // 8, left : left + crop // 8])
            pictures.append(self.pairs.pictures[row, 8 * top : 8 * top + crop, 8 * left : 8 * left + crop])
        shown = torch.from_numpy(np.stack(pictures).astype(np.float32) / 127.5 - 1)
        return torch.stack(latents), shown.permute(0, 3, 1, 2).contiguous()


def _principal(features: torch.Tensor, count: int) -> torch.Tensor:
    """The first ``count`` principal directions of ``features`` [n,d], as rows [count,d], the strongest first."""
    centred = features - features.mean(dim=0)
    vectors = torch.linalg.eigh(centred.T @ centred / len(centred)).eigenvectors
    directions = vectors.flip(1)[:, :count].T
    # The sign is free: it follows from the weights alone, so that it does not depend on the solver.
    return directions * directions.sum(dim=1, keepdim=True).sign()


def _patches(maps: torch.Tensor) -> torch.Tensor:
    """2x2 patches of ``maps`` [B,C,h,w] as rows [B*h/2*w/2, C*4] in the order of ``Conv2d``'s weights."""
    return functional.pixel_unshuffle(maps, 2).permute(0, 2, 3, 1).flatten(0, 2)


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
            block.conv2.weight.zero_()
            block.conv2.bias.zero_()
    levels = _start_encoder(vae, pictures)
    _start_decoder(vae, levels)


def _start_encoder(vae: Any, pictures: torch.Tensor) -> list[torch.Tensor]:
    """Returns latents [B,16,h,w] and what they were made from, at an eighth, a quarter, a half and full size."""
    encoder, width, latent = vae.encoder, vae.config.block_out_channels[0], vae.config.latent_channels
    for conv in (encoder.conv_in, encoder.conv_out, *(block.downsamplers[0].conv for block in encoder.down_blocks[:3])):
        conv.weight.zero_()
        conv.bias.zero_()
    levels = [pictures]
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1.0
    encoder.conv_in.bias[-1] = _CONSTANT
    for block in encoder.down_blocks[:3]:
        conv, maps = block.downsamplers[0].conv, levels[0]
        patches, known = _patches(maps), maps.shape[1]
        kept = min(width - 1, patches.shape[1])
        directions = _principal(patches, kept)
        conv.weight[:kept, :known, :2, :2] = directions.view(kept, known, 2, 2)
        conv.weight[-1, -1, 0, 0] = 1.0
        size = (len(maps), maps.shape[2] // 2, maps.shape[3] // 2)
        levels.insert(0, (patches @ directions.T).view(*size, kept).permute(0, 3, 1, 2))
    encoder.conv_norm_out.weight /= 8  # into the range where SiLU is nearly linear
    encoder.conv_norm_out.bias.fill_(_OFFSET)
    encoder.conv_norm_out.bias[-1] = 0.0
    wanted = levels[0][:, :latent] - levels[0][:, :latent].mean(dim=(0, 2, 3), keepdim=True)
    wanted = wanted / wanted.std(dim=(0, 2, 3), keepdim=True).sqrt()
    reached = torch.cat([_before(encoder.conv_out, encoder, some) for some in pictures.split(16)])
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
    decoder.conv_out.weight.zero_()
    decoder.conv_out.bias.zero_()
    decoder.conv_out.weight[range(3), range(3), 1, 1] = 1.0
    decoder.conv_out.weight[range(3), range(3, 6), 1, 1] = -1.0


def _make_constant(conv: Any) -> None:
    """Let the last channel be the constant, and nothing else depend on it."""
    if conv.in_channels == conv.out_channels:
        conv.weight[:, -1] = 0.0
    conv.weight[-1] = 0.0
    conv.bias[-1] = _CONSTANT


def _hold_constant(vae: Any) -> list[Any]:
    """Hooks that keep training away from the constant channel."""

    def without_last(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[-1] = 0.0
        return gradient

    def without_last_input(gradient: torch.Tensor) -> torch.Tensor:
        gradient = without_last(gradient)
        gradient[:, -1] = 0.0
        return gradient

    hooks = []
    for name, weight in vae.named_parameters():
        if weight.requires_grad and "conv_out" not in name:
            hook = without_last_input if weight.ndim == 4 and "decoder.conv_in" not in name else without_last
            hooks.append(weight.register_hook(hook))
    return hooks


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


def _before(layer: Any, model: Any, given: torch.Tensor) -> torch.Tensor:
    """What ``layer`` sees when ``model`` is given ``given``."""
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(given)
    hook.remove()
    return seen[0]


@torch.no_grad()
def standardize_latents(vae: Any, pictures: torch.Tensor) -> None:
    """Choose shift and scale so that latents of ``pictures`` [B,3,H,W] have mean 0 and standard deviation 1."""
    latents = torch.cat([vae.encode(some).latent_dist.mean for some in pictures.split(16)])
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


def _leave_out(blocks: Any) -> None:
    """Pass over ``blocks``, which add nothing as long as their last weights are 0: they took half of the time."""
    for block in blocks:
        assert not block.conv2.weight.any() and not block.conv2.bias.any()
        block.requires_grad_(False)
        block.forward = lambda hidden_states, temb=None: hidden_states


def _put_back(blocks: Any) -> None:
    for block in blocks:
        del block.forward


def reconstruction_loss(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean absolute error, and that of the differences between neighbours: edges count once more."""
    loss = (made - wanted).abs().mean()
    for dim in (2, 3):
        loss = loss + 0.5 * (made.diff(dim=dim) - wanted.diff(dim=dim)).abs().mean()
    return loss


def train_vae(
    vae: Any,
    pairs: Pairs,
    steps: int,
    seed: int,
    learning_rate: float = 2e-3,
    batch_size: int = 16,
    crop: int | None = 64,
    on_clothes: float = 1.0,
    decoder_only: bool = False,
) -> Iterator[tuple[int, float]]:
    """Train ``vae`` with AdamW and a cosine schedule; yields (step, mean loss) now and then.

    The noise of the posterior keeps its variance: the decoder has to bear it, which keeps neighbouring latents alike.
    With ``decoder_only`` latents stay what they are, and the decoder's blocks at full size, half of all its work,
    learn too.
    """
    rng = np.random.default_rng([seed, 21])
    torch.manual_seed(seed)
    vae.encoder.requires_grad_(False)
    if not decoder_only:
        vae.encoder.mid_block.requires_grad_(True)
        # Not learned, but PyTorch 2.13's group normalization crashes on CPUs where it need not give every gradient.
        for part in (vae.encoder.conv_norm_out, vae.encoder.down_blocks[2].downsamplers[0].conv):
            part.requires_grad_(True)
    if not decoder_only:
        _leave_out(vae.decoder.up_blocks[-1].resnets)
    learned = [vae.decoder, *([] if decoder_only else [vae.encoder.mid_block])]
    weights = [weight for part in learned for weight in part.parameters() if weight.requires_grad]

    def loss_of_step() -> torch.Tensor:
        pictures = pairs.batch(rng, batch_size, crop, on_clothes).to(memory_format=torch.channels_last)
        with torch.set_grad_enabled(not decoder_only):
            mean = vae.encode(pictures).latent_dist.mean
        noise = torch.randn_like(mean) * np.exp(_POSTERIOR_LOG_VARIANCE / 2)
        return reconstruction_loss(vae.decode(mean + noise).sample, pictures)

    yield from _steps(vae, weights, steps, learning_rate, loss_of_step)
    if not decoder_only:
        _put_back(vae.decoder.up_blocks[-1].resnets)


def polish_decoder(
    vae: Any,
    pairs: Pairs,
    painted: Painted,
    steps: int,
    seed: int,
    learning_rate: float = 1.5e-3,
    batch_size: int = 16,
    crop: int = 64,
    share: float = 0.6,
    noise: float = 0.2,
    structure: float = 0.5,
    on_clothes: float = 0.7,
) -> Iterator[tuple[int, float]]:
    """Train the decoder of ``vae`` on what a transformer paints; latents stay what they are. Yields as ``train_vae``.

    A ``share`` of the steps sees ``painted`` latents, the others latents of ``pairs`` with noise of deviation ``noise``
    (the latents' own is about 1), ``on_clothes`` of their crops on clothes. ``structure`` is the weight of 1-SSIM
    beside ``reconstruction_loss``.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    rng = np.random.default_rng([seed, 22])
    torch.manual_seed(seed)
    vae.encoder.requires_grad_(False)

    def loss_of_step() -> torch.Tensor:
        if rng.random() < share:
            latents, pictures = painted.batch(rng, batch_size, crop)
        else:
            pictures = pairs.batch(rng, batch_size, crop, on_clothes)
            with torch.no_grad():
                latents = vae.encode(pictures.to(memory_format=torch.channels_last)).latent_dist.mean
            latents = latents + noise * torch.randn_like(latents)
        made = vae.decode(latents.to(memory_format=torch.channels_last)).sample
        alike = structural_similarity_index_measure(made / 2 + 0.5, pictures / 2 + 0.5, data_range=1.0)
        assert isinstance(alike, torch.Tensor)
        return reconstruction_loss(made, pictures) + structure * (1 - alike)

    yield from _steps(vae, list(vae.decoder.parameters()), steps, learning_rate, loss_of_step)


def _steps(
    vae: Any, weights: list[Any], steps: int, learning_rate: float, loss_of_step: Callable[[], torch.Tensor]
) -> Iterator[tuple[int, float]]:
    """AdamW with a cosine schedule for ``weights``, the constant channel held; all of ``vae`` learns again afterwards.

    Yields (step, mean loss since the last) every 50 steps and at the end.
    """
    hooks = _hold_constant(vae)
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    warm = max(1, steps // 50)
    rate = lambda step: min((step + 1) / warm, 0.5 + 0.5 * np.cos(np.pi * min(1.0, step / steps)))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses = []
    for step in range(1, steps + 1):
        loss = loss_of_step()
        vae.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps:
            yield step, float(np.mean(losses))
            losses.clear()
    for hook in hooks:
        hook.remove()
    vae.requires_grad_(True)
