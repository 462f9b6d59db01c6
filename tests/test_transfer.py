"""What loader processes send: bytes where they say the same, the values of the dataset otherwise."""

from __future__ import annotations

import pytest
import torch
from conftest import HEIGHT, WIDTH
from torch.utils.data import default_collate

import train_flux_inpaint as tfi
from training_run import transfer

CPU = torch.device("cpu")


@pytest.fixture
def samples():
    """Two pairs of 8 x 64 pixels with every level of 8 bits in each colour, made as the dataset makes them."""
    levels = torch.arange(512).repeat(3, 1).view(3, 8, 64) % 256
    mask = torch.zeros(1, 8, 64)
    mask[:, 2:5, 40:50] = 1
    image = levels.to(torch.uint8) / 127.5 - 1
    each = {"image": image, "im_mask": image * (1 - mask), "inpaint_mask": mask, "cloth_pure": image[..., :32]}
    each |= {"cloth_mask": mask[..., :32], "c_name": "a", "im_name": "b", "caption_cloth": "", "cloth_type": 2}
    return [each, {**each, "image": image.flip(2), "im_mask": image.flip(2) * (1 - mask), "im_name": "c"}]


def assert_same(batch, samples):
    """``batch`` gives, on the device, what the step would get of ``samples`` without it."""
    got, wanted = transfer.to_floats(batch, CPU), default_collate(samples)
    for name in transfer.PICTURES:
        assert got[name].dtype == wanted[name].dtype and torch.equal(got[name], wanted[name]), name
    assert got["im_name"] == ["b", "c"] and got["cloth_type"].tolist() == [2, 2]


def test_pictures_travel_as_bytes_and_what_no_step_reads_stays(samples):
    batch = transfer.collate(samples)
    assert set(batch) == {"image", "inpaint_mask", "c_name", "im_name", "caption_cloth", "cloth_type"}
    assert (batch["image"].dtype, batch["inpaint_mask"].dtype) == (torch.uint8, torch.uint8)
    sent = sum(batch[name].nbytes for name in ("image", "inpaint_mask"))
    assert sent == 2 * transfer.bytes_of_pair(8, 32) == 2 * 4 * 8 * 64
    assert_same(batch, samples)
    assert_same(transfer.to_floats(batch, CPU), samples)  # a second time changes nothing


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("image", lambda image: image + 2**-12),  # between two levels
        ("image", lambda image: image * 3),
        ("image", lambda image: image.double()),
        ("image", lambda image: torch.full_like(image, torch.nan)),
        ("im_mask", lambda masked: masked + 2**-12),
        ("inpaint_mask", lambda mask: mask / 2),
        ("inpaint_mask", lambda mask: mask * 255),
        ("inpaint_mask", lambda mask: mask.bool()),
    ],
)
def test_what_is_otherwise_in_one_sample_is_sent_as_it_is_for_all(samples, name, change):
    samples[1][name] = change(samples[1][name])
    samples[0][name] = samples[0][name].to(samples[1][name].dtype)
    batch = transfer.collate(samples)
    changed = default_collate([sample[name] for sample in samples])
    assert torch.equal(batch[name].nan_to_num(9), changed.nan_to_num(9)) and batch[name].dtype == changed.dtype
    if not changed.isnan().any():
        assert_same(batch, samples)
    assert batch["image"].dtype == (changed.dtype if name == "image" else torch.uint8)
    assert "im_mask" in batch


def test_the_loader_of_the_trainer_sends_bytes_from_its_workers(tiny_args, accelerator):
    args = tiny_args("--dataloader_num_workers", 1, "--max_train_steps", 2)
    data, _ = tfi.build_datasets(args)
    for batch in tfi.make_loader(data, args, accelerator, 0):
        assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (2, 3, HEIGHT, 2 * WIDTH)
        rows = [data[int(name[:3])] for name in batch["im_name"]]
        got, wanted = transfer.to_floats(batch, CPU), default_collate(rows)
        assert all(torch.equal(got[name], wanted[name]) for name in transfer.PICTURES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="rounding on CUDA needs a CUDA GPU")
def test_values_on_a_gpu_are_those_of_the_dataset(samples):
    got, wanted = transfer.to_floats(transfer.collate(samples), torch.device("cuda")), default_collate(samples)
    assert all(torch.equal(got[name].cpu(), wanted[name]) for name in transfer.PICTURES)
