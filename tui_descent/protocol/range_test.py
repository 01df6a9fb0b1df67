"""The result of a learning-rate range test: the loss at each rate, and the loss along the next update."""

from __future__ import annotations

import msgspec


class RangeTestCompleted(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="range_test"):
    """A range test was run before update `step`. The state was then restored, so the run continues unchanged.

    The test makes updates at increasing `rates`, each starting from the result of the one before. `losses[i]` is the
    training loss of the next batch after the update at `rates[i]`. `still[i]` is that batch's loss with the weights
    from before the test, and `level` is the mean of `still`. `smooth` is `level` plus the moving average of
    `losses − still`. `rate` is the run's current rate. `ended_at` is the rate whose loss ended the test early, or None.
    `lowest` is the rate with the smallest `smooth`, and `suggestion` is a tenth of that. If the curve has no clear
    minimum, both are None, and `words` says why.

    `ahead[j]` is the loss of the next batch at θ + `scales[j]`·d, where d is the run's next update; it is empty if d is
    0. Values may be infinite or NaN.
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
        """The losses corrected for the difficulty of their batches: `losses − still + level`."""
        return [loss - still + self.level for loss, still in zip(self.losses, self.still, strict=True)]
