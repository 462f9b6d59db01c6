"""What goes from loader processes to the device: bytes, and only what a step reads. Floats are made on the device.

A pair of H x 2W pixels is 4 bytes a pixel in shared memory (``bytes_of_pair``), where the tensors of its sample are 36.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from training_run.speed import to_device

#: What is read of a sample: pictures, what ``--cache_latents`` has in their place, and texts.
PICTURES = ("image", "im_mask", "inpaint_mask")
READ = (*PICTURES, "target", "masked", "c_name", "im_name", "caption_cloth", "cloth_type")
#: Rows of a picture that are worked on at a time, so that they stay in the processor's cache.
ROWS_AT_ONCE = 64


def bytes_of_pair(height: int, width: int) -> int:
    """What ``collate`` sends of a pair whose halves are ``height`` x ``width``: three colours and the mask."""
    return 4 * height * 2 * width


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of the dataset's ``samples`` for ``to_floats``, which gives back the same values.

    ``image`` is uint8 [B,3,H,2W] and ``inpaint_mask`` uint8 [B,1,H,2W]. ``im_mask`` is left out, as it is the image
    with its masked area 0. What is otherwise in any sample, such as a picture between two levels of 8 bits, is sent
    as it is for all of them.
    """
    batch = [{name: sample[name] for name in READ if name in sample} for sample in samples]
    masks = [_bits(one["inpaint_mask"]) for one in batch if "inpaint_mask" in one]
    levels = [_levels(one["image"]) for one in batch if "image" in one]
    known = bool(masks) and not any(mask is None for mask in masks)
    if known and all("im_mask" in one and _is_masked(one) for one in batch):
        for one in batch:
            del one["im_mask"]
    for name, coded in {"inpaint_mask": masks, "image": levels}.items():
        if not any(code is None for code in coded):
            for one, code in zip(batch, coded, strict=bool(coded)):
                one[name] = code
    return default_collate(batch)


def to_floats(samples: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Collated ``samples`` with their tensors on ``device`` and the pictures as the dataset made them.

    The host waits for nothing. Samples that are so already are returned as they are.
    """
    moved = {name: to_device(samples[name], device) for name in (*PICTURES, "target", "masked") if name in samples}
    for name in ("image", "inpaint_mask"):
        if name in moved and moved[name].dtype == torch.uint8:
            moved[name] = moved[name].float()
            if name == "image":  # by a tensor, as CUDA multiplies by the inverse of a number, which rounds otherwise
                moved[name].div_(torch.full((), 127.5, device=device)).sub_(1)
    if "image" in moved and "im_mask" not in moved:
        moved["im_mask"] = moved["image"].masked_fill(moved["inpaint_mask"].bool(), 0.0)
    return {**samples, **moved}


def _bits(mask: torch.Tensor) -> torch.Tensor | None:
    """``mask`` in {0,1} as bytes; None where it has other values."""
    if mask.dtype != torch.float32:
        return None
    with np.errstate(invalid="ignore"):
        bits = mask.numpy().astype(np.uint8)
    same = bits.max(initial=0) <= 1 and np.array_equal(bits, mask.numpy())
    return torch.from_numpy(bits) if same else None


def _levels(image: torch.Tensor) -> torch.Tensor | None:
    """``image`` [3,H,2W] in [-1,1] as levels 0 to 255; None where that changes a value."""
    if image.dtype != torch.float32:
        return None
    levels = np.empty(image.shape, np.uint8)
    for values, coded in zip(_parts(image.numpy()), _parts(levels), strict=True):
        scaled = values * np.float32(127.5)
        scaled += np.float32(128)  # a half more than the level, because the fraction is dropped
        with np.errstate(invalid="ignore"):  # of what is no number, and found below
            np.copyto(coded, scaled, casting="unsafe")
        np.copyto(scaled, coded)
        scaled /= np.float32(127.5)
        scaled -= np.float32(1)
        if not np.array_equal(scaled, values):
            return None
    return torch.from_numpy(levels)


def _is_masked(sample: dict[str, torch.Tensor]) -> bool:
    """Whether ``im_mask`` is the image with the masked area 0; the mask is one of {0,1}."""
    tensors = [sample[name] for name in PICTURES]
    if any(tensor.dtype != torch.float32 for tensor in tensors) or tensors[0].shape != tensors[1].shape:
        return False
    image, masked, mask = (tensor.numpy() for tensor in tensors)
    parts = zip(_parts(image), _parts(masked), _parts(np.broadcast_to(1 - mask, image.shape)), strict=True)
    return all(np.array_equal(values * kept, seen) for values, seen, kept in parts)


def _parts(picture: np.ndarray) -> list[np.ndarray]:
    """``picture`` [C,H,W] in views of a few rows of one channel."""
    return [plane[row : row + ROWS_AT_ONCE] for plane in picture for row in range(0, len(plane), ROWS_AT_ONCE)]
