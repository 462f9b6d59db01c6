"""What the full run will take, from the rate of a quick test."""

from __future__ import annotations

import pytest

from deepfashion_training.reports.forecast import forecast, hours
from deepfashion_training.train_deepfashion_lora import load_preset

ARGUMENTS = {"train_batch_size": 1, "gradient_accumulation_steps": 4, "height": 512, "width": 384}
RUN = {"arguments": ARGUMENTS, "seconds_per_step": 2.0, "world_size": 1}
ASKED = {
    "train_batch_size": 2, "gradient_accumulation_steps": 4, "max_train_steps": 1800, "height": 512, "width": 384
}  # fmt: skip


def test_time_follows_pairs_and_pixels() -> None:
    assert hours(RUN, ASKED) == pytest.approx(2.0)  # 14,400 pairs of 0.5 s
    larger = {**ASKED, "height": 768, "width": 576}
    assert hours(RUN, larger) == pytest.approx(4.5)  # 2.25 times the pixels
    assert hours({**RUN, "seconds_per_step": 4.0}, larger) == pytest.approx(9.0)


def test_the_line_names_rate_size_and_what_is_paid() -> None:
    line = forecast({**RUN, "world_size": 2}, ASKED, "full")
    assert line == (
        "full run  about 2.0 h on these 2 GPUs, 4.0 GPU hours to pay: the preset full draws 28,800 pairs at 512x384; "
        "measured here were 0.50 s a pair at 512x384\n"
    )
    assert "about 2.0 h on this GPU, 2.0 GPU hours to pay" in forecast(RUN, ASKED, "full")


def test_the_presets_have_what_it_reads() -> None:
    quick = {"arguments": load_preset("quick_test"), "seconds_per_step": 1.2, "world_size": 1}
    assert 5 < hours(quick, load_preset("full")) < 7  # 32,000 pairs of 0.3 s, 2.25 times the pixels: 6 h
