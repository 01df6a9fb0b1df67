"""Every claim of every preset holds for three seeds."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from runs import WITHIN_S, Outcome

from tui_descent.scenario import presets

SEEDS = 3


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_keeps_its_claims(name: str, verified: dict[str, Future[Outcome]]) -> None:
    outcome = verified[name].result(20 * WITHIN_S)
    _, scenario = presets.find(name)
    lines = outcome.stdout.splitlines()
    assert len(lines) == SEEDS * len(scenario.claim)
    assert [line for line in lines if " holds " not in line] == []
    assert {line.split("seed ")[1].split()[0] for line in lines} == {str(n) for n in range(SEEDS)}
    assert (outcome.code, outcome.stderr) == (0, "")
