"""A preparation from a source to a folder of pairs, in one step and only once.

It works in ``.<name>.preparing`` beside the output folder: finished batches under the key of their rows, settings and
code, then the result, which is moved in one step. A run that is stopped continues from the finished batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from tqdm import tqdm

from deepfashion_training.data.schema import PARSES, map_columns
from deepfashion_training.data.source_rows import SourceRows
from deepfashion_training.data.sources import listed_pairs, open_splits, source_fingerprint
from deepfashion_training.models.human_parser import check_human_parser, parser_revision
from deepfashion_training.preparation import account, output, workers
from deepfashion_training.preparation.mask_leak import measure_leak
from deepfashion_training.preparation.pair_plan import PlannedRow, Settings, batches_of, make_plan
from deepfashion_training.preparation.pair_writer import PairWriter
from deepfashion_training.preparation.selection import select
from deepfashion_training.reports.pairs_report import write_pairs_card, write_pairs_report
from training_run.atomic import put_in_place
from training_run.hub import local_path
from training_run.lock import only_writer
from training_run.not_data import is_left_behind

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
    form: str = "parquet",
    say: Say = lambda line: None,
) -> tuple[Path, dict[str, Any], bool]:
    """Prepare ``source`` (a Hub id or a local dataset) into ``output_dir``.

    Returns the folder, its ``report.json`` and whether it was made now: a folder that already holds just this is left
    as it is. ``overwrite`` allows to replace an earlier result that differs; ``wait`` waits for another process that
    prepares into the same folder. ``form``, of ``FORMATS``, is how the pairs are written. ``say`` gets lines about what
    happens.

    Raises ``ValueError``, one line, for a source that cannot be prepared and for an ``output_dir`` that holds something
    else; ``OSError`` when a worker process was killed.
    """
    target = local_path(output_dir).resolve()
    _check_target(target, source)
    local = local_path(source).resolve()
    working = target.with_name(f".{target.name}.preparing")
    with contextlib.ExitStack() as alone:
        # Beside the target, which is moved to its place in one step; whoever can write there sees the same lock.
        patience = math.inf if wait else None
        alone.enter_context(only_writer(target, file=Path(f"{working}.lock"), patience=patience))
        if target.is_dir():
            alone.enter_context(only_writer(target))
        splits = None if local.is_dir() else _open(source, revision, settings)
        name = str(local) if local.is_dir() else source
        of_rows = settings.key(name, source_fingerprint(source, splits))
        key = of_rows if form == "parquet" else f"{of_rows}-{form}"
        facts = _report(target)
        if facts and facts["key"] == key and all((target / name).is_file() for name in facts["files"]):
            shutil.rmtree(working, ignore_errors=True)  # from a run that was killed just before its end
            return target, facts, False  # of a local dataset, this is known before it is opened
        if facts and not overwrite:
            raise ValueError(
                f"--output_dir {target} holds pairs of other rows or settings, or a part of them: name another folder, "
                "or replace them with --overwrite"
            )
        splits = splits or _open(source, revision, settings)
        settings = _without_parser(splits, settings)
        rows, planned = _plan(splits, source, settings)
        if len(splits) > 1 and not listed_pairs(source):
            say(f"the splits {', '.join(splits)} are taken together and divided anew, by person")
        files = _do_batches(planned, rows, settings, working / f"{of_rows}-{_code()}", num_proc, say)
        say("writing the data files and the report")
        notes = output.read_notes(files)
        select(notes, settings)
        facts = {"source": source, "key": key, **account.summary(notes, len(planned))}
        if facts["pairs"] + facts["mined"] == 0:
            raise ValueError(f"no row of {source} became a pair: {account.why_none(notes)}")
        facts |= {
            "mask_policy": settings.mask_policy,
            "parser": settings.parser,
            "parser_revision": settings.parser and parser_revision(settings.parser, settings.parser_revision),
            "settings": settings.as_json(),
            **({} if form == "parquet" else {"format": form}),
        }
        result = working / "result"
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
        _write(result, files, notes, facts, settings)
        _check_target(target, source)  # again, as this may have taken hours
        put_in_place(result, target)
        shutil.rmtree(working)
    return target, facts, True


def check_source(source: str, output_dir: str | Path, settings: Settings, *, revision: str | None = None) -> None:
    """Raise ``ValueError`` for what would stop ``prepare`` and shows in the rows' texts alone."""
    _check_target(local_path(output_dir).resolve(), source)
    splits = _open(source, revision, settings)
    _plan(splits, source, _without_parser(splits, settings))


def _open(source: str, revision: str | None, settings: Settings) -> dict[str, datasets.Dataset]:
    check_columns = functools.partial(map_columns, overrides=settings.columns, has_parser=settings.parser is not None)
    return open_splits(source, check_columns=check_columns, revision=revision)


def _without_parser(splits: dict[str, datasets.Dataset], settings: Settings) -> Settings:
    """``settings`` for these rows: where they have label maps in the place of masks, nothing is left to a parser."""
    found = set(next(iter(splits.values())).column_names)
    if "mask" in {*found, *settings.columns} or not found & set(PARSES):
        return settings
    return dataclasses.replace(settings, parser=None, parser_revision=None, mine_lower_body=False)


def _plan(splits: dict[str, datasets.Dataset], source: str, settings: Settings) -> tuple[SourceRows, list[PlannedRow]]:
    """All rows, and the plan of each, after a look at the parser."""
    if settings.parser is not None:
        check_human_parser(settings.parser, settings.parser_revision)
    found = next(iter(splits.values())).column_names
    columns = map_columns(found, source, settings.columns, has_parser=settings.parser is not None)
    rows = SourceRows(list(splits.values()), columns, source)
    kept = [name for name, split in splits.items() for _ in range(len(split))] if listed_pairs(source) else None
    planned = make_plan(rows.texts(), settings, has_cloth="cloth" in columns, kept=kept)
    if not planned:
        raise ValueError(f"{source} has no rows")
    return rows, planned


def _do_batches(
    planned: list[PlannedRow], rows: SourceRows, settings: Settings, folder: Path, num_proc: int, say: Say
) -> list[Path]:
    """Do the batches that an earlier run has not finished; returns the files of all."""
    if not folder.is_dir():  # batches of other rows, settings or code
        shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    batches = {folder / f"{number:06d}.parquet": batch for number, batch in enumerate(batches_of(planned))}
    left = {file: batch for file, batch in batches.items() if not file.is_file()}
    done = len(planned) - sum(map(len, left.values()))
    if done:
        say(f"continuing after {done} of {len(planned)} rows that an earlier run finished")
    with tqdm(total=len(planned), initial=done, unit="row", desc="preparing", disable=None) as bar:
        workers.do_batches(left, rows, settings, num_proc, bar.update)
    return list(batches)


def _code() -> str:
    """A hash of the sources that decide what a batch holds: batches of other code are not continued."""
    package = Path(__file__).resolve().parents[1]
    files = [package / "garment_types.py"]
    for room in ("data", "images", "models", "preparation"):
        files += sorted((package / room).glob("*.py"))
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=4).hexdigest()


def _write(result: Path, files: list[Path], notes: list[output.Row], facts: dict[str, Any], settings: Settings) -> None:
    """Write everything that a prepared folder has; ``facts`` gets what is known only then."""
    pictures = PairWriter(result, facts["format"]) if "format" in facts else None
    shown = output.write_rows(result, files, notes, settings.seed, pictures)
    if pictures is not None:
        facts["rewritten_pictures"] = pictures.rewritten
    facts["leak_score"] = measure_leak(notes, settings.mask_policy, settings.seed)
    facts["warnings"] = account.warnings(facts)
    write_pairs_report(result / "report.html", facts, **shown)
    write_pairs_card(result / "README.md", facts)
    facts["files"] = sorted(_files(result))
    (result / "report.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _check_target(target: Path, source: str) -> None:
    """Raise ``ValueError`` for an output folder that cannot be written or that holds what must not be replaced."""
    if str(target).encode("utf-8", "replace") != os.fsencode(target):  # pyarrow writes to names in UTF-8 alone
        raise ValueError(
            f"--output_dir {target} is no name in UTF-8: name another folder, or set PYTHONUTF8=1 where the locale is "
            "another"
        )
    folder = local_path(source).resolve()
    if folder.is_dir() and (target == folder or target in folder.parents or folder in target.parents):
        raise ValueError(f"--output_dir {target} and the source {folder} lie in one another: name another folder")
    facts = _report(target)
    other = _files(target) - {"report.json", *facts["files"]} if facts else _files(target)
    if other or target.is_file():
        raise ValueError(f"--output_dir {target} holds other files ({', '.join(sorted(other)[:3])}): name a new folder")
    if target.is_mount():
        raise ValueError(f"--output_dir {target} is a mount point, which cannot be replaced: name a folder in it")


def _files(folder: Path) -> set[str]:
    files = (file for file in folder.rglob("*") if not file.is_dir() and not is_left_behind(file, folder))
    return {file.relative_to(folder).as_posix() for file in files}


def _report(target: Path) -> dict[str, Any] | None:
    """What ``prepare`` wrote as ``report.json``; ``None`` where there is none, or one that something else wrote."""
    try:
        facts = json.loads((target / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and {"key", "files"} <= set(facts) else None
