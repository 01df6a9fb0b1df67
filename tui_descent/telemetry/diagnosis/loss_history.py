"""All losses since the last intervention, in at most 256 bins: whether the loss still falls, over the whole stretch."""

from __future__ import annotations

import math

from tui_descent.telemetry.diagnosis.features import LONG_WINDOW, fit_line

MOST_BINS = 256  # then two neighbours become one
CERTAIN = 2.0  # standard errors
TEN = 10
LEAST = 1e-10  # smaller losses count as this one


class LossHistory:
    """Means of the losses in bins of equal width. Memory and time per loss are bounded, however long the run.

    The first `gradual` losses belong to a change that is spread over as many steps. They do not count for
    `lowest_since`, because they are partly those of the net as it was before.
    """

    def __init__(self, gradual: int = 0) -> None:
        self._gradual = gradual
        self._width, self._sum, self._count = 1, 0.0, 0
        self._means: list[float] = []
        self._last = math.inf
        self._ten: list[float] = []
        self.lowest = math.inf  # the lowest mean of ten losses
        self.lowest_since = math.inf  # the same since a gradual change was complete
        self.peak = -math.inf  # the highest loss of two in a row, so that one odd batch does not count

    def add(self, loss: float) -> None:
        """Add the loss of the next step."""
        self.peak, self._last = max(self.peak, min(self._last, loss)), loss
        self._ten.append(loss)
        if len(self._ten) == TEN:
            mean = math.fsum(self._ten) / TEN
            self.lowest = min(self.lowest, mean)
            if self._gradual == 0:
                self.lowest_since = min(self.lowest_since, mean)
            self._gradual = max(0, self._gradual - TEN)
            self._ten.clear()
        self._sum, self._count = self._sum + loss, self._count + 1
        if self._count < self._width:
            return
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) == MOST_BINS:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means, self._width = [(one + other) / 2 for one, other in pairs], 2 * self._width

    def fall(self) -> tuple[float, float] | None:
        """By which share the loss has fallen over the last half of the steps, at least and at most.

        It is the fall of a line through ln loss, less and plus two standard errors; 0 where that rises. None in the
        first steps, and if a loss is negative.
        """
        half = self._means[len(self._means) // 2 :]
        if self._width * len(self._means) < LONG_WINDOW or min(half) < 0:
            return None
        slope, error, _ = fit_line([math.log(max(mean, LEAST)) for mean in half])
        least, most = (-math.expm1(min(0.0, (slope + sign * CERTAIN * error) * len(half))) for sign in (1, -1))
        return least, most
