"""Lets the diagnosis read along: from a run's events to those that say what is wrong. Costs the trainer nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tui_descent.protocol.events import (
    AnyEvent,
    CurvatureTaken,
    Diagnosed,
    Foretold,
    KnobTurned,
    LayersChanged,
    NotFinite,
    ReadingsTaken,
    Rewound,
    RunStarted,
    SnapshotTaken,
    StepsCompleted,
)
from tui_descent.telemetry.diagnosis import Diagnosis, Finding, Situation, sentence

EVERY_STEPS = 10
# The entropy of single letters of the text, in nats: what a net reaches that has learnt only how often each occurs.
LETTERS_NATS = 3.24
# The same finding is told again, with fresh evidence, no more often than this.
AGAIN_S = 2.0
# Knobs that change nothing about what is learnt.
INDIFFERENT = ("pace",)


class Diagnosing:
    """One run's reader. `hear` gives the diagnosis when it has changed."""

    def __init__(self) -> None:
        self._diagnosis: Diagnosis | None = None
        self._told: Finding | None = None
        self._asked = 0
        self._told_s = 0.0
        self._step = 0
        self._segment = 0

    def hear(self, event: AnyEvent) -> Iterator[AnyEvent]:
        """Take in one event; what there is to say about the run now."""
        if isinstance(event, RunStarted):
            knobs = [k.name for k in event.knobs if k.unavailable is None]
            self._diagnosis = Diagnosis(event.layers, knobs=knobs, situation=situation(event.scenario))
        if self._diagnosis is None:
            return
        match event:
            case StepsCompleted():
                self._segment, self._step = event.segment, event.first + len(event.losses)
                for step, loss in enumerate(event.losses, event.first):
                    self._diagnosis.stepped(step, loss)
                yield from self._say(self._diagnosis)
            case NotFinite():
                self._segment, self._step = event.segment, event.step
                self._diagnosis.stepped(event.step, math.nan)
                self._asked = event.step + 1  # at once
                yield from self._say(self._diagnosis)
            case ReadingsTaken():
                self._diagnosis.read(event)
            case LayersChanged():
                self._diagnosis.relayered(event.layers, event.structure)
            case CurvatureTaken():
                self._diagnosis.curvature(event.sharpness, event.hessian.lambda_min, edge=event.edge)
            case SnapshotTaken():
                self._diagnosis.offer("undo")
            case Rewound():
                self._segment, self._step = event.segment, event.step
                self._diagnosis.rewound(event.step, {k.name: k.value for k in event.knobs})
                self._told = None
            case KnobTurned() if event.knob not in INDIFFERENT:
                self._diagnosis.intervened(event.step, event.knob, event.new, old=event.old)
                self._told = None
            case _:
                pass

    def _say(self, diagnosis: Diagnosis) -> Iterator[AnyEvent]:
        if self._asked <= self._step < self._asked + EVERY_STEPS:
            return
        self._asked = self._step
        if (outcome := diagnosis.outcome) is not None:
            diagnosis.outcome = None
            yield Foretold(
                segment=self._segment,
                step=self._step,
                predicted=outcome.predicted,
                happened=outcome.happened,
                held=outcome.held,
            )
        found = diagnosis.finding()
        if found is None or (_gist(found) == _gist(self._told) and time.monotonic() - self._told_s < AGAIN_S):
            return
        self._told, self._told_s = found, time.monotonic()
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


def _gist(found: Finding | None) -> tuple[Any, ...] | None:
    return None if found is None else (found.finding, found.layer, found.advice, found.evidence.get("curvature"))


def situation(scenario: Mapping[str, Any] | None) -> Situation:
    """What a scenario tells of a run besides its numbers."""
    if scenario is None:
        return Situation()
    model, data, optimizer = scenario["model"], scenario.get("data"), scenario["optimizer"]["name"]
    if data is None:
        return Situation(optimizer=optimizer, surface=model["name"] == "surface")
    entropy = (scenario.get("loss") or {}).get("name", "cross_entropy") == "cross_entropy"
    text = data["name"] == "text"
    return Situation(
        classes=(10 if data["name"] == "digits" else 2) if entropy and not text else None,
        guess=LETTERS_NATS if entropy and text else None,
        optimizer=optimizer,
        activation=model["activation"]["name"],
        residual=model["residual"]["name"] == "on",
        norm=model["norm"]["name"] != "none",
    )
