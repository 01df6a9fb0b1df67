"""Runs the diagnosis in the keeper: reads a run's events and adds events that say what is wrong.

The diagnosis needs only events, so it costs the trainer no time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tui_descent.protocol.events import (
    AnyEvent,
    CurvatureTaken,
    Diagnosed,
    KnobTurned,
    LayersChanged,
    NotFinite,
    PredictionChecked,
    ReadingsTaken,
    Rewound,
    RunStarted,
    SnapshotTaken,
    StepsCompleted,
)
from tui_descent.scenario.knobs import NEUTRAL_KNOBS
from tui_descent.telemetry.diagnosis import Diagnosis, Finding, RunContext, sentence

EVERY_STEPS = 10
REPEAT_S = 2.0  # the least time before the same finding is published again with new evidence
# The loss of a net that has learnt only letter frequencies: the entropy of single letters of the text data, in nats.
LETTER_ENTROPY = 3.24


class DiagnosisEvents:
    """Feeds one run's events to its diagnosis and publishes a finding when it changes."""

    def __init__(self) -> None:
        self._diagnosis: Diagnosis | None = None
        self._published: Finding | None = None
        self._published_s = 0.0
        self._last_check = 0  # the step of the last check
        self._step = 0
        self._segment = 0

    def after(self, event: AnyEvent) -> Iterator[AnyEvent]:
        """Process one event; yields the events to publish after it."""
        if isinstance(event, RunStarted):
            knobs = [k.name for k in event.knobs if k.unavailable is None]
            self._diagnosis = Diagnosis(event.layers, knobs=knobs, context=context_of(event.scenario))
        if self._diagnosis is None:
            return
        match event:
            case StepsCompleted():
                self._segment, self._step = event.segment, event.first + len(event.losses)
                for step, loss in enumerate(event.losses, event.first):
                    self._diagnosis.add_loss(step, loss)
                yield from self._check(self._diagnosis)
            case NotFinite():
                self._segment, self._step = event.segment, event.step
                self._diagnosis.add_loss(event.step, math.nan)
                self._last_check = event.step + 1  # so that the next line makes the check at once
                yield from self._check(self._diagnosis)
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
                self._diagnosis.rewind(event.step, {k.name: k.value for k in event.knobs})
                self._published = None
            case KnobTurned() if event.knob not in NEUTRAL_KNOBS:
                self._diagnosis.turn_knob(event.step, event.knob, event.new, old=event.old)
                self._published = None
            case _:
                pass

    def _check(self, diagnosis: Diagnosis) -> Iterator[AnyEvent]:
        """Once in EVERY_STEPS steps, yield the outcome of the last intervention, and the finding if it is new."""
        if self._last_check <= self._step < self._last_check + EVERY_STEPS:
            return
        self._last_check = self._step
        if (outcome := diagnosis.outcome) is not None:
            diagnosis.outcome = None
            yield PredictionChecked(
                segment=self._segment,
                step=self._step,
                predicted=outcome.predicted,
                happened=outcome.happened,
                held=outcome.held,
            )
        found = diagnosis.finding()
        if found is None or (
            _essence(found) == _essence(self._published) and time.monotonic() - self._published_s < REPEAT_S
        ):
            return
        self._published, self._published_s = found, time.monotonic()
        yield Diagnosed(
            segment=self._segment,
            step=self._step,
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


def context_of(scenario: Mapping[str, Any] | None) -> RunContext:
    """What the diagnosis can learn from the scenario. For a user loop, which has none, this is empty."""
    if scenario is None:
        return RunContext()
    model, data, optimizer = scenario["model"], scenario.get("data"), scenario["optimizer"]["name"]
    if data is None:
        return RunContext(optimizer=optimizer, surface=model["name"] == "surface")
    entropy = (scenario.get("loss") or {}).get("name", "cross_entropy") == "cross_entropy"
    text = data["name"] == "text"
    return RunContext(
        classes=(10 if data["name"] == "digits" else 2) if entropy and not text else None,
        guess=LETTER_ENTROPY if entropy and text else None,
        optimizer=optimizer,
        activation=model["activation"]["name"],
        residual=model["residual"]["name"] == "on",
        norm=model["norm"]["name"] != "none",
    )
