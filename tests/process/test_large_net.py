"""A net of a thousand layers: watching it takes little memory, and stays within its budget once that can be paid."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import scale

MORE_BYTES = 64e6


def test_a_thousand_layers_take_little_more_memory() -> None:
    plain, watched = (scale.in_a_process(1000, 12, watched=watched) for watched in (False, True))
    assert plain["peak_bytes"] > 0
    assert watched["peak_bytes"] - plain["peak_bytes"] < MORE_BYTES


@pytest.mark.heavy
def test_a_thousand_layers_stay_in_the_budget() -> None:
    plain, watched = (scale.in_a_process(1000, 1500, watched=watched) for watched in (False, True))
    assert watched["peak_bytes"] - plain["peak_bytes"] < MORE_BYTES
    assert watched["watch_cost"] < 0.012, "1 %, and the first reading on credit"
