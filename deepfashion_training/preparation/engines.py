"""Engines that work through the batches of a plan: processes on this machine, or Ray Data on one or many."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepfashion_training.data.shards import writing_options
from deepfashion_training.data.source_rows import SourceRows
from deepfashion_training.preparation.batch import Parses, prepare_batch
from deepfashion_training.preparation.pair_plan import PlannedRow
from deepfashion_training.preparation.schemas import BATCH_SCHEMA
from deepfashion_training.preparation.settings import Settings

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Work:
    """What a process needs to do any batch."""

    rows: SourceRows
    settings: Settings


def do_batch(work: Work, planned: list[PlannedRow]) -> pa.Table:
    """Read the pictures of one batch and prepare it: a table in ``BATCH_SCHEMA``."""
    batch: dict[str, Any] = {name: [row[place] for row in planned] for place, name in enumerate(PlannedRow._fields)}
    batch |= work.rows.pictures([row.source_row for row in planned])
    return pa.Table.from_pydict(prepare_batch(batch, work.settings, _parser(work.settings)), schema=BATCH_SCHEMA)


def _parser(settings: Settings) -> Parses | None:
    if settings.parser is None:
        return None
    from deepfashion_training.models.human_parser import load_human_parser  # torch is imported only where it is needed

    return load_human_parser(settings.parser, settings.parser_revision)


def write_batch(table: pa.Table, file: Path) -> None:
    """Write ``table`` to ``file``, which appears only once it is complete."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    pq.write_table(table, draft, **writing_options(table.schema))
    draft.replace(file)


def run_local(work: Work, batches: Mapping[Path, list[PlannedRow]], num_proc: int) -> Iterator[int]:
    """Do ``batches`` in ``num_proc`` processes, each into its file; yields the rows of a batch when it is done.

    Raises ``RuntimeError`` when a process is killed, for which the system's memory is the usual reason.
    """
    if num_proc == 1:
        for file, planned in batches.items():
            write_batch(do_batch(work, planned), file)
            yield len(planned)
        return
    # Spawned, because a fork would copy the threads of whatever else the process has loaded.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_proc, context, _start_worker, (work, os.getpid())) as pool:
        pending: deque[tuple[Future[None], int]] = deque()
        try:
            for file, planned in batches.items():
                with _without_interrupts():  # processes start here
                    job = pool.submit(_work_on, planned, file)
                pending.append((job, len(planned)))
                # A few batches ahead, so that the queue does not grow with the dataset.
                while len(pending) > 2 * num_proc or (pending and pending[0][0].done()):
                    yield _finished(pending.popleft())
            while pending:
                yield _finished(pending.popleft())
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed, perhaps for want of memory: run the same command again, it goes on "
                "where it stopped, with a smaller --num_proc"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back until the end. Processes that start meanwhile never get it: the parent answers for them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _finished(job: tuple[Future[None], int]) -> int:
    future, rows = job
    future.result()
    return rows


_work: Work | None = None


def _start_worker(work: Work, parent: int) -> None:
    global _work
    _work = work
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when ``parent`` has been killed: nobody would be left to read its results."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work_on(planned: list[PlannedRow], file: Path) -> None:
    assert _work is not None
    write_batch(do_batch(_work, planned), file)


def check_ray() -> None:
    """Raise ``ValueError`` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("--engine ray needs Ray, which is not installed: pip install 'ray[data]==2.60.0'")


def run_ray(work: Work, batches: Mapping[Path, list[PlannedRow]], num_proc: int) -> Iterator[int]:
    """Do ``batches`` on Ray Data; this process writes the files and yields the rows of each.

    Joins the cluster that ``RAY_ADDRESS`` names, else starts one of ``num_proc`` processes here. Every machine has to
    see the source under the same path.
    """
    import ray
    import ray.data

    started = not ray.is_initialized()
    if started:
        cluster = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": num_proc, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **cluster)
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False  # there is one already
        files = list(batches)
        jobs = [
            {"number": number, "planned": [row._asdict() for row in planned]}
            for number, planned in enumerate(batches.values())
        ]
        done = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(_ray_job, fn_kwargs={"work": work})
        for row in done.iter_rows():
            table = pa.ipc.open_stream(row["table"]).read_all()
            write_batch(table, files[row["number"]])
            yield len(batches[files[row["number"]]])
    finally:
        if started:
            ray.shutdown()


def _ray_job(job: dict[str, Any], work: Work) -> dict[str, Any]:
    """One batch as Ray Data carries it: the finished table as the bytes of an Arrow stream."""
    table = do_batch(work, [PlannedRow(**cells) for cells in job["planned"]])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {"number": job["number"], "table": sink.getvalue().to_pybytes()}
