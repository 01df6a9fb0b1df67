"""The class that implements each knob of `scenario/knob_table.py`."""

from __future__ import annotations

from tui_descent.scenario.knobs import KNOBS
from tui_descent.training.steering.knobs.blocks import ActivationKnob, NormKnob, ResidualKnob
from tui_descent.training.steering.knobs.context import Knob, KnobContext
from tui_descent.training.steering.knobs.data import BatchSizeKnob, PaceKnob
from tui_descent.training.steering.knobs.optimizer import (
    BetasKnob,
    ClipKnob,
    MomentumKnob,
    OptimizerKnob,
    RateKnob,
    ScheduleKnob,
    WeightDecayKnob,
)
from tui_descent.training.steering.knobs.weights import DropoutKnob, FreezeKnob, InitKnob, KickKnob


def knobs_of(context: KnobContext) -> dict[str, Knob]:
    """The knobs of one run by name, in the table's order."""
    result: dict[str, Knob] = {
        "lr": RateKnob(context),
        "activation": ActivationKnob(context),
        "residual": ResidualKnob(context),
        "norm": NormKnob(context),
        "dropout": DropoutKnob(context),
        "init": InitKnob(context),
        "freeze": FreezeKnob(context),
        "kick": KickKnob(context),
        "optimizer": OptimizerKnob(context),
        "schedule": ScheduleKnob(context),
        "momentum": MomentumKnob(context),
        "betas": BetasKnob(context),
        "weight_decay": WeightDecayKnob(context),
        "clip": ClipKnob(context),
        "batch_size": BatchSizeKnob(context),
        "pace": PaceKnob(context),
    }
    assert list(result) == list(KNOBS)
    return result
