"""Which pictures a process draws."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deepfashion_training.evaluation.draw_cases import batches_of


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_processes(batch_size: int) -> None:
    sets = [list(range(7)), list(range(10, 15))]
    plan: Any = SimpleNamespace(settings={"batch_size": batch_size}, drawing=("base", "lora"), sets=sets)
    alone = batches_of(plan, 0, 1)
    shared = [batch for rank in range(3) for batch in batches_of(plan, rank, 3)]
    assert sorted(shared, key=str) == sorted(alone, key=str)
    for model in ("base", "lora"):
        assert [case for name, batch in alone for case in batch if name == model] == sets[0] + sets[1]
