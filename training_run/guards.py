"""What has to be true of a training step, and one line for the user where it is not."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from training_run import attention, bases, quantization
from training_run.colour import to_srgb
from training_run.hub import transformer_in

logger = logging.getLogger(__name__)

#: Steps in a row that the gradient scaler of fp16 may leave out. Some are its way to find a scale: it begins at 2**16
#: and halves it each time. After 50 it is 2**-34, with which no gradient overflows that was finite.
SCALER_SKIPS = 50


class SkippedSteps:
    """Steps that were not taken because their loss or gradient was not finite; ``limit`` of them are borne.

    ``count`` is their number, ``by_scaler`` how many in a row the gradient scaler of fp16 has left out just now.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self.limit = limit
        self.folder = folder
        self.count = 0
        self.by_scaler = 0

    def add(self, step: int, rows: Sequence[str], loss: float, norm: float, writes: bool) -> None:
        """Note one; the rank that ``writes`` keeps a line. Raises ``ValueError`` when it is one too many."""
        self.count += 1
        what = f"step {step}: loss {loss}, gradient norm {norm}; rows {', '.join(rows)}"
        if writes:
            logger.warning("skipping a step that is not finite, %d of %d: %s", self.count, self.limit, what)
            (self.folder / "logs").mkdir(exist_ok=True)
            with (self.folder / "logs" / "skipped.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"step": step, "rows": list(rows), "loss": str(loss), "norm": str(norm)}) + "\n")
        if self.count > self.limit:
            from training_run.checkpoints import newest_whole

            last = newest_whole(self.folder)
            raise ValueError(
                f"loss or gradient is not finite at {what}; with it {self.count} steps were skipped, and "
                f"--max_skipped_steps is {self.limit}: lower --learning_rate, or look at these rows; "
                + (f"the last good checkpoint is {last}" if last else "there is no checkpoint yet")
            )

    def see_scaler(self, step: int, left_out: bool) -> None:
        """Note whether the gradient scaler has ``left_out`` a step. ``ValueError`` when it finds no scale at all."""
        self.by_scaler = self.by_scaler + 1 if left_out else 0
        if self.by_scaler >= SCALER_SKIPS:
            raise ValueError(
                f"gradients overflow fp16 at any scale: {self.by_scaler} steps in a row were not taken, the last of "
                f"them step {step}: use --mixed_precision bf16, or lower --learning_rate"
            )

    def check_end(self, moved: bool, learning_rate: float) -> None:
        """Raise ``ValueError`` at the end of a run that took no step."""
        if moved or not (self.count or self.by_scaler):
            return
        reasons = []
        if self.count:
            rows = self.folder / "logs" / "skipped.jsonl"
            reasons.append(f"{self.count} were skipped because loss or gradient was not finite, see the rows in {rows}")
        if self.by_scaler:
            reasons.append(f"the last {self.by_scaler} were left out because gradients overflow fp16")
        lower = f"lower --learning_rate {learning_rate:g} or the weights of the loss"
        raise ValueError(f"no step was taken: {'; '.join(reasons)}; {lower}")


def read_picture(path: Path, mode: str) -> Image.Image:
    """The picture at ``path`` in a ``mode`` of Pillow, RGB as sRGB. Raises ``ValueError``, one line, for none.

    JPEG, PNG, WebP and BMP alone: other readers start programs. More than 64 million pixels are taken for an attack on
    memory and not decoded.
    """
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP")) as picture:
            if picture.width * picture.height > 64_000_000:
                raise ValueError(f"{picture.width}x{picture.height} pixels are too many")
            return (to_srgb(picture) if mode == "RGB" else picture).convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def next_batch(batches: Iterator[Any]) -> Any:
    """The next of a loader's batches. Raises ``ValueError``, one line, where a process that loads pictures has died."""
    try:
        return next(batches)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "Traceback" in str(error):  # those of a worker's own code have one
            raise
        raise ValueError(
            f"a process that loads pictures has died ({str(error).splitlines()[0]}): too little memory is the usual "
            "cause; lower --dataloader_num_workers or --dataloader_prefetch_factor"
        ) from error


def out_of_memory(step: int, args: Any) -> ValueError:
    """What to say when a GPU's memory was too small for ``step``, 0 before the first: the peak, and what lowers it."""
    peak = ""
    if torch.cuda.is_available():
        _free, total = torch.cuda.mem_get_info()
        peak = f" (peak {torch.cuda.max_memory_allocated() / 2**30:.1f} of {total / 2**30:.1f} GiB)"
    lower = []
    if args.train_batch_size > 1:
        lower.append(f"--train_batch_size below {args.train_batch_size}, with more --gradient_accumulation_steps")
    if args.gradient_checkpointing not in (1, "auto"):
        lower.append("--gradient_checkpointing")
    if args.mixed_precision == "no":
        lower.append("--mixed_precision bf16")
    if args.quantize_base != "nf4" and not args.train_base_model and not args.shard_base:
        lower.append("--quantize_base nf4")
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    if several and not args.shard_base and not args.quantize_base and not args.train_base_model:
        lower.append("--shard_base")
    if args.optimizer == "adamw" and not args.use_8bit_adam:
        lower.append("--use_8bit_adam")
    lower += [f"--height and --width below {args.height} and {args.width}", f"--lora_rank below {args.lora_rank}"]
    when = f"at step {step}" if step else "for the models"
    return ValueError(f"the GPU's memory was too small {when}{peak}. What lowers it: {'; '.join(lower)}")


def check_packages(args: Any) -> None:
    """Raise ``ValueError`` when a flag needs a package or a device that is not there."""
    needs = {
        "--use_8bit_adam": args.use_8bit_adam and "bitsandbytes",
        "--optimizer prodigy": args.optimizer == "prodigy" and "prodigyopt",
        f"--report_to {args.report_to}": args.report_to != "none" and args.report_to,
    }
    for flag, package in needs.items():
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(f"{flag} needs the package {package}: pip install {package}")
        if package == "bitsandbytes" and not torch.cuda.is_available():
            raise ValueError(f"{flag} needs a CUDA GPU, and none is visible")
    if args.quantize_base:
        quantization.check_usable("--quantize_base", args.quantize_base)
    attention.check_installed(args.attention_backend)
    if args.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("--mixed_precision fp16 needs a CUDA GPU, and none is visible: use bf16 or no")


def check_base(pipeline: str, transformer: str) -> None:
    """Raise ``ValueError`` for a local model with a damaged file or without the weights of a part; names which.

    The pipeline's own transformer needs no weights: it may be there for its configuration alone.
    """
    for folder in map(Path, dict.fromkeys((pipeline, transformer))):
        check_files(folder, "fetch or copy it again")
    index = Path(pipeline, "model_index.json")
    named = json.loads(index.read_text("utf-8")) if index.is_file() else {}
    kinds = {part: named.get(part) for part in ("vae", "text_encoder", "text_encoder_2")}
    needed = [Path(pipeline, part) for part, kind in kinds.items() if kind not in (None, [None, None])]
    own = transformer_in(Path(transformer))
    if (own / "config.json").is_file():  # without it there is no transformer, as load_transformer says
        needed.append(own)
    for part in needed:
        if not (part / "config.json").is_file():
            raise ValueError(f"{part} has no config.json, though {index} names it: fetch or copy it again")
        if not any(part.glob("*.safetensors")):
            raise ValueError(f"{part} has no weights (*.safetensors): fetch or copy them again")


def check_cached_base(models: Iterable[tuple[str, str | None]], cache_dir: str | None) -> None:
    """Raise ``ValueError`` for a damaged file of ``models``, name and revision, in the Hub's cache, where there is any.

    A file that is not there yet will be downloaded.
    """
    for folder in (bases.snapshot_of(model, revision, cache_dir) for model, revision in models):
        if folder:
            check_files(folder, "delete it and what it links to in the cache, so that it is downloaded again")


def check_files(folder: Path, fix: str) -> None:
    """Raise ``ValueError`` for a damaged *.json, or a damaged header of a safetensors file, and say how to ``fix`` it.

    Looks into ``folder`` and the folders in it, as a pipeline has them. Hidden files belong to other programs.
    """
    files = sorted(path for ending in ("*", "*/*") for path in folder.glob(ending) if not path.name.startswith("."))
    for path in files:
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    file.keys()
            elif path.suffix == ".json":
                found = json.loads(path.read_text("utf-8"))
                if path.name.endswith(("config.json", "index.json")) and not isinstance(found, dict):
                    raise ValueError(f"a {type(found).__name__} where settings are expected")
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is damaged or incomplete ({reason}): {fix}") from error
