"""The figures: which way is better, and how they are written."""

from __future__ import annotations

import math

from deepfashion_training.reports.figures import FIGURES, UNPAIRED, figure_of


def test_higher_is_better_for_similarities_and_lower_for_distances() -> None:
    higher = {name for name, figure in FIGURES.items() if figure.better == "higher"}
    assert higher == {"ssim", "ssim_masked", "psnr", "psnr_masked", "dino"}


def test_a_figure_by_its_name() -> None:
    unpaired = figure_of("kid" + UNPAIRED)
    assert (unpaired.name, unpaired.heading) == ("kid_unpaired", "KID x1000, unpaired ↓")
    assert unpaired.written(1.005) == "1.00" and unpaired.written(None) == unpaired.written(math.nan) == "-"
    assert [unpaired.signed(change) for change in (0.5, -0.5, 0.001)] == ["+0.50", "-0.50", "0.00"]
    assert unpaired.interval([-1, 2], sign=True) == "-1.00 to +2.00" and unpaired.interval(None) == ""
