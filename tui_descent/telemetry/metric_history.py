"""The metrics that a user's loop has logged: for each name the newest value, and a bounded curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tui_descent.protocol.events import Evaluated, MetricLogged, MetricSent
from tui_descent.telemetry.pyramid import Pyramid

MAX_NAMES = 32  # names with a curve; others are only counted
MAX_COUNTED = 100
METRIC_BINS = 256
# Metrics with these names are held-out losses; `/`, `-` and a blank count as `_`.
HELD_OUT = {"val_loss", "valid_loss", "validation_loss", "eval_loss", "test_loss", "dev_loss", "loss_val"}


def held_out_loss(metric: MetricLogged) -> Evaluated | None:
    """The metric as an evaluation, if its name is that of a held-out loss and its value is finite; otherwise None."""
    name = metric.name.strip().lower().translate(str.maketrans("/- .", "____"))
    if name not in HELD_OUT or not math.isfinite(metric.value):
        return None
    return Evaluated(segment=metric.segment, step=metric.step, loss=metric.value)


class Metric:
    """One metric: its newest value with its step, and the mean values by step as `curve`."""

    def __init__(self) -> None:
        self.value, self.step = math.nan, 0
        self.curve = Pyramid(("mean",), capacity=METRIC_BINS)

    def add(self, step: int, value: float) -> None:
        """Add a value. Another thread may send a value for an earlier step; it is then counted at the newest step."""
        self.step, self.value = max(self.step, step), value
        if math.isfinite(value):
            self.curve.add(self.step, (value,))

    def points(self, width: int, first: int, last: int) -> list[tuple[int, float]]:
        """Step and value of the curve, in bins of `width` steps, a power of two."""
        return [(bin_ * width, values[0]) for bin_, values in self.curve.window(width, first, last)]


class MetricHistory:
    """The metrics of one segment, by name, in the order in which they came."""

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}
        self.left_out: set[str] = set()  # names without a curve, at most MAX_COUNTED
        self.count = 0  # how many values have been added

    def add(self, event: MetricLogged) -> None:
        """Add a value."""
        self.count += 1
        metric = self.metrics.get(event.name)
        if metric is None:
            if len(self.metrics) >= MAX_NAMES:
                if len(self.left_out) < MAX_COUNTED:
                    self.left_out.add(event.name)
                return
            metric = self.metrics[event.name] = Metric()
        metric.add(event.step, event.value)

    def before(self, step: int) -> MetricHistory:
        """The metrics before this step, after an undo."""
        cut = MetricHistory()
        cut.left_out, cut.count = set(self.left_out), self.count + 1
        for name, metric in self.metrics.items():
            kept = Metric()
            kept.value, kept.step = metric.value, metric.step
            if metric.step < step:
                kept.curve = metric.curve.before(metric.step + 1)
            else:
                kept.curve = metric.curve.before(step)
                points = kept.points(1, 0, step)
                if not points:
                    continue
                kept.step, kept.value = points[-1]
            cut.metrics[name] = kept
        return cut

    def send(self) -> list[MetricSent]:
        """All metrics; those without a curve have no levels."""
        sent = [
            MetricSent(name=name, step=m.step, value=m.value, levels=m.curve.send()) for name, m in self.metrics.items()
        ]
        return sent + [MetricSent(name=name, step=0, value=math.nan, levels=[]) for name in self.left_out]

    @classmethod
    def receive(cls, sent: Sequence[MetricSent]) -> MetricHistory:
        """The inverse of `send`."""
        history = cls()
        history.count = len(sent)
        for one in sent:
            if not one.levels:
                history.left_out.add(one.name)
                continue
            metric = history.metrics[one.name] = Metric()
            metric.step, metric.value = one.step, one.value
            metric.curve.receive(one.levels)
        return history


def thinned(evaluations: list[Evaluated], most: int) -> list[Evaluated]:
    """The evaluations. If there are more than `most`, about half of them, evenly spaced, with the newest."""
    if len(evaluations) <= most:
        return evaluations
    first, half = evaluations[0].step, most // 2
    width = max(1, abs(evaluations[-1].step - first) / half)
    kept: list[Evaluated] = []
    for one in evaluations[:-1]:  # the first evaluation in each of `half` equal parts of the run
        part = abs(one.step - first) // width
        if not kept or part != abs(kept[-1].step - first) // width or one.segment != kept[-1].segment:
            kept.append(one)
    return [*kept[1 - most :], evaluations[-1]]
