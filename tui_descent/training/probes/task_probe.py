"""Pictures of what a scenario run is learning: which clients watch, when a picture is due, and the event with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from torch import nn

from tui_descent.instruments.same_batch import undisturbed
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import Noted, TaskTaken
from tui_descent.protocol.task_pictures import TaskPicture
from tui_descent.training.progress import Progress


class Painter(Protocol):
    """Makes the pictures of one kind of task."""

    def picture(self, columns: int, rows: int) -> TaskPicture:
        """The picture for `columns` × `rows` cells, with the current weights. Making it does not change the run."""


class TaskProbe:
    """Makes a picture of the task between two steps, with the weights before the next update, while a client watches.

    Its size is that of the largest screen that watches. `make_painter` is called for the first picture.
    """

    def __init__(self, model: nn.Module, make_painter: Callable[[], Painter], sampler: Sampler) -> None:
        self._model, self._make_painter = model, make_painter
        self._schedule, self._sampler = sampler.task, sampler
        self._sizes: dict[int, tuple[int, int]] = {}  # columns and rows, by client
        self._painter: Painter | None = None
        self._requests = 0
        self._last: tuple[int, ...] | None = None  # what the newest picture was made of

    def set_watching(self, client: int, *, on: bool, columns: int = 0, rows: int = 0) -> str:
        """Add or remove a client that watches, with the size of its screen. Returns the reply to the client."""
        self._sizes.pop(client, None)
        if on:
            self._sizes[client] = columns, rows
            self._requests += 1
        return "pictures of the task are made" if self._sizes else "pictures of the task are no longer made"

    def due(self, progress: Progress, *, paused: bool) -> bool:
        """Whether to make a picture before the next update. In a pause it may be made at once. The same state is never
        pictured twice.
        """
        if not self._sizes or self._last == self._subject(progress):
            return False
        return paused or self._schedule.due(self._sampler.now_s, wait_s=self._sampler.wait_s)

    def picture(self, progress: Progress, *, paid: bool) -> TaskTaken | Noted:
        """Make a picture now, and return the event to send. With `paid`, its time counts for its share.

        If torch raises, the event is a warning, and no picture is made until a client asks again.
        """
        start_cpu_s, start_s = time.thread_time(), time.perf_counter()
        self._last = self._subject(progress)
        columns = max(columns for columns, _ in self._sizes.values())
        rows = max(rows for _, rows in self._sizes.values())
        try:
            if self._painter is None:
                self._painter = self._make_painter()
            with undisturbed(self._model):
                picture = self._painter.picture(columns, rows)
        except RuntimeError as error:
            self._sizes.clear()
            reason = next(iter(str(error).splitlines()), "")[:200]
            return Noted(step=progress.step, text=f"the task could not be pictured: {reason}", level="warning")
        finally:
            self._schedule.took(time.thread_time() - start_cpu_s, self._sampler.now_s, paid=paid)
        return TaskTaken(picture=picture, seconds=time.perf_counter() - start_s, **progress.place)

    def _subject(self, progress: Progress) -> tuple[int, ...]:
        return progress.segment, progress.step, progress.interventions, self._requests
