"""Without the cause of what a preset shows, its claims fail: so each claim is about that cause, and can fail at all."""

from __future__ import annotations

import msgspec
import pytest

from tui_descent import verify
from tui_descent.scenario import presets
from tui_descent.scenario.claims import judge, samples
from tui_descent.scenario.spec import Claim, Scenario
from tui_descent.scenario.toml import variant

# The presets whose first failing claim costs little.
QUICK = {"first-descent", "rate-at-the-limit", "vanishing", "chain-rule", "careful-init", "too-hot", "dead-relu"}
# Claims that hold with and without the cause: the reason.
INDEPENDENT: dict[tuple[str, int], str] = {}


def without_cause(name: str) -> Scenario:
    _, scenario = presets.find(name)
    assert scenario.cause_off, "the preset does not say how to switch off the cause of what it shows"
    return variant(scenario, scenario.cause_off)


def holds(name: str, scenario: Scenario, claim: Claim) -> bool:
    runs = verify.Runs(name, scenario, samples(claim, seed=0))
    return judge(claim, runs.measure).holds


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.heavy) for name in presets.names()]
)
def test_without_the_cause_a_claim_fails(name: str) -> None:
    scenario = without_cause(name)
    assert not all(holds(name, scenario, claim) for claim in presets.find(name)[1].claim)


def changes_dropped(claim: Claim) -> Claim | None:
    """The claim about a run without its interventions and overrides; None if it has none."""
    return msgspec.structs.replace(claim, given=(), overrides=()) if claim.given or claim.overrides else None


@pytest.mark.heavy
@pytest.mark.parametrize("name", presets.names())
def test_every_claim_fails_without_its_cause(name: str) -> None:
    """The cause of a claim about a change is the change; of all others, and of changes that do not help, it is what
    `cause_off` removes.
    """
    _, scenario = presets.find(name)
    unmoved = []
    for number, claim in enumerate(scenario.claim):
        dropped = changes_dropped(claim)
        if dropped is not None and not holds(name, scenario, dropped):
            continue
        if holds(name, without_cause(name), claim) and (name, number) not in INDEPENDENT:
            unmoved.append(f"{number}: {claim}")
    assert unmoved == []
