"""Reads along with a run and says what is wrong now; after an intervention, what was predicted and what came of it."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Mapping, Sequence

import msgspec

from tui_descent.protocol.events import Advice, Layer, ReadingsTaken
from tui_descent.telemetry.diagnosis.advice import SLOWED, advice, agrees, burst_advice
from tui_descent.telemetry.diagnosis.features import LONG, WINDOW, Curvature, Gauge, Signs, newest_of
from tui_descent.telemetry.diagnosis.findings import UNKNOWN, Finding, Name, Outcome, Situation
from tui_descent.telemetry.diagnosis.rules import burst, judge, lies_flat

DARES = 50  # steps since the start or the last intervention before anything but "diverged" is said
FEW = 3  # steps that a run's first loss is the mean of
MOST = 1e100  # a loss beyond counts as this, whose square is still a number: float64 diverges on to 1e308


class Diagnosis:
    """Fed with a run's losses and readings, asked for its `finding` at any time; no knob but `knobs` is advised."""

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        knobs: Collection[str],
        situation: Situation | None = None,
    ) -> None:
        self.situation = situation or Situation()
        self.outcome: Outcome | None = None
        self._knobs = frozenset(knobs)
        # Measured on a transformer: weights from He's or Xavier's init, embedding and all, make it worse.
        self._harmful = frozenset({"init"} if any(layer.kind == "Embedding" for layer in layers) else ())
        self._run_first: float | None = None
        self._curved = False  # whether anybody has asked for the curvature
        self._predicted: Name | None = None
        self._begin(0)
        self.relayered(layers, 0)

    def relayered(self, layers: Sequence[Layer], structure: int) -> None:
        """The net has these layers from now on; only readings with this number are of them."""
        self._layers, self._structure = tuple(layers), structure
        self._gauge = Gauge(self._layers)
        self._rows = self._gauge.rows
        self._forget_readings()

    def _begin(self, step: int) -> None:
        self._from, self._seen = step, 0
        self._firsts: list[float] = []
        self._losses: deque[float] = deque(maxlen=LONG)
        self._broke_at: int | None = None
        self._curvature: Curvature | None = None
        self._forget_readings()

    def _forget_readings(self) -> None:
        self._first: ReadingsTaken | None = None
        self._readings: deque[ReadingsTaken] = deque(maxlen=WINDOW)

    def stepped(self, step: int, loss: float) -> None:
        """The loss that update `step` was computed from; NaN and infinities too."""
        if self._broke_at is not None or not math.isfinite(loss):
            self._broke_at = step if self._broke_at is None else self._broke_at
        else:
            loss = max(-MOST, min(loss, MOST))
            self._run_first = loss if self._run_first is None else self._run_first
            self._firsts += [loss] if len(self._firsts) < FEW else []
            self._losses.append(loss)
            self._seen += 1
        filled = self._seen >= WINDOW or self._broke_at is not None
        if self._predicted is not None and filled and (found := self.finding()) is not None:
            held = (found.finding == "healthy") == (self._predicted == "healthy")
            self.outcome = Outcome(predicted=self._predicted, happened=found.finding, held=held)
            self._predicted = None

    def read(self, reading: ReadingsTaken) -> None:
        """The readings of one step, of every one or now and then; those from before an intervention do not count."""
        if reading.step >= self._from and reading.structure == self._structure:
            self._first = self._first or reading
            self._readings.append(reading)
            while self._readings[0].step <= reading.step - WINDOW:
                self._readings.popleft()

    def curvature(self, lambda_max: float, lambda_min: float, *, edge: float | None = None) -> None:
        """The Hessian's ends; `edge`: the sharpness over what the rate can bear, λmax·η/2 for plain descent."""
        self._curvature, self._curved = Curvature(lambda_max, lambda_min, edge), True

    def intervened(self, step: int, knob: str | None = None, value: str = "", *, old: str = "") -> None:
        """A turn before update `step`: a new window. If the knob is named, an `outcome` follows when that is full."""
        before = self.finding()
        self._predicted, self.outcome = None, None
        if before is not None and knob is not None:
            helps = before.finding == "healthy" or any(agrees(a, knob, value, old) for a in before.advice)
            self._predicted = "healthy" if helps else before.finding
        told = {"residual": value != "off", "norm": value != "none", "activation": value, "optimizer": value}
        if knob in told:
            self.situation = msgspec.structs.replace(self.situation, **{knob: told[knob]})
        self._begin(step)

    def rewound(self, step: int, knobs: Mapping[str, str]) -> None:
        """The run stands before update `step` with these values: a new window."""
        self._predicted, self.outcome = None, None
        known = {name: value for name, value in knobs.items() if value not in ("", "mixed")}
        told = {name: known[name] for name in ("activation", "optimizer") if name in known}
        flags = {name: known[name] not in ("off", "none") for name in ("residual", "norm") if name in known}
        self.situation = msgspec.structs.replace(self.situation, **told, **flags)
        self._begin(step)

    def offer(self, knob: str) -> None:
        """One more thing that can be advised."""
        self._knobs |= {knob}

    def finding(self) -> Finding | None:
        """What is wrong now, or "healthy"; None while too little was seen to dare."""
        if self._broke_at is not None:
            return Finding(
                finding="diverged",
                sure=1.0,
                evidence={"step": float(self._broke_at)},
                advice=self._after_undo(),
            )
        signs = self.signs()
        judged = judge(signs, self.situation) if signs is not None else None
        if signs is None or judged is None:
            return None
        name, sure = judged
        helps = advice(name, signs, self.situation)
        where, evidence = self._evidence(name, signs)
        if name == "healthy" and not self._curved and lies_flat(signs, self.situation):
            evidence["curvature"] = UNKNOWN
        useful = tuple(a for a in helps if a.knob in self._knobs - self._harmful)
        return Finding(finding=name, layer=where, sure=round(sure, 2), evidence=evidence, advice=useful)

    def _after_undo(self) -> tuple[Advice, ...]:
        """Weights that hold NaN are cured by no knob: what helps, helps after the undo."""
        first, begun = statistics.fmean(self._firsts) if self._firsts else math.inf, self._first
        exploded = begun is not None and burst(first, self._guess, self._gauge.product(begun))
        helps = burst_advice(self.situation) if exploded else SLOWED[1:]
        useful = self._knobs - self._harmful
        return tuple(a for a in (SLOWED[0], *helps) if "undo" in useful and a.knob in useful)

    @property
    def _guess(self) -> float:
        classes, guess = self.situation.classes, self.situation.guess
        return math.log(classes) if classes else (self._run_first or 0.0) if guess is None else guess

    def signs(self) -> Signs | None:
        """The window in numbers; None while too little was seen to dare."""
        begun = self._first
        if begun is None or self._seen < DARES:
            return None
        return self._gauge.signs(
            list(self._losses),
            list(self._readings),
            begun=begun,
            first=statistics.fmean(self._firsts),
            guess=self._guess,
            curvature=self._curvature,
        )

    def _evidence(self, name: Name, signs: Signs) -> tuple[str | None, dict[str, float | str]]:
        """The layer it is about, if it is one, and the numbers it stands on."""
        numbers = {"loss": signs.now, "product": signs.product, "update": signs.moved, "cosine": signs.cosine}
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
