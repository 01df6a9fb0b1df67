"""A scale of whole decades that only widens, so a colour or a bar length keeps its meaning."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tui_descent.telemetry.history import History

MAX_DECADES = 30


class LogScale:
    """The lowest and highest exponent of ten.

    The scale is reset in a new segment, because undone values may have been huge.
    """

    def __init__(self, low: int, high: int) -> None:
        self._start = (low, high)
        self._history: History | None = None
        self._segment = 0
        self.low, self.high = low, high

    def reset_for(self, history: History) -> None:
        """Reset the scale if the history or its segment has changed."""
        if self._history is not history or self._segment != history.segment:
            self._history, self._segment = history, history.segment
            self.low, self.high = self._start

    def widen(self, logs: Iterable[float], floor: float) -> None:
        """Widen the scale to include these log10 magnitudes. Values at or below `floor` are ignored."""
        for log in logs:
            if log > floor and math.isfinite(log):
                self.high = max(self.high, math.ceil(log))
                self.low = min(self.low, max(math.floor(log), self.high - MAX_DECADES))

    def position(self, log: float) -> float:
        """0 at the lower end to 1 at the upper end, clamped; NaN stays NaN."""
        return min(max((log - self.low) / (self.high - self.low), 0.0), 1.0) if not math.isnan(log) else math.nan
