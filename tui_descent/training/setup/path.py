"""The positions of a run on a test surface, thinned so that their number is bounded."""

from __future__ import annotations

from torch import Tensor

from tui_descent.protocol.task_pictures import MAX_PATH

NEWEST = MAX_PATH // 3  # this many of the newest positions are all kept
# Of the older positions every third is kept. With every second one, only one side would be left of a point that jumps
# from side to side.
KEEP_EVERY = 3


class Path:
    """The position before each update. `weights` is the parameter, of shape (1,) or (2,)."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self.start: tuple[float, ...] = tuple(weights.tolist())
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
        points.append((step, tuple(self._weights.tolist())))
        if len(points) > MAX_PATH:
            self._points = points[:-NEWEST:KEEP_EVERY] + points[-NEWEST:]

    def positions(self) -> list[tuple[float, ...]]:
        """All positions, the oldest first."""
        return [position for _, position in self._points]

    def state(self) -> list[tuple[int, tuple[float, ...]]]:
        """A copy of the path, for an undo."""
        return list(self._points)

    def restore(self, state: list[tuple[int, tuple[float, ...]]]) -> None:
        """Return to the path at the call of `state`."""
        self._points = list(state)
