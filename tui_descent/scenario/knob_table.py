"""The table of knobs: names, values, ranges and options. Validation, dialogs, palette and command line use its rows.

The keys are in `keys.py`; the classes that carry out the changes are in `training/steering/knobs/`, listed in its
`table.py`. A setting that an undo has to restore belongs to `RESTORED_FIELDS` in its `context.py`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import msgspec

from tui_descent.scenario.schedules import FIELDS
from tui_descent.scenario.spec import Activation, Init, Norm, Optimizer, Schedule, ScheduleSpec

PACES = ("1", "2", "5", "10", "30", "60", "120", "300", "1000", "max")


class KnobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One knob.

    `values` and `acts` are help texts: the allowed values, and when and how a change takes effect. A number lies
    between `low` and `high`; `includes_low` and `includes_high` say whether the bounds are allowed. `choices` are the
    allowed words; a number knob may have some too. `ways` and `places` are the allowed values of the options `way` and
    `where`; the first way is the default. `one_layer_values` are the values that require a target layer. `needs` names
    what a run must have for this knob. `touches` names what a change may affect. For "run", it does not affect the net,
    so its effect on the outputs is not measured. If `combinable`, consecutive commands may be combined into one with
    the same result. `parameters` lists the parameters of each choice; a `spec` has them and the choice's name as
    fields.
    """

    name: str
    title: str
    kind: Literal["number", "choice", "pace", "pair"]
    values: str
    acts: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = math.inf
    includes_low: bool = False
    includes_high: bool = True
    whole: bool = False
    ways: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    takes_scale: bool = False
    one_layer_values: tuple[str, ...] = ()
    targets: Literal["net", "block", "layer", "optimizer"] = "net"
    needs: Literal["optimizer", "blocks", "net", "loop"] = "loop"
    touches: Literal["run", "optimizer", "net"] = "run"
    combinable: bool = False
    parameters: dict[str, tuple[str, ...]] = {}
    spec: type[msgspec.Struct] | None = None


_ROWS = (
    KnobSpec(
        name="lr",
        title="learning rate",
        kind="number",
        values="a number > 0, or relative to the current rate: *1.25, /10",
        acts="from the next step on; the rest of the schedule is scaled by the same factor",
        high=1e6,
        targets="optimizer",
        needs="optimizer",
        combinable=True,
    ),
    KnobSpec(
        name="activation",
        title="activation",
        kind="choice",
        values="one of the activations; `way`: blend (over 50 steps) or instant",
        acts="blend mixes old and new over 50 steps; instant swaps them",
        choices=get_args(Activation),
        ways=("blend", "instant"),
        targets="block",
        needs="blocks",
        touches="net",
    ),
    KnobSpec(
        name="residual",
        title="residual connection",
        kind="choice",
        values="off or on; `way`: auto, ramp (20 steps), gentle (200 steps), rotation (50 steps), instant or rezero; "
        "`scale` of the branch: 1/√depth by default",
        acts="on: y = x + scale·f(x) around every block; rotation ends at (x + f(x))/√2. auto chooses "
        "ramp until the loss has halved; after that rotation, or gentle with more than 10 blocks. rezero: at once, and "
        "the scale is learnt, one number per block that starts at 0",
        choices=("off", "on"),
        ways=("auto", "ramp", "gentle", "rotation", "instant", "rezero"),
        takes_scale=True,
        targets="block",
        needs="blocks",
        touches="net",
    ),
    KnobSpec(
        name="norm",
        title="normalisation",
        kind="choice",
        values="none, layer or rms; `where`: pre, mid or post; `way`: calibrated or instant",
        acts="from the next step on; calibrated fits γ and β to keep the outputs (default for a net that has learnt "
        "something); instant starts at γ = 1, β = 0 (default otherwise)",
        choices=get_args(Norm),
        ways=("calibrated", "instant"),
        places=("pre", "mid", "post"),
        targets="block",
        needs="blocks",
        touches="net",
    ),
    KnobSpec(
        name="dropout",
        title="dropout",
        kind="number",
        values="a number ≥ 0 and < 1",
        acts="from the next step on, in every block; 0 removes dropout",
        high=1.0,
        includes_low=True,
        includes_high=False,
        needs="net",
        touches="net",
    ),
    KnobSpec(
        name="init",
        title="initialisation",
        kind="choice",
        values="one of the initialisations",
        acts="at once; the new weights depend only on the run's seed and the step; biases become 0; their optimizer "
        "state is reset",
        choices=get_args(Init),
        targets="layer",
        needs="net",
        touches="net",
    ),
    KnobSpec(
        name="freeze",
        title="freeze",
        kind="choice",
        values="on or off for one layer; for all layers only off",
        acts="from the next step on; a frozen layer keeps its weights but still passes the gradient on",
        choices=("off", "on"),
        one_layer_values=("on",),
        targets="layer",
        needs="net",
        touches="net",
    ),
    KnobSpec(
        name="kick",
        title="kick",
        kind="number",
        values="a size > 0 and ≤ 1, relative to the weights' norm; `way`: auto, random or curvature",
        acts="moves the weights once; random moves every weight matrix in a direction that depends only on the run's "
        "seed and the step; curvature moves all weights downhill in the direction of the most negative curvature, "
        "measured on the probe batch (on a test surface the size is absolute)",
        high=1.0,
        ways=("auto", "random", "curvature"),
        needs="net",
        touches="net",
    ),
    KnobSpec(
        name="optimizer",
        title="optimizer",
        kind="choice",
        values="one of the optimizers",
        acts="from the next step on; the learning rate is converted or taken from the scenario; the optimizer state "
        "is transferred",
        choices=get_args(Optimizer),
        needs="optimizer",
        touches="optimizer",
    ),
    KnobSpec(
        name="schedule",
        title="schedule",
        kind="choice",
        values="one of the schedules, with its parameters: warmup, start, every, gamma, decay, floor, patience",
        acts="starts now at the base rate and covers the remaining steps",
        choices=get_args(Schedule),
        parameters={name: tuple(fields) for name, fields in FIELDS.items()},
        spec=ScheduleSpec,
        needs="loop",
        touches="optimizer",
    ),
    KnobSpec(
        name="momentum",
        title="momentum",
        kind="number",
        values="a number ≥ 0 and < 1",
        acts="from the next step on; the momentum buffers are kept",
        high=1.0,
        includes_low=True,
        includes_high=False,
        targets="optimizer",
        needs="optimizer",
        touches="optimizer",
    ),
    KnobSpec(
        name="betas",
        title="betas",
        kind="pair",
        values="two numbers ≥ 0 and < 1 separated by a slash, as in 0.9/0.95",
        acts="from the next step on; the running averages are kept",
        targets="optimizer",
        needs="optimizer",
        touches="optimizer",
    ),
    KnobSpec(
        name="weight_decay",
        title="weight decay",
        kind="number",
        values="a number ≥ 0",
        acts="from the next step on, in the parameter groups that have weight decay, or in all groups if none has",
        high=10.0,
        includes_low=True,
        targets="optimizer",
        needs="optimizer",
        touches="optimizer",
        combinable=True,
    ),
    KnobSpec(
        name="clip",
        title="gradient clipping",
        kind="number",
        values="the largest global gradient norm, a number > 0, or off",
        acts="from the next step on; readings show the clipped gradient, and the global norm before clipping",
        choices=("off",),
        high=1e6,
        targets="optimizer",
        needs="optimizer",
        combinable=True,
    ),
    KnobSpec(
        name="batch_size",
        title="batch size",
        kind="number",
        values="a whole number ≥ 1",
        acts="from the next batch on",
        low=1,
        high=100_000,
        includes_low=True,
        whole=True,
    ),
    KnobSpec(
        name="pace",
        title="pace",
        kind="pace",
        values="steps per second, or max",
        acts="at once",
        choices=("max",),
        high=1e6,
        combinable=True,
    ),
)
KNOBS: dict[str, KnobSpec] = {row.name: row for row in _ROWS}
# Knobs that do not change what is learnt. A change of them needs no mark in the charts and leaves nothing to undo.
NEUTRAL_KNOBS = frozenset({"pace"})
# The number of updates over which a gradual change of a block takes place, by its `way`.
CHANGE_STEPS = {"blend": 50, "ramp": 20, "gentle": 200, "rotation": 50}
