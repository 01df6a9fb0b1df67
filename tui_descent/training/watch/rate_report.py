"""Reports the learning rates of a run with several optimizers or parameter groups."""

from __future__ import annotations

import math
import time

from tui_descent.protocol.events import RatesChanged
from tui_descent.training.progress import Progress
from tui_descent.training.steering.steering import Steering

EVERY_S = 1.0


class RateReport:
    """The rates of one run, as last reported. A single rate is reported with each step, so it needs no report here."""

    def __init__(self, steering: Steering, progress: Progress) -> None:
        self._steering, self._progress = steering, progress
        self._rates: dict[str, list[float]] = {}
        self._due_s = -math.inf
        self._interventions = 0  # how many interventions there were before the last report

    def report(self) -> None:
        """Report the rates if they have changed: after an intervention, and at most once a second otherwise."""
        optimizers, interventions = self._steering.optimizers, self._progress.interventions
        if len(optimizers) == 1 and len(optimizers[0].optimizer.param_groups) == 1:
            return
        now_s = time.monotonic()
        if interventions == self._interventions and now_s < self._due_s:
            return
        self._interventions, self._due_s = interventions, now_s + EVERY_S
        rates = {one.name: list(one.rate.rates) for one in optimizers}
        if rates != self._rates:
            self._rates = rates
            self._progress.emit(RatesChanged(rates=rates, **self._progress.place))
