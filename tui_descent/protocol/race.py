"""Events of a race: several optimizers train the same net from the same start, in one trainer."""

from __future__ import annotations

from typing import Literal

import msgspec


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer of a race. `name` is unique in the race; `lr` is the learning rate at the start."""

    name: str
    optimizer: str
    lr: float


class LaneSteps(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="lane_steps"):
    """Consecutive updates `first`, `first + 1`, … of the lane with number `lane`.

    `reached` is the first update whose loss was at or below the race's target, None if there was none so far.
    """

    lane: int
    first: int
    losses: list[float]
    reached: int | None = None


class LaneEnded(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="lane_ended"):
    """A lane has made its last update. `step` is the number of updates it made.

    `loss` and `accuracy` were evaluated after the last one, as in `RunEnded`. `reached` is as in `LaneSteps`.
    """

    lane: int
    name: str
    status: Literal["finished", "diverged", "failed", "stopped"]
    step: int
    loss: float | None = None
    accuracy: float | None = None
    reached: int | None = None
    reason: str = ""
