"""The multiplier by which a person changes the learning rate that a scheduler sets.

`RateKnob` in `optimizer.py` sets the multiplier. `watch/optimizer_hooks.py` applies it before each update and removes
it after the update.
"""

from __future__ import annotations

import torch

from tui_descent.scenario import knobs


class RateMultiplier:
    """A multiplier on every group's learning rate, applied before the optimizer's step and removed after it.

    Between two steps the groups contain the scheduler's own rates. Therefore any scheduler keeps working, and the
    multiplier stays in effect when the scheduler makes its next step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._base_rates: list[object] | None = None  # the groups' own rates while the multiplier is applied
        self.multiplier = 1.0

    @property
    def value(self) -> float:
        """The learning rate of the next step: the first group's rate times the multiplier."""
        lr = self._base_rates[0] if self._base_rates is not None else self._optimizer.param_groups[0]["lr"]
        return float(lr) * self.multiplier  # type: ignore[arg-type]

    def turn(self, text: str) -> None:
        """Set the rate to `text`: a number, or `*2` or `/2` relative to the current rate.

        Raises `ValueError` for any other text, and if the schedule has set the rate to 0.
        """
        value = knobs.new_value(text, self.value)
        base = float(self._optimizer.param_groups[0]["lr"])
        if base == 0:
            raise ValueError("the schedule holds the learning rate at 0, which no multiplier can change")
        self.multiplier = value / base

    def state(self) -> tuple[torch.optim.Optimizer, list[object] | None, float]:
        """The optimizer, its own rates (None if the multiplier is not applied now), and the multiplier."""
        return self._optimizer, self._base_rates, self.multiplier

    def restore(self, state: tuple[torch.optim.Optimizer, list[object] | None, float]) -> None:
        """Restore what `state` returned. The rates themselves belong to the optimizer's state."""
        self._optimizer, self._base_rates, self.multiplier = state

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Use another optimizer from now on."""
        self.remove()
        self._optimizer = optimizer

    def apply(self) -> float:
        """Multiply the rates, before the optimizer's step. Returns the first group's rate, multiplied.

        If the last step raised, its multiplier is removed first.
        """
        self.remove()
        groups = self._optimizer.param_groups
        rate = float(groups[0]["lr"]) * self.multiplier
        if self.multiplier != 1.0:
            self._base_rates = [group["lr"] for group in groups]
            for group in groups:
                group["lr"] = group["lr"] * self.multiplier
        return rate

    def remove(self) -> None:
        """Restore the rates, after the optimizer's step."""
        if self._base_rates is not None:
            for group, lr in zip(self._optimizer.param_groups, self._base_rates, strict=True):
                group["lr"] = lr
            self._base_rates = None
