"""Turn a dataset's rows into garment/person pairs worth training on, once, with a report to look at.

    python -m deepfashion_training.prepare --dataset_name SRC --output_dir OUT

``OUT`` loads with ``datasets.load_dataset(OUT)``. A run that is stopped goes on where it stopped when the same command
is given again. Exit codes: 0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepfashion_training.data.source_rows import SourceRows
    from deepfashion_training.preparation.pair_plan import Plan
    from deepfashion_training.preparation.settings import Settings
    from deepfashion_training.preparation.staging import Staging

#: Packages whose version may change what a preparation makes.
_PACKAGES = ("datasets", "pyarrow", "numpy", "Pillow", "ImageHash", "scikit-learn")


class OccupiedError(ValueError):
    """The output folder holds something that must not be replaced unasked."""


def prepare(
    source: str,
    output_dir: str | Path,
    settings: Settings,
    *,
    revision: str | None = None,
    num_proc: int = 1,
    engine: str = "local",
    overwrite: bool = False,
    wait: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> tuple[Path, dict[str, Any], bool]:
    """Prepare ``source`` (a Hub id or a local dataset) into ``output_dir``.

    Returns the folder, its ``report.json`` and whether it was made now: one that already holds just this is left as it
    is. ``overwrite`` allows to replace an earlier result that differs; ``wait`` waits for another process that prepares
    into the same folder. ``say`` is told what happens, in lines.

    Raises ``ValueError``, one line, for a source that cannot be prepared and for an ``output_dir`` that holds something
    else; ``RuntimeError`` when a worker process was killed.
    """
    from deepfashion_training.data.sources import source_fingerprint
    from deepfashion_training.preparation.staging import Staging

    target = Path(output_dir).expanduser().resolve()
    _check_target(target, source)
    with Staging(target, wait) as staging:
        local = Path(source).expanduser().is_dir()
        if local:  # what is there can be told before the dataset is opened, which takes longer
            key = settings.key(str(Path(source).expanduser().resolve()), source_fingerprint(source))
            if (facts := _finished(target, key)) is not None:
                staging.tidy(key)
                return target, facts, False
        rows, fingerprint = _open(source, revision, settings)
        key = settings.key(str(Path(source).expanduser().resolve()) if local else source, fingerprint)
        if (facts := _finished(target, key)) is not None:
            staging.tidy(key)
            return target, facts, False
        _check_overwrite(target, settings, overwrite)
        _check_means(settings, engine)
        facts = _work(rows, source, settings, key, staging, num_proc, engine, say)
    return target, facts, True


def check_source(source: str, output_dir: str | Path, settings: Settings, *, revision: str | None = None) -> None:
    """Raise ``ValueError`` for what would stop ``prepare`` and can be told from the rows' texts alone."""
    from deepfashion_training.preparation.pair_plan import make_plan

    _check_target(Path(output_dir).expanduser().resolve(), source)
    _check_means(settings, "local")
    rows, _ = _open(source, revision, settings)
    make_plan(rows.texts(), settings, has_cloth=rows.has_cloth)


def _check_means(settings: Settings, engine: str) -> None:
    """Raise ``ValueError`` when the parser cannot be had or Ray is not installed."""
    if settings.parser is not None:
        from deepfashion_training.models.human_parser import check_human_parser

        check_human_parser(settings.parser, settings.parser_revision)
    if engine == "ray":
        from deepfashion_training.preparation.engines import check_ray

        check_ray()


def _check_disk(rows: SourceRows, share: float, target: Path) -> None:
    """Raise ``OSError`` when finished batches and result, each as large as the rows, will not fit beside ``target``."""
    needed = 2.2 * share * rows.stored_size
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise OSError(
            f"--output_dir {target}: preparing needs about {needed / 1e9:.1f} GB there, {free / 1e9:.1f} GB are free"
        )


def _check_target(target: Path, source: str) -> None:
    if target.exists() and not target.is_dir():
        raise OccupiedError(f"--output_dir {target} is a file: name a folder")
    folder = Path(source).expanduser().resolve()
    if folder.is_dir() and (target == folder or target in folder.parents or folder in target.parents):
        raise OccupiedError(f"--output_dir {target} and the source {folder} lie in one another: name another folder")
    if target.is_dir() and any(target.iterdir()):
        facts = _report(target)
        known = {"report.json", *(facts["files"] if facts else ())}
        found = {file.relative_to(target).as_posix() for file in target.rglob("*") if not file.is_dir()}
        if facts is None or found - known:
            other = min(found - known, default="folders")
            raise OccupiedError(f"--output_dir {target} holds other files ({other}): name a new or empty folder")
    if target.is_mount():
        raise OccupiedError(f"--output_dir {target} is a mount point, which cannot be replaced: name a folder in it")
    parent = next(parent for parent in target.parents if parent.exists())
    if not os.access(parent, os.W_OK):
        raise OccupiedError(f"--output_dir {target}: {parent} is not writable")


def _finished(target: Path, key: str) -> dict[str, Any] | None:
    """``report.json`` of a target that holds the result of ``key``, whole."""
    facts = _report(target)
    if facts is None or facts.get("key") != key:
        return None
    whole = all(
        (target / name).is_file() and (target / name).stat().st_size == size for name, size in facts["files"].items()
    )
    return facts if whole else None


def _report(target: Path) -> dict[str, Any] | None:
    """What ``prepare`` wrote as ``report.json``; ``None`` where there is none, or one of somebody else's."""
    try:
        facts = json.loads((target / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and {"key", "files", "settings"} <= set(facts) else None


def _check_overwrite(target: Path, settings: Settings, overwrite: bool) -> None:
    """Raise when the target holds an earlier result of other rows or settings, saying which settings differ."""
    facts = _report(target)
    if overwrite or facts is None:
        return
    earlier = facts["settings"]
    now = json.loads(json.dumps(settings.as_json()))
    changed = [name for name in now if earlier.get(name) != now[name]]
    what = f"with other settings ({', '.join(changed)})" if changed else "from other rows, or is not whole any more"
    raise OccupiedError(
        f"--output_dir {target} holds pairs prepared {what}: name another folder, or replace them with --overwrite"
    )


def _open(source: str, revision: str | None, settings: Settings) -> tuple[SourceRows, str]:
    from deepfashion_training.data.schema import map_columns
    from deepfashion_training.data.source_rows import SourceRows
    from deepfashion_training.data.sources import open_splits, source_fingerprint

    def check_columns(found: Sequence[str]) -> None:
        map_columns(found, settings.columns, source)

    if revision is not None and Path(source).expanduser().is_dir():
        raise ValueError(f"--dataset_revision {revision}: {source} is a folder, and only Hub datasets have revisions")
    splits = open_splits(source, check_columns=check_columns, revision=revision)
    columns = map_columns(next(iter(splits.values())).column_names, settings.columns, source)
    return SourceRows(splits, columns, source), source_fingerprint(source, splits)


def _work(
    rows: SourceRows,
    source: str,
    settings: Settings,
    key: str,
    staging: Staging,
    num_proc: int,
    engine: str,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """Do what is left of the batches, then write and publish the result; returns its facts."""
    from tqdm import tqdm

    from deepfashion_training.preparation import engines
    from deepfashion_training.preparation.pair_plan import make_plan

    began = time.monotonic()
    plan = make_plan(rows.texts(), settings, has_cloth=rows.has_cloth)
    if not plan.rows:
        raise ValueError(f"{source} has no rows")
    if len(rows.splits) > 1:
        say(f"the splits {', '.join(rows.splits)} are taken together and divided anew, by person")
    for name, count in plan.unknown_categories.items():
        mend = f"; --category_type '{name}=upper' would take them as tops" if name else ""
        say(f"unknown category {name!r}: {count} rows are quarantined{mend}")
    _check_disk(rows, len(plan.rows) / len(rows), staging.target)
    goes_on = staging.open(key)
    files = {staging.batch(number): batch for number, batch in enumerate(plan.batches)}
    left = {file: batch for file, batch in files.items() if not file.is_file()}
    done = len(plan.rows) - sum(map(len, left.values()))
    if goes_on:
        say(f"going on after {done} of {len(plan.rows)} rows that an earlier run finished")
    work = engines.Work(rows, settings)
    run = engines.run_ray if engine == "ray" else engines.run_local
    with tqdm(total=len(plan.rows), initial=done, unit="row", desc="preparing", disable=None) as bar:
        for count in run(work, left, num_proc) if left else ():
            bar.update(count)
    speed = {
        "seconds": time.monotonic() - began,
        "rows_per_second": (len(plan.rows) - done) / (time.monotonic() - began),
    }
    say("writing the data files and the report")
    return _publish(list(files), plan, {"source": source, "key": key}, speed, settings, staging, num_proc)


def _publish(
    files: list[Path],
    plan: Plan,
    about: Mapping[str, Any],
    speed: Mapping[str, float],
    settings: Settings,
    staging: Staging,
    num_proc: int,
) -> dict[str, Any]:
    """Decide what needs all rows, write the result and put it in its place; returns the facts of ``report.json``."""
    from deepfashion_training.preparation import output
    from deepfashion_training.preparation.selection import select
    from deepfashion_training.reports.pairs_card import write_pairs_card
    from deepfashion_training.reports.pairs_report import write_pairs_report

    finished = output.read_finished(files)
    finished.records = select(finished.records, finished.fingerprints, settings)
    facts: dict[str, Any] = {**about, **output.summary(finished, len(plan.rows))}
    if facts["pairs"] + facts["mined"] == 0:
        raise ValueError(f"no row of {about['source']} became a pair: {output.why_none(finished)}")
    facts |= {
        "unknown_categories": plan.unknown_categories,
        "mask_policy": settings.mask_policy,
        "parser": settings.parser,
        "parser_revision": _parser_revision(settings),
        "settings": settings.as_json(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        **speed,
    }
    result = staging.new_result()
    with ThreadPoolExecutor(1) as beside:  # it computes in other processes while this one writes
        leak = beside.submit(output.measure_leak, finished, settings, num_proc)
        shown = output.write_rows(result, finished, settings)
        facts["leak_score"] = leak.result()
    facts["warnings"] = output.warnings(facts)
    write_pairs_report(result / "report.html", facts, shown.samples, shown.worst, shown.rejects)
    write_pairs_card(result / "README.md", facts)
    written = sorted(file for file in result.rglob("*") if file.is_file())
    facts["files"] = {file.relative_to(result).as_posix(): file.stat().st_size for file in written}
    (result / "report.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    staging.publish(result)
    return facts


def _parser_revision(settings: Settings) -> str | None:
    """What the parser's revision resolves to, for the record."""
    if settings.parser is None:
        return None
    from deepfashion_training.models.human_parser import load_human_parser

    return load_human_parser(settings.parser, settings.parser_revision).revision


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from deepfashion_training.images.masks import MASK_POLICIES
    from deepfashion_training.images.quality import Gates
    from deepfashion_training.preparation.settings import MASK_POLARITIES, Settings

    parser = argparse.ArgumentParser(
        prog="python -m deepfashion_training.prepare",
        description="Turn a dataset's rows into garment/person pairs, with a report to look at.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("rows").add_argument
    add("--dataset_name", metavar="SRC", required=True, help="Hub id, parquet folder or save_to_disk folder")
    add("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    add("--column", metavar="LIST", help="columns called otherwise, as in image=photo,cloth=product")
    add("--category_type", metavar="LIST", help="garment types of categories, as in Denim=lower,Suiting=upper")
    add("--limit", type=int, metavar="N", help="take N rows: whole people, garment types in turn")
    add("--mask_polarity", choices=MASK_POLARITIES, default="auto", help="the colour that means repaint")
    add = parser.add_argument_group("pairs").add_argument
    sources = ",".join(Settings.garment_sources)
    add("--garment_sources", metavar="LIST", default=sources, help="where garment pictures come from, best first")
    add("--max_same_photo_share", type=float, default=0.25, help="at most this share of a split's pairs is same_photo")
    add("--same_photo_in_evaluation", action=switch, default=False, help="allow same_photo in validation and test too")
    add("--mask_policy", choices=MASK_POLICIES, default="agnostic", help="relaxed varies the masks of the train split")
    add("--parser", metavar="MODEL", help="human parsing model, or none; by default a SegFormer where there is a GPU")
    add("--parser_revision", help="branch, tag or commit of the parser")
    add("--mine_lower_body", action=switch, help="lower-body pairs from rows of tops; by default with a parser")
    add("--validation_share", type=float, default=0.05, help="share of the people")
    add("--test_share", type=float, default=0.05, help="share of the people")
    add("--seed", type=int, default=0, help="of splits, samples and variations")
    add = parser.add_argument_group("gates").add_argument
    for field in dataclasses.fields(Gates):
        kind = type(field.default)
        add(f"--{field.name}", type=kind, default=field.default, help=field.metadata["help"])
    add = parser.add_argument_group("run").add_argument
    add("--output_dir", metavar="OUT", required=True, help="folder to write: new, empty, or an earlier result")
    add("--overwrite", action="store_true", help="replace an earlier result that differs")
    add("--num_proc", type=int, default=usable_cores(), help="processes")
    add("--engine", choices=("local", "ray"), default="local", help="ray runs the batches on Ray Data")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settings_of(args: argparse.Namespace) -> Settings:
    """What the flags ask for; raises ``ValueError`` for a value that cannot be."""
    from deepfashion_training.data.schema import parse_column_map
    from deepfashion_training.garment_types import parse_type_overrides
    from deepfashion_training.images.quality import Gates
    from deepfashion_training.preparation.garment_views import parse_sources
    from deepfashion_training.preparation.settings import Settings

    same = (
        "max_same_photo_share same_photo_in_evaluation mask_policy mask_polarity parser_revision validation_share "
        "test_share seed limit"
    )
    parser = chosen_parser(args.parser)
    return Settings(
        columns=parse_column_map(args.column),
        category_types=parse_type_overrides(args.category_type),
        garment_sources=parse_sources(args.garment_sources),
        parser=parser,
        mine_lower_body=parser is not None if args.mine_lower_body is None else args.mine_lower_body,
        gates=Gates(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Gates)}),
        **{name: getattr(args, name) for name in same.split()},
    )


def chosen_parser(named: str | None) -> str | None:
    """The parser's name: what was named, nothing for ``none``, the default where a GPU can run it."""
    if named is None:
        from deepfashion_training.models.human_parser import default_human_parser

        return default_human_parser()
    return None if named.lower() == "none" else named


def closing_lines(folder: Path, facts: Mapping[str, Any], *, made: bool = True) -> str:
    """What came out, in lines for people."""
    from deepfashion_training.images.quality import REASONS, UNPAIRED_REASONS

    def listed(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"

    lines = [
        f"rows      {facts['rows_in']} = {facts['pairs']} pairs + {sum(facts['quarantined'].values())} quarantined"
        f" + {facts['unpaired']} unpaired" + (f"; {facts['mined']} pairs mined" if facts["mined"] else ""),
        f"types     {listed(facts['by_type'])}",
        f"garments  {listed(facts['by_source'])}",
        f"splits    {listed(facts['by_split'])}",
    ]
    lines += [f"          {count} quarantined: {REASONS[name]}" for name, count in facts["quarantined"].items()]
    lines += [
        f"          {count} unpaired: {UNPAIRED_REASONS[name]}" for name, count in facts["unpaired_reasons"].items()
    ]
    for policy, leak in facts["leak_score"].items():
        lines.append(
            f"leak      {policy}: {leak['accuracy']:.0%} of {leak['type']} categories told from the mask alone, "
            f"chance {leak['chance']:.0%}"
        )
    if not facts["leak_score"]:
        lines.append("leak      not measured: too few people wear each category")
    lines += [f"warning   {line}" for line in facts["warnings"]]
    lines += [f"look at   {folder / 'report.html'}", f"train     --dataset_name {folder}"]
    return "\n".join([f"{'prepared' if made else 'already prepared'}: {folder}", *lines, ""])


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from deepfashion_training.cli import in_one_line

    args = build_parser().parse_args(argv)
    try:
        try:
            settings = settings_of(args)
            if args.num_proc < 1:
                raise ValueError(f"num_proc {args.num_proc}: 1 or more")
        except ValueError as error:
            sys.stderr.write(f"prepare: {error} (see --help)\n")
            return 2
        how = {name: getattr(args, name) for name in ("num_proc", "engine", "overwrite")}
        folder, facts, made = prepare(
            args.dataset_name, args.output_dir, settings, revision=args.dataset_revision, say=_say, **how
        )
        sys.stdout.write(closing_lines(folder, facts, made=made))
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("\nprepare: stopped; the same command goes on where it stopped\n")
        return 130
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        message = in_one_line(" ".join(str(error).split())) or "no message"
        if not isinstance(error, (ValueError, OSError, RuntimeError)):
            message = f"{type(error).__name__}: {message} (--debug shows the traceback)"
        sys.stderr.write(f"prepare: {message}\n")
        return 1


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
