"""The pictures of a race on a surface: which clients watch, when a picture is due, and the event with it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tui_descent.protocol.events import TaskTaken
from tui_descent.training.race.lane import Lane
from tui_descent.training.setup.nets.surface import Surface
from tui_descent.training.task_pictures.race import RacePainter

EVERY_S = 0.2
NO_PICTURE = "a race has a picture only on a test surface; its curves are in view 1"


class RacePictures:
    """Makes a picture of all lanes, at most five times a second, while a client watches."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._setups = [lane.setup for lane in lanes]
        self._sizes: dict[int, tuple[int, int]] = {}  # columns and rows, by client
        self._painter: RacePainter | None = None
        self._last: tuple[int, int] | None = None  # the step and the number of requests of the newest picture
        self._requests, self._due_s = 0, 0.0

    def set_watching(self, client: int, *, on: bool, columns: int, rows: int) -> str:
        """Add or remove a client that watches. Returns the reply; raises `ValueError` if there is no picture."""
        if not isinstance(self._setups[0].model, Surface):
            raise ValueError(NO_PICTURE)
        self._sizes.pop(client, None)
        if on:
            self._sizes[client] = columns, rows
            self._requests += 1
        return "pictures of the task are made" if self._sizes else "pictures of the task are no longer made"

    def due(self, step: int, *, paused: bool) -> bool:
        """Whether to make a picture now. The same state is never pictured twice."""
        known = self._last == (step, self._requests)
        return bool(self._sizes) and not known and (paused or time.monotonic() >= self._due_s)

    def take(self, step: int) -> TaskTaken:
        """Make a picture, and return the event to send. `step` is the number of updates made so far."""
        start_s = time.perf_counter()
        self._painter = self._painter or RacePainter(self._setups)
        columns = max(columns for columns, _ in self._sizes.values())
        rows = max(rows for _, rows in self._sizes.values())
        picture = self._painter.picture(columns, rows)
        seconds = time.perf_counter() - start_s
        self._last, self._due_s = (step, self._requests), time.monotonic() + max(EVERY_S, 10 * seconds)
        return TaskTaken(segment=0, step=step, picture=picture, seconds=seconds)
