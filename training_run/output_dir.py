"""The output directory of a run: an earlier run in it, what of it is set aside, and the checkpoint to continue from."""

from __future__ import annotations

import itertools
import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list

from training_run.atomic import clear_leftovers, remove, write_file
from training_run.bases import base_facts
from training_run.checkpoints import checkpoints_in, newest_whole, step_of, verify
from training_run.row_order import weights_of
from training_run.sheets import sheets_in, step_of_sheet
from training_run.state import FREE, changed

logger = get_logger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"
#: Facts about data that do not change what is learned from it.
PASSING = frozenset(
    "source revision bad_rows options parts ledger_dir cache_dir max_bad_rows max_validation_samples".split()
)

#: What a run writes to ``logs`` step by step.
CURVES = ("losses.jsonl", "skipped.jsonl")
#: Where a dataset may note unusable rows. It may begin before the directory is prepared, so that leaves them alone.
ROW_LEDGERS = "logs/bad_rows-*.jsonl"
#: What is made of a run's weights, and the weights. They go together, weights last: a kill in between leaves no figures
#: beside weights that they are not of.
MADE_OF_WEIGHTS = ("README.md", "evaluation.json", "evaluation", LORA_FILE, "transformer")


def trained_in(folder: Path) -> list[Path]:
    """Final weights that an earlier run has left in ``folder``."""
    return [path for path in (folder / LORA_FILE, folder / "transformer") if path.exists()]


def earlier_run(folder: Path) -> list[Path]:
    """What an earlier run has left in ``folder``."""
    return [*checkpoints_in(folder), *trained_in(folder), *filter(Path.exists, [folder / "run.json"])]


def continues(args: Namespace) -> bool:
    """Whether the run goes on from a checkpoint in its own output directory."""
    checkpoint = args.resume_from_checkpoint
    if checkpoint in (None, "latest"):
        return checkpoint == "latest"
    return Path(checkpoint).resolve().parent == Path(args.output_dir).resolve()


def refuse_earlier_run(args: Namespace) -> None:
    """Raise ``ValueError`` when the output directory holds an earlier run that no flag continues or deletes."""
    folder = Path(args.output_dir)
    in_the_way = earlier_run(folder)
    if continues(args):  # weights without a checkpoint cannot be continued from
        in_the_way = [] if checkpoints_in(folder) else trained_in(folder)
    if in_the_way and not args.overwrite_output_dir:
        raise ValueError(
            f"{args.output_dir} holds an earlier run ({in_the_way[0].name}): choose another --output_dir, delete it "
            "with --overwrite_output_dir, or continue a checkpoint of it with --resume_from_checkpoint"
        )


def prepare_output_dir(args: Namespace) -> None:
    """Make the output directory for a run that nothing refuses any more; deletes the run that it overwrites."""
    refuse_earlier_run(args)
    folder = Path(args.output_dir)
    clear_leftovers(folder)
    clear_leftovers(folder / "validation")
    if earlier_run(folder) and not continues(args):
        names = (*MADE_OF_WEIGHTS, "run.json", "validation")
        logs = [path for path in folder.glob("logs/*") if not path.match(ROW_LEDGERS)]
        for path in [*checkpoints_in(folder), *folder.glob("before-*"), *(folder / name for name in names), *logs]:
            if path.is_dir():
                remove(path)
            else:
                path.unlink(missing_ok=True)
    (folder / "logs").mkdir(parents=True, exist_ok=True)


def find_checkpoint(args: Namespace) -> Path | None:
    """Checkpoint to continue from. None, a fresh start: none was asked for, or 'latest' of an empty directory."""
    if args.resume_from_checkpoint == "latest":
        found = newest_whole(Path(args.output_dir))
        if found is None and (damaged := checkpoints_in(Path(args.output_dir))):
            verify(damaged[-1])
        logger.info(f"Continuing from {found}" if found else f"No checkpoint in {args.output_dir}: starting afresh")
        return found
    if not args.resume_from_checkpoint:
        return None
    verify(Path(args.resume_from_checkpoint))
    return Path(args.resume_from_checkpoint)


def refuse_finished(args: Namespace, step: int) -> None:
    """Raise ``ValueError`` when the checkpoint at ``step`` leaves nothing to do.

    At the last step there is something to do until ``run.json`` says that the weights that come after it are there: a
    run may have been killed while it wrote them.
    """
    if step > args.max_train_steps or (step == args.max_train_steps and _is_finished(Path(args.output_dir))):
        found = args.resume_from_checkpoint
        raise ValueError(
            f"--resume_from_checkpoint {found} is at step {step} of {args.max_train_steps}: raise --max_train_steps"
        )


def _is_finished(folder: Path) -> bool:
    """Whether the run in ``folder`` has written its weights and said so."""
    facts = read_record(folder) or {"status": "done"}
    return bool(trained_in(folder)) and facts.get("status") == "done"


def read_record(folder: Path) -> dict[str, Any]:
    """``run.json`` of the run in ``folder``, empty where there is none. Raises ``ValueError`` for an unreadable one."""
    path = folder / "run.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found
    except ValueError as error:
        raise ValueError(f"{path} is not readable ({error}): move it away to go on from the checkpoint") from error


def is_done(args: Namespace, own: frozenset[str]) -> bool:
    """Whether the run that is to be continued has taken all its steps with these arguments; ``own`` names them.

    Such a run may have been stopped while its LoRA was compared or published.
    """
    folder = Path(args.output_dir)
    if not continues(args) or not trained_in(folder) or not (run := read_record(folder)):
        return False
    arguments = {name: value for name, value in vars(args).items() if name in own}
    finished = run.get("status") == "done" and run.get("step") == args.max_train_steps
    return finished and not changed(run["arguments"], arguments, FREE) and not changed(run["base"], base_facts(args))


def forget_future(folder: Path, step: int) -> None:
    """Set aside what lies after ``step`` in a directory that goes on from there, and forget its curves.

    Checkpoints, validation pictures, weights and what was made of them move to a new folder ``before-<step>``. At step
    0, a fresh start in a directory that a run may have left before its first checkpoint, so do all pictures and curves.
    """
    curves = [folder / "logs" / name for name in CURVES]
    later = [path for path in checkpoints_in(folder) if (step_of(path) or 0) > step]
    later += [path for path in sheets_in(folder) if step_of_sheet(path) > step or not step]
    later += [] if step else filter(Path.exists, curves)
    if trained_in(folder):
        later += [folder / name for name in MADE_OF_WEIGHTS if (folder / name).exists()]
    if later:
        names = itertools.chain([f"before-{step}"], (f"before-{step}-{number}" for number in itertools.count(2)))
        aside = next(path for name in names if not (path := folder / name).exists())
        for path in later:
            there = aside / path.relative_to(folder)
            there.parent.mkdir(parents=True, exist_ok=True)
            path.rename(there)
        logger.info(f"What lay after step {step} is in {aside}")
    for path in filter(Path.exists, curves):
        lines = path.read_text("utf-8", errors="replace").splitlines(keepends=True)
        write_file(path, "".join(line for line in lines if _step_in(line) <= step))


def _step_in(line: str) -> float:
    """Step of a line of JSON; infinity for one that a killed process has left unfinished."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def refuse_changes(args: Namespace, saved: dict[str, Any], data: Any, base: dict[str, str], accelerator: Any) -> None:
    """Raise ``ValueError`` for what has changed since ``saved`` was written and would change the result.

    ``saved`` has the trainer's own arguments; those of a wrapper show in the data. ``base`` tells the models from
    others. ``--allow_changed_arguments`` makes a warning of it. The rank that reads all data tells the others.
    """
    changes: list[str] = []
    if accelerator.is_main_process:
        moving = not args.lr_scheduler.startswith("constant") or weights_of(data)[1] is not None
        steps = set() if moving else {"max_train_steps"}
        changes = changed(saved["arguments"], vars(args), FREE | steps)
        changes += changed(saved["data"], data_facts(data)) + changed(saved["base"], base)
        changes += changed({"processes": saved["processes"]}, {"processes": accelerator.num_processes})
    (changes,) = broadcast_object_list([changes])
    if changes and not args.allow_changed_arguments:
        raise ValueError(
            f"continuing would not give what the run would have given: {'; '.join(changes)}. Give the same arguments, "
            "models and data, or continue all the same with --allow_changed_arguments"
        )
    if changes:
        logger.warning(f"Continuing with changes: {'; '.join(changes)}")


def data_facts(data: Any) -> dict[str, Any]:
    """What a checkpoint keeps of the data that it has learned from, without what changes no row."""
    facts = json.loads(json.dumps(data.summary() if hasattr(data, "summary") else {"rows": len(data)}, default=str))
    options = facts.get("options")
    every = {**facts, **options} if isinstance(options, dict) else facts
    return {name: fact for name, fact in every.items() if name not in PASSING}
