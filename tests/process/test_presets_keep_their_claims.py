"""Every claim of every preset, headless, over three seeds."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from runs import WITHIN_S, Outcome, run, temporary_home

from tui_descent.scenario import presets

SEEDS = 3


@pytest.fixture(scope="module")
def verified() -> Iterator[dict[str, Future[Outcome]]]:
    """All of them set out at once, two at a time; the longest first."""
    names = sorted(presets.names(), key=lambda name: -len({c.given for c in presets.find(name)[1].claim}))
    with temporary_home() as home, ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(
                run, "presets", name, "--verify", "--seeds", str(SEEDS), home=home, within_s=10 * WITHIN_S
            )
            for name in names
        }


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_keeps_its_claims(name: str, verified: dict[str, Future[Outcome]]) -> None:
    outcome = verified[name].result(15 * WITHIN_S)
    _, scenario = presets.find(name)
    lines = outcome.stdout.splitlines()
    assert len(lines) == SEEDS * len(scenario.claim)
    assert [line for line in lines if " holds " not in line] == []
    assert {line.split("seed ")[1].split()[0] for line in lines} == {str(n) for n in range(SEEDS)}
    assert (outcome.code, outcome.stderr) == (0, "")
