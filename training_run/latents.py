"""What is the same in every epoch, computed once and kept on disk: posteriors of the VAE, and masks.

A cache is a folder of shards, safetensors files of ``ROWS`` rows each. Its name is a hash of all that its content
depends on, so a changed model, size, precision or row makes another one. A shard is there whole or not at all: a run
that was stopped goes on with those that are missing, and any number of ranks share the work.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from training_run.atomic import write_file
from training_run.output_dir import data_facts
from training_run.stopping import worker_ignores_signals
from training_run.transfer import collate

#: Raised whenever the content of a shard changes its meaning.
FORMAT = 5
#: Rows of a shard; at 768x1152 they take 60 MB.
ROWS = 32
#: What is left free on the disk.
SPARE_BYTES = 2**30
TEXTS = ("c_name", "im_name", "caption_cloth")


def digest(facts: dict[str, Any]) -> str:
    """Name of what ``facts`` describe: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class CachedRows(Dataset[dict[str, Any]]):
    """The rows of ``data`` as the cache in ``folder`` has them; everything else is asked of ``data`` itself.

    A sample has ``target`` and ``masked`` [2,16,h,w], mean and deviation of the VAE's posterior for the pair and for
    the masked pair, ``inpaint_mask`` [1,H,2W] in {0,1}, ``cloth_type`` and the texts.
    """

    def __init__(self, data: Any, folder: Path) -> None:
        self.data = data
        self.folder = folder

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "data":  # asked while it is being unpickled
            raise AttributeError(name)
        return getattr(self.data, name)

    def __getitem__(self, row: int) -> dict[str, Any]:
        shard, place = divmod(range(len(self))[row], ROWS)
        with safe_open(shard_path(self.folder, shard), "pt") as file:
            found = {name: file.get_slice(name)[place] for name in ("target", "masked", "mask")}
            texts = json.loads(file.metadata()["rows"])[place]
        mask = np.unpackbits(found.pop("mask").numpy(), axis=-1).astype(np.float32)
        return {
            **found,
            "inpaint_mask": torch.from_numpy(mask),
            **dict(zip((*TEXTS, "cloth_type"), texts, strict=True)),
        }


def shard_path(folder: Path, number: int) -> Path:
    """Where shard ``number`` of a cache lies."""
    return folder / f"shard-{number:05d}.safetensors"


def is_whole(path: Path) -> bool:
    """Whether a shard is there and not cut short."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def cache_dir(args: Namespace) -> Path:
    """Where ``--cache_latents`` keeps what it has encoded."""
    return Path(args.latents_dir or Path(args.output_dir, "latents"))


def cached_rows(
    data: Any, args: Namespace, facts: dict[str, Any], encode: Callable[..., Any], accelerator: Any
) -> CachedRows:
    """The rows of ``data`` from the cache, encoded now as far as they are not there. All ranks call this.

    ``facts`` are what the content depends on beside the rows. ``encode`` gives posteriors of a batch of samples: target
    and masked [B,2,16,h,w], mean before deviation. Raises ``ValueError`` when the first shard shows that the disk is
    too small for all.
    """
    root, workers, size = cache_dir(args), args.dataloader_num_workers, args.train_batch_size
    rows = {"content": data.content_key()} if hasattr(data, "content_key") else data_facts(data)
    folder = root / digest({"format": FORMAT, "per_shard": ROWS, **facts, "rows": rows})
    shards = [range(begin, min(begin + ROWS, len(data))) for begin in range(0, len(data), ROWS)]
    missing = [number for number in range(len(shards)) if not is_whole(shard_path(folder, number))]
    accelerator.wait_for_everyone()  # every rank has looked before the first one writes
    own = missing[accelerator.process_index :: accelerator.num_processes]
    # A batch ends where its shard does, so that what is encoded together does not depend on which shards were missing.
    batches = {n: [list(shards[n][begin : begin + size]) for begin in range(0, len(shards[n]), size)] for n in own}
    loader = DataLoader(
        data, batch_sampler=[list(batch) for shard in batches.values() for batch in shard], collate_fn=collate,
        num_workers=workers, prefetch_factor=args.dataloader_prefetch_factor if workers else None,
        pin_memory=accelerator.device.type == "cuda", worker_init_fn=worker_ignores_signals if workers else None,
    )  # fmt: skip
    stream = iter(loader) if own else iter(())  # one for all shards: starting workers takes longer than a shard
    hidden = not accelerator.is_main_process or not missing
    with tqdm(total=sum(len(shards[number]) for number in own), desc="Encoding rows", disable=hidden) as progress:
        for number in own:
            shard = encode_shard(islice(stream, len(batches[number])), encode, progress)
            if number == missing[0]:
                check_room(root, len(shard) * len(missing))
            write_file(shard_path(folder, number), shard)
    accelerator.wait_for_everyone()
    return CachedRows(data, folder)


def encode_shard(batches: Iterable[dict[str, Any]], encode: Callable[..., Any], progress: tqdm) -> bytes:
    """Content of the shard that has the rows of ``batches``. A mask is packed: a bit for each of its pixels."""
    parts: list[dict[str, torch.Tensor]] = []
    texts: list[list[Any]] = []
    for samples in batches:
        bits = np.packbits(samples["inpaint_mask"].numpy() > 0.5, axis=-1)
        posteriors = {name: part.cpu() for name, part in encode(samples).items()}
        parts.append({**posteriors, "mask": torch.from_numpy(bits)})
        kinds = [int(kind) for kind in samples.get("cloth_type", [1] * len(bits))]
        texts += [list(row) for row in zip(*(samples[name] for name in TEXTS), kinds, strict=True)]
        progress.update(len(bits))
    tensors = {name: torch.cat([part[name] for part in parts]) for name in ("target", "masked", "mask")}
    return save(tensors, {"rows": json.dumps(texts)})


def check_room(folder: Path, size: int) -> None:
    """Raise ``ValueError`` when ``size`` bytes more do not fit on the disk of ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size + SPARE_BYTES > free:
        raise ValueError(
            f"--cache_latents needs {size / 2**30:.1f} GiB more in {folder}, and {free / 2**30:.1f} GiB are free "
            "there: give another disk with --latents_dir, take fewer rows, or leave the flag out"
        )
