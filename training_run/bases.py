"""Which base a run trains on: its files on this machine or in the Hub's cache, and what tells them from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from training_run.hub import transformer_in
from training_run.lora_formats import find_lora
from training_run.not_data import check_no_pointer

#: Parts of a pipeline that only prompts need.
TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
#: Files that models, tokenizers and schedulers are loaded from.
READ = (".safetensors", ".json", ".txt", ".model")
#: Of a file so many pieces of so many bytes are hashed, all of it up to 64 MiB: two models of one kind differ all over.
PIECES, PIECE = 64, 2**20


def folder_of(model: str, revision: str | None, cache_dir: str | None) -> Path | None:
    """The folder that ``model`` names, or its snapshot in the Hub's cache; None where neither is there."""
    if Path(model).is_dir():
        return Path(model)
    for name in ("model_index.json", "transformer/config.json", "config.json"):
        try:
            found = try_to_load_from_cache(model, name, cache_dir=cache_dir, revision=revision)
        except HFValidationError:  # a path with nothing there, which loading it reports
            return None
        if isinstance(found, str):
            return Path(found).parents[name.count("/")]  # .../snapshots/<commit>/<name>
    return None


def base_facts(args: Any) -> dict[str, str]:
    """What tells the models of a run from others of the same name: commit on the Hub, else size and hash of files."""
    transformer = Path(args.pretrained_inpaint_model_name_or_path)
    found = {
        "pipeline": pipeline_facts(args, ("scheduler", *TEXT_PARTS, "vae")),
        "transformer": _facts(str(transformer), args.inpaint_revision, args.cache_dir, [transformer_in(transformer)]),
    }
    lora = {"LoRA to start from": _digest(find_lora(args.lora))} if args.lora else {}
    return lora | {f"{name} of the {which}": fact for which, facts in found.items() for name, fact in facts.items()}


def pipeline_facts(args: Any, parts: Iterable[str]) -> dict[str, str]:
    """What tells these parts of the base pipeline from others of the same name; empty where nothing does."""
    pipeline = args.pretrained_model_name_or_path
    return _facts(pipeline, args.revision, args.cache_dir, [Path(pipeline, part) for part in parts])


def _facts(model: str, revision: str | None, cache_dir: str | None, folders: Iterable[Path]) -> dict[str, str]:
    if not Path(model).is_dir():
        snapshot = folder_of(model, revision, cache_dir)
        return {"commit": snapshot.name} if snapshot else {}
    files = [path for folder in folders for path in sorted(folder.glob("[!.]*")) if path.suffix in READ]
    return {path.relative_to(model).as_posix(): _digest(path) for path in files if path.is_file()}


def _digest(path: Path) -> str:
    size = path.stat().st_size
    found = hashlib.sha256()
    with path.open("rb") as file:
        for start in range(0, size, max(PIECE, size // PIECES)):
            file.seek(start)
            found.update(file.read(PIECE))
    return f"{size} bytes, {found.hexdigest()[:32]}"


def check_base(
    pipeline: str, transformer: str, revision: str | None = None, inpaint_revision: str | None = None,
    cache_dir: str | None = None,
) -> None:  # fmt: skip
    """Raise ``ValueError`` for a damaged file of the models, or a part of a local one without weights; names which.

    What is not in the Hub's cache yet will be downloaded. The transformer of the pipeline may be another one.
    """
    for model, of in dict.fromkeys(((pipeline, revision), (transformer, inpaint_revision))):
        if folder := folder_of(model, of, cache_dir):
            check_files(folder, "fetch it again; in the Hub's cache, delete it first with what it links to")
    parts = [Path(pipeline, name) for name in ("vae", "text_encoder", "text_encoder_2")]
    for part in [*parts, transformer_in(Path(transformer))]:
        if (part / "config.json").is_file() and not any(part.glob("[!.]*.safetensors")):
            raise ValueError(f"{part} has no weights (*.safetensors): fetch or copy them again")


def check_files(folder: Path, fix: str) -> None:
    """Raise ``ValueError`` for a damaged *.json, or a damaged header of a safetensors file, and say how to ``fix`` it.

    Looks into ``folder`` and the folders in it, as a pipeline has them. Hidden files belong to other programs.
    """
    files = sorted(path for ending in ("[!.]*", "[!.]*/[!.]*") for path in folder.glob(ending))
    for path in files:
        if path.suffix in READ and path.is_file():
            check_no_pointer(path)
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is damaged or incomplete ({reason}): {fix}") from error
