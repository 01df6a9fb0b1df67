"""Every row of the scenario's table with the class that turns it."""

from __future__ import annotations

from tui_descent.scenario.knobs import KNOBS
from tui_descent.training.steering.knobs.blocks import ActivationKnob, NormKnob, ResidualKnob
from tui_descent.training.steering.knobs.context import Ground, Knob
from tui_descent.training.steering.knobs.data import BatchSizeKnob, PaceKnob
from tui_descent.training.steering.knobs.learning_rate import RateKnob
from tui_descent.training.steering.knobs.optimizer import (
    BetasKnob,
    ClipKnob,
    MomentumKnob,
    OptimizerKnob,
    ScheduleKnob,
    WeightDecayKnob,
)
from tui_descent.training.steering.knobs.weights import DropoutKnob, FreezeKnob, InitKnob, KickKnob


def knobs_of(ground: Ground) -> dict[str, Knob]:
    """The knobs of one run by name, in the table's order."""
    made: dict[str, Knob] = {
        "lr": RateKnob(ground),
        "activation": ActivationKnob(ground),
        "residual": ResidualKnob(ground),
        "norm": NormKnob(ground),
        "dropout": DropoutKnob(ground),
        "init": InitKnob(ground),
        "freeze": FreezeKnob(ground),
        "kick": KickKnob(ground),
        "optimizer": OptimizerKnob(ground),
        "schedule": ScheduleKnob(ground),
        "momentum": MomentumKnob(ground),
        "betas": BetasKnob(ground),
        "weight_decay": WeightDecayKnob(ground),
        "clip": ClipKnob(ground),
        "batch_size": BatchSizeKnob(ground),
        "pace": PaceKnob(ground),
    }
    assert list(made) == list(KNOBS)
    return made
