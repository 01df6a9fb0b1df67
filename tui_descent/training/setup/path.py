"""The positions of a run on a test surface, or the strengths of a linear net's modes, thinned to a bounded number."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tui_descent.protocol.task_pictures import MAX_PATH

NEWEST = MAX_PATH // 3  # this many of the newest positions are all kept
# Of the older positions every third is kept. With every second one, only one side would be left of a point that jumps
# from side to side.
KEEP_EVERY = 3


class Path:
    """The position before each update: the values of the parameter `weights`, of shape (1,) or (2,), or what `read`
    returns.
    """

    def __init__(self, weights: Tensor, read: Callable[[], tuple[float, ...]] | None = None) -> None:
        self._weights = weights
        self._read = read or (lambda: tuple(weights.tolist()))
        self.start: tuple[float, ...] = self._read()
        self._points: list[tuple[int, tuple[float, ...]]] = []  # step and position, in the order of steps

    def add(self, step: int) -> None:
        """Add the current position, which is the position before update `step`.

        Nothing is added if the parameter is on a GPU: reading it there would wait for the GPU in each step.
        """
        if self._weights.device.type != "cpu":
            return
        points = self._points
        while points and points[-1][0] >= step:  # that update was dropped
            points.pop()
        points.append((step, self._read()))
        if len(points) > MAX_PATH:
            self._points = points[:-NEWEST:KEEP_EVERY] + points[-NEWEST:]

    def positions(self) -> list[tuple[float, ...]]:
        """All positions, the oldest first."""
        return [position for _, position in self._points]

    def steps(self) -> list[int]:
        """The number of the update that followed each position."""
        return [step for step, _ in self._points]

    def state(self) -> list[tuple[int, tuple[float, ...]]]:
        """A copy of the path, for an undo."""
        return list(self._points)

    def restore(self, state: list[tuple[int, tuple[float, ...]]]) -> None:
        """Return to the path at the call of `state`."""
        self._points = list(state)
