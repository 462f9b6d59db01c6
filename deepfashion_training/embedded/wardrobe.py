"""Writes a drawn wardrobe: people in clothes, as parquet that ``datasets.load_dataset`` reads.

    python -m deepfashion_training.embedded.wardrobe --output_dir D --schema documented|hub --rows N --seed S

``documented`` is what training reads, split 80/10/10 by pid; ``hub`` has the columns of
``SaffalPoosh/deepFashion-with-masks``. Both are drawn, need no network, and are the same bytes for the same
arguments, whatever ``num_proc`` is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.cli import number
from deepfashion_training.data.schema import DOCUMENTED_COLUMNS, PROVENANCE_COLUMNS, RAW_COLUMNS
from deepfashion_training.embedded.rows import documented_row, documented_specs, raw_row, raw_specs, split_of_pids

if TYPE_CHECKING:
    import datasets
    from accelerate import PartialState

SCHEMAS = ("documented", "hub")

#: Rows of one parquet file, and of the row groups that are held in memory while it is written.
SHARD_ROWS, GROUP_ROWS = 1000, 50

#: Rows of the wardrobe that ``--embedded`` draws for itself.
OWN_ROWS = 4500


def wardrobe_features(schema: str) -> datasets.Features:
    """Column types of ``documented`` (with provenance and ``parse``) or ``hub``, in the order they are written."""
    import datasets

    columns = [*DOCUMENTED_COLUMNS, *PROVENANCE_COLUMNS, "parse"] if schema == "documented" else list(RAW_COLUMNS)
    pictures = ("image", "cloth", "mask", "parse") if schema == "documented" else ("images", "mask", "mask_overlay")
    numbers = ("cloth_type", "source_row") if schema == "documented" else ()
    return datasets.Features(
        {
            name: datasets.Image() if name in pictures else datasets.Value("int64" if name in numbers else "string")
            for name in columns
        }
    )


def write_wardrobe(
    output_dir: str | Path,
    schema: str = "documented",
    rows: int = 720,
    seed: int = 0,
    size: tuple[int, int] = (384, 288),
    num_proc: int = 1,
) -> Path:
    """Draw ``rows`` rows into ``output_dir``/data and return ``output_dir``.

    ``schema`` is ``documented`` or ``hub``, ``size`` is (height, width) in pixels. The folder appears only once it
    is complete. Raises ``FileExistsError`` where ``output_dir`` holds anything already, ``ValueError`` for a bad
    argument.
    """
    if schema not in SCHEMAS:
        raise ValueError(f"unknown schema {schema!r}: choose from {', '.join(SCHEMAS)}")
    if rows < 1 or num_proc < 1 or seed < 0:
        raise ValueError(f"rows={rows}, num_proc={num_proc} must be 1 or more, seed={seed} 0 or more")
    if min(size) < 64:
        raise ValueError(f"size {size[0]}x{size[1]} is too small: people need at least 64x64")
    target = Path(output_dir).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not an empty folder: choose another --output_dir or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        (draft / "data").mkdir(parents=True)
        _write_rows(draft / "data", schema, rows, seed, size, num_proc)
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def draw_wardrobe(folder: Path, state: PartialState) -> None:
    """The drawn wardrobe of ``--embedded`` in ``folder``, unless it is there; the first process draws it."""
    with state.main_process_first():
        if not folder.exists():
            write_wardrobe(folder, rows=OWN_ROWS, seed=0, size=(128, 96), num_proc=os.cpu_count() or 1)


def _write_rows(folder: Path, schema: str, rows: int, seed: int, size: tuple[int, int], num_proc: int) -> None:
    import pyarrow as pa
    from tqdm import tqdm

    from deepfashion_training.data.shards import ShardWriter

    arrow_schema = wardrobe_features(schema).arrow_schema
    if schema == "documented":
        pid_splits = split_of_pids(rows, seed)
        specs, draw = documented_specs(rows, seed), documented_row
        row_splits = [pid_splits[index // 3] for index in range(rows)]
    else:
        specs, draw = raw_specs(rows, seed), raw_row
        row_splits = ["train"] * rows
    totals = Counter(row_splits)
    drawn = _drawn(functools.partial(draw, size=size), specs, num_proc)
    with contextlib.ExitStack() as stack:
        sizes = {"shard_rows": SHARD_ROWS, "group_rows": GROUP_ROWS}
        writers = {split: ShardWriter(folder, split, totals[split], arrow_schema, **sizes) for split in totals}
        for writer in writers.values():
            stack.callback(writer.close)
        for split, row in zip(row_splits, tqdm(drawn, total=rows, desc="drawing", unit="row"), strict=True):
            writers[split].add(pa.Table.from_pylist([row], schema=arrow_schema))


def _drawn(draw: Any, specs: Iterable[Any], num_proc: int) -> Iterator[dict[str, Any]]:
    """Rows in order, drawn in this process or in ``num_proc`` others."""
    if num_proc == 1:
        yield from map(draw, specs)
        return
    # Spawned, because a fork would copy the threads of whatever else the process has loaded.
    with multiprocessing.get_context("spawn").Pool(num_proc) as pool:
        yield from pool.imap(draw, specs, chunksize=4)


def size_of(text: str) -> tuple[int, int]:
    """(height, width) of text such as 384x288, for argparse."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or min(map(int, match.groups())) < 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 384x288 (height x width, at least 64 each)")
    return int(match.group(1)), int(match.group(2))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m deepfashion_training.embedded.wardrobe",
        description="Draw people in clothes and write them as a dataset.",
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", required=True, type=Path, help="folder to write; new or empty")
    parser.add_argument(
        "--schema", choices=SCHEMAS, default="documented", help="columns to write (default: %(default)s)"
    )
    parser.add_argument("--rows", type=number(int, 1), default=720, help="how many rows (default: %(default)s)")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument("--size", type=size_of, default=(384, 288), metavar="HxW", help="pixels (default: 384x288)")
    parser.add_argument("--num_proc", type=number(int, 1), default=1, help="processes that draw (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    try:
        target = write_wardrobe(args.output_dir, args.schema, args.rows, args.seed, args.size, args.num_proc)
    except Exception as error:
        if args.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"error: {message}\n")
        return 1
    height, width = args.size
    sys.stdout.write(f"wrote {args.rows} rows of {height}x{width} pixels in the {args.schema} schema to {target}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
