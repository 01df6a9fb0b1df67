"""The learning-rate range test: makes updates at exponentially growing rates, then restores the state of the run.

Source: Smith 2015, arXiv 1506.01186, with exponential growth and smoothing as in fastai's LR finder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

import torch
from torch import nn

from tui_descent.protocol.range_test import RangeTestCompleted
from tui_descent.scenario.optimizers import OPTIMIZERS
from tui_descent.training.optim.optimizers import name_of
from tui_descent.training.optim.schedules import base_rates
from tui_descent.training.probes.look_ahead import SCALES, look_ahead
from tui_descent.training.setup.build import Setup
from tui_descent.training.steering.steering import Steering
from tui_descent.training.torch_internals import without_step_hooks
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.snapshot import Snapshot

STEPS = 100
# The range of rates for Adam, which changes a weight by about the rate. A change of 1e-7 has no effect on a float32
# weight of size 1, and changes of 1 destroy any net. For another optimizer, both limits are multiplied by its `rate` in
# `OPTIMIZERS`.
LOW, HIGH = 1e-7, 1.0
# The range is extended to reach from the current rate at least this factor down and up.
MARGIN = 10.0
SMOOTHING = 0.9  # the decay of the exponential moving average
STOP_FACTOR = 4.0  # the test ends when the smoothed loss exceeds this multiple of the smallest
# The first points cover a decade and a half of rates too small to have an effect. A minimum there only shows
# differences between batches.
IGNORED_POINTS = 20
# A suggestion requires that the loss falls by more than this fraction of itself, and by more than this multiple of the
# moving average's standard deviation.
MIN_FALL, MIN_FALL_SPREADS = 0.01, 4.0
# Called before each pass or update with the progress, such as "rates 12/100". It raises `ValueError` to end the test.
OnProgress = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Curve:
    """The losses so far, one per tested rate.

    `losses[i]` and `smooth[i]` are measured after the update at `rates[i]`. `still` are the losses of the same batches
    with the weights from before the test: first that of the first batch, then one per update. The differences `losses −
    still` are smoothed, so it makes no difference whether a batch is hard or easy. `smooth` is `level` plus the
    smoothed differences. As in fastai, the bias of the moving average is corrected. `smoothing` is 0 if every batch is
    the same.
    """

    still: list[float]
    smoothing: float = SMOOTHING
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smooth: list[float] = field(default_factory=list)
    ended_at: float | None = None
    _mean: float = 0.0
    _weight: float = 0.0

    @property
    def level(self) -> float:
        """The mean loss before the test."""
        return fmean(self.still)

    @property
    def differences(self) -> list[float]:
        """`losses − still`: how much the updates have changed the loss of each batch."""
        return [loss - still for loss, still in zip(self.losses, self.still[1:], strict=False)]

    def add(self, rate: float, loss: float) -> bool:
        """Add a point. Returns False if the test must end because the loss is not finite or too large.

        A loss is too large if it is above `STOP_FACTOR` times the smallest smoothed loss and also above `level`. The
        second condition is needed because a multiple of a loss near 0 is still small. A non-finite loss is not added.
        """
        if not math.isfinite(loss):
            self.ended_at = rate
            return False
        self.rates.append(rate)
        self.losses.append(loss)
        self._mean = self.smoothing * self._mean + (1 - self.smoothing) * self.differences[-1]
        self._weight = self.smoothing * self._weight + 1 - self.smoothing
        self.smooth.append(self.level + self._mean / self._weight)
        best = min(self.smooth)
        if self.smooth[-1] > max(best + (STOP_FACTOR - 1) * abs(best), self.level + MIN_FALL * abs(self.level)):
            self.ended_at = rate
            return False
        return True


def suggest_rate(curve: Curve) -> tuple[float | None, float | None, str]:
    """Returns the rate with the smallest smoothed loss, a tenth of it as the suggestion, and the reason if there is no
    suggestion.

    There is no suggestion in three cases: the loss rises at once, it falls by no more than it varies between batches,
    or it still falls at the largest rate.
    """
    if len(curve.rates) <= IGNORED_POINTS:
        return None, None, f"too short: the loss blew up at the rate {curve.ended_at:.2g}, normally too small to matter"
    lowest_at = min(range(IGNORED_POINTS, len(curve.smooth)), key=curve.smooth.__getitem__)
    lowest, fall = curve.rates[lowest_at], curve.level - curve.smooth[lowest_at]
    # `spread` is the standard deviation of the moving average. It is estimated from the differences between
    # neighbouring points, which have twice the variance of single points and hardly contain the fall. A moving average
    # with decay m reduces the standard deviation of independent numbers by the factor √((1 − m)/(1 + m)).
    recent = curve.differences[lowest_at - IGNORED_POINTS : lowest_at + 1]
    variance = fmean((b - a) ** 2 / 2 for a, b in pairwise(recent))
    spread = math.sqrt(variance * (1 - curve.smoothing) / (1 + curve.smoothing))
    if fall <= MIN_FALL * abs(curve.level):
        return None, None, "flat: no rate lowers the loss"
    if curve.smoothing and fall <= MIN_FALL_SPREADS * spread:
        return None, None, "unclear: the loss falls by no more than it varies between batches"
    if lowest_at == len(curve.rates) - 1 and curve.ended_at is None:
        return lowest, None, f"the loss still falls at {lowest:.2g}, the largest rate tested"
    return lowest, lowest / 10, ""


def rate_range(optimizer: torch.optim.Optimizer, rate: float) -> tuple[float, float]:
    """The lowest and the highest rate to test with this kind of optimizer at the current `rate`."""
    row = OPTIMIZERS.get(name_of(optimizer))
    size = 1.0 if row is None else row.rate
    low, high = LOW * size, HIGH * size
    return (min(low, rate / MARGIN), max(high, rate * MARGIN)) if rate > 0 else (low, high)


class RangeTest:
    """Runs range tests in a scenario run. A test uses the coming batches. Afterwards it sets the batches back, so the
    run gets the same batches.
    """

    def __init__(self, steering: Steering, setup: Setup) -> None:
        self._steering, self._setup = steering, setup

    def run(self, segment: int, step: int, on_progress: OnProgress) -> RangeTestCompleted:
        """Test the rates before update `step`. The whole state is restored afterwards, even if an exception was raised.

        Needs memory for a snapshot and, during the look-ahead, for two more copies of the weights. Raises `ValueError`
        if the test is not possible, or if `on_progress` raises it.
        """
        start_s, setup, steering = time.perf_counter(), self._setup, self._steering
        rate = steering.rate.value
        with steering.muted(), without_step_hooks(setup.optimizer):
            try:
                snapshot = Snapshot([*steering.holders(), RandomState()], segment=segment, step=step)
                try:
                    steering.advance()  # a transition in progress continues before the next update
                    ahead = look_ahead(steering, setup)
                    snapshot.restore()
                    steering.advance()
                    curve = Curve(
                        still=self._still_losses(on_progress), smoothing=0.0 if self._is_deterministic else SMOOTHING
                    )
                    snapshot.restore()
                    steering.advance()
                    self._test_rates(curve, rate, on_progress)
                finally:
                    snapshot.restore()
            except RuntimeError as error:
                line = next(iter(str(error).splitlines()), "")[:200]
                raise ValueError(f"nothing was changed: the net raised {type(error).__name__}: {line}") from error
        lowest, suggestion, reason = suggest_rate(curve)
        return RangeTestCompleted(
            segment=segment,
            step=step,
            rate=rate,
            level=curve.level,
            rates=curve.rates,
            losses=curve.losses,
            still=curve.still[1 : len(curve.losses) + 1],
            smooth=curve.smooth,
            ended_at=curve.ended_at,
            lowest=lowest,
            suggestion=suggestion,
            words=reason,
            scales=list(SCALES[: len(ahead)]),
            ahead=ahead,
            seconds=time.perf_counter() - start_s,
        )

    def _still_losses(self, on_progress: OnProgress) -> list[float]:
        """The losses of the batches that the test will use, with the weights unchanged."""
        if self._is_deterministic:
            return [self._setup.loss().item()] * (STEPS + 1)
        losses = []
        for n in range(STEPS + 1):
            on_progress(f"batches {n}/{STEPS}")
            # Not under no_grad: torch might then choose other kernels, which draw other random numbers.
            losses.append(self._setup.loss().item())
        return losses

    def _test_rates(self, curve: Curve, rate: float, on_progress: OnProgress) -> None:
        setup, steering, optimizer = self._setup, self._steering, self._setup.optimizer
        low, high = rate_range(optimizer, rate)
        ratios = _group_ratios(optimizer)
        loss = setup.loss()
        for n in range(STEPS):
            on_progress(f"rates {n}/{STEPS}")
            tested = low * (high / low) ** (n / (STEPS - 1))
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                group["lr"] = tested * ratio
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            steering.clip(steering.optimizers[0])
            optimizer.step()
            loss = setup.loss()
            if not curve.add(tested, loss.item()):
                return

    @property
    def _is_deterministic(self) -> bool:
        """Whether the loss depends only on the weights: every batch is the same and there is no dropout."""
        setup = self._setup
        drops = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in setup.model.modules())
        return (setup.batches is None or setup.batches.full) and not drops


def _group_ratios(optimizer: torch.optim.Optimizer) -> list[float]:
    """Each group's rate divided by the first group's. If the schedule has set the first group's rate to 0, base rates
    are used.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    rates = rates if rates[0] else base_rates(optimizer)
    return [rate / rates[0] if rates[0] else 1.0 for rate in rates]
