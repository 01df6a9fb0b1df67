"""Four nets that do not train, and the knobs that cure them in the default way: how fast, and what does not help."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tui_descent.instruments.sampler import Sampler
from tui_descent.scenario import knobs, presets
from tui_descent.scenario.spec import Scenario
from tui_descent.scenario.toml import from_table
from tui_descent.training.probes.evaluation import evaluate
from tui_descent.training.setup.build import build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.watch import Watch

SEEDS = [0, *(pytest.param(n, marks=pytest.mark.heavy) for n in (1, 2, 3, 4))]
TURN_AT = {"plateau": 300}  # the others at 150
EXPLODING: dict[str, Any] = {
    "title": "exploding",
    "data": {"name": "digits", "batch_size": 64},
    "model": {"name": "mlp", "depth": 20, "width": 32, "activation": "relu", "init": {"name": "he", "gain": 2.0}},
    "optimizer": {"name": "sgd", "lr": 0.05, "clip": 1.0},
}


@dataclass(frozen=True)
class Course:
    """Losses before and after the intervention, and the accuracy at the end."""

    before: list[float]
    after: list[float]
    accuracy: float

    def mean(self, first: int, end: int) -> float:
        """The mean loss of updates first to end after the intervention; NaN if the run did not get that far."""
        part = self.after[first:end]
        return math.fsum(part) / len(part) if len(part) == end - first else math.nan

    def steps_below(self, level: float) -> float:
        """The number of updates until the mean of ten losses is below `level`."""
        ends = (n for n in range(10, len(self.after) + 1) if self.mean(n - 10, n) < level)
        return next(ends, math.inf)

    def steps_to_half(self) -> float:
        return self.steps_below(math.fsum(self.before[-20:]) / 40)


def scenario_of(name: str, seed: int) -> Scenario:
    if name == "exploding":
        return from_table(EXPLODING | {"run": {"seed": seed}}, source="test")
    name, _, optimizer = name.partition(" under ")
    adam = ["optimizer.name=adam", "optimizer.lr=0.001"] if optimizer else []
    return presets.find(name, overrides=[f"run.seed={seed}", *adam])[1]


@functools.cache
def course(name: str, turns: Sequence[str], seed: int, steps: int) -> Course:
    """A run of a net that does not train, with these interventions and `steps` updates after them."""
    scenario = scenario_of(name, seed)
    setup = build(scenario, on=torch.device("cpu"))
    at = TURN_AT.get(name, 150)
    steering = Steering(
        setup.model, setup.optimizer, setup=setup, seed=seed, steps=at + steps, clip=scenario.optimizer.clip
    )
    plan = [(at, knobs.parse(turn)) for turn in turns]
    losses: list[float] = []
    with Watch(
        setup.model,
        setup.optimizer,
        link=None,
        sampler=Sampler(budget=0.0),
        steering=steering,
        plan=plan,
        is_scenario=True,
    ) as run:
        run.begin_step()
        while len(losses) < at + steps and (not losses or math.isfinite(losses[-1])):
            loss = setup.loss()
            setup.optimizer.zero_grad()
            loss.backward()
            setup.optimizer.step()
            losses.append(loss.item())
            run.step(loss)
    _, accuracy = evaluate(setup)
    return Course(losses[:at], losses[at:], accuracy or 0.0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "within"),
    [
        pytest.param("vanishing", 35, marks=pytest.mark.heavy),  # usual: test_numbers.py
        ("vanishing under adam", 40),
    ],
)
def test_residual_halves_the_loss_of_twenty_sigmoid_layers(name: str, within: int, seed: int) -> None:
    cured = course(name, ("residual=on",), seed, 150)
    assert min(cured.before[-60:]) > 2.1, "no better than guessing one of ten"
    assert cured.steps_to_half() <= within
    assert max(cured.after) < 4.5
    assert cured.accuracy > 0.94


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("turn", ["lr=*10", "optimizer=adam", "init=xavier"])
def test_neither_rate_nor_optimizer_nor_init_cures_vanishing_gradients(turn: str, seed: int) -> None:
    assert course("vanishing", (turn,), seed, 110).mean(90, 110) > 2.25


@pytest.mark.parametrize("seed", SEEDS)
def test_a_norm_before_the_activation_or_a_better_init_cures_an_exploding_net(seed: int) -> None:
    normed = course("exploding", ("norm=layer,where=mid",), seed, 60)
    assert normed.before[0] > 1e5
    assert math.fsum(normed.before[-20:]) / 20 > 1e3
    assert normed.mean(15, 25) < 2.5
    redrawn = course("exploding", ("init=he",), seed, 260)
    assert redrawn.mean(240, 260) < 1.2


@pytest.mark.parametrize("seed", SEEDS)
def test_residual_does_not_cure_an_exploding_net(seed: int) -> None:
    assert course("exploding", ("residual=on",), seed, 110).mean(90, 110) > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_dead_units_recover_soonest_with_the_steepest_slope_below_zero(seed: int) -> None:
    half = {name: course("dead-relu", (f"activation={name}",), seed, 300) for name in ("leaky_relu", "silu", "gelu")}
    assert min(half["leaky_relu"].before[-60:]) > 2.2
    assert half["leaky_relu"].steps_to_half() <= 25
    assert half["silu"].steps_to_half() <= 80
    assert half["silu"].steps_to_half() < half["gelu"].steps_to_half() <= 240


@pytest.mark.parametrize("seed", SEEDS)
def test_adam_leaves_the_plateau_several_times_sooner_than_a_larger_rate(seed: int) -> None:
    adam = course("plateau", ("optimizer=adam",), seed, 180)
    faster = course("plateau", ("lr=*10",), seed, 180)
    assert min(adam.before[-60:]) > 2.2
    assert 18 <= next(n for n, loss in enumerate(adam.after, 1) if loss < 1.8) <= 27
    assert adam.steps_below(1.8) <= 35
    assert 65 < faster.steps_below(1.8) <= 160
