"""What goes from loader processes to the device: bytes, and only what a step reads. Floats are made on the device.

A pair of H x 2W pixels is 4 bytes a pixel in shared memory (``bytes_of_pair``), where the tensors of its sample are 36.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

from training_run.speed import to_device

#: What is read of a sample: pictures, what ``--cache_latents`` has in their place, and texts.
PICTURES = ("image", "im_mask", "inpaint_mask")
READ = (*PICTURES, "target", "masked", "c_name", "im_name", "caption_cloth", "cloth_type")


def bytes_of_pair(height: int, width: int) -> int:
    """What ``collate`` sends of a pair whose halves are ``height`` x ``width``: three colours and the mask."""
    return 4 * height * 2 * width


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of the dataset's ``samples`` for ``to_floats``, which gives back the same values bit for bit.

    ``image`` is uint8 [B,3,H,2W] and ``inpaint_mask`` uint8 [B,1,H,2W]. ``im_mask`` is left out, as it is the image
    with its masked area 0. What is otherwise in any sample, such as a picture between two levels of 8 bits, is sent
    as it is for all of them.
    """
    batch = [{name: sample[name] for name in READ if name in sample} for sample in samples]
    if all("im_mask" in one and _same(_masked(one), one["im_mask"]) for one in batch):
        for one in batch:
            del one["im_mask"]
    for name, (to_bytes, _) in _CODES.items():
        coded = [to_bytes(one[name]) for one in batch if name in one]
        if not any(code is None for code in coded):
            for one, code in zip(batch, coded, strict=bool(coded)):
                one[name] = code
    return default_collate(batch)


def to_floats(samples: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Collated ``samples`` with their tensors on ``device`` and the pictures as the dataset made them.

    The host waits for nothing. Samples that are so already are returned as they are.
    """
    moved = {name: to_device(samples[name], device) for name in (*PICTURES, "target", "masked") if name in samples}
    for name, (_, to_values) in _CODES.items():
        if name in moved and moved[name].dtype == torch.uint8:
            moved[name] = to_values(moved[name])
    if "image" in moved and "im_mask" not in moved:
        moved["im_mask"] = _masked(moved)
    return {**samples, **moved}


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _masked(sample: dict[str, torch.Tensor]) -> torch.Tensor:
    return sample["image"].masked_fill(sample["inpaint_mask"].bool(), 0.0)


def _levels(picture: torch.Tensor) -> torch.Tensor | None:
    """``picture`` in [-1,1] as levels 0 to 255; None where that changes a value."""
    levels = picture.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return levels if _same(_of_levels(levels), picture) else None


def _of_levels(levels: torch.Tensor) -> torch.Tensor:
    # Divided by a tensor, because CUDA multiplies by the inverse of a number, which rounds otherwise.
    return levels.float().div_(torch.full((), 127.5, device=levels.device)).sub_(1)


def _bits(mask: torch.Tensor) -> torch.Tensor | None:
    """``mask`` in {0,1} as bytes; None where it has other values."""
    bits = mask.to(torch.uint8)
    return bits if _same(bits.float(), mask) else None


_CODES = {"image": (_levels, _of_levels), "inpaint_mask": (_bits, torch.Tensor.float)}
