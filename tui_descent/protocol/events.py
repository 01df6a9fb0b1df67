"""Events are everything that a run reports, and its only output. They are named in the past tense.

Units: seconds in `*_s`; norms are L2. Steps are counted from 0; `(segment, step)` identifies a position in a run.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tui_descent.protocol.command_replies import CommandDone as CommandDone
from tui_descent.protocol.command_replies import CommandRejected as CommandRejected
from tui_descent.protocol.command_replies import KnobTurned as KnobTurned
from tui_descent.protocol.curvature_reading import CurvatureReading, StabilityLimit
from tui_descent.protocol.lens import ActivationPart, Histogram
from tui_descent.protocol.race import Lane as Lane
from tui_descent.protocol.race import LaneEnded as LaneEnded
from tui_descent.protocol.race import LaneSteps as LaneSteps
from tui_descent.protocol.range_test import RangeTestCompleted as RangeTestCompleted
from tui_descent.protocol.task_pictures import TaskPicture
from tui_descent.protocol.undo_events import Ghost
from tui_descent.protocol.undo_events import KnobState as KnobState
from tui_descent.protocol.undo_events import Rewound as Rewound
from tui_descent.protocol.undo_events import SnapshotSaved as SnapshotSaved
from tui_descent.protocol.undo_events import SnapshotTaken as SnapshotTaken

State = Literal["importing torch", "building", "running", "paused", "held", "waiting", "testing", "stopping", "ended"]
LayerStatus = Literal["used", "frozen", "unused", "not measured"]
Status = Literal["finished", "diverged", "failed", "stopped", "lost"]
FindingKind = Literal["wiring", "numerics", "dynamics"]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Base class of most events."""


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A module with its own weights, named by its module path. `block` is the number of the block it belongs to.

    A module with several weights, such as an LSTM, has one layer for each, named `module.weight`. `not_measured` is the
    reason why the weight is not measured; None if it is measured.
    """

    name: str
    kind: str
    params: int
    block: int | None = None
    not_measured: str | None = None


class RunStarted(Event, frozen=True, kw_only=True, tag="run_started"):
    """The network has been built. `layers` are in forward order. `steps` is None if only the loop knows its end.

    `LayersChanged` reports later changes of the layers. `nets` are the names of several nets that are watched together;
    each is the first part of the names of that net's layers. In a race, `lanes` are its optimizers and `target` is the
    loss to reach.
    """

    run: str
    title: str
    name: str
    scenario: dict[str, Any] | None
    device: str
    threads: int
    parameters: int
    layers: tuple[Layer, ...]
    knobs: tuple[KnobState, ...]
    about: str = ""
    steps: int | None = None
    versions: dict[str, str] = {}
    nets: tuple[str, ...] = ()
    lanes: tuple[Lane, ...] = ()
    target: float | None = None


class LayersChanged(Event, frozen=True, kw_only=True, tag="layers"):
    """From update `step` on, the net has other layers, because of an intervention, an undo or a redo.

    `layers` are all current layers in forward order, `parameters` is the net's total. `structure` is the number of this
    list; the list in `RunStarted` has number 0. A reading has the number of the list that its rows belong to.
    """

    segment: int
    step: int
    structure: int
    parameters: int
    layers: tuple[Layer, ...]


class StateChanged(Event, frozen=True, kw_only=True, tag="state"):
    """The new state of the run, with a reason if that is not obvious.

    `silent_s` is the number of seconds since the trainer last sent anything; 0 as long as it responds.
    """

    state: State
    reason: str = ""
    silent_s: int = 0


class StepsCompleted(Event, frozen=True, kw_only=True, tag="steps"):
    """Consecutive updates `first`, `first + 1`, …. `times_s` are measured from the run's start.

    `skipped` are the steps at which the optimizer made no update.
    """

    segment: int
    first: int
    losses: list[float]
    lrs: list[float]
    times_s: list[float]
    skipped: tuple[int, ...] = ()


class StepsMissed(Event, frozen=True, kw_only=True, tag="steps_missed"):
    """The keeper did not read the ring in time: `count` steps before `step` were lost."""

    segment: int
    step: int
    count: int


class RatesChanged(Event, frozen=True, kw_only=True, tag="rates"):
    """The learning rates before update `step`, if the run has several optimizers or parameter groups.

    `rates` has the rates of each optimizer's groups, by the name of the optimizer; the only optimizer of a run has the
    name "". They are reported after an intervention, and at most about once a second if the loop changes them.
    """

    segment: int
    step: int
    rates: dict[str, list[float]]


# The parts of a block: the scale s of the branch and the sum with the input (both with a skip), the norm layer, the
# activation, the weights, and a second Linear after the activation (`out`).
BlockPart = Literal["scale", "norm", "activation", "weights", "convolution", "attention", "out", "dropout", "skip"]


class PartFactor(msgspec.Struct, frozen=True):
    """The factor by which one part of a block changes the gradient's norm; None if the gradient before it is 0."""

    part: BlockPart
    factor: float | None


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One block's chain-rule factor ‖dL/dx‖/‖dL/dy‖ for input x and output y.

    `factor` is computed from the block's parts, `autograd` by autograd. A block without formulas has the latter for
    both. `product` is the product of all factors from the network's output to this block. `parts` are in the order of
    the backward pass, and their product is `factor`. They are known only if a viewer has asked for them by
    `MeasureBackwardPass`.
    """

    block: str
    factor: float | None
    autograd: float | None
    discrepancy: float | None
    product: float | None
    parts: tuple[PartFactor, ...] = ()


class ReadingsTaken(Event, frozen=True, kw_only=True, tag="reading"):
    """The readings of all layers at one step. `values` has one list per metric; row i belongs to layer i.

    `structure` is the number of the list of layers. A value is None if the metric does not apply. Expensive metrics are
    present only at the steps at which they were measured. Gradients are those that the optimizer received.
    `global_grad_norm` is √Σ‖g‖² over all layers. `grad_norm_preclip` is that norm before clipping, None without
    clipping. `ages` are the numbers of steps since each layer's weights were measured.
    """

    segment: int
    step: int
    values: dict[str, list[float | None]]
    ages: list[int]
    global_grad_norm: float
    watch_cost: float
    statuses: list[LayerStatus] = []
    global_cosine: float | None = None
    grad_norm_preclip: float | None = None
    structure: int = 0


class Gpu(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the driver reports about a GPU, summed over all processes on it.

    A value is None if it is not reported. `utilisation` is 0…1.
    """

    name: str
    utilisation: float | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None


class DeviceTaken(Event, frozen=True, kw_only=True, tag="device"):
    """The memory in use on the training device; on a CPU this is the process's resident memory.

    It is measured about once a second. `uuid` identifies the GPU. The keeper uses it to fill in `gpu`.
    """

    segment: int
    step: int
    device: str
    allocated_bytes: int | None = None
    peak_bytes: int | None = None
    uuid: str | None = None
    gpu: Gpu | None = None


class LedgerTaken(Event, frozen=True, kw_only=True, tag="ledger"):
    """The chain-rule factors of one step, starting with the first block. In the answer to `MeasureBackwardPass` they
    are those of the last batch, with the weights before update `step`.
    """

    segment: int
    step: int
    entries: list[LedgerEntry]


class Measured(Event, frozen=True, kw_only=True, tag="measured"):
    """A value for the whole net that is measured rarely: `local_step`, `noise_scale`, `sharpness`, `lambda_min`, …

    If there are several methods to measure a value, `how` names the one used and says whether it converged.
    """

    segment: int
    step: int
    name: str
    value: float
    how: str = ""


class CurvatureTaken(Event, frozen=True, kw_only=True, tag="curvature"):
    """The curvature of the loss on a fixed probe batch, with the weights before update `step`.

    `hessian` is measured on the Hessian itself. `scaled` is measured on the preconditioned Hessian of an adaptive
    optimizer, if the `limit` refers to that. `limit` is None for optimizers without a known limit. `seconds` is the
    wall time that the measurement took.
    """

    segment: int
    step: int
    hessian: CurvatureReading
    scaled: CurvatureReading | None = None
    limit: StabilityLimit | None = None
    seconds: float

    @property
    def sharpness(self) -> float:
        """λmax of the Hessian."""
        return self.hessian.lambda_max

    @property
    def limited(self) -> float | None:
        """The λmax that the limit applies to; None if there is no limit or this λmax was not measured."""
        if self.limit is None:
            return None
        read = self.scaled if self.limit.preconditioned else self.hessian
        return None if read is None else read.lambda_max

    @property
    def edge(self) -> float | None:
        """`limited` divided by the limit. Below 1, steps along that direction shrink; above 1, they grow."""
        return None if self.limit is None or self.limited is None else self.limited / self.limit.lambda_max


class TaskTaken(Event, frozen=True, kw_only=True, tag="task"):
    """A picture of what is being learnt, with the weights before update `step`.

    It is sent only while a viewer has asked for it by `WatchTask`. `seconds` is the wall time that it took.
    """

    segment: int
    step: int
    picture: TaskPicture
    seconds: float


class LensTaken(Event, frozen=True, kw_only=True, tag="lens"):
    """The activation of one layer, and its inputs with the weights before update `step`; in a user loop, those of the
    training pass before this update, of which they are the first.

    It is sent only while a viewer has asked for the layer `asked` by `WatchLens`. `layer` is the layer that the
    activation follows, `kind` the class of its module. `parts` is empty if the function is not known. `reason` says why
    there is no histogram. `in_training` is False if the first training samples were evaluated.
    """

    segment: int
    step: int
    asked: str
    layer: str
    kind: str
    parts: tuple[ActivationPart, ...]
    histogram: Histogram | None
    reason: str = ""
    in_training: bool = False


class Advice(msgspec.Struct, frozen=True):
    """A suggested change: a knob, its new value, and the key to press."""

    knob: str
    value: str
    key: str


class LoopObserved(Event, frozen=True, kw_only=True, tag="loop"):
    """What the graph of a user loop's loss shows about the loop; sent once, after the first updates.

    `loss_function` is the last operation that is a known loss, such as "cross_entropy" or "mse". `classes` is the
    number of classes of a cross-entropy. `batch` is the number of samples that the net got. A field is None if its
    value is unknown.
    """

    segment: int
    step: int
    loss_function: str | None = None
    classes: int | None = None
    batch: int | None = None


class WiringFound(Event, frozen=True, kw_only=True, tag="wiring"):
    """A fact about how loop, net and optimizer are connected, such as weights that no optimizer holds.

    `fault` is one of the findings in `telemetry/diagnosis/wiring.py`. `present` is False when the fact no longer holds.
    `evidence` has the numbers and names that the message shows.
    """

    segment: int
    step: int
    fault: str
    present: bool = True
    layer: str | None = None
    evidence: dict[str, float | str] = {}


class Diagnosed(Event, frozen=True, kw_only=True, tag="diagnosis"):
    """A finding about the run: what is wrong, in which layer, how sure (0…1), the evidence, and advice, best first.

    `kind` says what the finding is: a fact about the wiring, a fact about NaN and infinity, or a judgement of how the
    loss and the gradients develop.
    """

    segment: int
    step: int
    kind: FindingKind = "dynamics"
    finding: str
    layer: str | None = None
    sure: float
    evidence: dict[str, float | str] = {}
    advice: tuple[Advice, ...] = msgspec.field(default=(), name="try")
    sentence: str = ""


class PredictionChecked(Event, frozen=True, kw_only=True, tag="outcome"):
    """The predicted and the actual result of an intervention. `held` says whether the prediction was right.

    `change` is the changed knob with its new value, as in `residual on`. `before` is the finding at that time.
    """

    segment: int
    step: int
    predicted: str
    happened: str
    held: bool
    change: str = ""
    before: str = ""


class Evaluated(Event, frozen=True, kw_only=True, tag="evaluated"):
    """Loss and accuracy on the held-out data with the weights before update `step`."""

    segment: int
    step: int
    loss: float
    accuracy: float | None = None


class MetricLogged(Event, frozen=True, kw_only=True, tag="metric"):
    """A number that the user passed to `Watch.log`."""

    segment: int
    step: int
    name: str
    value: float


class NotFinite(Event, frozen=True, kw_only=True, tag="not_finite"):
    """The loss or a gradient became NaN or infinite. `layer` is the first layer affected, if known.

    `value` is "nan", "inf" or "-inf". `cause` says where the first non-finite value came from, "" if that is not known,
    and `where` is a phrase for it. The cause "loss function" means everything after the last layer. `operation` is the
    operation that made it, such as `sqrt`, if it was found. `loss` is the loss of the step. `weights_finite` is whether
    all weights and running statistics are still finite, None if that was not checked. `then` is what the run does now:
    hold, end, or go on unchanged. `text` says all of it.
    """

    segment: int
    step: int
    what: Literal["loss", "gradient"]
    layer: str | None
    text: str
    cause: Literal["", "weights", "batch", "forward", "loss function", "backward"] = ""
    operation: str = ""
    where: str = ""
    value: str = "not finite"
    loss: float | None = None
    weights_finite: bool | None = None
    then: Literal["hold", "end", "note"] = "note"


class Marked(Event, frozen=True, kw_only=True, tag="mark"):
    """A mark that a user put on the time axis."""

    segment: int
    step: int
    text: str


class Noted(Event, frozen=True, kw_only=True, tag="note"):
    """A message for the event log. A `caption` is shown on the screen until the next one: it explains what happens."""

    step: int
    text: str
    level: Literal["info", "warning", "error", "caption"] = "info"


class RecordingChanged(Event, frozen=True, kw_only=True, tag="recording"):
    """Recording has stopped because of `trouble`, or goes on again if that is "". The run is not affected."""

    step: int
    trouble: str = ""


class EndReached(Event, frozen=True, kw_only=True, tag="end_reached"):
    """All steps are made, `step` of them, and the run waits for commands.

    The other fields are those of `RunEnded`, with the weights after the last update.
    """

    segment: int
    step: int
    loss: float | None = None
    accuracy: float | None = None
    position: tuple[float, ...] | None = None


class RunEnded(Event, frozen=True, kw_only=True, tag="run_ended"):
    """The last event. `step` is the number of updates made; `loss` was evaluated after the last one."""

    status: Status
    step: int
    loss: float | None = None
    accuracy: float | None = None
    reason: str = ""
    position: tuple[float, ...] | None = None
    exit_code: int | None = None
    log_tail: tuple[str, ...] = ()
    log_path: str | None = None


def name_of_loss(end: EndReached | RunEnded) -> str:
    """What the loss at the end is. Without an accuracy there is no held-out data, as on a test surface."""
    return "loss" if end.accuracy is None else "held-out loss"


AnyEvent = (
    RunStarted
    | LayersChanged
    | StateChanged
    | StepsCompleted
    | StepsMissed
    | LaneSteps
    | LaneEnded
    | RatesChanged
    | ReadingsTaken
    | DeviceTaken
    | LedgerTaken
    | CurvatureTaken
    | TaskTaken
    | LensTaken
    | RangeTestCompleted
    | Measured
    | LoopObserved
    | WiringFound
    | Diagnosed
    | PredictionChecked
    | Evaluated
    | MetricLogged
    | KnobTurned
    | CommandDone
    | CommandRejected
    | SnapshotTaken
    | SnapshotSaved
    | Rewound
    | NotFinite
    | Marked
    | Noted
    | RecordingChanged
    | EndReached
    | RunEnded
)


class Welcome(Event, frozen=True, kw_only=True, tag="welcome"):
    """The keeper's first frame to a viewer. Replies to this viewer have its number, `client`.

    With `heartbeat`, the keeper sends the viewer a `Heartbeat` every second while there is nothing else to send.
    """

    version: int
    client: int
    run: str
    heartbeat: bool = False


class Joined(Event, frozen=True, kw_only=True, tag="joined"):
    """The answer to a `Join`. With it come the descriptors of the trainer's socket and of the ring."""


class Heartbeat(Event, frozen=True, kw_only=True, tag="heartbeat"):
    """Sent when there is nothing else to send. It shows a viewer that the keeper responds."""


class Refused(Event, frozen=True, kw_only=True, tag="refused"):
    """The keeper's last frame to a viewer before it closes the connection, with the reason."""

    reason: str


class LevelSent(msgspec.Struct, frozen=True, kw_only=True):
    """One level of a `Pyramid`, with bins of `width` steps.

    `bins` has the bytes of an `array('q')`; `counts` and `values` have the bytes of an `array('d')`. `values` has all
    channels of the first bin, then all channels of the next.
    """

    width: int
    bins: bytes
    counts: bytes
    values: bytes


class MetricSent(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of a user's loop: its newest value, with its step, and its curve.

    Without levels, only its name is known.
    """

    name: str
    step: int
    value: float
    levels: list[LevelSent]


class LaneSent(msgspec.Struct, frozen=True, kw_only=True):
    """One lane of a race: the curve of its loss, its newest loss and number of updates, and its end if it has ended."""

    levels: list[LevelSent]
    loss: float
    steps: int
    reached: int | None = None
    ended: LaneEnded | None = None


class HistorySent(Event, frozen=True, kw_only=True, tag="history"):
    """Everything a viewer needs to draw the run so far. The live stream continues right after it.

    `line` are interventions, marks and evaluations, with the segment that each belongs to after undos. `rows` names the
    channels of each segment's `grads`: first the current layers, then layers that were removed. `smoothed` is the state
    of the moving average of the loss.
    """

    facts: list[AnyEvent]
    losses: dict[int, list[LevelSent]]
    grads: dict[int, list[LevelSent]]
    knobs: dict[str, str]
    segment: int
    steps: int
    loss: float
    lr: float
    smoothed: tuple[float, ...]
    steps_per_s: float
    devices: dict[int, list[LevelSent]] = {}
    metrics: dict[int, list[MetricSent]] = {}
    ghosts: tuple[Ghost, ...] = ()
    line: list[KnobTurned | Marked | Evaluated] = []
    snapshot: SnapshotTaken | None = None
    diagnosis: Diagnosed | None = None
    unavailable: dict[str, str] = {}
    rows: dict[int, tuple[str, ...]] = {}
    lanes: list[LaneSent] = []


ToViewer = AnyEvent | Welcome | Joined | Heartbeat | Refused | HistorySent
