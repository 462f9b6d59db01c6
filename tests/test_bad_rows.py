"""The ledger: several processes write, all read the same, and only the owner cleans up."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
from pathlib import Path

from deepfashion_training.deepfashion_dataset import BadRowLedger


def record_many(ledger: BadRowLedger, worker: int) -> None:
    for row in range(200):
        ledger.record(row, f"worker {worker} " + "x" * 300)


def test_entries_are_one_per_row_in_order():
    ledger = BadRowLedger()
    assert ledger.entries() == []
    ledger.record(7, "no bytes")
    ledger.record(2, "émpty\nmask")
    ledger.record(7, "met again")
    assert ledger.entries() == [{"row": 2, "reason": "émpty\nmask"}, {"row": 7, "reason": "no bytes"}]


def test_processes_write_at_the_same_time_without_mixing():
    ledger = BadRowLedger()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=record_many, args=(ledger, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(Path(ledger._file).read_text().splitlines()) == 800
    assert [entry["row"] for entry in ledger.entries()] == list(range(200))
    assert all(len(entry["reason"]) == 309 for entry in ledger.entries())


def test_a_pickled_copy_shares_the_file_and_does_not_remove_it():
    ledger = BadRowLedger()
    copy = pickle.loads(pickle.dumps(ledger))
    copy.record(1, "bad")
    del copy
    gc.collect()
    assert [entry["row"] for entry in ledger.entries()] == [1]


def test_a_forked_process_does_not_remove_the_file():
    ledger = BadRowLedger()
    ledger.record(1, "bad")
    child = os.fork()
    if child == 0:
        del ledger
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert [entry["row"] for entry in ledger.entries()] == [1]


def test_ledgers_of_one_file_are_one_account(tmp_path):
    """Ranks make their own ledger each, of the same file."""
    file = tmp_path / "logs" / "bad_rows-train.jsonl"
    first, second = BadRowLedger(file), BadRowLedger(file)
    first.record(3, "truncated")
    second.record(90, "empty mask")
    assert [entry["row"] for entry in first.entries()] == [entry["row"] for entry in second.entries()] == [3, 90]
    copy = pickle.loads(pickle.dumps(second))
    del first, second
    assert [entry["row"] for entry in copy.entries()] == [3, 90]
    assert file.exists()
