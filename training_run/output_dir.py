"""The output directory of a run: whose it is, and which checkpoint in it a run continues from."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list

from training_run.checkpoints import (
    DamagedCheckpointError,
    checkpoints_in,
    clear_leftovers,
    newest_whole,
    step_of,
    verify,
    write_file,
)
from training_run.state import FREE, changed

logger = get_logger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"


def earlier_run(folder: Path) -> list[Path]:
    """What an earlier run has left in ``folder``."""
    made = (folder / name for name in (LORA_FILE, "transformer", "run.json"))
    return [*checkpoints_in(folder), *filter(Path.exists, made)]


def continues(args: Namespace) -> bool:
    """Whether the run goes on from a checkpoint in its own output directory."""
    checkpoint, folder = args.resume_from_checkpoint, Path(args.output_dir).resolve()
    return checkpoint == "latest" or (checkpoint is not None and Path(checkpoint).resolve().parent == folder)


def refuse_earlier_run(args: Namespace) -> None:
    """Raise ``ValueError`` when the output directory holds a run that nobody said to continue or delete."""
    earlier = earlier_run(Path(args.output_dir))
    if earlier and not args.overwrite_output_dir and not continues(args):
        raise ValueError(
            f"{args.output_dir} holds an earlier run ({earlier[0].name}): choose another --output_dir, continue it "
            "with --resume_from_checkpoint latest, or delete it with --overwrite_output_dir"
        )


def prepare_output_dir(args: Namespace) -> None:
    """Make the output directory; an earlier run in it is deleted unless this one continues it."""
    folder = Path(args.output_dir)
    refuse_earlier_run(args)
    if not continues(args) and (earlier := earlier_run(folder)):
        for path in [*earlier, folder / "validation", folder / "logs", folder / "README.md"]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)


def find_checkpoint(args: Namespace) -> Path | None:
    """Checkpoint to continue from. None, a fresh start: none was asked for, or 'latest' of an empty directory."""
    if args.resume_from_checkpoint == "latest":
        found = newest_whole(Path(args.output_dir))
        if found is None and (damaged := checkpoints_in(Path(args.output_dir))):
            verify(damaged[-1])
        logger.info(f"Continuing from {found}" if found else f"No checkpoint in {args.output_dir}: starting afresh")
        return found
    path = Path(args.resume_from_checkpoint) if args.resume_from_checkpoint else None
    if path:
        try:
            verify(path)
        except DamagedCheckpointError as error:
            raise ValueError(f"--resume_from_checkpoint {path}: {error}") from error
    return path


def refuse_finished(args: Namespace, step: int) -> None:
    """Raise ``ValueError`` when the checkpoint at ``step`` leaves nothing to do.

    At the last step there is something to do as long as the weights that come after it are not there.
    """
    folder = Path(args.output_dir)
    written = any((folder / name).exists() for name in (LORA_FILE, "transformer"))
    if step > args.max_train_steps or (step == args.max_train_steps and written):
        found = args.resume_from_checkpoint
        raise ValueError(
            f"--resume_from_checkpoint {found} is at step {step} of {args.max_train_steps}: raise --max_train_steps"
        )


def forget_future(folder: Path, step: int) -> None:
    """Set aside what lies after ``step`` in a directory that is continued from there, and forget its curves.

    Checkpoints and weights of that other course get names that nothing reads; nothing is deleted.
    """
    later = [path for path in checkpoints_in(folder) if (step_of(path) or 0) > step]
    for path in [*later, *(path for path in (folder / LORA_FILE, folder / "transformer") if path.exists())]:
        aside, number = path.with_name(f"before-{step}-{path.name}"), 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"before-{step}-{number}-{path.name}")
        path.rename(aside)
    for name in ("losses.jsonl", "skipped.jsonl"):
        lines = folder / "logs" / name
        if lines.exists():
            whole = [line for line in lines.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
            kept = "".join(line for line in whole if json.loads(line)["step"] <= step)
            write_file(lines, kept.encode())


def refuse_changes(args: Namespace, own: frozenset[str], saved: dict[str, Any], data: Any, accelerator: Any) -> None:
    """Raise ``ValueError`` for what has changed since ``saved`` was written and would change the result.

    ``own`` names the trainer's own arguments, which are compared; a wrapper's are told apart by the data.
    ``--allow_changed_arguments`` makes a warning of it. The rank that reads all data tells the others.
    """
    wanted = {"step": int, "processes": int, "arguments": dict, "data": dict, "ranks": list, "moved": bool}
    if odd := [name for name, kind in wanted.items() if not isinstance(saved.get(name), kind)]:
        raise ValueError(f"--resume_from_checkpoint {args.resume_from_checkpoint}: its state has no {odd[0]} that fits")
    told: list[str] = []
    if accelerator.is_main_process:
        steps = {"max_train_steps"} if args.lr_scheduler.startswith("constant") else set()
        now = {name: value for name, value in vars(args).items() if name in own}
        told = changed(saved["arguments"], now, FREE | steps)
        told += changed(saved["data"], data_facts(data))
        told += changed({"processes": saved["processes"]}, {"processes": accelerator.num_processes})
    (told,) = broadcast_object_list([told])
    if told and not args.allow_changed_arguments:
        raise ValueError(
            f"continuing would not give what the run would have given: {'; '.join(told)}. Give the same arguments and "
            "data, or continue all the same with --allow_changed_arguments"
        )
    if told:
        logger.warning(f"Continuing with changes: {'; '.join(told)}")


def data_facts(data: Any) -> dict[str, Any]:
    """What a checkpoint keeps of the data that it has learned from, wherever it lies."""
    facts = data.summary() if hasattr(data, "summary") else {"rows": len(data)}
    passing = ("source", "revision", "bad_rows")
    return json.loads(json.dumps({name: fact for name, fact in facts.items() if name not in passing}, default=str))
