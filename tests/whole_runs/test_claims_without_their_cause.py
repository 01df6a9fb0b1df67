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
QUICK |= {"catapult"}
# Claims that hold with and without the cause: the reason.
INDEPENDENT = {
    ("healthy", 1): "the gradient arrives before anything is learnt",
    ("dead-relu", 1): "the gradient of a net that has learnt is small, too",
    ("saddle", 3): "the run ends in the same minimum, whether it passes the saddle or not",
    ("saddle", 4): "the run ends in the same minimum, whether it passes the saddle or not",
    ("narrow-valley", 2): "the curvature along the valley is that of the bowl",
    **{("saddles-not-minima", n): "the net learns from large weights, too" for n in range(1, 5)},
    ("monkey-saddle", 4): "the run ends in a valley, whether it passes the saddle or not",
    ("edge-of-stability", 0): "at a smaller rate the start is even farther from the limit",
    ("edge-of-stability", 4): "the net learns at a smaller rate, too",
    ("adam-edge", 0): "at a smaller rate the start is even farther from the limit",
    ("catapult", 1): "the loss gets small below the limit, too",
    ("catapult", 6): "the claim tries all rates itself",
    ("rate-at-the-limit", 3): "the claim tries all rates itself",
    ("chain-rule", 0): "the two ways agree for every net",
    ("chain-rule", 1): "the two ways agree for every net",
    ("chain-rule", 6): "the net learns with either activation: that is the claim",
    ("activations", 1): "GELU does as well as ReLU: that is the claim",
    ("activations", 2): "SiLU does as well as ReLU: that is the claim",
    ("post-ln", 0): "at the start the gradient arrives, wherever the norm is",
    **{("grokking", n): "a net memorises fewer sums, too, and does not learn to add" for n in range(4)},
    ("break-it", 0): "the net works, with or without residual connections",
    ("break-it", 3): "the repaired net is as good as an unbroken one: that is the claim",
    ("break-it", 5): "tanh breaks nothing: that is the claim",
}


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
    unmoved = set()
    for number, claim in enumerate(scenario.claim):
        dropped = changes_dropped(claim)
        if dropped is not None and not holds(name, scenario, dropped):
            continue
        if holds(name, without_cause(name), claim):
            unmoved.add((name, number))
    assert unmoved == {place for place in INDEPENDENT if place[0] == name}
