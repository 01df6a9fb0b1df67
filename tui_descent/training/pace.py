"""The pace: when the next update may come, so that people can watch."""

from __future__ import annotations

import time


class Beat:
    """An even beat at so many steps a second."""

    def __init__(self) -> None:
        self._due_s = 0.0

    def ahead_s(self, pace: float | None) -> float:
        """How long to wait before the next update; not at all without a pace. 0 means that it is made now."""
        if pace is None:
            self._due_s = 0.0
            return 0.0
        now_s, period_s = time.monotonic(), 1 / pace
        # After a pause, or when the pace was turned, the beat starts anew; a step late by less keeps it.
        if not now_s - period_s < self._due_s <= now_s + period_s:
            self._due_s = now_s
        if self._due_s > now_s:
            return self._due_s - now_s
        self._due_s += period_s
        return 0.0
