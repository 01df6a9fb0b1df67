"""What a scenario run and the lanes of a race are made of: knobs, planned commands, and the event about the run."""

from __future__ import annotations

import platform

import torch

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import RunStarted
from tui_descent.protocol.launch import Launch
from tui_descent.scenario import knobs
from tui_descent.scenario.spec import Scenario, SurfaceModel, TwoLayerModel, about
from tui_descent.training.setup.build import Setup
from tui_descent.training.steering.steering import Steering


def steering_of(setup: Setup, *, pace: float | None) -> Steering:
    """The knobs of a scenario run."""
    scenario = setup.scenario
    return Steering(
        setup.model,
        setup.optimizer,
        pace=pace,
        setup=setup,
        seed=scenario.run.seed,
        steps=scenario.run.steps,
        clip=scenario.optimizer.clip,
        init=_init_of(scenario),
    )


def _init_of(scenario: Scenario) -> str:
    """The name of the initialisation; empty for a test surface."""
    match scenario.model:
        case SurfaceModel():
            return ""
        case TwoLayerModel():
            return "normal"
        case model:
            return model.init.name


def plan_of(scenario: Scenario, launch: Launch) -> list[tuple[int, TurnKnob | str]]:
    """The commands and captions that the scenario and the command line have planned, each with its step."""
    plan: list[tuple[int, TurnKnob | str]] = []
    for entry in scenario.plan:
        if launch.demo or not entry.demo:
            plan += [(entry.at, knobs.parse(entry.turn))] if entry.turn else []
            plan += [(entry.at, entry.say)] if entry.say else []
    return plan + [(at, knobs.parse(turn)) for at, turn in launch.plan]


def about_run(scenario: Scenario, launch: Launch, setup: Setup) -> RunStarted:
    """The `RunStarted` event of a scenario run. The run fills in layers and knobs."""
    return RunStarted(
        run=launch.run,
        name=launch.name,
        title=scenario.title,
        about=about(scenario),
        scenario=launch.scenario,
        device=str(setup.device),
        threads=torch.get_num_threads(),
        parameters=0,
        layers=(),
        knobs=(),
        steps=scenario.run.steps,
        versions={"torch": str(torch.__version__), "python": platform.python_version()},
    )
