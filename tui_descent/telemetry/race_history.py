"""The curves of a race, built from its events. Their size is bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tui_descent.protocol.events import LaneEnded, LaneSent, LaneSteps
from tui_descent.telemetry.pyramid import Pyramid, loss_pyramid


class LaneHistory:
    """One lane: the curve of its loss, its newest loss, and how it ended."""

    def __init__(self) -> None:
        self.losses: Pyramid = loss_pyramid()
        self.loss = math.nan
        self.steps = 0
        self.reached: int | None = None
        self.ended: LaneEnded | None = None

    def add(self, event: LaneSteps) -> None:
        """Add consecutive steps."""
        for step, loss in enumerate(event.losses, event.first):
            if math.isfinite(loss):
                self.losses.add(step, (loss, loss, loss, loss))
        self.steps, self.reached = event.first + len(event.losses), event.reached
        self.loss = event.losses[-1] if event.losses else self.loss

    def end(self, event: LaneEnded) -> None:
        """Record the end of the lane."""
        self.ended, self.steps, self.reached = event, event.step, event.reached
        self.loss = event.loss if event.loss is not None and event.accuracy is None else self.loss

    def curve(self, first: int, last: int, most: int) -> list[tuple[float, float]]:
        """The mean losses of the steps `first` to `last`, in at most about `most` points of step and loss."""
        width = 1
        while (last - first) / width > most:
            width *= 2
        return [(bin_ * width, values[2]) for bin_, values in self.losses.window(width, first, last)]

    def send(self) -> LaneSent:
        """The lane as part of a message."""
        return LaneSent(
            levels=self.losses.send(), loss=self.loss, steps=self.steps, reached=self.reached, ended=self.ended
        )

    @classmethod
    def receive(cls, sent: LaneSent) -> LaneHistory:
        """The inverse of `send`."""
        lane = cls()
        lane.losses.receive(sent.levels)
        lane.loss, lane.steps, lane.reached, lane.ended = sent.loss, sent.steps, sent.reached, sent.ended
        return lane


def standing(lane: LaneHistory) -> str:
    """How the lane has ended, if that is not as planned; otherwise empty."""
    if lane.ended is None or lane.ended.status == "finished":
        return ""
    return f"{lane.ended.status} at step {lane.ended.step:,}"


def first_to_reach(lanes: Sequence[LaneHistory]) -> list[int]:
    """The numbers of the lanes that reached the target with the fewest steps; empty if no lane has reached it."""
    fewest = min((lane.reached for lane in lanes if lane.reached is not None), default=None)
    return [number for number, lane in enumerate(lanes) if lane.reached is not None and lane.reached == fewest]
