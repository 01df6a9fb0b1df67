"""Everything that is known about a run so far, built from its events alone. Its size is bounded. The keeper and every
viewer have a history each.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    CurvatureTaken,
    DeviceTaken,
    Diagnosed,
    EndReached,
    Evaluated,
    HistorySent,
    KnobState,
    KnobTurned,
    LaneEnded,
    LaneSteps,
    Layer,
    LayersChanged,
    LedgerTaken,
    LensTaken,
    LoopObserved,
    Marked,
    Measured,
    MetricLogged,
    Noted,
    NotFinite,
    PredictionChecked,
    RangeTestCompleted,
    RatesChanged,
    ReadingsTaken,
    RecordingChanged,
    Rewound,
    RunEnded,
    RunStarted,
    SnapshotSaved,
    SnapshotTaken,
    StateChanged,
    StepsCompleted,
    StepsMissed,
    TaskTaken,
    WiringFound,
)
from tui_descent.protocol.undo_events import Ghost
from tui_descent.scenario.knobs import NEUTRAL_KNOBS
from tui_descent.telemetry.gradient_history import GradientHistory
from tui_descent.telemetry.log import LogEntry
from tui_descent.telemetry.metric_history import MetricHistory, held_out_loss, thinned
from tui_descent.telemetry.newest_readings import NewestReadings, move_rows
from tui_descent.telemetry.pyramid import Pyramid, device_pyramid, loss_pyramid
from tui_descent.telemetry.race_history import LaneHistory
from tui_descent.telemetry.smoothing import WINDOW, SmoothedLoss, window_of

# How many entries the log may have. The same limit holds for evaluations, for interventions and for marks. If there are
# too many evaluations, every second one is dropped, so the rest still spans the run.
MAX_ENTRIES = 500
# If there are more, the reading that is closest to its neighbours is dropped, so the rest still spans the run.
MAX_CURVATURES = 512
MAX_LENSES = 8  # layers whose activations viewers watch
# How many ghosts (undone steps) are still shown, and for how many of these the gradients are kept for redo.
MAX_GHOSTS = 8
MAX_GHOSTS_WITH_GRADS = 2

Placed = TypeVar("Placed", Marked, Evaluated, CurvatureTaken, ReadingsTaken, LedgerTaken, Measured)


class History:
    """Everything that a viewer draws. `revision` grows with every event, so that a panel knows when to redraw."""

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.layers_changed: LayersChanged | None = None
        self.layers: tuple[Layer, ...] = ()  # the current ones, in forward order
        self.structure = (
            0  # the number of the current list of layers; a reading has the number of the list that its rows are for
        )
        self.parameters = 0
        self.state = StateChanged(state="importing torch")
        self.end_reached: EndReached | None = None
        self.recording: RecordingChanged | None = None  # the newest, if recording has ever stopped
        self.ended: RunEnded | None = None
        self.knobs: dict[str, str] = {}
        self.unavailable: dict[str, str] = {}
        self.segment = 0
        self.steps = 0
        self.loss = math.nan
        self.lr = math.nan
        self.smoothed = SmoothedLoss()
        self.steps_per_s = 0.0
        self.losses: dict[int, Pyramid] = {}
        self.grads: dict[int, GradientHistory] = {}
        self.rates: RatesChanged | None = None  # if there are several optimizers or parameter groups
        self.readings: ReadingsTaken | None = None
        self.newest_readings = NewestReadings()
        self.device: DeviceTaken | None = None
        self.devices: dict[int, Pyramid] = {}
        self.metrics: dict[int, MetricHistory] = {}
        self.evaluations: list[Evaluated] = []
        self.interventions: deque[KnobTurned] = deque(maxlen=MAX_ENTRIES)
        self.marks: deque[Marked] = deque(maxlen=MAX_ENTRIES)
        self.log: list[LogEntry] = []  # in the order of events
        self.diagnosis: Diagnosed | None = None
        self.diagnosed_after = 0  # the id of the last intervention before it
        self.measured: dict[str, Measured] = {}
        self.ledger: LedgerTaken | None = None
        self.backward_pass: LedgerTaken | None = None  # the newest one with parts
        self.curvatures: list[CurvatureTaken] = []
        self.task: TaskTaken | None = None  # the newest one; a new viewer asks for its own
        self.lens: dict[str, LensTaken] = {}  # the newest ones, by the asked layer
        self.swept: RangeTestCompleted | None = None
        self.lanes: list[LaneHistory] = []  # of a race, in the order of `RunStarted.lanes`
        self.ghosts: tuple[Ghost, ...] = ()
        self.snapshot: SnapshotTaken | None = None
        self.revision = 0
        self._smoothing_window = WINDOW
        self._speed_since: tuple[float, int] | None = None

    @property
    def smooth_loss(self) -> float:
        """The smoothed loss after the last step."""
        return self.smoothed.value

    @property
    def shown_loss(self) -> float:
        """The loss to show as a number: the smoothed loss, or the last loss if that is not finite."""
        return self.smooth_loss if math.isfinite(self.loss) else self.loss

    @property
    def live(self) -> bool:
        """Whether the run has not ended yet."""
        return self.ended is None

    @property
    def end(self) -> RunEnded | EndReached | None:
        """What was evaluated after the last update; None before the run's end."""
        reached = self.end_reached
        if self.ended is not None or reached is None:
            return self.ended
        return reached if (reached.segment, reached.step) == (self.segment, self.steps) else None

    @property
    def span(self) -> int:
        """How many steps the time axis covers, including ghosts."""
        return max(self.steps, *(ghost.last + 1 for ghost in self.ghosts), 0)

    def apply(self, event: AnyEvent) -> None:
        """Update the history with one event. Gaps between steps, NaN and infinities are valid."""
        self.revision += 1
        match event:
            case StepsCompleted():
                self._steps(event)
            case LaneSteps() | LaneEnded():
                self._race(event)
            case ReadingsTaken():
                self._readings(event)
            case LayersChanged():
                self._change_layers(event)
            case StateChanged():
                self._change_state(event)
            case RunStarted():
                self._start(event)
            case EndReached():
                self.end_reached = event
            case RecordingChanged():
                self.recording = event
            case RunEnded():
                self._end(event)
            case KnobTurned():
                self._turned(event)
            case Evaluated():
                self._add_evaluation(event)
                self._log(event)
            case Marked():
                self.marks.append(event)
                self._log(event)
            case Diagnosed():
                self._diagnosed(event)
            case Measured():
                self.measured[event.name] = event
            case DeviceTaken():
                self._device(event)
            case LedgerTaken():
                self._add_ledger(event)
            case CurvatureTaken():
                self._add_curvature(event)
            case TaskTaken() | LensTaken():
                self._add_picture(event)
            case RangeTestCompleted():
                self.swept = event
                self._log(event)
            case Rewound():
                self._rewind(event)
            case SnapshotTaken():
                self.snapshot = event
            case RatesChanged():
                self.rates = event
            case MetricLogged():
                self._add_metric(event)
            case WiringFound():
                self._wiring(event)
            case CommandDone() | LoopObserved():
                pass
            case CommandRejected() | Noted() | StepsMissed() | PredictionChecked() | NotFinite() | SnapshotSaved():
                self._log(event)

    def _turned(self, event: KnobTurned) -> None:
        if event.target == "all":
            self.knobs[event.knob] = event.new
        self._update_knobs(event.knobs)
        self.interventions.append(event)
        self._log(event)

    def _add_ledger(self, event: LedgerTaken) -> None:
        self.ledger = event
        if any(entry.parts for entry in event.entries):
            self.backward_pass = event

    def _end(self, event: RunEnded) -> None:
        self.ended = event
        self.steps_per_s = 0.0
        self.state = StateChanged(state="ended", reason=event.reason)

    def _wiring(self, event: WiringFound) -> None:
        if not event.present and self.diagnosis is not None and self.diagnosis.finding == event.fault:
            self.diagnosis = None  # it is not true any more

    def _change_state(self, event: StateChanged) -> None:
        before, self.state, self._speed_since = self.state, event, None
        if event.silent_s or event.state in ("paused", "held", "waiting", "ended"):
            self.steps_per_s = 0.0
        # After a range test or a silence of the trainer, the previous state comes back.
        returned = before.state == "testing" or event.silent_s or before.silent_s
        changed = (event.state, event.reason) != (before.state, before.reason)
        if changed and not returned and event.state in ("held", "waiting"):
            self._log(event)

    def _log(self, entry: LogEntry) -> None:
        """Add to the log.

        If it is full, the oldest entry is dropped, or the oldest evaluation if most are evaluations.
        """
        self.log.append(entry)
        if len(self.log) > MAX_ENTRIES:
            often = sum(isinstance(known, Evaluated) for known in self.log) > MAX_ENTRIES // 2
            del self.log[next(n for n, known in enumerate(self.log) if isinstance(known, Evaluated) or not often)]

    def initial_state(self, knob: str) -> KnobState:
        """A knob's state at the start of the run."""
        states = self.started.knobs if self.started is not None else ()
        return next((state for state in states if state.name == knob), KnobState(name=knob))

    def _update_knobs(self, states: Iterable[KnobState]) -> None:
        for state in states:
            here, away = (self.knobs, self.unavailable) if state.unavailable is None else (self.unavailable, self.knobs)
            here[state.name] = state.value if state.unavailable is None else state.unavailable
            away.pop(state.name, None)

    def _rewind(self, event: Rewound) -> None:
        """Start a new segment, at an earlier step (undo) or at a later step of a ghost (redo). It begins with a copy of
        the history up to that step. The abandoned steps become a ghost.
        """
        before = {e.id for e in self.interventions if e.segment == self.segment and e.knob not in NEUTRAL_KNOBS}
        in_force = set(event.in_force)
        changed = max(before ^ in_force, default=None)  # the intervention that is undone or redone
        fork = event.step  # the first step at which the abandoned and the new steps differ
        if not event.back:
            fork = next((e.step for e in self.interventions if e.id == changed), event.step)
        source = event.from_segment if event.back or event.to_segment not in self.losses else event.to_segment
        self._copy_curves(source, event)
        ghosts = [g for g in self.ghosts if event.back or changed is None or g.undone != changed]
        live = [(event.from_segment, fork), (event.to_segment, event.step)]
        live += [(g.segment, event.step) for g in self.ghosts if g not in ghosts]

        def still_valid(fact: Placed | None) -> Placed | None:
            """The event, moved to the new segment; None if its step is not in the history that the new segment begins
            with.
            """
            if fact is None or not any(fact.segment == segment and fact.step < end for segment, end in live):
                return None
            return msgspec.structs.replace(fact, segment=event.segment)

        # A current value is kept only if its step is in the history that the new segment begins with.
        self.readings, self.ledger = self.newest_readings.rewind(still_valid), still_valid(self.ledger)
        self.backward_pass = still_valid(self.backward_pass)
        self.measured = {
            name: fact for name, known in self.measured.items() if (fact := still_valid(known)) is not None
        }

        def moved(facts: Iterable[Placed]) -> list[Placed]:
            return [still_valid(fact) or fact for fact in facts]

        self.marks = deque(moved(self.marks), maxlen=MAX_ENTRIES)
        self.evaluations = moved(self.evaluations)
        self.curvatures = moved(self.curvatures)
        self.interventions = deque(
            (msgspec.structs.replace(e, segment=event.segment) if e.id in in_force else e for e in self.interventions),
            maxlen=MAX_ENTRIES,
        )
        if event.from_step > fork:
            undone = changed if event.back and not event.resumed else None
            label = f"{'undone:' if event.back else 'without'} {event.what}"
            if event.resumed:
                label = "made again after the snapshot"
            last = event.from_step - 1
            ghosts.append(Ghost(segment=event.from_segment, first=fork, last=last, label=label, undone=undone))
        self.ghosts = tuple(ghosts[-MAX_GHOSTS:])
        self.segment, self.steps = event.segment, event.step
        self._forget_segments()
        self._update_knobs(event.knobs)
        if (pyramid := self.losses.get(event.segment)) is not None:
            *_, self.loss, smooth = pyramid.newest()
            self.smoothed.rewind(event.step, smooth, self.loss)
        self._speed_since = None
        self._log(event)

    def _copy_curves(self, source: int, event: Rewound) -> None:
        """Begin the curves of the new segment with those of segment `source` up to its first step."""
        for kept in (self.losses, self.devices):
            if (pyramid := kept.get(source)) is not None:
                kept[event.segment] = pyramid.before(event.step)
        if (metrics := self.metrics.get(source)) is not None:
            self.metrics[event.segment] = metrics.before(event.step)
        if (grads := self.grads.get(source)) is not None:
            # The layers may differ at that step: then a `LayersChanged` follows.
            self.grads[event.segment] = grads.before(event.step).with_layers(self.layers)

    def _forget_segments(self) -> None:
        shown = [self.segment, *(g.segment for g in self.ghosts[::-1])]
        with_grads = MAX_GHOSTS_WITH_GRADS
        bounds = (self.losses, MAX_GHOSTS), (self.grads, with_grads), (self.metrics, with_grads), (self.devices, 0)
        for kept, count in bounds:
            for segment in kept.keys() - set(shown[: count + 1]):
                del kept[segment]

    def _add_metric(self, event: MetricLogged) -> None:
        self.metrics.setdefault(event.segment, MetricHistory()).add(event)
        if (evaluated := held_out_loss(event)) is not None:
            self._add_evaluation(evaluated)

    def _add_evaluation(self, event: Evaluated) -> None:
        known = self.evaluations
        if known and (known[-1].segment, known[-1].step) == (event.segment, event.step):
            known.pop()  # logged again in the same step: the newest value counts
        known.append(event)
        self.evaluations = thinned(known, MAX_ENTRIES)

    def _add_picture(self, event: TaskTaken | LensTaken) -> None:
        if isinstance(event, TaskTaken):
            self.task = event
            return
        self.lens.pop(event.asked, None)
        self.lens[event.asked] = event
        if len(self.lens) > MAX_LENSES:
            self.lens.pop(next(iter(self.lens)))

    def _add_curvature(self, event: CurvatureTaken) -> None:
        kept = self.curvatures
        kept.append(event)
        if len(kept) > MAX_CURVATURES:
            del kept[min(range(1, len(kept) - 1), key=lambda n: kept[n + 1].step - kept[n - 1].step)]

    def _diagnosed(self, event: Diagnosed) -> None:
        if self.diagnosis is None or event.finding != self.diagnosis.finding:
            self._log(event)
        self.diagnosis = event
        self.diagnosed_after = max((turn.id for turn in self.interventions), default=0)

    def _start(self, event: RunStarted) -> None:
        self.started = event
        self.layers, self.parameters = event.layers, event.parameters
        # A run that is resumed starts again.
        self.layers_changed, self.structure, self.ended, self.end_reached = None, 0, None, None
        self._update_knobs(event.knobs)
        self.lanes = [LaneHistory() for _ in event.lanes]
        self._smoothing_window = window_of(event.scenario)

    def _steps(self, event: StepsCompleted) -> None:
        if not event.losses:
            return
        if event.segment not in self.losses:
            self.losses[event.segment] = loss_pyramid()
            self.smoothed = SmoothedLoss()
        pyramid = self.losses[event.segment]
        for step, loss in enumerate(event.losses, event.first):
            if math.isfinite(loss):
                pyramid.add(step, (loss, loss, loss, self.smoothed.add(step, loss, self._smoothing_window)))
        self.segment = event.segment
        self.steps = event.first + len(event.losses)
        self.loss, self.lr = event.losses[-1], event.lrs[-1]
        if "lr" in self.knobs and math.isfinite(self.lr):
            self.knobs["lr"] = (
                f"{self.lr:.6g}"  # the rate may change without a `KnobTurned` event: by the schedule or a new optimizer
            )
        self._update_speed(event.times_s[-1])

    def _race(self, event: LaneSteps | LaneEnded) -> None:
        lane = self.lanes[event.lane]
        if isinstance(event, LaneSteps):
            lane.add(event)
        else:
            lane.end(event)
        self.steps = max(lane.steps for lane in self.lanes)

    def _update_speed(self, time_s: float) -> None:
        """Measure the steps per second, over about the last second of the trainer's clock."""
        if self._speed_since is None or time_s < self._speed_since[0] or self.steps < self._speed_since[1]:
            self._speed_since = (time_s, self.steps)
            return
        elapsed = time_s - self._speed_since[0]
        if elapsed >= 1.0 or (self.steps_per_s == 0.0 and elapsed >= 0.2):
            self.steps_per_s = (self.steps - self._speed_since[1]) / elapsed
            self._speed_since = (time_s, self.steps)

    def _readings(self, event: ReadingsTaken) -> None:
        rms, layers = event.values.get("grad_rms", []), self.layers
        if event.structure != self.structure or len(rms) not in (0, len(layers)):
            return  # the rows belong to another list of layers than the current one
        self.readings = event
        self.newest_readings.add(event)
        if rms:
            if event.segment not in self.grads:
                self.grads[event.segment] = GradientHistory([layer.name for layer in layers])
            self.grads[event.segment].add(event.step, rms)

    def _change_layers(self, event: LayersChanged) -> None:
        if self.readings is not None:
            self.readings = move_rows(self.readings, self.layers, event.layers, event.structure)
        self.newest_readings.change_layers(self.layers, event.layers, event.structure)
        self.layers_changed = event
        self.layers, self.structure, self.parameters = event.layers, event.structure, event.parameters
        if (grads := self.grads.get(event.segment)) is not None:
            self.grads[event.segment] = grads.with_layers(event.layers)

    def _device(self, event: DeviceTaken) -> None:
        self.device = event
        used = event.allocated_bytes
        busy = event.gpu.utilisation if event.gpu is not None else None
        pyramid = self.devices.setdefault(event.segment, device_pyramid())
        pyramid.add(event.step, [math.nan if value is None else value for value in (used, busy)])

    def send(self) -> HistorySent:
        """The history as one message."""
        facts: list[AnyEvent] = []
        if self.started is not None:
            facts.append(self.started)
        if self.layers_changed is not None:
            facts.append(self.layers_changed)
        facts += [*self.log, *self.curvatures, *self.newest_readings.older(self.readings)]
        newest: list[AnyEvent | None] = [self.rates, self.readings, self.device, self.ledger, *self.measured.values()]
        newest += [self.end_reached, self.recording]
        facts += [event for event in newest if event is not None]
        facts.append(self.ended if self.ended is not None else self.state)
        return HistorySent(
            facts=facts,
            losses={s: p.send() for s, p in self.losses.items()},
            grads={s: g.send() for s, g in self.grads.items()},
            rows={s: g.names for s, g in self.grads.items()},
            devices={s: p.send() for s, p in self.devices.items()},
            metrics={s: m.send() for s, m in self.metrics.items()},
            ghosts=self.ghosts,
            line=[*self.interventions, *self.marks, *self.evaluations],
            snapshot=self.snapshot,
            diagnosis=self.diagnosis,
            knobs=dict(self.knobs),
            unavailable=dict(self.unavailable),
            segment=self.segment,
            steps=self.steps,
            loss=self.loss,
            lr=self.lr,
            smoothed=self.smoothed.send(),
            steps_per_s=self.steps_per_s,
            lanes=[lane.send() for lane in self.lanes],
        )

    @classmethod
    def receive(cls, sent: HistorySent) -> History:
        """The inverse of `send`."""
        history = cls()
        *past, last = sent.facts
        for fact in past:
            if isinstance(fact, StateChanged | Rewound):
                history._log(fact)  # in the past: logged, but not applied
            else:
                history.apply(fact)
        if isinstance(last, StateChanged):
            history.state = last
        else:
            history.apply(last)
        history.knobs, history.unavailable = dict(sent.knobs), dict(sent.unavailable)
        for segment, levels in sent.losses.items():
            pyramid = loss_pyramid()
            pyramid.receive(levels)
            history.losses[segment] = pyramid
        for segment, levels in sent.grads.items():
            history.grads[segment] = GradientHistory(sent.rows[segment], shown=len(history.layers))
            history.grads[segment].pyramid.receive(levels)
        for segment, levels in sent.devices.items():
            history.devices[segment] = device_pyramid()
            history.devices[segment].receive(levels)
        history.metrics = {segment: MetricHistory.receive(metrics) for segment, metrics in sent.metrics.items()}
        history.lanes = [LaneHistory.receive(lane) for lane in sent.lanes]
        history.ghosts, history.snapshot, history.diagnosis = sent.ghosts, sent.snapshot, sent.diagnosis
        history.interventions = deque((e for e in sent.line if isinstance(e, KnobTurned)), maxlen=MAX_ENTRIES)
        history.evaluations = [e for e in sent.line if isinstance(e, Evaluated)]
        history.marks = deque((e for e in sent.line if isinstance(e, Marked)), maxlen=MAX_ENTRIES)
        history.segment, history.steps = sent.segment, sent.steps
        history.smoothed = SmoothedLoss.receive(sent.smoothed)
        history.steps_per_s = sent.steps_per_s
        history.loss, history.lr = sent.loss, sent.lr
        return history
