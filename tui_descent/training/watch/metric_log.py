"""The metrics that a user's loop logs, from any thread. A value that is not a number is refused; nothing raises."""

from __future__ import annotations

import math
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from tui_descent.instruments.deferred import HostCopy, is_asynchronous
from tui_descent.protocol.events import MetricLogged, Noted
from tui_descent.training.progress import Progress

MAX_NAME = 200  # characters
MAX_NOTES = 10  # of refused metrics
MAX_ARRIVING = 1000


class MetricLog:
    """Sends metrics to the keeper. A value on a GPU is sent when it has arrived on the host."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._arriving: deque[tuple[str, dict[str, Any], HostCopy]] = deque()
        self._reading = threading.Lock()
        self._refused: set[str] = set()

    def add(self, name: object, value: object) -> None:
        """Send a metric at the number of the next step. A value that is not one number is refused with a note."""
        if self._progress.link is None:
            return
        try:
            self._add(_text(name), value)
        except Exception as error:  # noqa: BLE001 - `value` may be any object, and a metric must not end the training
            self._refuse(name, error)

    def send(self, *, wait: bool = False) -> None:
        """Send what waits: metrics that have arrived from a GPU and, with `wait`, those that have not."""
        self._collect(wait=wait)
        link = self._progress.link
        if link is not None and link.metrics_due:
            link.send()

    def _collect(self, *, wait: bool = False) -> None:
        if not self._arriving or not self._reading.acquire(blocking=False):
            return
        try:
            while self._arriving and (wait or self._arriving[0][2].ready):
                name, place, arrival = self._arriving.popleft()
                self._send(name, arrival.values()[0], place)
        finally:
            self._reading.release()

    def _add(self, name: str, value: object) -> None:
        place = self._progress.place
        if isinstance(value, Tensor) and is_asynchronous(value.device):
            if value.numel() != 1 or value.is_complex():
                raise TypeError(f"a tensor of shape {tuple(value.shape)} and type {value.dtype}")
            if len(self._arriving) < MAX_ARRIVING:
                with torch.no_grad():
                    self._arriving.append((name, place, HostCopy([value.detach().reshape(1)])))
            self._collect()
        else:
            self._send(name, _number(value), place)

    def _send(self, name: str, value: float, place: dict[str, Any]) -> None:
        if self._progress.link is not None:
            self._progress.link.log(MetricLogged(name=name, value=float(value), **place))

    def _refuse(self, name: object, error: Exception) -> None:
        shown = name[:60] if type(name) is str else type(name).__name__
        if shown in self._refused or len(self._refused) >= MAX_NOTES:
            return
        self._refused.add(shown)
        reason = type(error).__name__
        with suppress(Exception):  # the text of a foreign exception may raise, too
            reason = next(iter(str(error).splitlines()), "")[:120] or reason
        text = f"metric {shown} not recorded: {reason}"
        self._progress.emit(Noted(step=self._progress.step, text=text, level="warning"))


def _text(name: object) -> str:
    text = str(name)[:MAX_NAME]
    if not text.strip():
        raise TypeError("a metric needs a name")
    return str.__str__(text).encode("utf-8", "replace").decode("utf-8")


def _number(value: object) -> float:
    """The value as a float; a number beyond its range is infinite. Raises an exception if it is not one number."""
    if isinstance(value, str | bytes | bytearray):
        raise TypeError(f"a {type(value).__name__} is not a number")
    item = getattr(value, "item", None)  # tensors, and numpy's scalars and arrays
    try:
        return float(item() if item is not None else value)  # type: ignore[arg-type]
    except OverflowError:
        return math.copysign(math.inf, 1 if value > 0 else -1)  # type: ignore[operator]
