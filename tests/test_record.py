"""What a run says of its losses."""

import numpy as np
import pytest

from training_run.record import loss_trend


@pytest.mark.parametrize("steps", [20, 100, 2000])
def test_a_run_whose_loss_rises_has_diverged(steps):
    noise = np.random.default_rng(0).normal(1, 0.2, steps)
    trend = loss_trend(list(np.linspace(0.2, 1.9, steps) * noise))
    assert trend["diverged"] and trend["last_tenth"] > 3 * trend["first_tenth"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("steps", "spread"), [(20, 0.3), (100, 0.5), (820, 0.8)])
def test_a_run_that_learns_little_has_not(seed, steps, spread):
    """Losses of single steps vary by as much as they are, as those of batch size 1 do."""
    losses = 0.3 * np.random.default_rng(seed).gamma(1 / spread**2, spread**2, steps)
    assert not loss_trend(list(losses))["diverged"]


def test_a_few_losses_tell_nothing():
    assert loss_trend([0.2, 1.9] * 4) is None and loss_trend([]) is None
    flat = {"first_tenth": 1.0, "last_tenth": 1.0, "diverged": False}
    assert loss_trend([1.0] * 10) == flat
