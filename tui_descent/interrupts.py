"""How SIGINT, SIGTERM and SIGHUP end the command while neither the dashboard nor a headless run handles them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_at_once() -> None:
    """From now on, a signal ends the process at once, without a message, with exit code 128 + its number. If the signal
    raised an exception in the middle of an import, that would be printed, and extension modules might even crash.
    """
    _handle(_end)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Delay signals until the end of the `with`; a signal that came then raises `SystemExit`. Has no effect unless
    `end_at_once` was called before.
    """
    if signal.getsignal(signal.SIGTERM) is not _end:
        yield
        return
    caught: list[int] = []
    _handle(lambda number, _: caught.append(number))
    try:
        yield
    finally:
        _handle(_end)
    if caught:
        raise SystemExit(128 + caught[0])


def _handle(handler: Any) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # SIGHUP is ignored under nohup
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)
