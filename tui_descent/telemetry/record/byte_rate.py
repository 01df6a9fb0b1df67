"""A limit on bytes per second, which allows bursts."""

from __future__ import annotations

import time
from collections.abc import Callable


class ByteRate:
    """Allows `per_s` bytes per second on average, and `at_once` bytes after a quiet time and at the start."""

    def __init__(self, per_s: float, at_once: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._at_once, self._clock = per_s, at_once, clock
        self._left, self._seen_s = at_once, clock()

    def allows(self, count: int) -> bool:
        """Whether `count` bytes may be written now; if so, they are counted."""
        now_s = self._clock()
        self._left = min(self._at_once, self._left + (now_s - self._seen_s) * self._per_s)
        self._seen_s = now_s
        if self._left <= 0:
            return False
        self._left -= count
        return True
