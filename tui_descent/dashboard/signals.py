"""Quit on SIGINT, SIGTERM and SIGHUP. Textual does not handle these, and the terminal would not be restored."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# If the terminal has been closed, Textual's writer thread is dead, and Textual's shutdown blocks on its full queue.
EXIT_TIMEOUT_S = 3.0


class Signals:
    """Signal handlers, active from `install` to `restore`."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def install(self, loop: asyncio.AbstractEventLoop, leave: Callable[[int], None]) -> None:
        """On signal n call `leave(128 + n)` in the event loop. If the process does not end in time, end it at once.

        `loop.add_signal_handler` is not used, because it cannot act while the event loop is blocked in a write.
        """
        if threading.current_thread() is not threading.main_thread():
            return

        def handler(number: int, _: FrameType | None) -> None:
            last = threading.Timer(EXIT_TIMEOUT_S, os._exit, (128 + number,))
            last.daemon = True
            last.start()
            loop.call_soon_threadsafe(leave, 128 + number)

        for number in SIGNALS:
            self._before[number] = signal.signal(number, handler)

    def restore(self) -> None:
        """Put the previous handlers back."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
