"""The only owner of the past, in the keeper and in every viewer: bounded, multi-resolution, fed by events alone."""

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
    Evaluated,
    Foretold,
    HistorySent,
    KnobState,
    KnobTurned,
    Layer,
    LayersChanged,
    LedgerTaken,
    Marked,
    Measured,
    MetricLogged,
    Noted,
    NotFinite,
    RatesSwept,
    ReadingsTaken,
    Rewound,
    RunEnded,
    RunStarted,
    SnapshotTaken,
    StateChanged,
    StepsCompleted,
    StepsMissed,
)
from tui_descent.protocol.rewinding import Ghost
from tui_descent.telemetry.gradient_history import Gradients, carried
from tui_descent.telemetry.log import Fact
from tui_descent.telemetry.newest_readings import Tiers
from tui_descent.telemetry.pyramid import Pyramid, device_pyramid, loss_pyramid
from tui_descent.telemetry.smoothing import OVER, Smoothed

MAX_FACTS = 500
# Readings of the curvature: when there are more, the one closest to its neighbours goes, so that they span the run.
MAX_CURVATURES = 512
# Stretches left behind that are still shown, and those of them whose gradients redo still finds.
MAX_GHOSTS = 8
MAX_GHOSTS_WITH_GRADS = 2

Placed = TypeVar("Placed", Marked, Evaluated, CurvatureTaken, ReadingsTaken, LedgerTaken, Measured)


class History:
    """Everything a viewer draws. `revision` grows with every change; panels compare it and hold nothing."""

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.changed: LayersChanged | None = None
        # The net's now, in forward order; the list's number, which its readings carry; how many numbers the net has.
        self.layers: tuple[Layer, ...] = ()
        self.structure = self.parameters = 0
        self.state = StateChanged(state="importing torch")
        self.ended: RunEnded | None = None
        self.knobs: dict[str, str] = {}
        self.unavailable: dict[str, str] = {}
        self.segment = 0
        self.steps = 0
        self.loss = math.nan
        self.lr = math.nan
        self.smoothed = Smoothed()
        self.steps_per_s = 0.0
        self.losses: dict[int, Pyramid] = {}
        self.grads: dict[int, Gradients] = {}
        self.readings: ReadingsTaken | None = None
        self.tiers = Tiers()
        self.device: DeviceTaken | None = None
        self.devices: dict[int, Pyramid] = {}
        self.evaluations: deque[Evaluated] = deque(maxlen=MAX_FACTS)
        self.interventions: deque[KnobTurned] = deque(maxlen=MAX_FACTS)
        self.marks: deque[Marked] = deque(maxlen=MAX_FACTS)
        self.log: list[Fact] = []  # in the order of events
        self.diagnosis: Diagnosed | None = None
        self.measured: dict[str, Measured] = {}
        self.ledger: LedgerTaken | None = None
        self.curvatures: list[CurvatureTaken] = []
        self.swept: RatesSwept | None = None
        self.ghosts: tuple[Ghost, ...] = ()
        self.snapshot: SnapshotTaken | None = None
        self.revision = 0
        self._smooth_over = OVER
        self._rate_from: tuple[float, int] | None = None

    @property
    def smooth_loss(self) -> float:
        """The smoothed loss behind the last step."""
        return self.smoothed.value

    @property
    def shown_loss(self) -> float:
        """What is said of the loss in a figure: smoothed, but the last one as it is where that is no number."""
        return self.smooth_loss if math.isfinite(self.loss) else self.loss

    @property
    def live(self) -> bool:
        """Whether more can come."""
        return self.ended is None

    @property
    def span(self) -> int:
        """Steps that the time axis holds: those made, and those left behind."""
        return max(self.steps, *(ghost.last + 1 for ghost in self.ghosts), 0)

    def apply(self, event: AnyEvent) -> None:
        """Take in one event. Unknown steps, NaN and infinities are ordinary."""
        self.revision += 1
        match event:
            case StepsCompleted():
                self._steps(event)
            case ReadingsTaken():
                self._readings(event)
            case LayersChanged():
                self._change_layers(event)
            case StateChanged():
                changed = (event.state, event.reason) != (self.state.state, self.state.reason)
                changed = changed and self.state.state != "testing"  # after it a run stands as it stood
                self.state = event
                self._rate_from = None
                if event.state in ("paused", "held", "waiting", "ended"):
                    self.steps_per_s = 0.0
                if changed and event.state in ("held", "waiting"):
                    self._note(event)
            case RunStarted():
                self._start(event)
            case RunEnded():
                self.ended = event
                self.steps_per_s = 0.0
                self.state = StateChanged(state="ended", reason=event.reason)
            case KnobTurned():
                if event.target == "all":
                    self.knobs[event.knob] = event.new
                self._know(event.knobs)
                self.interventions.append(event)
                self._note(event)
            case Evaluated():
                self.evaluations.append(event)
                self._note(event)
            case Marked():
                self.marks.append(event)
                self._note(event)
            case Diagnosed():
                self._diagnosed(event)
            case Measured():
                self.measured[event.name] = event
            case DeviceTaken():
                self._device(event)
            case LedgerTaken():
                self.ledger = event
            case CurvatureTaken():
                self._curved(event)
            case RatesSwept():
                self.swept = event
                self._note(event)
            case Foretold() | NotFinite():
                self._note(event)
            case Rewound():
                self._rewound(event)
            case SnapshotTaken():
                self.snapshot = event
            case CommandDone() | MetricLogged():
                pass
            case CommandRejected() | Noted() | StepsMissed():
                self._note(event)

    def _note(self, fact: Fact) -> None:
        """Into the log. Evaluations come by themselves and often, so they make room before what somebody did."""
        self.log.append(fact)
        if len(self.log) > MAX_FACTS:
            often = sum(isinstance(known, Evaluated) for known in self.log) > MAX_FACTS // 2
            del self.log[next(n for n, known in enumerate(self.log) if isinstance(known, Evaluated) or not often)]

    def _know(self, states: Iterable[KnobState]) -> None:
        for state in states:
            here, away = (self.knobs, self.unavailable) if state.unavailable is None else (self.unavailable, self.knobs)
            here[state.name] = state.value if state.unavailable is None else state.unavailable
            away.pop(state.name, None)

    def _rewound(self, event: Rewound) -> None:
        """Go on as a new segment with the same past; what lies behind becomes a ghost, or of a ghost live again."""
        acted = {e.id for e in self.interventions if e.segment == self.segment and e.knob != "pace"}
        acts = set(event.in_force)
        changed = max(acted ^ acts, default=None)
        # Where the line that is left and the one gone to part.
        parted = event.step
        if not event.back:
            parted = next((e.step for e in self.interventions if e.id == changed), event.step)
        source = event.from_segment if event.back or event.to_segment not in self.losses else event.to_segment
        for kept in (self.losses, self.devices):
            if (pyramid := kept.get(source)) is not None:
                kept[event.segment] = pyramid.before(event.step)
        if (grads := self.grads.get(source)) is not None:
            # Left under other layers perhaps; which there are from here on is told next.
            self.grads[event.segment] = grads.before(event.step).of(self.layers)

        ghosts = [g for g in self.ghosts if event.back or changed is None or g.undone != changed]
        live = [(event.from_segment, parted), (event.to_segment, event.step)]
        live += [(g.segment, event.step) for g in self.ghosts if g not in ghosts]

        def here(fact: Placed | None) -> Placed | None:
            if fact is None or not any(fact.segment == left and fact.step < before for left, before in live):
                return None
            return msgspec.structs.replace(fact, segment=event.segment)

        # What stands on the screen as of now is of the stretch that is gone on with, or nothing is.
        self.readings, self.ledger = self.tiers.go_back(here), here(self.ledger)
        self.measured = {name: fact for name, known in self.measured.items() if (fact := here(known)) is not None}

        def moved(facts: Iterable[Placed]) -> list[Placed]:
            return [here(fact) or fact for fact in facts]

        self.marks = deque(moved(self.marks), maxlen=MAX_FACTS)
        self.evaluations = deque(moved(self.evaluations), maxlen=MAX_FACTS)
        self.curvatures = moved(self.curvatures)
        self.interventions = deque(
            (msgspec.structs.replace(e, segment=event.segment) if e.id in acts else e for e in self.interventions),
            maxlen=MAX_FACTS,
        )
        if event.from_step > parted:
            undone = changed if event.back else None
            label = f"{'undone:' if event.back else 'without'} {event.what}"
            last = event.from_step - 1
            ghosts.append(Ghost(segment=event.from_segment, first=parted, last=last, label=label, undone=undone))
        self.ghosts = tuple(ghosts[-MAX_GHOSTS:])
        self.segment, self.steps = event.segment, event.step
        self._forget_segments()
        self._know(event.knobs)
        if (pyramid := self.losses.get(event.segment)) is not None:
            *_, self.loss, smooth = pyramid.newest()
            self.smoothed.back(event.step, smooth, self.loss)
        self._rate_from = None
        self._note(event)

    def _forget_segments(self) -> None:
        shown = [self.segment, *(g.segment for g in self.ghosts[::-1])]
        for kept, count in ((self.losses, MAX_GHOSTS), (self.grads, MAX_GHOSTS_WITH_GRADS), (self.devices, 0)):
            for segment in kept.keys() - set(shown[: count + 1]):
                del kept[segment]

    def _curved(self, event: CurvatureTaken) -> None:
        kept = self.curvatures
        kept.append(event)
        if len(kept) > MAX_CURVATURES:
            del kept[min(range(1, len(kept) - 1), key=lambda n: kept[n + 1].step - kept[n - 1].step)]

    def _diagnosed(self, event: Diagnosed) -> None:
        if self.diagnosis is None or event.finding != self.diagnosis.finding:
            self._note(event)
        self.diagnosis = event

    def _start(self, event: RunStarted) -> None:
        self.started = event
        self.layers, self.parameters = event.layers, event.parameters
        self._know(event.knobs)
        # Without batches a loss has no noise to smooth away, and an average would only come late.
        self._smooth_over = 1.0 if event.scenario is not None and event.scenario.get("data") is None else OVER

    def _steps(self, event: StepsCompleted) -> None:
        if not event.losses:
            return
        if event.segment not in self.losses:
            self.losses[event.segment] = loss_pyramid()
            self.smoothed = Smoothed()
        pyramid = self.losses[event.segment]
        for step, loss in enumerate(event.losses, event.first):
            if math.isfinite(loss):
                pyramid.add(step, (loss, loss, loss, self.smoothed.add(step, loss, self._smooth_over)))
        self.segment = event.segment
        self.steps = event.first + len(event.losses)
        self.loss, self.lr = event.losses[-1], event.lrs[-1]
        if "lr" in self.knobs and math.isfinite(self.lr):
            self.knobs["lr"] = f"{self.lr:.6g}"  # a schedule or another optimizer moves it, and no turn of its own
        self._rate(event.times_s[-1])

    def _rate(self, time_s: float) -> None:
        """Steps a second over the last second or so of the trainer's own clock."""
        if self._rate_from is None or time_s < self._rate_from[0] or self.steps < self._rate_from[1]:
            self._rate_from = (time_s, self.steps)
            return
        elapsed = time_s - self._rate_from[0]
        if elapsed >= 1.0 or (self.steps_per_s == 0.0 and elapsed >= 0.2):
            self.steps_per_s = (self.steps - self._rate_from[1]) / elapsed
            self._rate_from = (time_s, self.steps)

    def _readings(self, event: ReadingsTaken) -> None:
        rms, layers = event.values.get("grad_rms", []), self.layers
        if event.structure != self.structure or len(rms) not in (0, len(layers)):
            return  # whose rows they are was never told
        self.readings = event
        self.tiers.add(event)
        if rms:
            if event.segment not in self.grads:
                self.grads[event.segment] = Gradients([layer.name for layer in layers])
            self.grads[event.segment].add(event.step, rms)

    def _change_layers(self, event: LayersChanged) -> None:
        if self.readings is not None:
            self.readings = carried(self.readings, self.layers, event.layers, event.structure)
        self.tiers.change(self.layers, event.layers, event.structure)
        self.changed = event
        self.layers, self.structure, self.parameters = event.layers, event.structure, event.parameters
        if (grads := self.grads.get(event.segment)) is not None:
            self.grads[event.segment] = grads.of(event.layers)

    def _device(self, event: DeviceTaken) -> None:
        self.device = event
        used = event.allocated_bytes
        busy = event.gpu.utilisation if event.gpu is not None else None
        pyramid = self.devices.setdefault(event.segment, device_pyramid())
        pyramid.add(event.step, [math.nan if value is None else value for value in (used, busy)])

    def send(self) -> HistorySent:
        """The history as one message, from which `receive` makes its equal."""
        facts: list[AnyEvent] = []
        if self.started is not None:
            facts.append(self.started)
        if self.changed is not None:
            facts.append(self.changed)
        facts += [*self.log, *self.curvatures, *self.tiers.older(self.readings)]
        newest: list[AnyEvent | None] = [self.readings, self.device, self.ledger, *self.measured.values()]
        facts += [event for event in newest if event is not None]
        facts.append(self.ended if self.ended is not None else self.state)
        return HistorySent(
            facts=facts,
            losses={s: p.send() for s, p in self.losses.items()},
            grads={s: g.send() for s, g in self.grads.items()},
            rows={s: g.names for s, g in self.grads.items()},
            devices={s: p.send() for s, p in self.devices.items()},
            ghosts=self.ghosts,
            line=[*self.interventions, *self.marks, *self.evaluations],
            snapshot=self.snapshot,
            knobs=dict(self.knobs),
            unavailable=dict(self.unavailable),
            segment=self.segment,
            steps=self.steps,
            loss=self.loss,
            lr=self.lr,
            smoothed=self.smoothed.send(),
            steps_per_s=self.steps_per_s,
        )

    @classmethod
    def receive(cls, sent: HistorySent) -> History:
        """The history that was sent."""
        history = cls()
        *past, last = sent.facts
        for fact in past:
            if isinstance(fact, StateChanged | Rewound):
                history._note(fact)  # a moment of the past, not the present state
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
            history.grads[segment] = Gradients(sent.rows[segment], shown=len(history.layers))
            history.grads[segment].pyramid.receive(levels)
        for segment, levels in sent.devices.items():
            history.devices[segment] = device_pyramid()
            history.devices[segment].receive(levels)
        history.ghosts, history.snapshot = sent.ghosts, sent.snapshot
        history.interventions = deque((e for e in sent.line if isinstance(e, KnobTurned)), maxlen=MAX_FACTS)
        history.evaluations = deque((e for e in sent.line if isinstance(e, Evaluated)), maxlen=MAX_FACTS)
        history.marks = deque((e for e in sent.line if isinstance(e, Marked)), maxlen=MAX_FACTS)
        history.segment, history.steps = sent.segment, sent.steps
        history.smoothed = Smoothed.receive(sent.smoothed)
        history.steps_per_s = sent.steps_per_s
        history.loss, history.lr = sent.loss, sent.lr
        return history
