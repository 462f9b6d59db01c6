"""Models and datasets that are named by a folder or by their id on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from huggingface_hub import constants, get_token, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_OWNER_AND_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def local_path(name: str | Path) -> Path:
    """The file or folder that a user names: as it stands where it is there, else with ``~`` for a home directory."""
    path = Path(name)
    if path.exists():
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # the beginning of a name, and nobody's home
        return path


def is_hub_id(text: str) -> bool:
    """Whether ``text`` looks like ``owner/name`` on the Hub and is no path on this machine."""
    return bool(_OWNER_AND_NAME.fullmatch(text)) and not Path(text).exists()


def subfolder_of_transformer(model: str, revision: str | None = None, cache_dir: str | None = None) -> str | None:
    """``"transformer"`` where a folder or a repository keeps its transformer there, None where it is at the root.

    Of a repository that is not in the cache the configuration is downloaded. None also where nothing can be found.
    """
    folder = local_path(model)
    if folder.is_dir():
        return None if transformer_in(folder) == folder else "transformer"
    try:
        for name, subfolder in (("transformer/config.json", "transformer"), ("config.json", None)):
            if isinstance(try_to_load_from_cache(model, name, cache_dir=cache_dir, revision=revision), str):
                return subfolder
        hf_hub_download(model, "transformer/config.json", revision=revision, cache_dir=cache_dir)
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None
    return "transformer"


def transformer_in(folder: Path) -> Path:
    """Where a local folder has its transformer: under ``transformer/``, or at its root."""
    inner = folder / "transformer"
    return inner if (inner / "config.json").is_file() else folder


def cache_fault(
    cache_dir: str | None = None, variable: str = "HF_HUB_CACHE", default: str | Path | None = None
) -> str | None:
    """Why nothing can be written to a cache of Hugging Face's libraries, with the fix; None where it can.

    It is ``cache_dir``, or the ``default`` that the environment ``variable`` or HF_HOME names; by default models'.
    """
    default = default or constants.HF_HUB_CACHE
    folder = Path(cache_dir or default)
    try:
        with tempfile.TemporaryFile(dir=next(path for path in (folder, *folder.absolute().parents) if path.exists())):
            return None
    except OSError as error:
        fix = variable if variable in os.environ else "HF_HOME"
        fix = "--cache_dir" if folder != Path(default) else f"the environment variable {fix}"
        return f"the cache {folder} cannot be written to ({error.strerror or error}): name another with {fix}"


def why_not_loaded(name: str, error: Exception, revision: str | None = None, cache_dir: str | None = None) -> str:
    """One line on a Hub repository that ``error`` kept from being loaded, with how to fix it."""
    if isinstance(error, OSError) and error.errno and (fault := cache_fault(cache_dir)):
        return f"{name} cannot be fetched: {fault}"
    if isinstance(error, GatedRepoError):
        login = "" if get_token() else "log in with `hf auth login` and "
        return f"{name} is gated: {login}accept its terms at {constants.ENDPOINT}/{name}, then run again"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision}: name a branch, tag or commit of it"
    if isinstance(error, RepositoryNotFoundError):
        login = "" if get_token() else ", or log in with `hf auth login` if it is private"
        return f"{name} is not on the Hub: check the name{login}"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"{name} is not in the cache ({cache_dir or constants.HF_HUB_CACHE}) and the Hub cannot be reached: connect "
        f"once, or fetch it with `hf download {name}` ({reason})"
    )
