"""Files of a transformers model, from a local folder or the Hub: found, downloaded, or refused in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")


def model_folder(
    flag: str, model: str, example: str, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """Where the files of ``model`` lie: its configuration, its preprocessing if it has any, weights in safetensors.

    ``model`` is a local folder or a Hub id, which is downloaded where it has to be; the name of a Hub model's folder
    is its commit. ``ValueError``, one line with the mend, when it cannot be had: the line begins with ``flag``, the
    option by which the user named the model, and gives ``example`` for a Hub id.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _download(flag, model, example, revision, cache_dir)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{flag} {model}: no {CONFIG} in it; pass a folder that transformers saved, or a Hub id")
    if not any(any(folder.glob(name)) for name in _WEIGHTS):
        raise ValueError(f"{flag} {model}: no model.safetensors in it; save it with safe_serialization=True")
    return folder


def _download(flag: str, model: str, example: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ValueError(f"{flag} {model}: no such folder, and not a Hub id such as {example}")
    try:
        return Path(
            snapshot_download(
                model, revision=revision, cache_dir=cache_dir, allow_patterns=[CONFIG, PREPROCESSOR, *_WEIGHTS]
            )
        )
    except GatedRepoError as error:
        login = "" if get_token() else "log in with `hf auth login` and "
        raise ValueError(
            f"{flag} {model} is gated: {login}accept its terms at {constants.ENDPOINT}/{model}, then run again"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{flag} {model} has no revision {revision}: name a branch, tag or commit of it") from error
    except RepositoryNotFoundError as error:
        hint = "check the name" if get_token() else "check the name, or log in with `hf auth login` if it is private"
        raise ValueError(f"{flag} {model} is not on the Hub: {hint}") from error
    except Exception as error:  # no network, a server's error or offline mode: each HTTP library has its own classes
        raise ValueError(
            f"{flag} {model} is not in the cache ({cache_dir or constants.HF_HUB_CACHE}) and the Hub cannot be "
            f"reached: connect once, or pass a folder; `hf download {model}` fetches it ({type(error).__name__})"
        ) from error


def read_json(flag: str, model: str, folder: Path, name: str) -> dict[str, Any]:
    """The object in file ``name`` of ``model``; ``ValueError`` that begins with ``flag`` when there is none."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{flag} {model}: no {name} in it") from None
    except ValueError as error:
        raise ValueError(f"{flag} {model}: {name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{flag} {model}: {name} holds a {type(content).__name__}, not an object")
    return content


def revision_of(model: str, folder: Path) -> str:
    """For the record: the commit of a Hub model, or ``sha256:`` and 16 digits over a local folder's loaded files."""
    if not Path(model).expanduser().is_dir():
        return folder.name
    digest = hashlib.sha256()
    names = (CONFIG, PREPROCESSOR, *_WEIGHTS)
    for file in sorted(file for name in names for file in folder.glob(name)):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return f"sha256:{digest.hexdigest()[:16]}"
