"""The figures: which way is better, how they are written, and what their differences say in words."""

from __future__ import annotations

from typing import Any

import pytest

from deepfashion_training.reports.figures import FIGURES, UNPAIRED, comparison_table, figure_of, verdict


def test_higher_is_better_for_similarities_and_lower_for_distances() -> None:
    higher = {name for name, figure in FIGURES.items() if figure.better == "higher"}
    assert higher == {"ssim", "ssim_masked", "psnr", "psnr_masked", "dino"}


def test_a_figure_by_its_name() -> None:
    unpaired = figure_of("kid" + UNPAIRED)
    assert (unpaired.name, unpaired.heading) == ("kid_unpaired", "KID x1000, unpaired ↓")
    assert unpaired.written(1.005) == "1.00" and unpaired.written(None) == "-"
    assert [unpaired.signed(change) for change in (0.5, -0.5, 0.001)] == ["+0.50", "-0.50", "0.00"]
    assert unpaired.interval([-1, 2], sign=True) == "-1.00 to +2.00" and unpaired.interval(None) == ""


def change(low: float, high: float, better: str | None = None, people: int = 40) -> dict[str, Any]:
    return {"n": 60, "people": people, "mean": (low + high) / 2, "ci": [low, high], "better": better}


NOTHING, UNCLEAR, KEPT = change(0, 0), change(-1, 2), change(-0.01, 0, "neither")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ciede2000_masked": change(-4, -2, "lora")}, "better by CIEDE2000"),
        ({"ciede2000_masked": change(1, 2, "base")}, "worse by CIEDE2000"),
        (
            {"dino": change(1, 2, "lora"), "ciede2000_masked": change(1, 2, "base"), "ssim_masked": UNCLEAR},
            "better by DINO similarity; worse by CIEDE2000",
        ),
        # A loss in one figure is reported even where the others show none.
        ({"dino": UNCLEAR, "ciede2000_masked": change(1, 2, "base")}, "worse by CIEDE2000"),
        ({"ciede2000_masked": NOTHING, "dino": NOTHING}, "no clear difference"),
        ({"ciede2000_masked": NOTHING, "dino": UNCLEAR}, "no clear difference"),
        ({"ciede2000_masked": change(1, 2, people=9)}, "too few people (9) to say"),
        ({"ciede2000_masked": change(-1, 2, people=10)}, "no clear difference"),
        # Figures that are not decisive do not count: drift is about what was to stay.
        ({"ciede2000_masked": UNCLEAR, "drift": change(1, 2, "base")}, "no clear difference"),
        # Within the margins nothing that matters has changed; one figure that is not sure is enough to say less.
        ({"ciede2000_masked": KEPT, "ssim_masked": KEPT, "drift": change(1, 2, "base")}, "kept"),
        ({"ciede2000_masked": KEPT, "ssim_masked": UNCLEAR}, "no clear difference"),
        ({"ciede2000_masked": KEPT, "ssim_masked": change(0.1, 0.2, "lora")}, "better by SSIM in the mask"),
        # Of one person there is no interval.
        ({"ciede2000_masked": {**UNCLEAR, "ci": None, "people": 1}}, "too few people (1) to say"),
    ],
)
def test_what_is_said(changes: dict[str, Any], expected: str) -> None:
    assert verdict(changes) == expected


@pytest.mark.parametrize(
    ("name", "low", "high", "side"),
    [
        ("ssim", -0.007, -0.003, "neither"), ("ssim_masked", -0.011, -0.001, "neither"),
        ("dino", -0.02, 0.02, "neither"),
        ("ssim_masked", -0.021, -0.001, "base"), ("ssim_masked", 0.001, 0.03, "lora"), ("ssim", -0.03, 0.01, None),
        ("ciede2000_masked", -0.9, 1, "neither"), ("ciede2000_masked", -1.1, -0.1, "lora"),
        ("ciede2000_masked", 0.1, 1.1, "base"), ("psnr", -0.001, 0.001, None), ("drift", 0.001, 0.002, "base"),
    ],
)  # fmt: skip
def test_what_stays_within_its_margin_is_kept(name: str, low: float, high: float, side: str | None) -> None:
    assert figure_of(name).side(low, high) == side


def test_the_table_lines_up_and_ends_in_verdicts() -> None:
    def found(n: int, colour: float, form: float) -> dict[str, Any]:
        return {"n": n, "ciede2000_masked": colour, "ssim_masked": form, "drift": 1.0}

    facts = {
        "models": {
            "base": {"lower": found(60, 20.0, -0.1), "all": found(120, 9.5, 0.5)},
            "lora": {"lower": found(60, 10.0, 0.25), "all": found(120, 9.5, 0.45)},
        },
        "difference": {"lower": {"ciede2000_masked": change(-4, -2, "lora")}, "all": {"ciede2000_masked": UNCLEAR}},
    }
    assert comparison_table(facts) == [
        "       n    CIEDE2000, lower is better  SSIM in the mask, higher is better",
        "lower  60   20.00 -> 10.00 (-50%)       -0.100 -> 0.250 (+0.350)            better by CIEDE2000",
        "all    120  9.50 -> 9.50 (+0%)          0.500 -> 0.450 (-0.050)             no clear difference",
    ]
    del facts["models"]["lora"]
    facts["difference"] = {}
    assert comparison_table(facts)[1] == "lower  60   20.00                       -0.100"
