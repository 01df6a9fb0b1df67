"""Watching a net of a thousand layers: memory, and the budget for readings."""

from __future__ import annotations

import pytest
import scale

MORE_BYTES = 64e6


@pytest.mark.heavy
def test_watching_a_thousand_layers_takes_little_memory() -> None:
    plain, watched = (scale.in_a_process(1000, 12, watched=watched) for watched in (False, True))
    assert plain["peak_bytes"] > 0
    assert watched["peak_bytes"] - plain["peak_bytes"] < MORE_BYTES


@pytest.mark.heavy
def test_watching_a_thousand_layers_stays_within_the_budget() -> None:
    plain, watched = (scale.in_a_process(1000, 1500, watched=watched) for watched in (False, True))
    assert watched["peak_bytes"] - plain["peak_bytes"] < MORE_BYTES
    assert watched["watch_cost"] < 0.012, "1 %, plus the first reading, which is not limited by the budget"
