"""Follows a run and says what is wrong with it now; after an intervention, what was predicted and what happened."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Mapping, Sequence

import msgspec

from tui_descent.protocol.events import Advice, Layer, ReadingsTaken
from tui_descent.telemetry.diagnosis.advice import SLOWER, advice_for, exploding_advice, is_advised
from tui_descent.telemetry.diagnosis.features import (
    LONG_WINDOW,
    WINDOW,
    Curvature,
    FeatureExtractor,
    Features,
    newest_of,
)
from tui_descent.telemetry.diagnosis.findings import UNKNOWN, Finding, Name, Outcome, RunContext
from tui_descent.telemetry.diagnosis.rules import apply_rules, exploded, flat_surface

MIN_STEPS = 50  # since the start or the last intervention, before anything but "diverged" is said
FIRST_STEPS = 3  # their mean is a run's first loss
MAX_LOSS = 1e100  # larger losses count as this one, whose square does not overflow


class Diagnosis:
    """Takes in a run's losses and readings; ask for its `finding` at any time. Advises no knob but those of `knobs`."""

    def __init__(self, layers: Sequence[Layer], *, knobs: Collection[str], context: RunContext | None = None) -> None:
        self.context = context or RunContext()
        self.outcome: Outcome | None = None
        self._knobs = frozenset(knobs)
        # Measured on a transformer: re-initialising by He or Xavier, embedding included, makes it worse.
        self._harmful = frozenset({"init"} if any(layer.kind == "Embedding" for layer in layers) else ())
        self._run_first_loss: float | None = None
        self._curvature_requested = False
        self._predicted: Name | None = None
        self._new_window(0)
        self.change_layers(layers, 0)

    def change_layers(self, layers: Sequence[Layer], structure: int) -> None:
        """The net has these layers from now on. Readings of another `structure` are ignored."""
        self._layers, self._structure = tuple(layers), structure
        self._extractor = FeatureExtractor(self._layers)
        self._rows = self._extractor.rows
        self._forget_readings()

    def _new_window(self, step: int) -> None:
        self._window_start, self._step_count = step, 0
        self._first_losses: list[float] = []
        self._losses: deque[float] = deque(maxlen=LONG_WINDOW)
        self._diverged_at: int | None = None
        self._curvature: Curvature | None = None
        self._forget_readings()

    def _forget_readings(self) -> None:
        self._first_reading: ReadingsTaken | None = None
        self._readings: deque[ReadingsTaken] = deque(maxlen=WINDOW)

    def add_loss(self, step: int, loss: float) -> None:
        """The loss from which update `step` was computed; it may be NaN or infinite."""
        if self._diverged_at is not None or not math.isfinite(loss):
            self._diverged_at = step if self._diverged_at is None else self._diverged_at
        else:
            loss = max(-MAX_LOSS, min(loss, MAX_LOSS))
            self._run_first_loss = loss if self._run_first_loss is None else self._run_first_loss
            self._first_losses += [loss] if len(self._first_losses) < FIRST_STEPS else []
            self._losses.append(loss)
            self._step_count += 1
        complete = self._step_count >= WINDOW or self._diverged_at is not None
        if self._predicted is not None and complete and (found := self.finding()) is not None:
            held = (found.finding == "healthy") == (self._predicted == "healthy")
            self.outcome = Outcome(predicted=self._predicted, happened=found.finding, held=held)
            self._predicted = None

    def add_reading(self, reading: ReadingsTaken) -> None:
        """One step's readings. There need not be one at every step. Those from before an intervention are ignored."""
        if reading.step >= self._window_start and reading.structure == self._structure:
            self._first_reading = self._first_reading or reading
            self._readings.append(reading)
            while self._readings[0].step <= reading.step - WINDOW:
                self._readings.popleft()

    def add_curvature(self, lambda_max: float, lambda_min: float, *, edge: float | None = None) -> None:
        """The Hessian's extreme eigenvalues. `edge`: λmax over the stability limit, so λmax·η/2 for plain SGD."""
        self._curvature, self._curvature_requested = Curvature(lambda_max, lambda_min, edge), True

    def turn_knob(self, step: int, knob: str | None = None, value: str = "", *, old: str = "") -> None:
        """An intervention before update `step`: a new window starts. With a `knob`, an `outcome` follows at its end."""
        before = self.finding()
        self._predicted, self.outcome = None, None
        if before is not None and knob is not None:
            helps = before.finding == "healthy" or any(is_advised(a, knob, value, old) for a in before.advice)
            self._predicted = "healthy" if helps else before.finding
        known = {"residual": value != "off", "norm": value != "none", "activation": value, "optimizer": value}
        if knob in known:
            self.context = msgspec.structs.replace(self.context, **{knob: known[knob]})
        self._new_window(step)

    def rewind(self, step: int, knobs: Mapping[str, str]) -> None:
        """The run is back before update `step`, with these knob values: a new window starts."""
        self._predicted, self.outcome = None, None
        known = {name: value for name, value in knobs.items() if value not in ("", "mixed")}
        names = {name: known[name] for name in ("activation", "optimizer") if name in known}
        flags = {name: known[name] not in ("off", "none") for name in ("residual", "norm") if name in known}
        self.context = msgspec.structs.replace(self.context, **names, **flags)
        self._new_window(step)

    def allow_advice(self, knob: str) -> None:
        """From now on this knob may be advised, too."""
        self._knobs |= {knob}

    def finding(self) -> Finding | None:
        """What is wrong now, or "healthy"; None in the first steps of a window."""
        if self._diverged_at is not None:
            return Finding(
                finding="diverged",
                sure=1.0,
                evidence={"step": float(self._diverged_at)},
                advice=self._advice_after_divergence(),
            )
        features = self.features()
        judged = apply_rules(features, self.context) if features is not None else None
        if features is None or judged is None:
            return None
        name, sure = judged
        layer, evidence = self._evidence(name, features)
        if name == "healthy" and not self._curvature_requested and flat_surface(features, self.context):
            evidence["curvature"] = UNKNOWN
        advice = advice_for(name, features, self.context)
        available = tuple(a for a in advice if a.knob in self._knobs - self._harmful)
        return Finding(finding=name, layer=layer, sure=round(sure, 2), evidence=evidence, advice=available)

    def _advice_after_divergence(self) -> tuple[Advice, ...]:
        """No knob helps weights that are NaN. The run must go back first; then comes what helps from there."""
        first_loss = statistics.fmean(self._first_losses) if self._first_losses else math.inf
        reading = self._first_reading
        large_weights = reading is not None and exploded(first_loss, self._guess, self._extractor.product(reading))
        advice = exploding_advice(self.context) if large_weights else SLOWER[1:]
        available = self._knobs - self._harmful
        return tuple(a for a in (SLOWER[0], *advice) if "undo" in available and a.knob in available)

    @property
    def _guess(self) -> float:
        classes, guess = self.context.classes, self.context.guess
        return math.log(classes) if classes else (self._run_first_loss or 0.0) if guess is None else guess

    def features(self) -> Features | None:
        """The window in numbers; None in its first steps."""
        first_reading = self._first_reading
        if first_reading is None or self._step_count < MIN_STEPS:
            return None
        return self._extractor.features(
            list(self._losses),
            list(self._readings),
            first_reading=first_reading,
            first_loss=statistics.fmean(self._first_losses),
            guess=self._guess,
            curvature=self._curvature,
        )

    def _evidence(self, name: Name, f: Features) -> tuple[str | None, dict[str, float | str]]:
        """The layer that the finding is about, if any, and the numbers it is based on."""
        numbers = {"loss": f.now, "product": f.product, "update": f.update_ratio, "cosine": f.cosine}
        shown: dict[str, float | str] = {key: value for key, value in numbers.items() if value is not None}
        row = self._rows[0] if self._rows and name in ("vanishing", "exploding") else None
        if name in ("dead units", "saturated"):
            shares = newest_of(self._readings, "dead_fraction" if name == "dead units" else "saturated_fraction")
            row = max(shares, key=shares.__getitem__, default=None)
            shown["share"] = max(shares.values(), default=1.0)
        rms = self._readings[-1].values.get("grad_rms", [])
        ends = [rms[n] for n in self._rows[:: max(1, len(self._rows) - 1)] if n < len(rms)]
        if len(ends) == 2 and ends[0] is not None and ends[1]:
            shown |= {"first_to_last_grad": ends[0] / ends[1], "last": self._layers[self._rows[-1]].name}
        return None if row is None else self._layers[row].name, shown
