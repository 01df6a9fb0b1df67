"""Runs the diagnosis in the keeper: reads a run's events and adds events that say what is wrong.

The diagnosis needs only events, so it costs the trainer no time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from tui_descent.protocol.events import (
    AnyEvent,
    CurvatureTaken,
    Diagnosed,
    KnobTurned,
    LayersChanged,
    LoopObserved,
    NotFinite,
    PredictionChecked,
    RatesChanged,
    ReadingsTaken,
    Rewound,
    RunStarted,
    SnapshotTaken,
    StateChanged,
    StepsCompleted,
    WiringFound,
)
from tui_descent.scenario.knobs import CHANGE_STEPS, NEUTRAL_KNOBS, shown_value
from tui_descent.telemetry.diagnosis import Diagnosis, Finding, sentence
from tui_descent.telemetry.diagnosis.situation import after_turn, situation_of

REPEAT_S = 2.0  # the least time before the same finding is published again with new evidence


class DiagnosisEvents:
    """Feeds one run's events to its diagnosis and publishes a finding when it changes."""

    def __init__(self) -> None:
        self._diagnosis: Diagnosis | None = None
        self._published: Finding | None = None
        self._published_s = 0.0
        self._step = 0
        self._segment = 0
        self._change = ""  # the last intervention

    def after(self, event: AnyEvent) -> Iterator[AnyEvent]:
        """Process one event; yields the events to publish after it."""
        if isinstance(event, RunStarted):
            knobs = [k.name for k in event.knobs if k.unavailable is None]
            self._diagnosis = Diagnosis(event.layers, knobs=knobs, context=situation_of(event))
        if self._diagnosis is None:
            return
        match event:
            case StepsCompleted():
                self._segment, self._step = event.segment, event.first + len(event.losses)
                for step, (loss, lr) in enumerate(zip(event.losses, event.lrs, strict=True), event.first):
                    self._diagnosis.add_loss(step, loss, rate=lr)
                yield from self._news(self._diagnosis)
            case NotFinite():
                self._segment, self._step = event.segment, event.step
                self._diagnosis.add_not_finite(event)
                yield from self._news(self._diagnosis)
            case WiringFound():
                self._segment, self._step = event.segment, event.step
                self._diagnosis.add_wiring(event)
                yield from self._news(self._diagnosis)
            case LoopObserved():
                self._diagnosis.context = self._diagnosis.context.with_loop(event)
            case RatesChanged():
                self._diagnosis.context = self._diagnosis.context.with_rates(event)
            case ReadingsTaken():
                self._diagnosis.add_reading(event)
            case LayersChanged():
                self._diagnosis.change_layers(event.layers, event.structure)
            case CurvatureTaken():
                self._diagnosis.add_curvature(event.sharpness, event.hessian.lambda_min, edge=event.edge)
            case SnapshotTaken():
                self._diagnosis.allow_advice("undo")
            case Rewound():
                self._segment, self._step = event.segment, event.step
                self._diagnosis.rewind(event.step, event.knobs)
                self._diagnosis.undoable = bool(event.in_force)
                self._published = None
            case KnobTurned() if event.knob not in NEUTRAL_KNOBS:
                self._change = f"{event.knob} {shown_value(event.knob, event.new)}"
                gradual = CHANGE_STEPS.get(event.way or "", 0)
                value = event.value or event.new
                self._diagnosis.turn_knob(event.step, event.knob, value, old=event.old, gradual=gradual)
                self._diagnosis.context = after_turn(self._diagnosis.context, event)
                self._diagnosis.set_knobs(event.knobs)
                self._published = None
            case StateChanged():
                yield from self.newest()
            case _:
                pass

    def newest(self) -> Iterator[AnyEvent]:
        """The finding with its newest numbers. Those of a run that pauses or ends stay on the screen."""
        if self._diagnosis is not None:
            yield from self._news(self._diagnosis, repeat_s=0.0)

    def _news(self, diagnosis: Diagnosis, *, repeat_s: float = REPEAT_S) -> Iterator[AnyEvent]:
        """The outcome of the last intervention, and the finding if it is new."""
        if (outcome := diagnosis.outcome) is not None:
            diagnosis.outcome = None
            yield PredictionChecked(
                segment=self._segment,
                step=self._step,
                predicted=outcome.predicted,
                happened=outcome.happened,
                held=outcome.held,
                change=self._change,
                before=outcome.before,
            )
        found = diagnosis.finding()
        if found is None or found is self._published:
            return
        if _essence(found) == _essence(self._published) and time.monotonic() - self._published_s < repeat_s:
            return
        self._published, self._published_s = found, time.monotonic()
        yield Diagnosed(
            segment=self._segment,
            step=self._step,
            kind=found.kind,
            finding=found.finding,
            layer=found.layer,
            sure=found.sure,
            evidence=found.evidence,
            advice=found.advice,
            sentence=sentence(found),
        )


def _essence(found: Finding | None) -> tuple[Any, ...] | None:
    """The parts of a finding that identify it. Changed numbers in its evidence do not make it a new finding."""
    return None if found is None else (found.finding, found.layer, found.advice, found.evidence.get("curvature"))
