"""Working through the batches of a plan, in this process or in several, each batch into a file of its own.

On a machine with GPUs the human parser runs in processes of its own, one for each GPU: a process takes half a GB of a
GPU before it has loaded anything, and there may be more cores than a GPU has room for. Workers send them pixels.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepfashion_training.data.schema import NOTES, PAIR_COLUMNS, features_of
from deepfashion_training.data.source_rows import SourceRows
from deepfashion_training.models.human_parser import HumanParser, PhotoParser, load_human_parser, parser_devices
from deepfashion_training.preparation.batch import prepare_batch
from deepfashion_training.preparation.output import writing_options
from deepfashion_training.preparation.pair_plan import PlannedRow, Settings
from training_run.atomic import replacing
from training_run.cores import usable_cores
from training_run.stopping import end_with_parent

_AGAIN = "run the same command again, it continues where it stopped"


def do_batch(
    file: Path, planned: Sequence[PlannedRow], rows: SourceRows, settings: Settings, address: str | None = None
) -> int:
    """Prepare one batch and write it to ``file``; returns its number of rows.

    The parser that ``settings`` name is the one at ``address`` of ``serve_parser``, else one of this process.
    """
    parser: PhotoParser | None = None
    if settings.parser is not None:
        which = (settings.parser, settings.parser_revision)
        parser = load_human_parser(*which) if address is None else _distant_parser(*which, address)
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
    with _parsers(settings) as addresses:
        threads = max(1, usable_cores() // num_proc)
        pool = ProcessPoolExecutor(num_proc, _SPAWN, _begin_worker, (threads,))
        try:
            with _ignoring_interrupts():
                jobs = [
                    pool.submit(do_batch, file, planned, rows, settings, addresses[number % len(addresses)])
                    for number, (file, planned) in enumerate(batches.items())
                ]
            for job in as_completed(jobs):
                progress(job.result())
        except BrokenProcessPool as error:
            raise OSError(
                f"a worker process was killed, perhaps because memory ran out: {_AGAIN}, with a smaller --num_proc"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # what has begun is finished, while the parsers are there


#: Spawned, because a fork would copy the threads of whatever else the process has loaded.
_SPAWN = multiprocessing.get_context("spawn")


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Let processes that are started meanwhile ignore Ctrl-C and SIGHUP, which then reach this process alone."""
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _begin_worker(threads: int) -> None:
    """Let this process, and a parser in it, use ``threads`` threads, and end with the one that reads its results."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is loaded
    end_with_parent()


@contextlib.contextmanager
def _parsers(settings: Settings) -> Iterator[Sequence[str | None]]:
    """Addresses of the parsers of all GPUs, in processes that end with this; None alone where workers need none."""
    started: list[tuple[Connection, multiprocessing.process.BaseProcess]] = []
    try:
        for device in parser_devices() if settings.parser is not None else ():
            ours, theirs = _SPAWN.Pipe()
            what = (settings.parser, settings.parser_revision, device, theirs)
            process: multiprocessing.process.BaseProcess = _SPAWN.Process(target=serve_parser, args=what, daemon=True)
            with _ignoring_interrupts():
                process.start()
            theirs.close()  # so that it is seen when that process ends
            started.append((ours, process))
        with _naming_the_dead():
            addresses = [ours.recv() for ours, _ in started]
        yield addresses or [None]
    finally:
        for ours, process in started:
            ours.close()
            process.join()  # its memory is free then


def serve_parser(model: str, revision: str | None, device: str, parent: Connection) -> None:
    """Be the parser on ``device`` of all processes that connect, until ``parent`` is closed or its process killed.

    ``parent`` is sent the address. A request is the arguments of ``PhotoParser.label``, an answer what it returns, or
    the text of an error.
    """
    load = functools.cache(HumanParser)
    one_at_a_time = threading.Lock()

    def answer(connection: Connection) -> None:
        with connection, contextlib.suppress(EOFError, OSError):  # that process has ended
            while True:
                request = connection.recv()
                found: list[np.ndarray] | str
                try:
                    with one_at_a_time:
                        found = load(model, revision, device).label(*request)
                except Exception as error:
                    found = f"--parser {model} failed on {device}: {type(error).__name__}: {error}"
                connection.send(found)

    def accept() -> None:
        while True:
            with contextlib.suppress(EOFError, OSError, multiprocessing.AuthenticationError):
                threading.Thread(target=answer, args=(listener.accept(),), daemon=True).start()

    listener = Listener(authkey=_authkey())
    threading.Thread(target=accept, daemon=True).start()
    parent.send(listener.address)
    with contextlib.suppress(EOFError):
        parent.recv()


class _DistantParser(PhotoParser):
    """The parser that ``serve_parser`` is at ``address``."""

    def __init__(self, model: str, revision: str | None, address: str) -> None:
        super().__init__(model, revision)
        with _naming_the_dead():
            self._connection = Client(address, authkey=_authkey())

    def label(self, pixels: np.ndarray, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
        with _naming_the_dead():
            self._connection.send((pixels, sizes))
            found = self._connection.recv()
        if isinstance(found, str):
            raise RuntimeError(found)
        return found


#: One for each address and process.
_distant_parser = functools.cache(_DistantParser)


def _authkey() -> bytes:
    return bytes(multiprocessing.current_process().authkey)  # all processes that this one started have the same


@contextlib.contextmanager
def _naming_the_dead() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise OSError(f"the human parser's process was killed, perhaps because memory ran out: {_AGAIN}") from error
