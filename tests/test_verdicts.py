"""What differences say in words."""

from __future__ import annotations

from typing import Any

import pytest

from deepfashion_training.reports.verdicts import Verdict, verdict


def change(low: float, high: float, better: str | None = None, people: int = 40) -> dict[str, Any]:
    return {"n": 60, "people": people, "mean": (low + high) / 2, "ci": [low, high], "better": better}


NOTHING, UNCLEAR = change(0, 0), change(-1, 2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ciede2000_masked": change(-4, -2, "lora")}, Verdict("better by CIEDE2000", "good")),
        ({"ciede2000_masked": change(1, 2, "base")}, Verdict("worse by CIEDE2000", "bad")),
        (
            {"dino": change(1, 2, "lora"), "ciede2000_masked": change(1, 2, "base"), "ssim_masked": UNCLEAR},
            Verdict("better by DINO similarity; worse by CIEDE2000", ""),
        ),
        # A loss that one figure shows is told, also where the others show nothing.
        ({"dino": UNCLEAR, "ciede2000_masked": change(1, 2, "base")}, Verdict("worse by CIEDE2000", "bad")),
        ({"ciede2000_masked": NOTHING, "dino": NOTHING}, Verdict("no difference", "")),
        ({"ciede2000_masked": NOTHING, "dino": UNCLEAR}, Verdict("no clear difference", "")),
        ({"ciede2000_masked": change(1, 2, people=9)}, Verdict("too few people (9) to say", "")),
        ({"ciede2000_masked": change(-1, 2, people=10)}, Verdict("no clear difference", "")),
        # Figures that are not decisive do not count: drift is about what was to stay.
        ({"ciede2000_masked": UNCLEAR, "drift": change(1, 2, "base")}, Verdict("no clear difference", "")),
        # Of one person there is no interval.
        ({"ciede2000_masked": {**NOTHING, "ci": None, "people": 1}}, Verdict("no difference", "")),
        ({"ciede2000_masked": {**UNCLEAR, "ci": None, "people": 1}}, Verdict("too few people (1) to say", "")),
    ],
)
def test_what_is_said(changes: dict[str, Any], expected: Verdict) -> None:
    assert verdict(changes) == expected
