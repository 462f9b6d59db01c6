"""Figures over pairs of pictures: how near a result comes to the truth, and what it changed where it should not have.

Pictures are float tensors ``[3, H, W]`` or batches ``[B, 3, H, W]``: sRGB, in the order red, green, blue, in [0, 1].
Masks are ``[1, H, W]`` or ``[B, 1, H, W]`` of any type with values in {0, 1}. Everything is computed in float64 on the
device of the pictures, and one picture's figures do not depend on the rest of its batch. What does not fit is a
``ValueError``: shapes that differ, values more than 1e-6 outside [0, 1] (nearer ones are clamped), NaN, an empty mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: The Gaussian window of SSIM: standard deviation and, as 3.5 of those reach 5 pixels to each side, its width.
SSIM_SIGMA = 1.5
SSIM_WINDOW = 11
_K1, _K2 = 0.01, 0.03

#: Linear sRGB to CIE XYZ: the primaries and the white of ITU-R BT.709, to six digits (also scikit-image's).
_XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
#: XYZ of the white D65 for the 2 degree observer (ASTM E308).
_WHITE = (0.95047, 1.0, 1.08883)

_TOLERANCE = 1e-6


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of each pair: float64 ``[B]``, at most 1, which equal pictures reach.

    Wang, Bovik, Sheikh, Simoncelli 2004 with their settings: a Gaussian window of sigma 1.5 and 11 x 11 pixels,
    population covariance, K1 0.01, K2 0.03, data range 1; the mean over the three channels. The 5 pixels next to each
    border, whose windows reach outside the picture, do not count. Equal to ``skimage.metrics.structural_similarity(
    channel_axis=..., gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)``.

    ``ValueError`` also for pictures with a side under 11 pixels. Float64 is needed: in float32 the variances of
    a flat, bright background drown in rounding, and SSIM is off by up to 1e-3. A pair of 1024 x 768 pixels takes
    about a second and 0.4 GB on one CPU core.
    """
    return _inner_mean(_ssim_map(*_pair(one, other)))


def ssim_masked(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Mean of the SSIM map over each mask: float64 ``[B]``, as in ``ssim``.

    Here pixels at the border count, since masks reach it; for their windows the picture is continued by its mirror
    image, the border pixel included, as in scikit-image's ``full=True``. A window at the mask's edge also sees 5 pixels
    of what lies beyond it.
    """
    one, other = _pair(one, other)
    return _masked_mean(_ssim_map(one, other), _mask(mask, one))


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB, ``10 log10(1 / mean squared difference)``: float64 ``[B]``.

    Equal pictures give infinity, which has no place in a mean, in a bootstrap or in JSON: average the finite values,
    say how many there were, and write null where there were none.
    """
    one, other = _pair(one, other)
    return -10 * torch.log10((one - other).square().mean(dim=(1, 2, 3)))


def psnr_masked(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """PSNR in dB as in ``psnr``, the mean taken over each mask's pixels and the three channels: float64 ``[B]``.

    Infinite where the pictures are equal inside the mask, whatever lies outside it.
    """
    one, other = _pair(one, other)
    return -10 * torch.log10(_masked_mean((one - other).square().mean(dim=1), _mask(mask, one)))


def ciede2000(one: Tensor, other: Tensor) -> Tensor:
    """Map of CIEDE2000 colour differences: float64 ``[B, H, W]``, 0 for equal colours, 100 from black to white.

    About 1 is just noticeable. sRGB to CIELAB as in ``lab``, then ``lab_difference``.
    """
    one, other = _pair(one, other)
    return lab_difference(lab(one), lab(other))


def ciede2000_masked(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Mean CIEDE2000 colour difference over each mask: float64 ``[B]``."""
    one, other = _pair(one, other)
    mask = _mask(mask, one)
    return _masked_mean(lab_difference(lab(one), lab(other)), mask)


def drift(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference outside each mask, over pixels and channels, in 8-bit levels 0..255: float64 ``[B]``.

    What a model changed where nothing was to be changed. Nothing is rounded to whole levels first. ``ValueError`` if
    a mask leaves nothing outside, rather than if it is empty.
    """
    one, other = _pair(one, other)
    outside = ~_mask(mask, one, outside=True)
    return 255 * _masked_mean((one - other).abs().mean(dim=1), outside)


def paired_figures(
    result: Tensor, truth: Tensor, mask: Tensor, garment: Tensor | None = None
) -> list[dict[str, float]]:
    """Every figure of each pair, by the names of ``metrics.json``: a dictionary a picture, in the order of the batch.

    ``{"ssim", "ssim_masked", "psnr", "psnr_masked", "ciede2000_masked", "drift"}``, each as its function says;
    ``psnr`` and ``psnr_masked`` may be infinite. ``mask`` is the area that the model filled in; ``garment``, if given,
    the area over which colours are compared in its place, such as the garment itself in ``truth``.
    """
    result, truth = _pair(result, truth)
    inside = _mask(mask, result)
    similarity = _ssim_map(result, truth)
    figures = {
        "ssim": _inner_mean(similarity),
        "ssim_masked": _masked_mean(similarity, inside),
        "psnr": psnr(result, truth),
        "psnr_masked": psnr_masked(result, truth, mask),
        "ciede2000_masked": ciede2000_masked(result, truth, mask if garment is None else garment),
        "drift": drift(result, truth, mask),
    }
    columns = [values.tolist() for values in figures.values()]
    return [dict(zip(figures, row, strict=True)) for row in zip(*columns, strict=True)]


def lab(pictures: Tensor) -> Tensor:
    """CIELAB of sRGB pictures ``[B, 3, H, W]`` in [0, 1], for D65 and 2 degrees: L 0..100, a and b about -110..110.

    The transfer curve of IEC 61966-2-1, then CIE 15:2004 with its exact fractions; scikit-image rounds them to four
    digits, which moves single dark pixels by up to 3e-4 and a picture's mean by less than 1e-5.
    """
    linear = torch.where(pictures > 0.04045, ((pictures + 0.055) / 1.055) ** 2.4, pictures / 12.92)
    matrix = linear.new_tensor(_XYZ_FROM_RGB) / linear.new_tensor(_WHITE)[:, None]
    xyz = torch.einsum("ij,bjhw->bihw", matrix, linear)
    edge = 6 / 29
    x, y, z = torch.where(xyz > edge**3, xyz.clamp(min=edge**3) ** (1 / 3), xyz / (3 * edge**2) + 4 / 29).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_difference(one: Tensor, other: Tensor) -> Tensor:
    """CIEDE2000 difference of CIELAB colours ``[B, 3, ...]``, with kL = kC = kH = 1: ``[B, ...]``.

    Sharma, Wu, Dalal 2005, "The CIEDE2000 color-difference formula: implementation notes"; the numbers in the comments
    are its equations. It has a jump where two hues lie opposite each other.
    """
    (l1, a1, b1), (l2, a2, b2) = one.unbind(1), other.unbind(1)
    mean_c = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2  # 2, 3
    g = 0.5 * (1 - _chroma_share(mean_c))  # 4
    a1, a2 = (1 + g) * a1, (1 + g) * a2  # 5
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)  # 6
    h1 = torch.rad2deg(torch.atan2(b1, a1)) % 360  # 7
    h2 = torch.rad2deg(torch.atan2(b2, a2)) % 360

    grey = c1 * c2 == 0  # one of the two has no hue
    turn = h2 - h1
    apart = turn.abs() > 180
    dh = torch.where(apart, turn - 360 * turn.sign(), turn).masked_fill(grey, 0)  # 10
    dl, dc = l2 - l1, c2 - c1  # 8, 9
    dh_length = 2 * (c1 * c2).sqrt() * torch.sin(torch.deg2rad(dh / 2))  # 11

    c, h = (c1 + c2) / 2, h1 + h2  # 13
    h = torch.where(grey, h, torch.where(apart, torch.where(h < 360, h + 360, h - 360), h) / 2)  # 14
    t = 1 - 0.17 * _cos(h - 30) + 0.24 * _cos(2 * h) + 0.32 * _cos(3 * h + 6) - 0.20 * _cos(4 * h - 63)  # 15
    turned = 60 * torch.exp(-(((h - 275) / 25) ** 2))  # 16, doubled
    from_middle = ((l1 + l2) / 2 - 50) ** 2  # 12
    s_l = 1 + 0.015 * from_middle / (20 + from_middle).sqrt()  # 18
    s_c, s_h = 1 + 0.045 * c, 1 + 0.015 * c * t  # 19, 20
    r_t = -torch.sin(torch.deg2rad(turned)) * 2 * _chroma_share(c)  # 17, 21
    lightness, chroma, hue = dl / s_l, dc / s_c, dh_length / s_h
    return (lightness**2 + chroma**2 + hue**2 + r_t * chroma * hue).clamp(min=0).sqrt()  # 22


def _chroma_share(c: Tensor) -> Tensor:
    return (c**7 / (c**7 + 25.0**7)).sqrt()


def _cos(degrees: Tensor) -> Tensor:
    return torch.cos(torch.deg2rad(degrees))


def _ssim_map(one: Tensor, other: Tensor) -> Tensor:
    """SSIM at each pixel, the mean over the channels: ``[B, H, W]``; beyond its borders a picture is mirrored."""
    if min(one.shape[-2:]) < SSIM_WINDOW:
        height, width = one.shape[-2:]
        raise ValueError(f"pictures of {height} x {width} pixels: SSIM needs {SSIM_WINDOW} x {SSIM_WINDOW} or more")
    c1, c2 = _K1**2, _K2**2
    maps = []
    for x, y in zip(one, other, strict=True):  # one by one: each takes 15 float64 maps at a time
        mean_x, mean_y, xx, yy, xy = _blurred(torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 1)).chunk(5)
        between, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
        alike = (2 * between + c1) * (2 * (xy - between) + c2)
        maps.append((alike / ((squares + c1) * (xx + yy - squares + c2))).mean(dim=0))
    return torch.stack(maps)


def _blurred(maps: Tensor) -> Tensor:
    """``[N, H, W]`` under the Gaussian window of SSIM, down and then across; ``H`` and ``W`` stay what they are."""
    reach = SSIM_WINDOW // 2
    weights = [math.exp(-((step / SSIM_SIGMA) ** 2) / 2) for step in range(reach + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    for dim in (1, 2):
        size = maps.shape[dim]
        head, tail = maps.narrow(dim, 0, reach).flip(dim), maps.narrow(dim, size - reach, reach).flip(dim)
        padded = torch.cat([head, maps, tail], dim=dim)  # mirrored, the border pixel included
        maps = maps * (weights[0] / total)
        for step, weight in enumerate(weights[1:], start=1):
            for start in (reach - step, reach + step):
                maps.add_(padded.narrow(dim, start, size), alpha=weight / total)
    return maps


def _inner_mean(maps: Tensor) -> Tensor:
    reach = SSIM_WINDOW // 2
    return maps[:, reach:-reach, reach:-reach].mean(dim=(1, 2))


def _masked_mean(maps: Tensor, mask: Tensor) -> Tensor:
    """Mean of each map ``[B, H, W]`` over its mask, bool ``[B, H, W]``."""
    return maps.masked_fill(~mask, 0).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))


def _pair(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 ``[B, 3, H, W]`` in [0, 1], once they are found to be pictures of one shape."""
    if one.shape != other.shape:
        raise ValueError(f"pictures differ in shape: {list(one.shape)} and {list(other.shape)}")
    return _pictures(one), _pictures(other)


def _pictures(given: Tensor) -> Tensor:
    if given.ndim not in (3, 4) or given.shape[-3] != 3 or not given.numel():
        raise ValueError(f"a picture is [3, H, W] or [B, 3, H, W], not {list(given.shape)}")
    if not given.is_floating_point():
        raise ValueError(f"a picture is float in [0, 1], not {given.dtype}: divide 8-bit levels by 255")
    given = given if given.ndim == 4 else given[None]
    pictures = given.to(torch.float64)
    low, high = pictures.min().item(), pictures.max().item()
    if math.isnan(low) or low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise ValueError(f"a picture's values go from {low:g} to {high:g}: bring them to [0, 1]")
    return pictures.clamp(0, 1)


def _mask(given: Tensor, pictures: Tensor, outside: bool = False) -> Tensor:
    """Bool ``[B, H, W]`` that fits ``pictures`` and covers something, or with ``outside`` leaves something."""
    mask = given[None] if given.ndim == 3 else given
    batch, _, height, width = pictures.shape
    if mask.shape != (batch, 1, height, width):
        raise ValueError(
            f"a mask is {list(given.shape)} for pictures {list(pictures.shape)}: give one [1, H, W] to each"
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"a mask's values go from {mask.min().item():g} to {mask.max().item():g}: only 0 and 1 may occur"
        )
    mask = mask[:, 0] == 1
    counted = ~mask if outside else mask
    for position, any_left in enumerate(counted.flatten(1).any(dim=1).tolist()):
        if not any_left:
            what = "covers everything: nothing is left outside it" if outside else "is empty"
            raise ValueError(f"mask {position} of {batch} {what}")
    return mask
