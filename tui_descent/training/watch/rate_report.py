"""Reports all learning rates of a run that has several: of its optimizers, or of the groups of one optimizer."""

from __future__ import annotations

import math
import time

from tui_descent.protocol.events import RatesChanged
from tui_descent.training.progress import Progress
from tui_descent.training.steering.steering import Steering

RATES_EVERY_S = 1.0


class RateReport:
    """Reports the rates after an intervention, and at most once a second if the loop changes them."""

    def __init__(self, progress: Progress, steering: Steering) -> None:
        self._progress, self._steering = progress, steering
        self._rates: dict[str, list[float]] = {}  # as last reported
        self._due_s, self._after = -math.inf, 0

    def report_if_due(self) -> None:
        """Report the rates if this is due and they have changed. To be called between two steps."""
        optimizers, interventions = self._steering.optimizers, self._progress.interventions
        if len(optimizers) == 1 and len(optimizers[0].optimizer.param_groups) == 1:
            return
        now_s = time.monotonic()
        if interventions == self._after and now_s < self._due_s:
            return
        self._after, self._due_s = interventions, now_s + RATES_EVERY_S
        rates = {one.name: list(one.rate.rates) for one in optimizers}
        if rates != self._rates:
            self._rates = rates
            self._progress.emit(RatesChanged(rates=rates, **self._progress.place))
