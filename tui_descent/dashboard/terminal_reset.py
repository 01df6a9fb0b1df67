"""Restore the terminal without Textual, for a process that has to end although its terminal accepts no more output."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import threading
import time
from typing import Any

# Ends a control sequence that was sent in part, then switches off the modes that Textual sets and the mouse's pixel
# mode.
RESET = (
    b"\x1b\\\x1b[?2026l\x1b[0m\x1b[?2004l\x1b[?7h\x1b[?2048l"
    b"\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l\x1b[?1016l\x1b[<u\x1b[?1049l\x1b[?25h\x1b[?1004l"
)
WITHIN_S = 0.5
INPUT = 0


class TerminalReset:
    """Remembers the terminal's settings when it is created."""

    def __init__(self) -> None:
        self._before: tuple[str, list[Any]] | None = None
        self._output = 2 if sys.__stderr__ is None else sys.__stderr__.fileno()  # Textual draws on it
        with contextlib.suppress(OSError, termios.error):
            self._before = os.ttyname(self._output), termios.tcgetattr(INPUT)

    def reset(self, wake: signal.Signals) -> None:
        """Restore the settings, drop the output that still waits, and switch off what Textual switched on.

        Takes at most WITHIN_S. `wake` is a signal that has a handler. It interrupts a thread that is blocked in a
        write, because such a thread would keep all others from writing. Afterwards this process can draw nothing more.
        """
        if self._before is None:
            return
        name, attributes = self._before
        # A process in the background would be stopped by this signal when it changes the settings.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        with contextlib.suppress(OSError, termios.error):
            # A separate descriptor that does not block; other processes' descriptors are not affected.
            terminal = os.open(name, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._output)
            termios.tcsetattr(terminal, termios.TCSANOW, attributes)
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and thread.ident is not None:
                    signal.pthread_kill(thread.ident, wake)
            _write(terminal, RESET)


def _write(terminal: int, text: bytes) -> None:
    until_s = time.monotonic() + WITHIN_S
    while time.monotonic() < until_s:
        termios.tcflush(terminal, termios.TCOFLUSH)
        with contextlib.suppress(BlockingIOError):
            os.write(terminal, text)
            return
        time.sleep(0.01)  # the interrupted thread has not left its write yet
