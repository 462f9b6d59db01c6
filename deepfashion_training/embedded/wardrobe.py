"""Writes a drawn wardrobe: people in clothes, as parquet that ``datasets.load_dataset`` reads.

    python -m deepfashion_training.embedded.wardrobe --output_dir D --schema documented|hub --rows N --seed S

``documented`` is what training reads, split 80/10/10 by pid; ``hub`` has the columns of
``SaffalPoosh/deepFashion-with-masks``. Of what ``--embedded`` draws for itself, ``documented`` too, more is to learn
from (``OWN_ROWS``). All need no network, and are the same bytes for the same arguments, whatever ``num_proc`` is.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.cli import FlagParser, number, run_command
from deepfashion_training.embedded.rows import (
    RowSpec,
    documented_row,
    documented_specs,
    draw_all,
    raw_row,
    raw_specs,
    split_of_pids,
)
from training_run.atomic import replacing
from training_run.cores import usable_cores
from training_run.lock import only_writer
from training_run.not_data import is_left_behind

if TYPE_CHECKING:
    import datasets
    from accelerate import PartialState

#: The rows of each schema, and what draws one.
SCHEMAS: dict[str, tuple[Any, Any]] = {"documented": (documented_specs, documented_row), "hub": (raw_specs, raw_row)}

#: The wardrobe that ``--embedded`` draws for itself. Nearly all of its rows are there to learn from, and in these
#: patterns come nearly twice as often as in the others (docs/recipe.md).
OWN_ROWS, OWN_SEED, OWN_HELD_OUT, OWN_PATTERNED = 6300, 0, 0.03, 0.9

#: Rows of a row group: as many are held in memory.
_GROUP_ROWS = 50


def wardrobe_features(schema: str) -> datasets.Features:
    """Column types of ``documented`` (with provenance and ``parse``) or ``hub``, in the order they are written."""
    import datasets

    specs_of, draw = SCHEMAS[schema]
    types = {dict: datasets.Image(), int: datasets.Value("int64"), str: datasets.Value("string")}
    return datasets.Features({name: types[type(value)] for name, value in draw(next(specs_of(1, 0)), (64, 64)).items()})


def write_wardrobe(
    output_dir: str | Path,
    schema: str = "documented",
    rows: int = 720,
    seed: int = 0,
    size: tuple[int, int] = (384, 288),
    num_proc: int = 1,
    held_out_share: float = 0.1,
    patterned: float = RowSpec.patterned,
) -> Path:
    """Draw ``rows`` rows into ``output_dir``/data and return ``output_dir``.

    ``schema`` is ``documented`` or ``hub``, ``size`` is (height, width) in pixels, at least 64 each. Of the documented
    schema ``held_out_share`` of the people are in validation, and as many in test; ``patterned`` is the share of the
    garments drawn with a pattern that keep it in training; in all other rows it is the default. The folder appears only
    once it is complete. Raises ``FileExistsError`` where ``output_dir`` holds anything already.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tqdm import tqdm

    target = Path(output_dir).absolute()
    if target.exists() and (not target.is_dir() or not all(map(is_left_behind, target.iterdir()))):
        raise FileExistsError(f"{target} is not an empty folder: choose another --output_dir or remove it")
    specs: dict[str, list[RowSpec]] = {"train": [], "validation": [], "test": []}
    specs_of, draw = SCHEMAS[schema]
    split_of_pid = split_of_pids(rows, seed, held_out_share)
    for spec in specs_of(rows, seed):
        split = split_of_pid[spec.pid_index] if schema == "documented" else "train"
        specs[split].append(replace(spec, patterned=patterned) if split == "train" else spec)
    draw = functools.partial(draw, size=size)
    # Pictures are compressed already, and no two of them are the same.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    arrow_schema = wardrobe_features(schema).arrow_schema
    drawn = iter(tqdm(draw_all(draw, chain(*specs.values()), num_proc), total=rows, desc="drawing", unit="row"))
    beside = target.with_name(f".{target.name}.drawing.lock")  # as the folder itself is put in its place in one step
    with ExitStack() as alone:
        alone.enter_context(only_writer(target, file=beside))
        if target.is_dir():
            alone.enter_context(only_writer(target))
        draft = alone.enter_context(replacing(target))
        (draft / "data").mkdir(parents=True)
        for split, of_split in specs.items():
            if not of_split:
                continue
            file = draft / "data" / f"{split}-00000-of-00001.parquet"
            with pq.ParquetWriter(file, arrow_schema, **options) as writer:
                for first in range(0, len(of_split), _GROUP_ROWS):
                    group = list(islice(drawn, min(_GROUP_ROWS, len(of_split) - first)))
                    writer.write_table(pa.Table.from_pylist(group, schema=arrow_schema))
    return target


def draw_wardrobe(folder: Path, state: PartialState) -> None:
    """The drawn wardrobe of ``--embedded`` in ``folder``, unless it is there; the first process draws it."""
    with state.main_process_first():
        if not folder.exists():
            write_wardrobe(
                folder, rows=OWN_ROWS, seed=OWN_SEED, size=(128, 96), num_proc=usable_cores(),
                held_out_share=OWN_HELD_OUT, patterned=OWN_PATTERNED,
            )  # fmt: skip


def size_of(text: str) -> tuple[int, int]:
    """(height, width) of text such as 384x288, for argparse."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or min(map(int, match.groups())) < 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 384x288 (height x width, at least 64 each)")
    return int(match.group(1)), int(match.group(2))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = FlagParser("embedded.wardrobe", "Draw people in clothes and write them as a dataset.")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder to write; new or empty")
    parser.add_argument("--schema", choices=SCHEMAS, default="documented", help="columns (default: %(default)s)")
    parser.add_argument("--rows", type=number(int, 1), default=720, help="how many rows (default: %(default)s)")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument("--size", type=size_of, default=(384, 288), metavar="HxW", help="pixels (default: 384x288)")
    parser.add_argument("--num_proc", type=number(int, 1), default=1, help="processes that draw (default: %(default)s)")
    return parser


def work(argv: list[str]) -> None:
    """The whole command."""
    args = build_parser().parse_args(argv)
    target = write_wardrobe(args.output_dir, args.schema, args.rows, args.seed, args.size, args.num_proc)
    height, width = args.size
    sys.stdout.write(f"wrote {args.rows} rows of {height}x{width} pixels in the {args.schema} schema to {target}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("embedded.wardrobe", argv, work, "nothing was written")


if __name__ == "__main__":
    raise SystemExit(main())
