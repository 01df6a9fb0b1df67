"""A multiplier on the learning rate that a scheduler sets. It is how a person changes the rate.

`RateKnob` in `optimizer.py` sets the multiplier. `watch/optimizer_hooks.py` applies it before each update and removes
it after the update.
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tui_descent.instruments.deferred import is_asynchronous
from tui_descent.scenario import knobs
from tui_descent.scenario.optimizers import OWN_RATE

# A rate that is a tensor on a GPU is read at most this often, because reading it waits for the device.
READ_AGAIN_S = 1.0


class _Applied(NamedTuple):
    """One group's own rate, and that rate times the multiplier."""

    group: dict[str, Any]
    own: Any
    multiplied: Any
    version: int  # the version of a rate tensor just after it was multiplied


class RateMultiplier:
    """A multiplier on every group's learning rate, applied before the optimizer's step and removed after it.

    Between two steps the groups contain the rates that the script or its scheduler has set. Therefore every scheduler
    keeps working, and the multiplier stays in effect when the scheduler makes its next step. An optimizer without rates
    in its groups (`lr=None`, or no `lr`) sets its own rate; the multiplier does nothing there.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._applied: list[_Applied] = []  # while the multiplier is applied
        # By the id of a rate tensor on a GPU: its value, and when it was read.
        self._device_rates: dict[int, tuple[float, float]] = {}
        self.multiplier = 1.0

    @property
    def value(self) -> float:
        """The learning rate of the next step: the first rate of a group that is not 0, times the multiplier. 0 if all
        rates are 0; NaN if no group has a rate.
        """
        return self._first_rate(self._own_rates()) * self.multiplier

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of the next step, one for each group that has a rate."""
        return tuple(rate * self.multiplier for rate in self._own_rates())

    def turn(self, text: str) -> None:
        """Set the rate to `text`: a number, or `*2` or `/2` relative to the current rate.

        All groups are multiplied by the same factor. Raises `ValueError` for any other text, if the schedule has set
        the rate to 0, and if no group has a rate.
        """
        base = self._first_rate(self._own_rates())
        if math.isnan(base):
            raise ValueError(self.refusal())
        if base == 0:
            raise ValueError("the schedule has set the learning rate to 0; multiplying 0 changes nothing")
        self.multiplier = knobs.new_value(text, base * self.multiplier) / base

    def refusal(self) -> str | None:
        """Why there is no rate to change; None if a group has one."""
        if self._own_rates():
            return None
        return f"{type(self._optimizer).__name__} has no lr in its groups: {OWN_RATE}"

    def state(self) -> tuple[torch.optim.Optimizer, list[_Applied], float]:
        """The optimizer, its own rates if the multiplier is applied now, and the multiplier."""
        return self._optimizer, list(self._applied), self.multiplier

    def restore(self, state: tuple[torch.optim.Optimizer, list[_Applied], float]) -> None:
        """Restore what `state` returned. The rates themselves belong to the optimizer's state."""
        self._optimizer, applied, self.multiplier = state
        self._applied = list(applied)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Use another optimizer from now on."""
        self.remove()
        self._optimizer = optimizer

    def apply(self) -> float:
        """Multiply the rates, before the optimizer's step. Returns `value`.

        If the last step raised, its multiplier is removed first.
        """
        self.remove()
        groups, multiplier = self._optimizer.param_groups, self.multiplier
        rate = groups[0].get("lr") if groups else None
        if type(rate) is not float or not rate:
            rate = self._first_rate(self._own_rates())
        if multiplier != 1.0:
            tensors: set[int] = set()
            for group in groups:
                own = group.get("lr")
                if isinstance(own, Tensor):
                    if id(own) not in tensors:  # groups may share one tensor
                        tensors.add(id(own))
                        self._applied.append(_multiply(group, own, multiplier))
                elif own is not None:
                    group["lr"] = own * multiplier
                    self._applied.append(_Applied(group, own, group["lr"], 0))
        return rate * multiplier

    def remove(self) -> None:
        """Restore the rates, after the optimizer's step. A rate that the script has set in the meantime is kept."""
        if not self._applied:
            return
        applied, self._applied = self._applied, []
        for group, own, multiplied, version in applied:
            if group.get("lr") is not multiplied:
                continue
            if not isinstance(multiplied, Tensor):
                group["lr"] = own
            elif multiplied._version == version:
                with torch.no_grad():
                    multiplied.copy_(own)

    def _own_rates(self) -> list[float]:
        """The rates of the groups that have one, without the multiplier."""
        own = {id(group): own for group, own, multiplied, _ in self._applied if group.get("lr") is multiplied}
        rates = (own.get(id(group), group.get("lr")) for group in self._optimizer.param_groups)
        return [self._number(rate) for rate in rates if rate is not None]

    def _number(self, rate: Any) -> float:
        if not isinstance(rate, Tensor) or not is_asynchronous(rate.device):
            return float(rate)
        now_s = time.monotonic()
        known, read_s = self._device_rates.get(id(rate), (0.0, -math.inf))
        if now_s - read_s >= READ_AGAIN_S:
            known = float(rate)
            self._device_rates = {**dict(list(self._device_rates.items())[-63:]), id(rate): (known, now_s)}
        return known

    @staticmethod
    def _first_rate(rates: list[float]) -> float:
        return next((rate for rate in rates if rate), 0.0 if rates else math.nan)


@torch.no_grad()
def _multiply(group: dict[str, Any], rate: Tensor, multiplier: float) -> _Applied:
    """Multiply a rate in place, because compiled and captured optimizers keep reading the same tensor."""
    own = rate.detach().clone()
    rate.mul_(multiplier)
    return _Applied(group, own, rate, rate._version)
