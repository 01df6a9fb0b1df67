"""The turned learning rate, as a factor on whatever rate a schedule asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tui_descent.scenario import knobs


class Rate:
    """The turned learning rate: a multiplier put on before the optimizer's step and taken off after it.

    So any scheduler, which sees only its own values, stays right, and the turn survives the scheduler's next step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._kept: list[object] | None = None
        self.multiplier = 1.0
        # Where the optimizer gets its rates from another one's groups, they are to be asked for.
        self.refresh: Callable[[], None] = lambda: None

    @property
    def value(self) -> float:
        """The rate the next step will use: the first group's, times the multiplier."""
        if self._kept is None:
            self.refresh()
        lr = self._kept[0] if self._kept is not None else self._optimizer.param_groups[0]["lr"]
        return float(lr) * self.multiplier  # type: ignore[arg-type]

    def turn(self, text: str) -> None:
        """Set it, exactly or relative to now. Raises `ValueError` when it cannot be."""
        value = knobs.new_value(text, self.value)
        base = float(self._optimizer.param_groups[0]["lr"])
        if base == 0:
            raise ValueError("the schedule holds the learning rate at 0 now; no multiplier can change that")
        self.multiplier = value / base

    def state(self) -> tuple[torch.optim.Optimizer, list[object] | None, float]:
        """Whose rates are multiplied, what they were where the factor is on, and the factor."""
        return self._optimizer, self._kept, self.multiplier

    def restore(self, state: tuple[torch.optim.Optimizer, list[object] | None, float]) -> None:
        """Back to it; the rates themselves are the optimizer's state."""
        self._optimizer, self._kept, self.multiplier = state

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """The factor goes over to another optimizer."""
        self.take_off()
        self._optimizer = optimizer

    def put_on(self) -> None:
        """Before the optimizer's step. A step that raised left the multiplied rate in place: healed first."""
        self.take_off()
        if self.multiplier != 1.0:
            self._kept = [group["lr"] for group in self._optimizer.param_groups]
            for group in self._optimizer.param_groups:
                group["lr"] = group["lr"] * self.multiplier

    def take_off(self) -> None:
        """After it."""
        if self._kept is not None:
            for group, lr in zip(self._optimizer.param_groups, self._kept, strict=True):
                group["lr"] = lr
            self._kept = None
