"""Whether the models of a run can be had: known before anything is downloaded, told in one line each."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from training_run.guards import check_base, check_cached_base

#: Parts of a FLUX pipeline that training takes from --pretrained_model_name_or_path.
PIPELINE_PARTS = ("text_encoder/", "text_encoder_2/", "tokenizer/", "tokenizer_2/", "vae/", "scheduler/")

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
    """Raise ``ValueError``, one line with the mend, when a model of the run cannot be loaded or downloaded.

    ``pipeline`` and ``transformer`` are folders or Hub ids, ``flags`` how the user names them. Checked are: a
    transformer given as the pipeline, missing folders, damaged files and missing weights, a licence that is not
    accepted, a missing token, a repository that is not there, and the disk space that the download takes. Models in
    the Hub cache need no network.
    """
    check_is_pipeline(pipeline, flags)
    check_base(pipeline, transformer)
    check_cached_base([(pipeline, revision), (transformer, inpaint_revision)], cache_dir)
    if Path(transformer).is_dir():
        _check_is_transformer(Path(transformer), flags[1])
    elif _is_path(transformer):
        raise ValueError(f"{flags[1]} {transformer}: no such folder")
    needed, cache = 0, cache_dir or constants.HF_HUB_CACHE
    if not Path(pipeline).is_dir():
        needed += _bytes_to_download(pipeline, revision, cache, _is_pipeline_file)
    if not Path(transformer).is_dir():
        needed += _bytes_to_download(transformer, inpaint_revision, cache, _is_transformer_file)
    _check_disk(needed, Path(cache))


def check_is_pipeline(pipeline: str, flags: tuple[str, str] = TRAINING_FLAGS) -> None:
    """Raise ``ValueError`` when ``pipeline`` is a transformer without text encoders, or a folder that is not there."""
    folder, flag = Path(pipeline), flags[0]
    alone = "holds a transformer only, no VAE, text encoders or tokenizers"
    mend = f"pass it as {flags[1]} and leave {flag} as it is"
    if pipeline.rstrip("/") == CATVTON_FLUX_ALPHA:
        raise ValueError(f"{flag} {pipeline} {alone}: {mend}")
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        if (folder / "config.json").is_file() or (folder / "transformer" / "config.json").is_file():
            raise ValueError(f"{flag} {pipeline} {alone}: {mend}")
        raise ValueError(f"{flag} {pipeline}: no diffusers pipeline (no model_index.json)")
    if not folder.is_dir() and _is_path(pipeline):
        raise ValueError(f"{flag} {pipeline}: no such folder")


def _check_is_transformer(folder: Path, flag: str) -> None:
    found = [path for path in (folder / "transformer" / "config.json", folder / "config.json") if path.is_file()]
    if not found:
        raise ValueError(f"{flag} {folder}: no transformer at its root or under transformer/")
    kind = json.loads(found[0].read_text(encoding="utf-8")).get("_class_name")
    if kind != "FluxTransformer2DModel":
        raise ValueError(f"{flag} {folder} holds a {kind}, not a FluxTransformer2DModel")


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1


def _is_pipeline_file(name: str) -> bool:
    return name.startswith(PIPELINE_PARTS)


def _is_transformer_file(name: str) -> bool:
    return name.startswith("transformer/") or ("/" not in name and name.startswith("diffusion_pytorch_model"))


def _bytes_to_download(repository: str, revision: str | None, cache: str, wanted: Callable[[str], bool]) -> int:
    """Size of the files of a Hub repository that ``wanted`` chooses and the cache lacks.

    Raises ``ValueError`` when the repository cannot be read.
    """
    api = HfApi()
    try:
        info = api.model_info(repository, revision=revision, files_metadata=True)
        api.auth_check(repository)
    except GatedRepoError as error:
        if _is_cached(repository, revision, cache):
            return 0
        login = "" if get_token() else "log in with `hf auth login` and "
        raise ValueError(
            f"{repository} is gated: {login}accept its licence at {constants.ENDPOINT}/{repository}, then run again"
        ) from error
    except RepositoryNotFoundError as error:
        hint = "check the name" if get_token() else "check the name, or log in with `hf auth login` if it is private"
        raise ValueError(f"{repository} is not on the Hub: {hint}") from error
    except Exception as error:  # no network, a server's error or offline mode: each HTTP library has its own classes
        if _is_cached(repository, revision, cache):
            return 0
        raise ValueError(
            f"{repository} is not in the cache ({cache}) and the Hub cannot be reached: {str(error).splitlines()[0]}"
        ) from error
    return sum(
        file.size or 0
        for file in info.siblings or []
        if wanted(file.rfilename) and not _is_cached(repository, revision, cache, file.rfilename)
    )


def _is_cached(repository: str, revision: str | None, cache: str, name: str | None = None) -> bool:
    """Whether the Hub cache has file ``name``; without a name, whether it has the model's index or configuration."""
    names = [name] if name else ["model_index.json", "config.json", "transformer/config.json"]
    return any(
        isinstance(try_to_load_from_cache(repository, each, cache_dir=cache, revision=revision), str) for each in names
    )


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


def subfolder_of_transformer(transformer: str, revision: str | None = None, cache_dir: str | None = None) -> str | None:
    """``"transformer"`` where a folder or downloaded repository keeps the transformer there, None for its root."""
    if Path(transformer).is_dir():
        found = (Path(transformer) / "transformer" / "config.json").is_file()
    else:
        cached = try_to_load_from_cache(transformer, "transformer/config.json", cache_dir=cache_dir, revision=revision)
        found = isinstance(cached, str)
    return "transformer" if found else None
