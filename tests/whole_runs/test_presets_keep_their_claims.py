"""Every claim of every preset holds: for one seed in the usual suite, for three in the heavy one."""

from __future__ import annotations

import pytest
from runs import Outcome
from same_process import run

from tui_descent.scenario import presets


def check_claims(name: str, outcome: Outcome, *, seeds: int) -> None:
    _, scenario = presets.find(name)
    lines = outcome.stdout.splitlines()
    assert len(lines) == seeds * len(scenario.claim)
    assert [line for line in lines if " holds " not in line] == []
    assert {line.split("seed ")[1].split()[0] for line in lines} == {str(n) for n in range(seeds)}
    assert (outcome.code, outcome.stderr) == (0, "")


@pytest.mark.parametrize("name", presets.names())
@pytest.mark.parametrize("seeds", [1, pytest.param(3, marks=pytest.mark.heavy)])
def test_preset_keeps_its_claims(name: str, seeds: int) -> None:
    check_claims(name, run("presets", name, "--verify", "--seeds", str(seeds)), seeds=seeds)
