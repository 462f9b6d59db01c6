"""``--cache_latents``: the same losses bit for bit, made once, whole or not there, and refused when damaged."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from conftest import forget_accelerator
from safetensors.torch import load_file
from torch.utils.data import default_collate

import train_flux_inpaint as tfi
from training_run import latents

FLAGS = (
    "--max_train_steps 5 --learning_rate 1e-2 --checkpointing_steps 0 --report_to none --logging_steps 1 "
    "--validation_steps 5 --num_validation_images 1"
).split()


def run(args):
    forget_accelerator()
    try:
        tfi.main(args)
    finally:
        forget_accelerator()
    return (Path(args.output_dir) / "logs" / "losses.jsonl").read_text(), Path(args.output_dir)


def shards(folder):
    return sorted(folder.rglob("shard-*.safetensors"))


@pytest.fixture(scope="module")
def plain(tiny_args):
    return run(tiny_args(*FLAGS, "--train_batch_size", 3))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_losses_pictures_and_lora_are_the_same_bit_for_bit(tiny_args, plain, tmp_path, workers):
    flags = ["--cache_latents", "--latents_dir", tmp_path / "kept", "--dataloader_num_workers", workers]
    losses, folder = run(tiny_args(*FLAGS, "--train_batch_size", 3, *flags))
    assert losses == plain[0]
    for name in (tfi.LORA_FILE, "validation/step-5.png"):
        ours, theirs = (place / name for place in (folder, plain[1]))
        if name == tfi.LORA_FILE:
            assert all(torch.equal(tensor, load_file(theirs)[key]) for key, tensor in load_file(ours).items())
        else:
            assert ours.read_bytes() == theirs.read_bytes()


def test_a_second_run_encodes_nothing_and_a_stopped_one_only_what_is_missing(tiny_args, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "ROWS", 2)
    flags = [*FLAGS, "--cache_latents", "--latents_dir", tmp_path]
    losses, _ = run(tiny_args(*flags))
    made = shards(tmp_path)
    assert len(made) == 4
    when = [path.stat().st_mtime_ns for path in made]
    made[1].write_bytes(made[1].read_bytes()[:-100])  # as a machine that lost its power leaves it
    made[2].unlink()
    encoded = []
    encode = tfi.encode_rows
    monkeypatch.setattr(tfi, "encode_rows", lambda vae, rows: encoded.extend(rows["im_name"]) or encode(vae, rows))
    monkeypatch.setattr(tfi, "encode_prompts", lambda *_: pytest.fail("prompts were encoded again"))
    assert run(tiny_args(*flags))[0] == losses
    assert len(encoded) == 4
    after = [path.stat().st_mtime_ns for path in shards(tmp_path)]
    assert (after[0], after[3]) == (when[0], when[3]) and after[1] != when[1]


@pytest.mark.parametrize(
    "flags", [["--height", 32], pytest.param(["--mixed_precision", "bf16"], marks=pytest.mark.long)]
)
def test_another_size_or_precision_is_another_cache(tiny_args, tmp_path, flags):
    run(tiny_args(*FLAGS, "--cache_latents", "--latents_dir", tmp_path))
    run(tiny_args(*FLAGS, "--cache_latents", "--latents_dir", tmp_path, *flags))
    assert len({path.parent for path in shards(tmp_path)}) == 2


@pytest.mark.long
def test_another_picture_under_the_same_name_is_another_cache(tiny_args, tmp_path, viton_copy):
    args = tiny_args(*FLAGS, "--cache_latents", "--latents_dir", tmp_path, "--dataroot", viton_copy)
    run(args)
    picture = next((viton_copy / "train" / "image").iterdir())
    picture.write_bytes(picture.read_bytes() + b" ")
    run(tiny_args(*FLAGS, "--cache_latents", "--latents_dir", tmp_path, "--dataroot", viton_copy))
    assert len({path.parent for path in shards(tmp_path)}) == 2


def rows_of(args, accelerator):
    data, _ = tfi.build_datasets(args)
    return tfi.cache_latents(args, data, accelerator)[0], data


def test_samples_are_those_of_the_data_and_travel_to_other_processes(tiny_args, tmp_path, accelerator):
    args = tiny_args("--cache_latents", "--latents_dir", tmp_path)
    rows, data = rows_of(args, accelerator)
    assert len(rows) == len(data) and rows.summary() == data.summary() and not hasattr(rows, "sampling_weights")
    vae = tfi.load_vae(args, accelerator.device)
    size = args.train_batch_size  # rows are encoded so many at a time, and on some CPUs the rounding depends on that
    for row in (0, 7, -1):
        kept, seen, first = rows[row], data[row], row % len(data) // size * size
        assert torch.equal(kept["inpaint_mask"], seen["inpaint_mask"]) and kept["inpaint_mask"].any()
        fresh = tfi.encode_rows(vae, default_collate([data[each] for each in range(first, first + size)]))
        assert all(torch.equal(kept[name], fresh[name][row % len(data) - first]) for name in ("target", "masked"))
        assert all(kept[name] == seen[name] for name in (*latents.TEXTS, "cloth_type"))
    again = pickle.loads(pickle.dumps(rows))
    assert torch.equal(again[5]["target"], rows[5]["target"])
    with pytest.raises(IndexError):
        rows[8]


def test_one_worker_loads_the_rows_of_all_shards(tiny_args, tmp_path, accelerator, monkeypatch):
    """As bytes, in the order of the shards; a batch ends where its shard does."""
    monkeypatch.setattr(latents, "ROWS", 3)
    args = tiny_args("--cache_latents", "--latents_dir", tmp_path, "--dataloader_num_workers", 1)
    data, _ = tfi.build_datasets(args)
    read = type(data).__getitem__
    monkeypatch.setattr(type(data), "__getitem__", lambda self, row: {**read(self, row), "c_name": str(os.getpid())})
    seen = []

    def encode(batch):
        assert batch["image"].dtype == torch.uint8 and "im_mask" not in batch
        seen.append((batch["c_name"], batch["im_name"]))
        return {name: torch.zeros(len(batch["image"]), 2, 16, 2, 2) for name in ("target", "masked")}

    latents.cached_rows(data, args, {}, encode, accelerator)
    assert len({worker for workers, _ in seen for worker in workers}) == 1
    assert [[int(name[:3]) for name in names] for _, names in seen] == [[0, 1], [2], [3, 4], [5], [6, 7]]


def test_a_disk_that_is_too_small_is_told_before_a_shard_is_written(tiny_args, tmp_path, accelerator, monkeypatch):
    monkeypatch.setattr(latents, "SPARE_BYTES", 2**60)
    with pytest.raises(ValueError, match=r"--cache_latents needs 0\.0 GiB more in .*--latents_dir"):
        rows_of(tiny_args("--cache_latents", "--latents_dir", tmp_path), accelerator)
    assert not shards(tmp_path)


@pytest.mark.long
def test_the_vae_is_in_memory_for_validation_alone(tiny_args, tmp_path, monkeypatch):
    here = []
    step, validate = tfi.Run.optimizer_step, tfi.Run.validate

    def vaes():
        import gc

        gc.collect()
        return sum(isinstance(thing, tfi.AutoencoderKL) for thing in gc.get_objects())

    before = vaes()
    monkeypatch.setattr(tfi.Run, "optimizer_step", lambda *args: here.append(vaes() - before) or step(*args))
    monkeypatch.setattr(tfi.Run, "validate", lambda *args: validate(*args) or here.append("pictures"))
    run(tiny_args(*FLAGS, "--cache_latents", "--latents_dir", tmp_path))
    assert here == ["pictures", 0, 0, 0, 0, 0, "pictures"]
