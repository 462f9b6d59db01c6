"""The output directory of a run: an earlier run in it, and the checkpoint that a run continues from."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list

from training_run.atomic import clear_leftovers, remove, write_file
from training_run.checkpoints import DamagedCheckpointError, checkpoints_in, newest_whole, step_of, verify
from training_run.state import FREE, changed

logger = get_logger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"
#: Facts about data that do not change what is learned from it.
PASSING = frozenset("source revision bad_rows options ledger_dir cache_dir max_bad_rows max_validation_samples".split())

#: Where a dataset may note unusable rows. It may begin before the directory is prepared, so that leaves them alone.
ROW_LEDGERS = "logs/bad_rows-*.jsonl"
#: What is made of the weights of a run, beside them: it goes where they go.
MADE_OF_WEIGHTS = (LORA_FILE, "transformer", "README.md", "evaluation", "evaluation.json")


def earlier_run(folder: Path) -> list[Path]:
    """What an earlier run has left in ``folder``."""
    made = (folder / name for name in (LORA_FILE, "transformer", "run.json"))
    return [*checkpoints_in(folder), *filter(Path.exists, made)]


def continues(args: Namespace) -> bool:
    """Whether the run goes on from a checkpoint in its own output directory."""
    checkpoint = args.resume_from_checkpoint
    if checkpoint in (None, "latest"):
        return checkpoint == "latest"
    return Path(checkpoint).resolve().parent == Path(args.output_dir).resolve()


def refuse_earlier_run(args: Namespace) -> None:
    """Raise ``ValueError`` when the output directory holds an earlier run that no flag continues or deletes."""
    folder = Path(args.output_dir)
    earlier = earlier_run(folder)
    if earlier and not args.overwrite_output_dir and not continues(args):
        raise ValueError(
            f"{args.output_dir} holds an earlier run ({earlier[0].name}): choose another --output_dir, continue it "
            "with --resume_from_checkpoint latest, or delete it with --overwrite_output_dir"
        )
    checkpoint = args.resume_from_checkpoint
    if checkpoint and not continues(args) and Path(checkpoint).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"--resume_from_checkpoint {checkpoint} lies in --output_dir: choose another --output_dir")
    trained = [path for path in (folder / LORA_FILE, folder / "transformer") if path.exists()]
    if trained and args.resume_from_checkpoint == "latest" and not checkpoints_in(folder):
        raise ValueError(
            f"--resume_from_checkpoint latest: {args.output_dir} holds what an earlier run has trained "
            f"({trained[0].name}) and no checkpoint to continue from: choose another --output_dir"
        )


def prepare_output_dir(args: Namespace) -> None:
    """Make the output directory for a run that nothing refuses any more; deletes the run that it overwrites."""
    refuse_earlier_run(args)
    folder = Path(args.output_dir)
    if folder.is_dir():
        clear_leftovers(folder)
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


def is_done(args: Namespace, own: frozenset[str]) -> bool:
    """Whether the run that is to be continued has taken all its steps with these arguments; ``own`` names them.

    Such a run may have been stopped while its LoRA was compared or published.
    """
    record = Path(args.output_dir) / "run.json"
    if not continues(args) or not record.is_file():
        return False
    run = json.loads(record.read_text(encoding="utf-8"))
    arguments = {name: value for name, value in vars(args).items() if name in own}
    return (
        run.get("status") == "done"
        and run.get("step") == args.max_train_steps
        and (Path(args.output_dir) / run.get("weights", "")).exists()
        and not changed(run["arguments"], arguments, FREE)
    )


def forget_future(folder: Path, step: int) -> None:
    """Set aside what lies after ``step`` in a directory that is continued from there, and forget its curves.

    Checkpoints, weights and what was made of them move to a folder ``before-<step>``; nothing is deleted.
    """
    later = [path for path in checkpoints_in(folder) if (step_of(path) or 0) > step]
    if any((folder / name).exists() for name in (LORA_FILE, "transformer")):
        later += [folder / name for name in MADE_OF_WEIGHTS if (folder / name).exists()]
    if later:
        number = 1 + len(list(folder.glob(f"before-{step}*")))
        aside = folder / (f"before-{step}" if number == 1 else f"before-{step}-{number}")
        aside.mkdir()
        for path in later:
            path.rename(aside / path.name)
        logger.info(f"What lay after step {step} is in {aside}: {', '.join(path.name for path in later)}")
    for name in ("losses.jsonl", "skipped.jsonl"):
        path = folder / "logs" / name
        if path.exists():
            write_file(path, "".join(_lines_until(path, step)))


def _lines_until(path: Path, step: int) -> list[str]:
    """Lines of a JSON-lines file whose ``step`` is at most ``step``; a warning counts damaged ones."""
    lines = []
    damaged = 0
    for line in path.read_text("utf-8", errors="replace").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step and line.endswith("\n"):
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        logger.warning(f"{path}: {damaged} lines are damaged and left out")
    return lines


def refuse_changes(args: Namespace, own: frozenset[str], saved: dict[str, Any], data: Any, accelerator: Any) -> None:
    """Raise ``ValueError`` for what has changed since ``saved`` was written and would change the result.

    ``own`` names the trainer's own arguments, which are compared; those of a wrapper show in the data.
    ``--allow_changed_arguments`` makes a warning of it. The rank that reads all data tells the others.
    """
    wanted = {"step": int, "processes": int, "arguments": dict, "data": dict, "ranks": list, "moved": bool}
    wanted |= {"skipped_steps": int, "optimizer": dict, "lr_scheduler": dict}
    if odd := [name for name, kind in wanted.items() if not isinstance(saved.get(name), kind)]:
        raise ValueError(f"--resume_from_checkpoint {args.resume_from_checkpoint}: its state has no {odd[0]} that fits")
    changes: list[str] = []
    if accelerator.is_main_process:
        steps = {"max_train_steps"} if args.lr_scheduler.startswith("constant") else set()
        now = {name: value for name, value in vars(args).items() if name in own}
        changes = changed(saved["arguments"], now, FREE | steps)
        changes += changed(_plain_facts(saved["data"]), data_facts(data))
        changes += changed({"processes": saved["processes"]}, {"processes": accelerator.num_processes})
    (changes,) = broadcast_object_list([changes])
    if changes and not args.allow_changed_arguments:
        raise ValueError(
            f"continuing would not give what the run would have given: {'; '.join(changes)}. Give the same arguments "
            "and data, or continue all the same with --allow_changed_arguments"
        )
    if changes:
        logger.warning(f"Continuing with changes: {'; '.join(changes)}")


def data_facts(data: Any) -> dict[str, Any]:
    """What a checkpoint keeps of the data that it has learned from, wherever it lies."""
    facts = data.summary() if hasattr(data, "summary") else {"rows": len(data)}
    return _plain_facts(json.loads(json.dumps(facts, default=str)))


def _plain_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """``facts`` with the data's options among them, without those that change no row."""
    options = facts.get("options")
    every = {**facts, **options} if isinstance(options, dict) else facts
    return {name: fact for name, fact in every.items() if name not in PASSING}
