"""The table of knobs: a row each, in the order in which they are told and listed."""

from __future__ import annotations

import math
from typing import Literal, get_args

import msgspec

from tui_descent.scenario.schedules import FIELDS
from tui_descent.scenario.spec import Activation, Init, Norm, Optimizer, Schedule, ScheduleSpec

PACES = ("1", "2", "5", "10", "30", "60", "120", "300", "1000", "max")


class Knob(msgspec.Struct, frozen=True, kw_only=True):
    """One steerable thing. `needs` names what a run must have for it; of `ways` the first is the default.

    A number lies in `low` … `high`; `from_low` and `closed` say whether the ends belong to it. `choices` are words that
    are taken beside numbers, or all there is. `one_layer_values` need a target. `touches` tells what a turn may change:
    with "run" nothing that would have to be probed. Of one that `folds`, turns behind one another come to the same when
    they are made as one. A choice may take `parameters`, listed by choice; with its name they are fields of a `spec`.
    """

    name: str
    title: str
    kind: Literal["number", "choice", "pace", "pair"]
    values: str
    acts: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = math.inf
    from_low: bool = False
    closed: bool = True
    whole: bool = False
    ways: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    takes_scale: bool = False
    one_layer_values: tuple[str, ...] = ()
    targets: Literal["net", "block", "layer"] = "net"
    needs: Literal["optimizer", "blocks", "net", "loop"] = "loop"
    touches: Literal["run", "optimizer", "net"] = "run"
    folds: bool = False
    parameters: dict[str, tuple[str, ...]] = {}
    spec: type[msgspec.Struct] | None = None


_ROWS = (
    Knob(
        name="lr",
        title="learning rate",
        kind="number",
        values="a number > 0, or *1.25, /10 relative to now",
        acts="from the next step on; a multiplier on the schedule, so it survives the schedule's next step",
        high=1e6,
        needs="optimizer",
        folds=True,
    ),
    Knob(
        name="activation",
        title="activation",
        kind="choice",
        values="one of the activations; way blend (over 50 steps) or instant",
        acts="blend mixes old and new over 50 steps; instant swaps",
        choices=get_args(Activation),
        ways=("blend", "instant"),
        targets="block",
        needs="blocks",
        touches="net",
    ),
    Knob(
        name="residual",
        title="residual connection",
        kind="choice",
        values="off or on; way auto, ramp (20 steps), gentle (200), rotation (50) or instant; scale of the branch, "
        "1/√depth by default",
        acts="on: y = x + scale·f(x) around every block, a rotation ends at (x + f(x))/√2; auto: ramp, where the loss "
        "has halved a rotation, or gentle with more than 10 blocks",
        choices=("off", "on"),
        ways=("auto", "ramp", "gentle", "rotation", "instant"),
        takes_scale=True,
        targets="block",
        needs="blocks",
        touches="net",
    ),
    Knob(
        name="norm",
        title="normalisation",
        kind="choice",
        values="none, layer or rms; where pre, mid or post; way calibrated or instant, by default as it suits the net",
        acts="at once; calibrated fits γ, β so that the outputs stay, the default where the net has learnt something; "
        "instant starts at γ = 1, β = 0",
        choices=get_args(Norm),
        ways=("calibrated", "instant"),
        places=("pre", "mid", "post"),
        targets="block",
        needs="blocks",
        touches="net",
    ),
    Knob(
        name="dropout",
        title="dropout",
        kind="number",
        values="a share ≥ 0 and < 1",
        acts="from the next step on, in every block; 0 takes it out",
        high=1.0,
        from_low=True,
        closed=False,
        needs="net",
        touches="net",
    ),
    Knob(
        name="init",
        title="initialisation",
        kind="choice",
        values="one of the initialisations",
        acts="draws the weights anew, from the run's seed and the step; biases become 0; what the optimizer remembered "
        "of them is dropped",
        choices=get_args(Init),
        targets="layer",
        needs="net",
        touches="net",
    ),
    Knob(
        name="freeze",
        title="freeze",
        kind="choice",
        values="on or off, for one layer; off for all",
        acts="a frozen layer keeps its weights and passes the gradient on",
        choices=("off", "on"),
        one_layer_values=("on",),
        targets="layer",
        needs="net",
        touches="net",
    ),
    Knob(
        name="kick",
        title="kick",
        kind="number",
        values="a size > 0 and ≤ 1, as a share of the weights' norm; way auto, random or curvature",
        acts="once: every weight matrix at random, from the run's seed and the step, or all weights together downhill "
        "along the most negative curvature of the probe batch (a surface's point by the size itself)",
        high=1.0,
        ways=("auto", "random", "curvature"),
        needs="net",
        touches="net",
    ),
    Knob(
        name="optimizer",
        title="optimizer",
        kind="choice",
        values="one of the optimizers",
        acts="from the next step on; its rate mapped or the scenario's own, the old one's memory handed over",
        choices=get_args(Optimizer),
        needs="optimizer",
        touches="optimizer",
    ),
    Knob(
        name="schedule",
        title="schedule",
        kind="choice",
        values="one of the schedules, with its warmup, start, every, gamma, decay, floor, patience",
        acts="begins now, from the base rate, over the steps that are left",
        choices=get_args(Schedule),
        parameters={name: tuple(fields) for name, fields in FIELDS.items()},
        spec=ScheduleSpec,
        needs="loop",
        touches="optimizer",
    ),
    Knob(
        name="momentum",
        title="momentum",
        kind="number",
        values="a number ≥ 0 and < 1",
        acts="from the next step on; what was gathered stays",
        high=1.0,
        from_low=True,
        closed=False,
        needs="optimizer",
        touches="optimizer",
    ),
    Knob(
        name="betas",
        title="betas",
        kind="pair",
        values="two numbers ≥ 0 and < 1 with a stroke between them, as in 0.9/0.95",
        acts="from the next step on; the averages stay what they were",
        needs="optimizer",
        touches="optimizer",
    ),
    Knob(
        name="weight_decay",
        title="weight decay",
        kind="number",
        values="a number ≥ 0",
        acts="from the next step on, in the groups that decay, or in all when none does",
        high=10.0,
        from_low=True,
        needs="optimizer",
        touches="optimizer",
        folds=True,
    ),
    Knob(
        name="clip",
        title="gradient clipping",
        kind="number",
        values="the largest global norm, a number > 0, or off",
        acts="from the next step on; readings are of the clipped gradient, and tell its global norm before",
        choices=("off",),
        high=1e6,
        needs="optimizer",
        folds=True,
    ),
    Knob(
        name="batch_size",
        title="batch size",
        kind="number",
        values="a whole number ≥ 1",
        acts="from the next batch on",
        low=1,
        high=100_000,
        from_low=True,
        whole=True,
    ),
    Knob(
        name="pace",
        title="pace",
        kind="pace",
        values="steps a second, or max",
        acts="at once",
        choices=("max",),
        high=1e6,
        folds=True,
    ),
)
KNOBS: dict[str, Knob] = {row.name: row for row in _ROWS}
