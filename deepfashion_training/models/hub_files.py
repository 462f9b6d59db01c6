"""Files of a transformers model, from a local folder or the Hub: found, downloaded, or refused in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from training_run.hub import is_hub_id, local_path, why_not_loaded
from training_run.not_data import check_no_pointer

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_LOADED = (CONFIG, PREPROCESSOR, *_WEIGHTS)


def model_folder(flag: str, model: str, example: str, revision: str | None = None) -> Path:
    """Where the files of ``model`` lie: its configuration, its preprocessing if it has any, weights in safetensors.

    ``model`` is a local folder or a Hub id, which is downloaded where it has to be; the name of a Hub model's folder
    is its commit. Raises ``ValueError``, one line with the fix, that begins with ``flag``, by which the user named the
    model; ``example`` is a Hub id.
    """
    folder = local_path(model)
    if not folder.is_dir():
        if not is_hub_id(model):
            raise ValueError(f"{flag} {model}: no such folder, and not a Hub id such as {example}")
        try:
            folder = Path(snapshot_download(model, revision=revision, allow_patterns=[*_LOADED]))
        except Exception as error:  # each HTTP library has its own classes
            raise ValueError(f"{flag} {why_not_loaded(model, error, revision)}") from error
    weights = [file for name in _WEIGHTS for file in folder.glob(name)]
    if not weights:
        raise ValueError(f"{flag} {model}: no model.safetensors in it; save it with safe_serialization=True")
    for file in weights:
        check_no_pointer(file)
    return folder


def read_json(flag: str, model: str, file: Path) -> dict[str, Any]:
    """The settings in ``file`` of ``model``; ``ValueError`` that begins with ``flag`` when there are none."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{flag} {model}: {file.name} cannot be read: {error}") from error


def revision_of(model: str, folder: Path) -> str:
    """For the record: the commit of a Hub model, or ``sha256:`` and 16 digits over a local folder's loaded files."""
    if not local_path(model).is_dir():
        return folder.name
    digest = hashlib.sha256()
    for file in sorted(file for name in _LOADED for file in folder.glob(name)):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return f"sha256:{digest.hexdigest()[:16]}"
