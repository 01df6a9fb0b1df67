"""What a run tells. Events are facts, in the past tense, and the only thing that ever leaves a run.

Units: seconds in `*_s`, norms are L2. A step is counted from 0; everything is placed by `(segment, step)`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tui_descent.protocol.curvature import CurvatureReading, Limit
from tui_descent.protocol.rates import RatesSwept as RatesSwept
from tui_descent.protocol.replies import CommandDone as CommandDone
from tui_descent.protocol.replies import CommandRejected as CommandRejected
from tui_descent.protocol.replies import KnobTurned as KnobTurned
from tui_descent.protocol.rewinding import Ghost
from tui_descent.protocol.rewinding import KnobState as KnobState
from tui_descent.protocol.rewinding import Rewound as Rewound
from tui_descent.protocol.rewinding import SnapshotTaken as SnapshotTaken

State = Literal["importing torch", "building", "running", "paused", "held", "waiting", "testing", "stopping", "ended"]
LayerStatus = Literal["used", "frozen", "unused"]
Status = Literal["finished", "diverged", "failed", "stopped", "lost"]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Something that happened."""


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A module with weights of its own, named by its module path. `block` numbers the block it lies in."""

    name: str
    kind: str
    params: int
    block: int | None = None


class RunStarted(Event, frozen=True, kw_only=True, tag="run_started"):
    """The network exists. `layers` stand in forward order; `steps` is None when only the loop knows its end.

    They are the start's; `LayersChanged` tells of others.
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


class LayersChanged(Event, frozen=True, kw_only=True, tag="layers"):
    """From update `step` on the net has other layers: a surgery, an undo or a redo added some or took some away.

    `layers` are all there are now, in forward order, `parameters` all the net's. `structure` numbers the lists of a run
    from 0, the start's; a reading carries the number of the list that its rows are of.
    """

    segment: int
    step: int
    structure: int
    parameters: int
    layers: tuple[Layer, ...]


class StateChanged(Event, frozen=True, kw_only=True, tag="state"):
    """What the run is doing now, and why where that is not plain."""

    state: State
    reason: str = ""


class StepsCompleted(Event, frozen=True, kw_only=True, tag="steps"):
    """Consecutive updates `first`, `first + 1`, …; `times_s` is measured from the run's start."""

    segment: int
    first: int
    losses: list[float]
    lrs: list[float]
    times_s: list[float]
    skipped: tuple[int, ...] = ()


class StepsMissed(Event, frozen=True, kw_only=True, tag="steps_missed"):
    """The keeper was away for longer than the ring holds: `count` steps before `step` are not known."""

    segment: int
    step: int
    count: int


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One block's line: ‖dL/dx‖/‖dL/dy‖ from its parts and from autograd; the product runs from the output down."""

    block: str
    factor: float | None
    autograd: float | None
    discrepancy: float | None
    product: float | None


class ReadingsTaken(Event, frozen=True, kw_only=True, tag="reading"):
    """Every layer's readings of one step, by metric, in the order of the layers' list that `structure` numbers.

    None stands where a metric does not apply.

    Metrics of the slower tiers are there only on the steps they were taken. Gradients are those the optimizer received,
    and `global_grad_norm` is √Σ‖g‖² over them; `grad_norm_preclip` is what it was before our clip, where that is on.
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
    """What the driver tells of a GPU, all its processes together; None where it does not tell. `utilisation` is 0…1."""

    name: str
    utilisation: float | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None


class DeviceTaken(Event, frozen=True, kw_only=True, tag="device"):
    """The memory that training takes on its device, about once a second; on a CPU the process's resident memory.

    `uuid` is the GPU's, by which the keeper finds it; `gpu` is the keeper's to add.
    """

    segment: int
    step: int
    device: str
    allocated_bytes: int | None = None
    peak_bytes: int | None = None
    uuid: str | None = None
    gpu: Gpu | None = None


class LedgerTaken(Event, frozen=True, kw_only=True, tag="ledger"):
    """The chain rule's factors of one step, first block first."""

    segment: int
    step: int
    entries: list[LedgerEntry]


class Measured(Event, frozen=True, kw_only=True, tag="measured"):
    """A number about the whole net that is taken rarely: `local_step`, `noise_scale`, `sharpness`, `lambda_min`, …

    `how` says how it was got and how far it converged, where that is not always the same.
    """

    segment: int
    step: int
    name: str
    value: float
    how: str = ""


class CurvatureTaken(Event, frozen=True, kw_only=True, tag="curvature"):
    """The Hessian of a fixed probe batch's loss with the weights before update `step`, and what the step size allows.

    `scaled` is the Hessian as an adaptive optimizer scales it, where the `limit` is about that one. No limit is known
    for some optimizers. `seconds` of wall time.
    """

    segment: int
    step: int
    hessian: CurvatureReading
    scaled: CurvatureReading | None = None
    limit: Limit | None = None
    seconds: float

    @property
    def sharpness(self) -> float:
        """λmax."""
        return self.hessian.lambda_max

    @property
    def limited(self) -> float | None:
        """The λmax that the limit is about; None where there is no limit or it has not been read."""
        if self.limit is None:
            return None
        read = self.scaled if self.limit.preconditioned else self.hessian
        return None if read is None else read.lambda_max

    @property
    def edge(self) -> float | None:
        """That λmax over its limit: steps along its direction shrink below 1 and grow above."""
        return None if self.limit is None or self.limited is None else self.limited / self.limit.lambda_max


class Advice(msgspec.Struct, frozen=True):
    """A knob, the value to turn it to, and the key that does it."""

    knob: str
    value: str
    key: str


class Diagnosed(Event, frozen=True, kw_only=True, tag="diagnosis"):
    """What holds the run up, where, how sure that is (0…1), on what evidence, and what helps here, best first."""

    segment: int
    step: int
    finding: str
    layer: str | None = None
    sure: float
    evidence: dict[str, float | str] = {}
    advice: tuple[Advice, ...] = msgspec.field(default=(), name="try")
    sentence: str = ""


class Foretold(Event, frozen=True, kw_only=True, tag="outcome"):
    """What an intervention was expected to lead to, and what the readings after it showed."""

    segment: int
    step: int
    predicted: str
    happened: str
    held: bool


class Evaluated(Event, frozen=True, kw_only=True, tag="evaluated"):
    """Loss and accuracy on the held-out data with the weights before update `step`."""

    segment: int
    step: int
    loss: float
    accuracy: float | None = None


class MetricLogged(Event, frozen=True, kw_only=True, tag="metric"):
    """A number of the user's own, given to `Watch.log`."""

    segment: int
    step: int
    name: str
    value: float


class NotFinite(Event, frozen=True, kw_only=True, tag="not_finite"):
    """A loss or gradient that is no number, and the first layer that went bad where that is known."""

    segment: int
    step: int
    what: Literal["loss", "gradient"]
    layer: str | None
    text: str


class Marked(Event, frozen=True, kw_only=True, tag="mark"):
    """A moment somebody wanted to find again."""

    segment: int
    step: int
    text: str


class Noted(Event, frozen=True, kw_only=True, tag="note"):
    """A line for the event log that changes nothing."""

    step: int
    text: str
    level: Literal["info", "warning", "error"] = "info"


class RunEnded(Event, frozen=True, kw_only=True, tag="run_ended"):
    """The last event. `step` counts the updates made; `loss` was evaluated after the last of them."""

    status: Status
    step: int
    loss: float | None = None
    accuracy: float | None = None
    reason: str = ""
    position: tuple[float, ...] | None = None
    exit_code: int | None = None
    log_tail: tuple[str, ...] = ()
    log_path: str | None = None


AnyEvent = (
    RunStarted
    | LayersChanged
    | StateChanged
    | StepsCompleted
    | StepsMissed
    | ReadingsTaken
    | DeviceTaken
    | LedgerTaken
    | CurvatureTaken
    | RatesSwept
    | Measured
    | Diagnosed
    | Foretold
    | Evaluated
    | MetricLogged
    | KnobTurned
    | CommandDone
    | CommandRejected
    | SnapshotTaken
    | Rewound
    | NotFinite
    | Marked
    | Noted
    | RunEnded
)


class Welcome(Event, frozen=True, kw_only=True, tag="welcome"):
    """The keeper's first frame to a viewer: the number its replies will carry."""

    version: int
    client: int
    run: str


class Refused(Event, frozen=True, kw_only=True, tag="refused"):
    """The keeper's last frame to a viewer it closes, with the reason."""

    reason: str


class LevelSent(msgspec.Struct, frozen=True, kw_only=True):
    """One level of a `Pyramid`: bins of `width` steps, `array('d')` bytes, channels contiguous within a bin."""

    width: int
    bins: bytes
    counts: bytes
    values: bytes


class HistorySent(Event, frozen=True, kw_only=True, tag="history"):
    """All a viewer needs to draw the run so far; the live stream goes on right behind it.

    `line` are interventions, marks and evaluations under the segment they lie in now that some were left behind. `rows`
    names the channels of each segment's `grads`: the layers it has now, then those it had. `smoothed` is what the
    moving average of the loss goes on from.
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
    ghosts: tuple[Ghost, ...] = ()
    line: list[KnobTurned | Marked | Evaluated] = []
    snapshot: SnapshotTaken | None = None
    unavailable: dict[str, str] = {}
    rows: dict[int, tuple[str, ...]] = {}


ToViewer = AnyEvent | Welcome | Refused | HistorySent
