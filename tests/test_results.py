"""The order in which a report shows cases, and which table stays in a LoRA's card."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepfashion_training.evaluation.measure_cases import MeasuredCases
from deepfashion_training.evaluation.results import _write_card, ordered


@pytest.mark.parametrize(
    ("name", "base", "lora", "order"),
    [
        ("ciede2000_masked", [5, 5, 5, 5], [6, 2, 5, 2], [1, 3, 2, 0]),  # lower is better
        ("dino", [0.5, 0.5, 0.5], [0.4, 0.9, 0.6], [1, 2, 0]),
        ("dino", [0.2, 0.9, 0.4], [], [1, 2, 0]),  # without a LoRA, by the figure itself
        ("ciede2000_masked", [2, 9, 4], [], [0, 2, 1]),
    ],
)
def test_cases_are_in_the_order_of_what_the_lora_gained(
    name: str, base: list[float], lora: list[float], order: list[int]
) -> None:
    cases: Any = [SimpleNamespace(row=number) for number in range(len(base))]
    rows = [
        {"row": number, "model": model, "figures": {name: value}}
        for model, values in {"base": base, "lora": lora}.items()
        for number, value in enumerate(values)
    ]
    assert [case.row for case in ordered(MeasuredCases(unpaired=False, rows=rows, cases=cases), name)] == order


def test_a_quick_look_does_not_replace_an_evaluation_of_more_pictures(tmp_path: Path) -> None:
    def facts(n: int) -> dict[str, Any]:
        return {"models": {"lora": {"all": {"n": n}}}, "settings": {"lora_sha256": "aa"}, "left_out": {}}

    earlier = json.dumps(facts(100))
    (tmp_path / "evaluation.json").write_text(earlier)
    plan: Any = SimpleNamespace(publish_as=None)
    assert "of 100 pictures" in _write_card(plan, tmp_path, facts(60))
    assert (tmp_path / "evaluation.json").read_text() == earlier
    (tmp_path / "evaluation.json").write_text("not JSON")
    with pytest.raises(ValueError, match="is no evaluation"):
        _write_card(plan, tmp_path, facts(60))
