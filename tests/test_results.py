"""The order in which a report shows cases."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deepfashion_training.evaluation.measure_cases import MeasuredCases
from deepfashion_training.evaluation.results import ordered


@pytest.mark.parametrize(
    ("base", "lora", "order"),
    [([5, 5, 5, 5], [6, 2, 5, 2], [1, 3, 2, 0]), ([2, 9, 4], [], [0, 2, 1])],  # without a LoRA, by the figure itself
)
def test_cases_are_in_the_order_of_what_the_lora_gained(base: list[float], lora: list[float], order: list[int]) -> None:
    cases: Any = [SimpleNamespace(row=number) for number in range(len(base))]
    rows = [
        {"row": number, "model": model, "figures": {"ciede2000_masked": value}}
        for model, values in {"base": base, "lora": lora}.items()
        for number, value in enumerate(values)
    ]
    assert [case.row for case in ordered(MeasuredCases(unpaired=False, rows=rows, cases=cases))] == order
