"""Quit on SIGINT, SIGTERM and SIGHUP. Textual does not handle these, and the terminal would not be restored."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from textual.app import App

from tui_descent.dashboard.terminal_reset import TerminalReset
from tui_descent.dashboard.terminal_size import forget_exported_size

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# If the terminal takes no more output, Textual's shutdown blocks, because its queue of output is full.
EXIT_TIMEOUT_S = 3.0
# How often to check that the terminal still exists.
TERMINAL_EVERY_S = 1.0

Result = TypeVar("Result")


class Signals:
    """Signal handlers, active inside the `with` block. An app calls `attach` when it has an event loop.

    On signal n the app is left with `128 + n`. If it has not ended within EXIT_TIMEOUT_S, the terminal is restored and
    the process ends at once.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[int, Any] = {}
        self._leave: Callable[[], object] | None = None
        self._deadline: threading.Timer | None = None

    def __enter__(self) -> Signals:
        # `loop.add_signal_handler` is not used, because it cannot act while the event loop is blocked in a write.
        terminal = TerminalReset()

        def end() -> None:
            assert self.caught is not None
            terminal.reset(signal.Signals(self.caught))
            os._exit(128 + self.caught)

        def handler(number: int, _: FrameType | None) -> None:
            if self.caught is not None:
                return
            self.caught = number
            self._deadline = threading.Timer(EXIT_TIMEOUT_S, end)
            self._deadline.daemon = True
            self._deadline.start()
            if self._leave is not None:
                self._leave()

        for number in SIGNALS:
            self._before[number] = signal.signal(number, handler)
        return self

    def attach(self, leave: Callable[[int], None]) -> None:
        """At a signal n, call `leave(128 + n)` in the running event loop; also for a signal that has already come."""
        loop = asyncio.get_running_loop()
        self._leave = lambda: loop.call_soon_threadsafe(lambda: leave(128 + (self.caught or 0)))
        if self.caught is not None:
            self._leave()
        self._watch_terminal(loop)

    def _watch_terminal(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once the terminal is gone, act as at a SIGHUP, because that signal comes only to the terminal's own session.
        Otherwise Textual would try to read from the terminal in an endless loop.
        """
        if self.caught is not None or self._leave is None:
            return
        if _is_gone(0):
            os.kill(os.getpid(), signal.SIGHUP)
            return
        loop.call_later(TERMINAL_EVERY_S, self._watch_terminal, loop)

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._leave = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline.join()  # the other thread is ending the process: let it restore the terminal


def _is_gone(descriptor: int) -> bool:
    """Whether the terminal at this descriptor has been closed at its other end."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def run_app(app: App[Result], signals: Signals) -> Result | None:
    """Run an app in the terminal's real size until it exits; returns its result, None after a signal or an error."""
    forget_exported_size()
    with signals:
        result = app.run()
    return None if signals.caught is not None else result
