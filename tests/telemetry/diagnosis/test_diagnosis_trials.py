"""Trials trained as one batch against each trained alone with modules and `torch.optim`, in float64."""

from __future__ import annotations

import math

import pytest
from diagnosis_nets import changed, draw
from diagnosis_oracle import CHANGES, Oracle, train
from diagnosis_trials import Trial, train_all

STEPS = 8  # few, since rounding errors grow with a learning rate that is far too large
# Every optimizer and norm, residual connections, biases: the last test checks that.
SEEDS = (3005, 3007, 3011, 3015, 3026, 3028)


def oracle_of(seed: int) -> Oracle:
    """After a few steps, so that the optimizers have state."""
    return Oracle(changed(draw(seed), run={"dtype": "float64"}), after=12)


def trials_of(oracle: Oracle) -> dict[str, Trial]:
    made = {name: change(oracle) for name, change in CHANGES.items()}
    return {name: oracle.trial(one) for name, one in made.items() if one is not None}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.heavy
def test_batched_trials_have_the_losses_of_single_ones(seed: int) -> None:
    oracle = oracle_of(seed)
    for oracle.repetition in (0, 1):
        together = train_all(list(trials_of(oracle).values()), STEPS)
        for (name, trial), losses in zip(trials_of(oracle).items(), together, strict=True):
            alone = train(trial.setup, STEPS, trial.transitions)
            assert len(losses) == len(alone), name
            assert losses == pytest.approx(alone, rel=1e-6, nan_ok=True), name


def test_diverged_trial_ends_and_does_not_affect_the_others() -> None:
    oracle = oracle_of(3005)
    names = ("lr*10", "lr*1000", "lr/10")
    alone = train_all([trials_of(oracle)["lr/10"]], 60)[0]
    trials = trials_of(oracle)
    for group in trials["lr*1000"].setup.optimizer.param_groups:
        group["lr"] = 1e30
    losses = dict(zip(names, train_all([trials[name] for name in names], 60), strict=True))
    assert len(losses["lr*1000"]) < 10
    assert math.isnan(losses["lr*1000"][-1])
    assert all(math.isfinite(loss) for loss in losses["lr*1000"][:-1])
    assert losses["lr/10"] == pytest.approx(alone, rel=1e-9)


def test_repetitions_differ_in_batches_and_initial_weights() -> None:
    oracle, firsts = oracle_of(3005), {}
    for oracle.repetition in range(3):
        for name in ("lr*10", "init he"):
            firsts[name, oracle.repetition] = train_all([trials_of(oracle)[name]], 1)[0][0]
    assert len(set(firsts.values())) == 6


def test_compared_nets_are_of_every_kind() -> None:
    scenarios = [draw(seed) for seed in SEEDS]
    assert {s.optimizer.name for s in scenarios} == {"sgd", "momentum", "adam", "adamw", "rmsprop"}
    assert {s.model.norm.name for s in scenarios} == {"none", "layer", "rms"}  # type: ignore[union-attr]
    assert {s.model.residual.name for s in scenarios} == {"off", "on"}  # type: ignore[union-attr]
    assert {b for s in scenarios for b in [s.model.init.bias != 0]} == {True, False}  # type: ignore[union-attr]
