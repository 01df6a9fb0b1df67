"""Leaving on SIGINT, SIGTERM and SIGHUP: Textual leaves them alone, and then the terminal stays as it was drawn on."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# When the terminal itself is gone, Textual's writer has died of it and waits for room in its queue without end.
PATIENCE_S = 3.0


class Signals:
    """Handlers from `install` to `restore`."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def install(self, loop: asyncio.AbstractEventLoop, leave: Callable[[int], None]) -> None:
        """`leave(128 + n)` is called in the loop; where that cannot be done any more, the process ends all the same.

        Not by `loop.add_signal_handler`, which waits for a loop that may be blocked in a write.
        """
        if threading.current_thread() is not threading.main_thread():
            return

        def handler(number: int, _: FrameType | None) -> None:
            last = threading.Timer(PATIENCE_S, os._exit, (128 + number,))
            last.daemon = True
            last.start()
            loop.call_soon_threadsafe(leave, 128 + number)

        for number in SIGNALS:
            self._before[number] = signal.signal(number, handler)

    def restore(self) -> None:
        """As it was."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
