"""What is the same in every epoch, computed once and kept on disk: posteriors of the VAE, masks, embeddings of prompts.

A cache is a folder of shards, safetensors files with the same number of rows each. Its name is a hash of all that its
content depends on, so a changed model, size, precision or row makes another one. A shard is there whole or not at all:
a run that was stopped goes on with those that are missing, and any number of ranks share the work.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from training_run.atomic import write_file
from training_run.output_dir import data_facts
from training_run.stopping import worker_ignores_signals

logger = get_logger(__name__)

#: Raised whenever the content of a shard changes its meaning.
FORMAT = 2
#: About how large a shard is, in bytes.
SHARD_BYTES = 2**26
#: What is left free on the disk.
SPARE_BYTES = 2**30
TEXTS = ("c_name", "im_name", "caption_cloth")

#: Posteriors of a batch of samples, {"target": [B,2,16,h,w], "masked": [B,2,16,h,w]}, mean before deviation.
Encoder = Callable[[dict[str, Any]], dict[str, torch.Tensor]]


def digest(facts: dict[str, Any]) -> str:
    """Name of what ``facts`` describe: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_digest(model: torch.nn.Module) -> str:
    """Hash of a model's weights, wherever they came from."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def rows_facts(data: Any) -> dict[str, Any]:
    """What a cache has to know of its rows: the data's own ``content_key()``, else its summary."""
    return {"content": data.content_key()} if hasattr(data, "content_key") else data_facts(data)


class CachedRows(Dataset[dict[str, Any]]):
    """The rows of ``data`` as the cache in ``folder`` has them; everything else is asked of ``data`` itself.

    A sample has ``target`` and ``masked`` [2,16,h,w], mean and deviation of the VAE's posterior for the pair and for
    the masked pair, ``inpaint_mask`` [1,H,2W] in {0,1}, ``cloth_type`` and the texts.
    """

    def __init__(self, data: Any, folder: Path, rows_per_shard: int, mask_shape: tuple[int, int]) -> None:
        self.data = data
        self.folder = folder
        self.rows_per_shard = rows_per_shard
        self.mask_shape = mask_shape
        self._open: dict[int, tuple[Any, list[list[Any]]]] = {}

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "data":  # asked while it is being unpickled
            raise AttributeError(name)
        return getattr(self.data, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __getitem__(self, row: int) -> dict[str, Any]:
        shard, place = divmod(range(len(self))[row], self.rows_per_shard)
        path = shard_path(self.folder, shard)
        if shard not in self._open:
            file = safe_open(path, "pt")
            self._open[shard] = file, json.loads(file.metadata()["rows"])
        file, rows = self._open[shard]
        found = {name: file.get_slice(name)[place] for name in ("target", "masked", "mask")}
        height, width = self.mask_shape
        bits = np.unpackbits(found.pop("mask").numpy(), count=height * width).reshape(1, height, width)
        texts = dict(zip((*TEXTS, "cloth_type"), rows[place], strict=True))
        return {**found, "inpaint_mask": torch.from_numpy(bits.astype(np.float32)), **texts}


def shard_path(folder: Path, number: int) -> Path:
    """Where shard ``number`` of a cache lies."""
    return folder / f"shard-{number:05d}.safetensors"


def is_whole(path: Path, key: str, rows: int) -> bool:
    """Whether ``path`` is a shard of the cache ``key`` with so many rows; safetensors finds one that is cut short."""
    try:
        with safe_open(path, "pt") as file:
            known = file.metadata() or {}
            return known.get("key") == key and file.get_slice("target").get_shape()[0] == rows
    except (OSError, SafetensorError):
        return False


def cached_rows(
    data: Any, root: Path, facts: dict[str, Any], encode: Encoder, accelerator: Any, *,
    latent_shape: tuple[int, int, int], mask_shape: tuple[int, int], dtype: torch.dtype, batch_size: int, workers: int,
) -> CachedRows:  # fmt: skip
    """The cache below ``root`` of the rows of ``data``, encoded now as far as it is not there. All ranks call this.

    ``facts`` are what the content depends on beside the rows. Raises ``ValueError`` when the disk is too small for what
    is missing, before anything is encoded.
    """
    key = digest({"format": FORMAT, **facts, "rows": rows_facts(data), "shape": [*latent_shape, *mask_shape]})
    folder = root / key
    row_bytes = 4 * math.prod(latent_shape) * dtype.itemsize + math.ceil(math.prod(mask_shape) / 8)
    each = max(1, SHARD_BYTES // row_bytes)
    shards = {
        number: range(begin, min(begin + each, len(data))) for number, begin in enumerate(range(0, len(data), each))
    }
    missing = [number for number in shards if not is_whole(shard_path(folder, number), key, len(shards[number]))]
    size = row_bytes * sum(len(shards[number]) for number in missing)
    accelerator.wait_for_everyone()  # every rank has looked before the first one writes
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        check_room(folder, size)
        (folder / "made_of.json").write_text(json.dumps(facts, indent=2, default=str) + "\n", "utf-8")
    accelerator.wait_for_everyone()
    own = missing[accelerator.process_index :: accelerator.num_processes]
    progress = tqdm(total=sum(len(shards[number]) for number in own), desc="Encoding rows", unit="row",
                    disable=not accelerator.is_main_process or not missing)  # fmt: skip
    for number in own:
        loader = DataLoader(
            Subset(data, shards[number]), batch_size=batch_size, num_workers=workers,
            worker_init_fn=worker_ignores_signals if workers else None,
        )  # fmt: skip
        write_file(shard_path(folder, number), encode_shard(loader, encode, key, progress))
    progress.close()
    accelerator.wait_for_everyone()
    for number, rows in shards.items():
        if not is_whole(shard_path(folder, number), key, len(rows)):
            raise ValueError(f"{shard_path(folder, number)} is not whole: delete it and start again")
    return CachedRows(data, folder, each, mask_shape)


def encode_shard(loader: DataLoader, encode: Encoder, key: str, progress: tqdm) -> bytes:
    """Content of the shard of the cache ``key`` that has the rows of ``loader``."""
    parts: list[dict[str, torch.Tensor]] = []
    texts: list[list[Any]] = []
    for samples in loader:
        bits = np.packbits(samples["inpaint_mask"].flatten(1).numpy() > 0.5, axis=1)
        posteriors = {name: part.cpu() for name, part in encode(samples).items()}
        parts.append({**posteriors, "mask": torch.from_numpy(bits)})
        kinds = [int(kind) for kind in samples.get("cloth_type", [1] * len(bits))]
        texts += [list(row) for row in zip(*(samples[name] for name in TEXTS), kinds, strict=True)]
        progress.update(len(bits))
    tensors = {name: torch.cat([part[name] for part in parts]) for name in ("target", "masked", "mask")}
    return save(tensors, {"key": key, "rows": json.dumps(texts)})


def check_room(folder: Path, size: int) -> None:
    """Raise ``ValueError`` when ``size`` bytes more do not fit on the disk of ``folder``."""
    free = shutil.disk_usage(folder).free
    if size and size + SPARE_BYTES > free:
        raise ValueError(
            f"--cache_latents needs {size / 2**30:.1f} GiB more in {folder.parent}, and {free / 2**30:.1f} GiB are "
            "free there: give another disk with --latents_dir, take fewer rows, or leave the flag out"
        )
    logger.info(f"Encoded rows in {folder}: {size / 2**30:.2f} GiB are to be made")
