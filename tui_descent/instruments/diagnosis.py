"""What is wrong, where, how sure, and which knob helps in this case: from losses and readings alone, without torch.

g is the loss of a guess, ln C for C classes. P is the product of the blocks' backprop factors, ‖dL/dh_0‖/‖dL/dh_D‖.
The thresholds come from nets drawn at random and labelled by trying changes out (`tests/diagnosis_nets.py`).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import msgspec

from tui_descent.protocol.events import Layer, ReadingsTaken

Name = Literal[
    "vanishing", "exploding", "diverged", "diverging", "dead units", "saturated", "plateau", "saddle",
    "rate too small", "rate at the edge", "healthy",
]  # fmt: skip

DARES = 50  # steps since the start or the last intervention before anything but "diverged" is said
WINDOW = 60  # the newest steps that are judged
FEW, TAIL = 3, 10  # losses averaged for where a window began and for where it stands
READINGS = 12

RISEN, OVER_GUESS = 1.5, 1.3
STUCK = 0.9  # of g: a loss above it after a window has learnt next to nothing
FADED = 3e-3
GROWN = 10.0
DEAD = 0.5
SATURATED = 0.5
CRAWLS = 3e-4
CREEPS = 3e-5
BOUNCES = -0.8
SMALL_WEIGHTS = 0.6  # √width · rms of a square weight; xavier draws it at 1, He at 1.4


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run besides its numbers; None where nobody said."""

    classes: int | None = None
    optimizer: str | None = None
    activation: str | None = None
    residual: bool | None = None
    norm: bool | None = None


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """A knob, the value to turn it to, and the key that does it."""

    knob: str
    value: str
    key: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What holds the run up, or "healthy". `sure` is 0…1; `advice` stands best first and may be empty."""

    finding: Name
    layer: str | None = None
    sure: float
    evidence: dict[str, float | str] = {}
    advice: tuple[Advice, ...] = ()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an intervention was expected to do and what the next window showed."""

    predicted: str
    happened: str
    held: bool


class Signs(msgspec.Struct, frozen=True, kw_only=True):
    """The window in numbers. `product` is P now, `product_at_first` P when the window began; None: not measured."""

    first: float
    before: float
    now: float
    guess: float
    product: float | None
    product_at_first: float | None
    grown: float | None
    ratio: float | None
    global_grad: float | None
    hidden_grad: float | None
    dead: float
    saturated: float
    cosine: float | None


class Diagnosis:
    """Fed with every step's loss and every reading of a run; asked for its `finding` at any time.

    `knobs` are the names of those that can be turned in this run: no other is ever advised.
    """

    def __init__(
        self, layers: Sequence[Layer], *, knobs: Collection[str], situation: Situation | None = None
    ) -> None:
        self.situation = situation or Situation()
        self.outcome: Outcome | None = None
        self._layers = tuple(layers)
        self._knobs = frozenset(knobs)
        self._run_first = math.nan
        self._predicted: str | None = None
        self._predicted_from: Name | None = None
        self._begin(0)

    def _begin(self, step: int) -> None:
        self._from = step
        self._firsts: list[float] = []
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._seen = 0
        self._broke_at: int | None = None
        self._first_reading: ReadingsTaken | None = None
        self._readings: deque[ReadingsTaken] = deque(maxlen=READINGS)
        self._slow: dict[str, list[float | None]] = {}
        self._curvature: tuple[float, float, float | None] | None = None

    def stepped(self, step: int, loss: float) -> None:
        """The loss that update `step` was computed from; NaN and infinities too."""
        if self._broke_at is not None:
            return
        if not math.isfinite(loss):
            self._broke_at = step
            return
        if math.isnan(self._run_first):
            self._run_first = loss
        if len(self._firsts) < FEW:
            self._firsts.append(loss)
        self._losses.append(loss)
        self._seen += 1
        if self._predicted is not None and self._seen >= WINDOW:
            self._tell_outcome()

    def read(self, reading: ReadingsTaken) -> None:
        """The readings of one step, every step or now and then. One from before the intervention is left out."""
        if reading.step < self._from:
            return
        self._first_reading = self._first_reading or reading
        self._readings.append(reading)
        for metric in ("dead_fraction", "saturated_fraction"):
            if any(value is not None for value in reading.values.get(metric, ())):
                self._slow[metric] = reading.values[metric]

    def curvature(self, lambda_max: float, lambda_min: float, limit: float | None = None) -> None:
        """The Hessian's ends; `limit` is the sharpness that the present rate can bear, 2/η for plain descent."""
        self._curvature = (lambda_max, lambda_min, limit)

    def intervened(self, step: int, knob: str | None = None, value: str = "") -> None:
        """A knob was turned before update `step`: the window starts anew. With the knob's name an outcome follows."""
        before = self.finding()
        self._predicted = self._predicted_from = None
        self.outcome = None
        if before is not None and knob is not None:
            self._predicted_from = before.finding
            advised = any(a.knob == knob and _same_way(a.value, value) for a in before.advice)
            self._predicted = "healthy" if advised or before.finding == "healthy" else before.finding
        self.situation = _after(self.situation, knob, value)
        self._begin(step)
