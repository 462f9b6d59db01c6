"""Whether the models of a run can be loaded, known before anything is downloaded."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from deepfashion_training.models.lora_files import find_transformer
from training_run.bases import check_base
from training_run.hub import cache_fault, is_hub_id, why_not_loaded

#: What is downloaded of a FLUX pipeline and of a transformer: names of files begin so. A transformer's own name counts
#: at the root of its repository only.
PIPELINE_PARTS = ("text_encoder/", "text_encoder_2/", "tokenizer/", "tokenizer_2/", "vae/", "scheduler/")
TRANSFORMER_PARTS = ("transformer/", "diffusion_pytorch_model")

#: Seconds that the Hub has to answer.
ANSWER_WAIT = 10.0

#: The usual transformer. People pass it as the pipeline, which it is not.
CATVTON_FLUX_ALPHA = "xiaozaa/catvton-flux-alpha"

#: Flags that name pipeline and transformer: of training, and of the commands that use what was trained.
TRAINING_FLAGS = ("--pretrained_model_name_or_path", "--pretrained_inpaint_model_name_or_path")
USING_FLAGS = ("--pipeline", "--base")


def check_models(pipeline: str, transformer: str, cache_dir: str | None = None, **others: Any) -> None:
    """Raise ``ValueError`` as ``bytes_to_download`` does, which has the arguments, and for a disk too small."""
    needed = bytes_to_download(pipeline, transformer, cache_dir=cache_dir, **others)
    cache = cache_dir or constants.HF_HUB_CACHE
    free = shutil.disk_usage(existing(Path(cache))).free
    if needed > free:
        raise ValueError(
            f"the models need {needed / 2**30:.1f} GiB more in {cache} and {free / 2**30:.1f} GiB are free: "
            "make room, or set HF_HOME to a larger disk"
        )


def bytes_to_download(
    pipeline: str,
    transformer: str,
    revision: str | None = None,
    inpaint_revision: str | None = None,
    cache_dir: str | None = None,
    flags: tuple[str, str] = TRAINING_FLAGS,
) -> int:
    """Bytes of the models of a run that the Hub's cache lacks; 0 for folders. Models in the cache need no network.

    ``pipeline`` and ``transformer`` are folders or Hub ids, ``flags`` how the user names them. Raises ``ValueError``,
    one line with the fix, when one cannot be loaded: a transformer given as the pipeline, missing folders, damaged
    files and missing weights, a licence that is not accepted, a missing token, a repository that is not there, a cache
    that cannot be written to.
    """
    for name, flag in zip((pipeline, transformer), flags, strict=True):
        if not Path(name).is_dir() and not is_hub_id(name):
            raise ValueError(f"{flag} {name}: no such folder")
    is_folder = Path(pipeline).is_dir() and not (Path(pipeline) / "model_index.json").is_file()
    if is_folder or pipeline == CATVTON_FLUX_ALPHA:
        raise ValueError(
            f"{flags[0]} {pipeline} is no diffusers pipeline with VAE, text encoders and tokenizers: a transformer "
            f"alone is for {flags[1]}"
        )
    check_base(pipeline, transformer, revision, inpaint_revision, cache_dir)
    if Path(transformer).is_dir():
        find_transformer(transformer)
    cache = cache_dir or constants.HF_HUB_CACHE
    needed = _bytes_to_download(pipeline, revision, cache, PIPELINE_PARTS)
    needed += _bytes_to_download(transformer, inpaint_revision, cache, TRANSFORMER_PARTS)
    if needed and (fault := cache_fault(cache_dir)):
        raise ValueError(fault)
    return needed


def dataset_bytes(name: str, revision: str | None = None) -> int:
    """Bytes of a Hub dataset's files that the cache lacks. Raises ``ValueError`` when it cannot be read."""
    needed = _bytes_to_download(name, revision, constants.HF_HUB_CACHE, ("",), "dataset")
    if needed and (fault := cache_fault()):
        raise ValueError(fault)
    return needed


def _bytes_to_download(
    repository: str, revision: str | None, cache: str, parts: tuple[str, ...], kind: str = "model"
) -> int:
    """Bytes of a Hub repository's files whose names begin with one of ``parts`` and that the cache lacks.

    0 for a folder. Raises ``ValueError`` when the repository cannot be read.
    """
    if Path(repository).is_dir():
        return 0

    def is_cached(name: str) -> bool:
        found = try_to_load_from_cache(repository, name, cache_dir=cache, revision=revision, repo_type=kind)
        return isinstance(found, str)

    try:
        api = HfApi()
        ask = api.dataset_info if kind == "dataset" else api.model_info
        info = ask(repository, revision=revision, files_metadata=True, timeout=ANSWER_WAIT)
        api.auth_check(repository, repo_type=kind)
    except Exception as error:  # no network, a server's error or offline mode: each HTTP library has its own classes
        is_there = isinstance(error, GatedRepoError) or not isinstance(error, RepositoryNotFoundError)
        if is_there and any(map(is_cached, ("model_index.json", "config.json", "transformer/config.json"))):
            return 0
        # What ``datasets`` has made of one needs none of its files any more.
        if is_there and kind == "dataset" and Path(cache, f"datasets--{repository.replace('/', '--')}").is_dir():
            return 0
        raise ValueError(why_not_loaded(repository, error, revision, cache)) from error
    missing = [file for file in info.siblings or [] if file.rfilename.startswith(parts)]
    return sum(file.size or 0 for file in missing if not is_cached(file.rfilename))


def existing(folder: Path) -> Path:
    """The folder, or the first one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def check_writable(folder: Path, flag: str = "--output_dir") -> None:
    """Raise ``ValueError`` when nothing can be written to ``folder`` or, where it is yet to be made, beside it."""
    try:
        with tempfile.TemporaryFile(dir=existing(folder)):
            pass
    except OSError as error:
        raise ValueError(f"{flag} {folder} cannot be written to: {error.strerror or error}") from error
