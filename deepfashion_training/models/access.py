"""Whether the models of a run can be had. It is known before anything is downloaded, and said in one line each."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from training_run.guards import check_base, check_cached_base
from training_run.hub import is_hub_id, transformer_in, why_not_loaded

#: What is downloaded of a FLUX pipeline and of a transformer: names of files begin so. A transformer's own name counts
#: at the root of its repository only.
PIPELINE_PARTS = ("text_encoder/", "text_encoder_2/", "tokenizer/", "tokenizer_2/", "vae/", "scheduler/")
TRANSFORMER_PARTS = ("transformer/", "diffusion_pytorch_model")

#: The usual transformer. People pass it as the pipeline, which it is not.
CATVTON_FLUX_ALPHA = "xiaozaa/catvton-flux-alpha"

#: Flags that name pipeline and transformer: of training, and of the commands that use what was trained.
TRAINING_FLAGS = ("--pretrained_model_name_or_path", "--pretrained_inpaint_model_name_or_path")
USING_FLAGS = ("--pipeline", "--base")


def check_models(
    pipeline: str,
    transformer: str,
    revision: str | None = None,
    inpaint_revision: str | None = None,
    cache_dir: str | None = None,
    flags: tuple[str, str] = TRAINING_FLAGS,
) -> None:
    """Raise ``ValueError``, one line with the fix, when a model of the run cannot be loaded or downloaded.

    ``pipeline`` and ``transformer`` are folders or Hub ids, ``flags`` how the user names them. Checked are: a
    transformer given as the pipeline, missing folders, damaged files and missing weights, a licence that is not
    accepted, a missing token, a repository that is not there, and the disk space that the download takes. Models in
    the Hub cache need no network.
    """
    for name, flag in ((pipeline, flags[0]), (transformer, flags[1])):
        if not Path(name).is_dir() and not is_hub_id(name):
            raise ValueError(f"{flag} {name}: no such folder")
    _check_is_pipeline(pipeline, flags)
    check_base(pipeline, transformer)
    check_cached_base([(pipeline, revision), (transformer, inpaint_revision)], cache_dir)
    _check_is_transformer(transformer, flags[1])
    cache = cache_dir or constants.HF_HUB_CACHE
    needed = 0
    if not Path(pipeline).is_dir():
        needed += _bytes_to_download(pipeline, revision, cache, PIPELINE_PARTS)
    if not Path(transformer).is_dir():
        needed += _bytes_to_download(transformer, inpaint_revision, cache, TRANSFORMER_PARTS)
    _check_disk(needed, Path(cache))


def _check_is_pipeline(pipeline: str, flags: tuple[str, str]) -> None:
    folder, flag = Path(pipeline), flags[0]
    if folder.is_dir() and (folder / "model_index.json").is_file():
        return
    if pipeline.rstrip("/") == CATVTON_FLUX_ALPHA or (transformer_in(folder) / "config.json").is_file():
        raise ValueError(
            f"{flag} {pipeline} holds a transformer only, no VAE, text encoders or tokenizers: pass it as {flags[1]} "
            f"and leave {flag} as it is"
        )
    if folder.is_dir():
        raise ValueError(f"{flag} {pipeline}: no diffusers pipeline (no model_index.json)")


def _check_is_transformer(transformer: str, flag: str) -> None:
    if not Path(transformer).is_dir():
        return
    config = transformer_in(Path(transformer)) / "config.json"
    if not config.is_file():
        raise ValueError(f"{flag} {transformer}: no transformer at its root or under transformer/")
    kind = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    if kind != "FluxTransformer2DModel":
        raise ValueError(f"{flag} {transformer} holds a {kind}, not a FluxTransformer2DModel")


def _bytes_to_download(repository: str, revision: str | None, cache: str, parts: tuple[str, ...]) -> int:
    """Size of the files of a Hub repository whose names begin with one of ``parts`` and that the cache lacks.

    Raises ``ValueError`` when the repository cannot be read.
    """

    def is_cached(name: str) -> bool:
        return isinstance(try_to_load_from_cache(repository, name, cache_dir=cache, revision=revision), str)

    try:
        api = HfApi()
        info = api.model_info(repository, revision=revision, files_metadata=True)
        api.auth_check(repository)
    except Exception as error:  # no network, a server's error or offline mode: each HTTP library has its own classes
        is_there = isinstance(error, GatedRepoError) or not isinstance(error, RepositoryNotFoundError)
        if is_there and any(map(is_cached, ("model_index.json", "config.json", "transformer/config.json"))):
            return 0
        raise ValueError(why_not_loaded(repository, error, revision, cache)) from error
    missing = [file for file in info.siblings or [] if file.rfilename.startswith(parts)]
    return sum(file.size or 0 for file in missing if not is_cached(file.rfilename))


def _check_disk(needed: int, folder: Path) -> None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"the models need {needed / 2**30:.1f} GiB more in {folder} and {free / 2**30:.1f} GiB are free: "
            "make room, or set HF_HOME to a larger disk"
        )


def check_writable(folder: Path, flag: str = "--output_dir") -> None:
    """Raise ``ValueError`` when nothing can be written to ``folder`` or, where it is yet to be made, beside it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(f"{flag} {folder} cannot be written to: {error.strerror or error}") from error
