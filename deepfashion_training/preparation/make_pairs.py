"""A preparation from a source to a folder of pairs, in one step and only once.

It works in ``.<name>.preparing`` beside the output folder: finished batches under the key of their rows and settings,
then the result, which is moved in one step. A run that is stopped continues from the finished batches.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import filelock
from tqdm import tqdm

from deepfashion_training.data.schema import map_columns
from deepfashion_training.data.source_rows import SourceRows
from deepfashion_training.data.sources import open_splits, source_fingerprint
from deepfashion_training.models.human_parser import check_human_parser, load_human_parser
from deepfashion_training.preparation import account, output, workers
from deepfashion_training.preparation.mask_leak import measure_leak
from deepfashion_training.preparation.pair_plan import PairPlan, Settings, make_plan
from deepfashion_training.preparation.selection import select
from deepfashion_training.reports.pairs_report import write_pairs_card, write_pairs_report
from training_run.atomic import put_in_place

#: Packages whose version may change what a preparation makes.
_PACKAGES = ("datasets", "pyarrow", "numpy", "Pillow", "ImageHash", "scikit-learn")

Say = Callable[[str], object]


def prepare(
    source: str,
    output_dir: str | Path,
    settings: Settings,
    *,
    revision: str | None = None,
    num_proc: int = 1,
    overwrite: bool = False,
    wait: bool = False,
    say: Say = lambda line: None,
) -> tuple[Path, dict[str, Any], bool]:
    """Prepare ``source`` (a Hub id or a local dataset) into ``output_dir``.

    Returns the folder, its ``report.json`` and whether it was made now: a folder that already holds just this is left
    as it is. ``overwrite`` allows to replace an earlier result that differs; ``wait`` waits for another process that
    prepares into the same folder. ``say`` gets lines about what happens.

    Raises ``ValueError``, one line, for a source that cannot be prepared and for an ``output_dir`` that holds something
    else; ``RuntimeError`` when a worker process was killed.
    """
    target = Path(output_dir).expanduser().resolve()
    _check_target(target, source)
    local = Path(source).expanduser().resolve()
    with _working_folder(target, wait) as working:
        splits = None if local.is_dir() else _open(source, revision, settings)
        name = str(local) if local.is_dir() else source
        key = settings.key(name, source_fingerprint(source, splits))
        facts = _finished(target, key)
        if facts is not None:  # of a local dataset, this is known before it is opened
            shutil.rmtree(working, ignore_errors=True)  # from a run that was killed just before its end
            return target, facts, False
        rows = _rows_of(splits or _open(source, revision, settings), settings, source)
        _check_overwrite(target, settings, overwrite)
        _check_parser(settings)
        plan = _plan_of(rows, source, settings, say)
        _check_disk(rows, len(plan.rows) / len(rows), target)
        began = time.monotonic()
        files, done = _do_batches(plan, rows, settings, working / key, num_proc, say)
        seconds = time.monotonic() - began
        say("writing the data files and the report")
        notes = output.read_notes(files)
        select(notes, settings)
        facts = {"source": source, "key": key, **account.summary(notes, len(plan.rows))}
        if facts["pairs"] + facts["mined"] == 0:
            raise ValueError(f"no row of {source} became a pair: {account.why_none(notes)}")
        facts |= {"seconds": seconds, "rows_per_second": (len(plan.rows) - done) / seconds}
        facts |= _facts_of(plan, settings)
        result = working / "result"
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
        _write(result, files, notes, facts, settings)
        put_in_place(result, target)
        shutil.rmtree(working)
    return target, facts, True


def check_source(source: str, output_dir: str | Path, settings: Settings, *, revision: str | None = None) -> None:
    """Raise ``ValueError`` for what would stop ``prepare`` and shows in the rows' texts alone."""
    _check_target(Path(output_dir).expanduser().resolve(), source)
    _check_parser(settings)
    _plan_of(_rows_of(_open(source, revision, settings), settings, source), source, settings, lambda line: None)


@contextlib.contextmanager
def _working_folder(target: Path, wait: bool) -> Iterator[Path]:
    """The folder beside ``target`` to work in, locked. ``ValueError`` when another process has it, unless ``wait``."""
    working = target.with_name(f".{target.name}.preparing")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that whoever can write there sees the same lock.
    lock = filelock.FileLock(f"{working}.lock", timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(f"another process is preparing {target}: wait for it, or choose another folder") from None
    try:
        yield working
    finally:
        # A process that waits for the removed file is let in later, finds the work done, and leaves it as it is.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _open(source: str, revision: str | None, settings: Settings) -> dict[str, datasets.Dataset]:
    if revision is not None and Path(source).expanduser().is_dir():
        raise ValueError(f"--dataset_revision {revision}: {source} is a folder, and only Hub datasets have revisions")
    return open_splits(
        source, check_columns=lambda found: map_columns(found, settings.columns, source), revision=revision
    )


def _rows_of(splits: dict[str, datasets.Dataset], settings: Settings, source: str) -> SourceRows:
    columns = map_columns(next(iter(splits.values())).column_names, settings.columns, source)
    return SourceRows(splits, columns, source)


def _plan_of(rows: SourceRows, source: str, settings: Settings, say: Say) -> PairPlan:
    plan = make_plan(rows.texts(), settings, has_cloth=rows.has_cloth)
    if not plan.rows:
        raise ValueError(f"{source} has no rows")
    if len(rows.splits) > 1:
        say(f"the splits {', '.join(rows.splits)} are taken together and divided anew, by person")
    for name, count in plan.unknown_categories.items():
        fix = f"; --category_type '{name}=upper' would take them as tops" if name else ""
        say(f"unknown category {name!r}: {count} rows are quarantined{fix}")
    return plan


def _do_batches(
    plan: PairPlan, rows: SourceRows, settings: Settings, folder: Path, num_proc: int, say: Say
) -> tuple[list[Path], int]:
    """Do the batches that an earlier run has not finished; returns the files of all, and how many rows were done."""
    if not folder.is_dir():  # batches of other rows or settings
        shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06d}.parquet" for number in range(len(plan.batches))]
    left = {file: batch for file, batch in zip(files, plan.batches, strict=True) if not file.is_file()}
    done = len(plan.rows) - sum(map(len, left.values()))
    if done:
        say(f"continuing after {done} of {len(plan.rows)} rows that an earlier run finished")
    with tqdm(total=len(plan.rows), initial=done, unit="row", desc="preparing", disable=None) as bar:
        workers.do_batches(left, rows, settings, num_proc, bar.update)
    return files, done


def _facts_of(plan: PairPlan, settings: Settings) -> dict[str, Any]:
    """What ``report.json`` says about how the pairs were made."""
    parser = settings.parser and load_human_parser(settings.parser, settings.parser_revision)
    return {
        "unknown_categories": plan.unknown_categories,
        "mask_policy": settings.mask_policy,
        "parser": settings.parser,
        "parser_revision": parser.revision if parser else None,
        "settings": settings.as_json(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }


def _write(result: Path, files: list[Path], notes: list[output.Row], facts: dict[str, Any], settings: Settings) -> None:
    """Write everything that a prepared folder has; ``facts`` gets the leak score, warnings and the files' sizes."""
    with ThreadPoolExecutor(1) as beside:
        leak = beside.submit(measure_leak, notes, settings.mask_policy, settings.seed)
        shown = output.write_rows(result, files, notes, settings.seed)
        facts["leak_score"] = leak.result()
    facts["warnings"] = account.warnings(facts)
    write_pairs_report(result / "report.html", facts, **shown)
    write_pairs_card(result / "README.md", facts)
    written = sorted(file for file in result.rglob("*") if file.is_file())
    facts["files"] = {file.relative_to(result).as_posix(): file.stat().st_size for file in written}
    (result / "report.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _check_target(target: Path, source: str) -> None:
    """Raise ``ValueError`` for an output folder that cannot be written or that holds what must not be replaced."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"--output_dir {target} is a file: name a folder")
    folder = Path(source).expanduser().resolve()
    if folder.is_dir() and (target == folder or target in folder.parents or folder in target.parents):
        raise ValueError(f"--output_dir {target} and the source {folder} lie in one another: name another folder")
    if target.is_dir() and any(target.iterdir()):
        facts = _report(target)
        known = {"report.json", *(facts["files"] if facts else ())}
        found = {file.relative_to(target).as_posix() for file in target.rglob("*") if not file.is_dir()}
        if facts is None or found - known:
            other = min(found - known, default="folders")
            raise ValueError(f"--output_dir {target} holds other files ({other}): name a new or empty folder")
    if target.is_mount():
        raise ValueError(f"--output_dir {target} is a mount point, which cannot be replaced: name a folder in it")
    parent = next(parent for parent in target.parents if parent.exists())
    if not os.access(parent, os.W_OK):
        raise ValueError(f"--output_dir {target}: {parent} is not writable")


def _check_overwrite(target: Path, settings: Settings, overwrite: bool) -> None:
    """Raise when the target holds an earlier result of other rows or settings, saying which settings differ."""
    facts = _report(target)
    if overwrite or facts is None:
        return
    now = json.loads(json.dumps(settings.as_json()))
    changed = [name for name in now if facts["settings"].get(name) != now[name]]
    what = f"with other settings ({', '.join(changed)})" if changed else "from other rows, or is not whole any more"
    raise ValueError(
        f"--output_dir {target} holds pairs prepared {what}: name another folder, or replace them with --overwrite"
    )


def _check_parser(settings: Settings) -> None:
    if settings.parser is not None:
        check_human_parser(settings.parser, settings.parser_revision)


def _check_disk(rows: SourceRows, share: float, target: Path) -> None:
    """Raise ``OSError`` when finished batches and result, each as large as the rows, will not fit beside ``target``."""
    needed = 2.2 * share * rows.stored_size
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise OSError(
            f"--output_dir {target}: preparing needs about {needed / 1e9:.1f} GB there, {free / 1e9:.1f} GB are free"
        )


def _finished(target: Path, key: str) -> dict[str, Any] | None:
    """``report.json`` of a target that holds the result of ``key``, whole."""
    facts = _report(target)
    if facts is None or facts["key"] != key:
        return None
    sizes = {name: (target / name).stat().st_size for name in facts["files"] if (target / name).is_file()}
    return facts if sizes == facts["files"] else None


def _report(target: Path) -> dict[str, Any] | None:
    """What ``prepare`` wrote as ``report.json``; ``None`` where there is none, or one that something else wrote."""
    try:
        facts = json.loads((target / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and {"key", "files", "settings"} <= set(facts) else None
