"""Every claim of every preset holds: with one or two seeds in the usual suite, with three or five in the heavy one."""

from __future__ import annotations

import pytest
from runs import Outcome
from same_process import run

from tui_descent import verify
from tui_descent.scenario import presets


def check_claims(name: str, outcome: Outcome, *, seeds: int) -> None:
    _, scenario = presets.find(name)
    lines = outcome.stdout.splitlines()
    assert len(lines) == seeds * len(scenario.claim)
    assert [line for line in lines if " holds " not in line] == []
    assert {line.split("seed ")[1].split()[0] for line in lines} == {str(n) for n in range(seeds)}
    assert (outcome.code, outcome.stderr) == (0, "")


# Presets whose claims need more than a few seconds are checked only in the heavy suite.
SLOW = {
    "careful-init", "layer-norm", "hundred-layers", "rezero-1000", "activations", "born-dead", "break-it",
    "transformer-deep", "post-ln", "grokking", "spirals", "digits", "own-text",
    "warmup", "adam-edge", "transformer", "exploding", "edge-of-stability", "rare-classes",
    "monkey-saddle", "too-cold", "own-images",
}  # fmt: skip
TWICE = {"first-descent", "rate-at-the-limit"}  # cheap enough for two seeds


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.heavy) if name in SLOW else name for name in presets.names()]
)
def test_preset_keeps_its_claims(name: str) -> None:
    seeds = 2 if name in TWICE else 1
    check_claims(name, run("presets", name, "--verify", "--seeds", str(seeds)), seeds=seeds)


@pytest.mark.heavy
@pytest.mark.parametrize("name", presets.names())
def test_preset_keeps_its_claims_with_other_seeds(name: str) -> None:
    seeds = 5 if name in {"edge-of-stability", "adam-edge"} else 3
    check_claims(name, run("presets", name, "--verify", "--seeds", str(seeds)), seeds=seeds)


@pytest.mark.heavy
def test_held_out_sums_are_learnt_six_to_nine_hundred_steps_after_weight_decay() -> None:
    _, scenario = presets.find("grokking")
    claims = [claim for claim in scenario.claim if claim.given]
    assert [(claim.metric, claim.at, claim.given) for claim in claims] == [
        ("accuracy", 1000, ("400:weight_decay=1",)),
        ("accuracy", 1300, ("400:weight_decay=1",)),
    ]
    for seed in range(3):
        found = [verdict.found for verdict in verify.verdicts("grokking", scenario, claims, seed=seed)]
        assert isinstance(found[0], float)
        assert isinstance(found[1], float)
        assert found[0] < 0.95 <= found[1], (seed, found)
