"""Every claim of every preset holds: for one seed in the usual suite, for three in the heavy one."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
from runs import WITHIN_S, Outcome, run

from tui_descent.scenario import presets


def check_claims(name: str, outcome: Outcome, *, seeds: int) -> None:
    _, scenario = presets.find(name)
    lines = outcome.stdout.splitlines()
    assert len(lines) == seeds * len(scenario.claim)
    assert [line for line in lines if " holds " not in line] == []
    assert {line.split("seed ")[1].split()[0] for line in lines} == {str(n) for n in range(seeds)}
    assert (outcome.code, outcome.stderr) == (0, "")


@pytest.mark.parametrize("name", presets.names())
def test_preset_keeps_its_claims(name: str, verified: dict[str, Future[Outcome]]) -> None:
    check_claims(name, verified[name].result(20 * WITHIN_S), seeds=1)


@pytest.mark.heavy
@pytest.mark.parametrize("name", presets.names())
def test_preset_keeps_its_claims_on_three_seeds(name: str, home: Path) -> None:
    check_claims(name, run("presets", name, "--verify", "--seeds", "3", home=home, within_s=10 * WITHIN_S), seeds=3)
