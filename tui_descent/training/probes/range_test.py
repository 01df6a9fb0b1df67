"""The learning-rate range test: the loss over an exponential sweep of the rate from here, everything put back exactly.

Smith 2015, arXiv 1506.01186; exponential and smoothed as in fastai's finder.
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
# Of rates whose size is Adam's: there an update moves a weight by about the rate. At 1e-7 a float32 weight of size 1
# stays where it is, and no net survives moves of 1. Other optimizers' rates lie higher by their size in the table.
LOW, HIGH = 1e-7, 1.0
# The rate that a person has set is within the sweep, by a decade on both sides.
AROUND = 10.0
MEMORY = 0.9
WORSE = 4.0
# The first decade and a half, where a rate moves nothing: a minimum there is the batches' doing.
QUIET = 20
# A fall has to be a share of the loss, and so many times what its own average spreads.
FALL, SURE = 0.01, 4.0
Look = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Curve:
    """A sweep so far: `losses` and `smooth` belong to the update made at the rate beside them.

    `still` are the losses of the same batches with the weights as they are: the first one's, then one an update. What
    is smoothed is how far a loss is from the one with still weights, so that batches that are hard or easy cancel out;
    added to their mean it is a loss again. The moving average's bias is taken off, as fastai does; `memory` is 0 where
    every batch is the same.
    """

    still: list[float]
    memory: float = MEMORY
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smooth: list[float] = field(default_factory=list)
    ended_at: float | None = None
    _mean: float = 0.0
    _weight: float = 0.0

    @property
    def level(self) -> float:
        """The loss as it is: the mean over the batches."""
        return fmean(self.still)

    @property
    def moved(self) -> list[float]:
        """How far each loss is from that of the same batch with still weights."""
        return [loss - still for loss, still in zip(self.losses, self.still[1:], strict=False)]

    def add(self, rate: float, loss: float) -> bool:
        """One more point; False when there is no use in going on: not a number, or over four times the best.

        And over the loss as it is: four times next to nothing is no trouble. What is no number is not kept.
        """
        if not math.isfinite(loss):
            self.ended_at = rate
            return False
        self.rates.append(rate)
        self.losses.append(loss)
        self._mean = self.memory * self._mean + (1 - self.memory) * self.moved[-1]
        self._weight = self.memory * self._weight + 1 - self.memory
        self.smooth.append(self.level + self._mean / self._weight)
        best = min(self.smooth)
        if self.smooth[-1] > max(best + (WORSE - 1) * abs(best), self.level + FALL * abs(self.level)):
            self.ended_at = rate
            return False
        return True


def judged(curve: Curve) -> tuple[float | None, float | None, str]:
    """The rate of the smoothed minimum, a tenth of it as the suggestion, and in words what stands against one.

    None where the loss rose at once, where it falls by no more than its batches spread, or where it still falls at the
    sweep's end.
    """
    if len(curve.rates) <= QUIET:
        return None, None, f"too short: the loss blew up at {curve.ended_at:.2g} already, where rates should do nothing"
    where = min(range(QUIET, len(curve.smooth)), key=curve.smooth.__getitem__)
    lowest, fall = curve.rates[where], curve.level - curve.smooth[where]
    # Differences of neighbours hold the spread twice and next to nothing of the fall; a moving average of independent
    # numbers spreads √((1 − m)/(1 + m)) as much as they do.
    recent = curve.moved[where - QUIET : where + 1]
    spread = math.sqrt(fmean((b - a) ** 2 / 2 for a, b in pairwise(recent)) * (1 - curve.memory) / (1 + curve.memory))
    if fall <= FALL * abs(curve.level):
        return None, None, "flat: no rate lowers the loss"
    if curve.memory and fall <= SURE * spread:
        return None, None, "unclear: the loss falls by no more than its batches differ"
    if where == len(curve.rates) - 1 and curve.ended_at is None:
        return lowest, None, f"the loss still falls at {lowest:.2g}, the largest rate tested"
    return lowest, lowest / 10, ""


def span(optimizer: torch.optim.Optimizer, rate: float) -> tuple[float, float]:
    """The lowest and the highest rate to test, by the optimizer's kind and around the present one."""
    row = OPTIMIZERS.get(name_of(optimizer))
    size = 1.0 if row is None else row.rate
    low, high = LOW * size, HIGH * size
    return (min(low, rate / AROUND), max(high, rate * AROUND)) if rate > 0 else (low, high)


class RangeTest:
    """Of a scenario's run: it needs further batches, and then the same ones again."""

    def __init__(self, steering: Steering, setup: Setup) -> None:
        self._steering, self._setup = steering, setup

    def run(self, segment: int, step: int, look: Look) -> RangeTestCompleted:
        """Sweep before update `step`; `look` is told how far it is before each pass or update, and raises to give up.

        Takes memory for the exact state and, while it looks ahead, for the weights twice more. Whatever happens, all is
        put back: weights, buffers, optimizer, schedule, batches, random numbers. Raises `ValueError` where it cannot be
        made.
        """
        begun_s, setup, steering = time.perf_counter(), self._setup, self._steering
        rate = steering.rate.value
        with steering.muted(), without_step_hooks(setup.optimizer):
            try:
                snapshot = Snapshot([*steering.holders(), RandomState()], segment=segment, step=step)
                try:
                    steering.advance()  # a change under way goes on before the next update
                    ahead = look_ahead(steering, setup)
                    snapshot.restore()
                    steering.advance()
                    curve = Curve(still=self._still(look), memory=0.0 if self._always_the_same else MEMORY)
                    snapshot.restore()
                    steering.advance()
                    self._sweep(curve, rate, look)
                finally:
                    snapshot.restore()
            except RuntimeError as error:
                line = next(iter(str(error).splitlines()), "")[:200]
                raise ValueError(f"nothing was changed: the net raised {type(error).__name__}: {line}") from error
        lowest, suggestion, words = judged(curve)
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
            words=words,
            scales=list(SCALES[: len(ahead)]),
            ahead=ahead,
            seconds=time.perf_counter() - begun_s,
        )

    def _still(self, look: Look) -> list[float]:
        """The losses of the batches that the sweep will see, with the weights as they are."""
        if self._always_the_same:
            return [self._setup.loss().item()] * (STEPS + 1)
        found = []
        for n in range(STEPS + 1):
            look(f"batches {n}/{STEPS}")
            found.append(self._setup.loss().item())  # with its graph: other kernels might draw other random numbers
        return found

    def _sweep(self, curve: Curve, rate: float, look: Look) -> None:
        setup, steering, optimizer = self._setup, self._steering, self._setup.optimizer
        low, high = span(optimizer, rate)
        ratios = _ratios(optimizer)
        loss = setup.loss()
        for n in range(STEPS):
            look(f"rates {n}/{STEPS}")
            tested = low * (high / low) ** (n / (STEPS - 1))
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                group["lr"] = tested * ratio
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            steering.clip(optimizer)
            optimizer.step()
            loss = setup.loss()
            if not curve.add(tested, loss.item()):
                return

    @property
    def _always_the_same(self) -> bool:
        """Whether the loss changes with the weights alone."""
        setup = self._setup
        drops = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in setup.model.modules())
        return (setup.batches is None or setup.batches.full) and not drops


def _ratios(optimizer: torch.optim.Optimizer) -> list[float]:
    """What each group's rate is of the first's; of the base rates where a schedule stands at 0."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    rates = rates if rates[0] else base_rates(optimizer)
    return [rate / rates[0] if rates[0] else 1.0 for rate in rates]
