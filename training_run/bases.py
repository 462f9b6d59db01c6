"""Which base a run trains on: its files on this machine or in the Hub's cache, and what tells them from others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from training_run.hub import transformer_in

logger = get_logger(__name__)

#: Parts of a pipeline that only prompts need, and all that training takes from --pretrained_model_name_or_path.
TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
PARTS = ("scheduler", *TEXT_PARTS, "vae")
#: Files that models, tokenizers and schedulers are loaded from.
READ = (".safetensors", ".json", ".txt", ".model")
#: Up to this size all of a file is hashed. Of a larger one, 64 pieces: two models of one kind differ all over.
WHOLE, PIECES, PIECE = 2**26, 64, 2**18


def models_of(args: Any) -> dict[str, tuple[str, str | None]]:
    """Name or folder, and revision, of the models that a run loads."""
    return {
        "pipeline": (args.pretrained_model_name_or_path, args.revision),
        "transformer": (args.pretrained_inpaint_model_name_or_path, args.inpaint_revision),
    }


def snapshot_of(model: str, revision: str | None, cache_dir: str | None) -> Path | None:
    """Folder in the Hub's cache that ``model`` is loaded from; None for a local folder and where nothing is cached."""
    if Path(model).is_dir():
        return None
    for name in ("model_index.json", "transformer/config.json", "config.json"):
        try:
            found = try_to_load_from_cache(model, name, cache_dir=cache_dir, revision=revision)
        except HFValidationError:  # a path with nothing there, which loading it reports
            return None
        if isinstance(found, str):
            return Path(found).parents[name.count("/")]  # .../snapshots/<commit>/<name>
    return None


def base_facts(args: Any) -> dict[str, dict[str, str]]:
    """What tells the models of a run from others of the same name: commit on the Hub, else size and hash of files."""
    folder = transformer_in(Path(args.pretrained_inpaint_model_name_or_path))
    return {"pipeline": pipeline_facts(args, PARTS), "transformer": _facts(args, "transformer", [folder])}


def pipeline_facts(args: Any, parts: Sequence[str]) -> dict[str, str]:
    """What tells these parts of the base pipeline from others of the same name; empty where nothing does."""
    return _facts(args, "pipeline", [Path(args.pretrained_model_name_or_path, part) for part in parts])


def _facts(args: Any, which: str, folders: Sequence[Path]) -> dict[str, str]:
    model, revision = models_of(args)[which]
    if not Path(model).is_dir():
        snapshot = snapshot_of(model, revision, args.cache_dir)
        return {"commit": snapshot.name} if snapshot else {}
    files = [path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in READ and path.is_file()]
    return {path.relative_to(model).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    size = path.stat().st_size
    found = hashlib.sha256()
    with path.open("rb") as file:
        if size <= WHOLE:
            found.update(file.read())
        else:  # the first piece has the header of a safetensors file
            for number in range(PIECES):
                file.seek(number * (size - PIECE) // (PIECES - 1))
                found.update(file.read(PIECE))
    return f"{size} bytes, {found.hexdigest()[:32]}"


def refuse_other(before: Any, now: dict[str, dict[str, str]], checkpoint: Path, allowed: bool) -> None:
    """Raise ``ValueError`` when the base is another than ``before``, that of ``checkpoint``; warn where ``allowed``."""
    if before is None:
        logger.warning(f"{checkpoint} is of a version that did not note its base: whether it is the same is not known")
        return
    changes = [
        f"{name} of the {which}"
        for which, facts in now.items()
        for name in sorted(set(facts) | set(before[which]))
        if facts.get(name) != before[which].get(name)
    ]
    if changes and not allowed:
        more = f" and {len(changes) - 1} others" if len(changes) > 1 else ""
        raise ValueError(
            f"the base has changed since {checkpoint} was written: {changes[0]}{more}. Give the base that it was "
            "trained on, or continue all the same with --allow_changed_arguments"
        )
    if changes:
        logger.warning(f"Continuing with another base: {', '.join(changes)}")
