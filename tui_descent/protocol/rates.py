"""What a learning-rate range test tells: the loss over rates, and the loss along the next update."""

from __future__ import annotations

import msgspec


class RatesSwept(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="range_test"):
    """Before update `step`, with everything put back as it was; the run goes on as if it had not been made.

    `losses[i]` is the training loss of the next batch after an update at `rates[i]`, the sweep's updates one upon the
    other; `still[i]` is that batch's loss with the weights as they are, `level` the mean of those. `smooth` is what is
    judged: `level` and the moving average of `losses − still`. `rate` is the next update's own, `ended_at` the one
    whose loss ended the sweep early, if any did. `lowest` is the rate of the smoothed minimum and `suggestion` a tenth
    of it; None where the curve tells of none, for the reason in `words`.

    `ahead[j]` is the loss of the next batch at θ + `scales[j]`·d, d being the update that comes next, so that scale 1
    is where it leads; empty where it moves nothing. Infinite or not a number where the loss is.
    """

    segment: int
    step: int
    rate: float
    level: float
    rates: list[float]
    losses: list[float]
    still: list[float]
    smooth: list[float]
    ended_at: float | None = None
    lowest: float | None = None
    suggestion: float | None = None
    words: str = ""
    scales: list[float] = []
    ahead: list[float] = []
    seconds: float

    @property
    def against(self) -> list[float]:
        """The losses without what made their batches hard or easy: `losses − still`, upon `level`."""
        return [loss - still + self.level for loss, still in zip(self.losses, self.still, strict=True)]
