"""The metrics that a user's loop logs, from any thread. A value that is not a number is refused; nothing raises."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from tui_descent.instruments.deferred import HostCopy, is_asynchronous
from tui_descent.protocol.events import MetricLogged, Noted
from tui_descent.training.progress import Progress

MAX_NAME = 200  # characters
MAX_NOTES = 10  # notes about refused metrics
MAX_ARRIVING = 500  # further values are dropped, because training would have to wait for them

# A function that gets a copy on its way to the host, and the function to call with its numbers.
WaitFor = Callable[[HostCopy, Callable[[list[float]], None]], None]


class MetricLog:
    """Sends metrics to the keeper. A value on a GPU is passed to `wait_for` and sent when it is on the host.

    With `wait_for=None` it is read at once, which waits for the GPU.
    """

    def __init__(self, progress: Progress, wait_for: WaitFor | None) -> None:
        self._progress, self._wait_for = progress, wait_for
        self._arriving = 0
        self._refused: set[str] = set()

    def add(self, name: object, value: object) -> None:
        """Send a metric at the number of the next step. A value that is not one number is refused with a note."""
        if self._progress.link is None:
            return
        try:
            self._add(_text(name), value)
        except Exception as error:  # noqa: BLE001 - `value` may be any object, and a metric must not end the training
            self._refuse(name, error)

    def send(self) -> None:
        """Send the waiting metrics, if they are due."""
        link = self._progress.link
        if link is not None and link.metrics_due:
            link.send()

    def _add(self, name: str, value: object) -> None:
        place = self._progress.place
        if self._wait_for is not None and isinstance(value, Tensor) and is_asynchronous(value.device):
            if value.numel() != 1 or value.is_complex():
                raise TypeError(f"a tensor of shape {tuple(value.shape)} and type {value.dtype}")
            self._send_later(name, value, place, self._wait_for)
        else:
            self._send(name, _number(value), place)

    def _send(self, name: str, value: float, place: dict[str, Any]) -> None:
        if self._progress.link is not None:
            self._progress.link.log(MetricLogged(name=name, value=value, **place))

    def _send_later(self, name: str, value: Tensor, place: dict[str, Any], wait_for: WaitFor) -> None:
        if self._arriving >= MAX_ARRIVING:
            if self._progress.link is not None:
                self._progress.link.drop_metric()
            return

        def arrived(numbers: list[float]) -> None:
            self._arriving -= 1
            self._send(name, float(numbers[0]), place)

        self._arriving += 1
        with torch.no_grad():
            wait_for(HostCopy([value.detach().reshape(1)]), arrived)

    def _refuse(self, name: object, error: Exception) -> None:
        shown = name[:60] if type(name) is str else type(name).__name__
        if shown in self._refused or len(self._refused) >= MAX_NOTES:
            return
        self._refused.add(shown)
        reason = type(error).__name__
        with suppress(Exception):  # converting a user's exception to text may raise, too
            reason = next(iter(str(error).splitlines()), "")[:120] or reason
        text = f"metric {shown} not recorded: {reason}"
        self._progress.emit(Noted(step=self._progress.step, text=text, level="warning"))


def _text(name: object) -> str:
    text = str(name)[:MAX_NAME]
    if not text.strip():
        raise TypeError("a metric needs a name")
    return str.__str__(text).encode("utf-8", "replace").decode("utf-8")


def _number(value: object) -> float:
    """The value as a float; inf for a number outside the range of floats. Raises an exception if the value is not a
    single number.
    """
    if isinstance(value, str | bytes | bytearray):
        raise TypeError(f"a {type(value).__name__} is not a number")
    item = getattr(value, "item", None)  # tensors, and numpy's scalars and arrays
    try:
        return float(item() if item is not None else value)  # type: ignore[arg-type]
    except OverflowError:
        return math.copysign(math.inf, 1 if value > 0 else -1)  # type: ignore[operator]
