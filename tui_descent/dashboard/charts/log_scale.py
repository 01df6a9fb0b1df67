"""A scale of whole decades for magnitudes that never narrows, so that a colour or a bar keeps its meaning."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tui_descent.telemetry.history import History

MAX_DECADES = 30


class Scale:
    """Low and high exponent of ten. A new history starts anew, so does an undo or a redo: what it left may be huge."""

    def __init__(self, low: int, high: int) -> None:
        self._start = (low, high)
        self._history: History | None = None
        self._segment = 0
        self.low, self.high = low, high

    def follow(self, history: History) -> None:
        """Begin again when the history or its stretch is another one."""
        if self._history is not history or self._segment != history.segment:
            self._history, self._segment = history, history.segment
            self.low, self.high = self._start

    def cover(self, logs: Iterable[float], floor: float) -> None:
        """Widen so far that these log10 magnitudes fit; what lies at the floor is drawn there and widens nothing."""
        for log in logs:
            if log > floor and math.isfinite(log):
                self.high = max(self.high, math.ceil(log))
                self.low = min(self.low, max(math.floor(log), self.high - MAX_DECADES))

    def place(self, log: float) -> float:
        """0 at the lower end, 1 at the upper; NaN stays NaN."""
        return min(max((log - self.low) / (self.high - self.low), 0.0), 1.0) if not math.isnan(log) else math.nan
