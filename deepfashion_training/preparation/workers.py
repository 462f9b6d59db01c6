"""Working through the batches of a plan, in this process or in several, each batch into a file of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deepfashion_training.data.schema import NOTES, PAIR_COLUMNS, features_of
from deepfashion_training.data.source_rows import SourceRows
from deepfashion_training.preparation.batch import prepare_batch
from deepfashion_training.preparation.output import writing_options
from deepfashion_training.preparation.pair_plan import PlannedRow, Settings
from training_run.atomic import replacing


def do_batch(file: Path, planned: Sequence[PlannedRow], rows: SourceRows, settings: Settings) -> int:
    """Prepare one batch and write it to ``file``; returns its number of rows."""
    parser = None
    if settings.parser is not None:
        from deepfashion_training.models.human_parser import load_human_parser  # imports torch

        parser = load_human_parser(settings.parser, settings.parser_revision)
    pictures = rows.pictures([row.source_row for row in planned])
    schema = features_of({**PAIR_COLUMNS, **NOTES}).arrow_schema
    table = pa.Table.from_pylist(prepare_batch(planned, pictures, settings, parser), schema=schema)
    with replacing(file) as draft:
        pq.write_table(table, draft, **writing_options(table.schema))
    return len(planned)


def do_batches(
    batches: Mapping[Path, Sequence[PlannedRow]],
    rows: SourceRows,
    settings: Settings,
    num_proc: int,
    progress: Callable[[int], object],
) -> None:
    """Do ``batches`` in ``num_proc`` processes, each into its file; ``progress`` gets the rows of each finished batch.

    Raises ``OSError`` when a process is killed, usually because memory ran out.
    """
    if num_proc == 1:
        for file, planned in batches.items():
            progress(do_batch(file, planned, rows, settings))
        return
    # Spawned, because a fork would copy the threads of whatever else the process has loaded.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_proc, context, _end_with, (os.getpid(),))
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C reaches this process alone
        jobs = [pool.submit(do_batch, file, planned, rows, settings) for file, planned in batches.items()]
        signal.signal(signal.SIGINT, before)
        for job in as_completed(jobs):
            progress(job.result())
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process was killed, perhaps because memory ran out: run the same command again, it continues "
            "where it stopped, with a smaller --num_proc"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _end_with(parent: int) -> None:
    """End this process when ``parent`` is killed: nobody would be left to read its results."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
