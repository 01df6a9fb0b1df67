"""The lanes of a race: which optimizers, at which rates, and what is refused."""

from __future__ import annotations

import pytest
from small_scenario import SMALL, SURFACE, make, problems

from tui_descent.scenario import presets
from tui_descent.scenario.memory import memory_needed, memory_needed_by
from tui_descent.scenario.optimizers import map_rate
from tui_descent.scenario.race import lanes_of, scenario_of
from tui_descent.scenario.spec import OptimizerSpec, RatesSpec


def test_lane_has_the_rate_of_the_scenario_or_the_converted_one() -> None:
    spec = OptimizerSpec(name="sgd", lr=0.1, rates=RatesSpec(adam=0.003))
    lanes = {lane.name: lane.lr for lane in lanes_of(spec, ("sgd", "momentum", "adam", "adam:0.01", "sgd:1"))}
    assert lanes == {
        "sgd": 0.1,
        "momentum": map_rate("sgd", "momentum", 0.1).lr,
        "adam": 0.003,
        "adam 0.01": 0.01,
        "sgd 1": 1.0,
    }


def test_lanes_differ_from_the_scenario_by_the_optimizer_alone() -> None:
    scenario = make(SMALL + '[optimizer]\nname = "momentum"\nlr = 0.1\nclip = 1.0\nmomentum = 0.8\nweight_decay = 0.1')
    (lane,) = lanes_of(scenario.optimizer, ("nesterov",))
    other = scenario_of(scenario, lane)
    assert (other.data, other.model, other.run) == (scenario.data, scenario.model, scenario.run)
    assert (other.optimizer.name, other.optimizer.lr) == ("nesterov", 0.1)
    assert (other.optimizer.clip, other.optimizer.momentum, other.optimizer.weight_decay) == (1.0, 0.8, 0.1)


@pytest.mark.parametrize(
    ("race", "said"),
    [
        ('optimizers = ["sgd", "adm"]', 'found "adm"; allowed: sgd, momentum, '),
        ('optimizers = ["sgd", "sgd"]', 'found "sgd" twice'),
        ('optimizers = ["adam:nan"]', 'found "adam:nan"; allowed: NAME:RATE with a rate > 0'),
        ('optimizers = ["adam:1e7"]', 'found "adam:1e7"'),
        ("optimizers = []", "found 0 values; allowed: 1 to 8"),
        (f"optimizers = {['sgd'] * 9}", "found 9 values; allowed: 1 to 8"),
    ],
)
def test_problems_of_a_race(race: str, said: str) -> None:
    assert said in problems(SURFACE + f"[race]\n{race}")["race.optimizers"]


def test_target_is_a_number() -> None:
    assert "allowed: a number" in problems(SURFACE + '[race]\ntarget = "half"')["race.target"]


def test_race_needs_memory_for_every_lane_but_activations_once() -> None:
    _, scenario = presets.find("healthy")
    lanes = [scenario_of(scenario, lane) for lane in lanes_of(scenario.optimizer, ("sgd", "adam", "muon"))]
    single = memory_needed(scenario)
    needed = memory_needed_by(lanes)
    assert (needed.weights, needed.activations) == (3 * single.weights, single.activations)
    assert needed.optimizer == (0 + 2 + 1) * single.weights


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_can_be_raced(name: str) -> None:
    _, scenario = presets.find(name)
    assert len(lanes_of(scenario.optimizer, scenario.race.optimizers)) >= 4
