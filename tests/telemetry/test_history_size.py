"""Long runs and large nets: the history stays small, and adding a step stays equally fast."""

from __future__ import annotations

import pytest
import scale

HISTORY_BYTES = 32e6


@pytest.mark.parametrize(("layers", "every"), [(30, 100), pytest.param(1000, 1000, marks=pytest.mark.heavy)])
def test_history_of_many_steps_is_small_and_does_not_slow_down(layers: int, every: int) -> None:
    assert scale.feed(60_000, layers=layers, every=every)["peak_bytes"] < HISTORY_BYTES
    speed = scale.feed(75_000, layers=layers, every=every, traced=False)
    assert speed["last_us"] < 4 * speed["first_us"]


@pytest.mark.heavy
@pytest.mark.parametrize(("layers", "every"), [(30, 100), (1000, 1000)])
def test_ten_million_steps_take_at_most_32_mb(layers: int, every: int) -> None:
    assert scale.feed(10_000_000, layers=layers, every=every)["peak_bytes"] < HISTORY_BYTES
    speed = scale.feed(10_000_000, layers=layers, every=every, traced=False)
    assert speed["last_us"] < 3 * speed["first_us"]
