"""Learning-rate schedules of a scenario run. After every update a schedule sets the rate of each parameter group.

The formulas are those of scenario/schedules.py, so the drawn curve and the rates in use are the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from tui_descent.scenario import schedules
from tui_descent.scenario.spec import ScheduleSpec


class Schedule(ABC):
    """A schedule that sets the learning rates of an optimizer. `make_schedule` creates it.

    `from_step` and `total_steps` are step numbers of the run, counted from 0. The schedule changes only the groups'
    `lr` and `initial_lr` (the base rate); one_cycle does not change momentum.
    """

    needs_loss: ClassVar[bool]  # whether the rates depend on the loss

    def __init__(
        self, spec: ScheduleSpec, optimizer: torch.optim.Optimizer, *, from_step: int, total_steps: int
    ) -> None:
        self.spec = spec
        self.from_step = from_step
        self.total_steps = total_steps
        self._optimizer = optimizer
        self._terms = schedules.resolve_schedule(spec, total_steps - from_step)
        self._bases = base_rates(optimizer)

    @abstractmethod
    def step(self, loss: float | torch.Tensor) -> None:
        """Set the rates of the next update. Call this after every update. Only plateau uses the loss."""

    @abstractmethod
    def step_back(self, updates: int) -> None:
        """Undo the last `updates` calls of `step`. Needed when the device turns out to have skipped these updates."""

    @property
    @abstractmethod
    def factor(self) -> float:
        """The next update's rate as a multiple of the base rate."""

    def factor_at(self, step: int) -> float:
        """The factor at step `step` of the run. Raises `ValueError` for plateau, which depends on future losses."""
        return schedules.resolved_factor(self._terms, step - self.from_step)

    def curve(self, *, points: int = 200) -> tuple[tuple[int, float], ...]:
        """Pairs (step of the run, factor) from the schedule's start to its end. Raises `ValueError` for plateau."""
        part = schedules.curve(self.spec, self.total_steps - self.from_step, points=points)
        return tuple((self.from_step + k, value) for k, value in part)

    def state(self) -> dict[str, Any]:
        """The state for `restore`, in plain values: numbers, strings, lists."""
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        return {"name": self.spec.name, "rates": rates, "base_rates": list(self._bases)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`, with the same rates bit for bit.

        The state must come from a schedule with the same spec and the same steps. Raises `ValueError`, with nothing
        changed, if it comes from another kind of schedule or has another number of groups.
        """
        groups = self._optimizer.param_groups
        if state["name"] != self.spec.name or len(state["rates"]) != len(groups):
            found = f"{state['name']} over {len(state['rates'])} groups"
            raise ValueError(f"the state is of {found}; allowed: {self.spec.name} over {len(groups)}")
        self._bases = list(state["base_rates"])
        for group, rate, base in zip(groups, state["rates"], self._bases, strict=True):
            _write(group, "lr", rate)
            _write(group, "initial_lr", base)

    def transfer_to(self, optimizer: torch.optim.Optimizer) -> Schedule:
        """The same schedule at the same point for another optimizer, with that optimizer's base rates.

        Raises `ValueError` if `optimizer` has another number of groups.
        """
        state, bases = self.state(), base_rates(optimizer)
        rates = [base * self.factor for base in bases]
        if len(rates) != len(state["rates"]):
            raise ValueError(f"found {len(rates)} groups; allowed: {len(state['rates'])}")
        moved = make_schedule(self.spec, optimizer, total_steps=self.total_steps, from_step=self.from_step)
        moved.restore(state | {"base_rates": bases, "rates": rates})
        return moved


class ClosedForm(Schedule):
    """All schedules except plateau: the rate of update k is base rate · factor(k)."""

    needs_loss = False

    def __init__(
        self, spec: ScheduleSpec, optimizer: torch.optim.Optimizer, *, from_step: int, total_steps: int
    ) -> None:
        super().__init__(spec, optimizer, from_step=from_step, total_steps=total_steps)
        self._updates = 0
        self._write_rates()

    def step(self, loss: float | torch.Tensor) -> None:
        self._updates += 1
        self._write_rates()

    def step_back(self, updates: int) -> None:
        self._updates -= updates
        self._write_rates()

    @property
    def factor(self) -> float:
        return schedules.resolved_factor(self._terms, self._updates)

    def state(self) -> dict[str, Any]:
        return super().state() | {"updates": self._updates}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._updates = state["updates"]

    def _write_rates(self) -> None:
        factor = self.factor
        for group, base in zip(self._optimizer.param_groups, self._bases, strict=True):
            _write(group, "lr", base * factor)


class Plateau(Schedule):
    """Multiplies the rates by gamma, down to floor · base rate, when the smoothed loss has stopped falling.

    Gives the same rates as `torch.optim.lr_scheduler.ReduceLROnPlateau` on the smoothed loss.
    """

    needs_loss = True

    def __init__(
        self, spec: ScheduleSpec, optimizer: torch.optim.Optimizer, *, from_step: int, total_steps: int
    ) -> None:
        super().__init__(spec, optimizer, from_step=from_step, total_steps=total_steps)
        self._losses_seen = 0
        self._smoothed = 0.0
        self._best = math.inf
        self._updates_without_progress = 0

    def step(self, loss: float | torch.Tensor) -> None:
        """Set the rates of the next update. Reads the loss, which waits for the GPU. A non-finite loss is ignored."""
        value = loss.item() if isinstance(loss, torch.Tensor) else loss
        if not math.isfinite(value):
            return
        # The mean of all losses at first, then an exponential moving average.
        self._losses_seen += 1
        self._smoothed += (value - self._smoothed) / min(self._losses_seen, schedules.SMOOTHED_OVER)
        if self._smoothed < self._best * (1.0 - schedules.PROGRESS):
            self._best = self._smoothed
            self._updates_without_progress = 0
            return
        self._updates_without_progress += 1
        if self._updates_without_progress > self._terms.patience:
            self._updates_without_progress = 0
            self._reduce()

    def step_back(self, updates: int) -> None:
        """Never called. Plateau makes a step only when the loss of the update is known, so no step ever has to be
        undone.
        """
        raise AssertionError("plateau does not step back")

    @property
    def factor(self) -> float:
        """The first group's rate divided by its base rate; 1 if the base rate is 0."""
        base = self._bases[0]
        return float(self._optimizer.param_groups[0]["lr"]) / base if base else 1.0

    def state(self) -> dict[str, Any]:
        return super().state() | {
            "losses_seen": self._losses_seen,
            "smoothed": self._smoothed,
            "best": self._best,
            "updates_without_progress": self._updates_without_progress,
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._losses_seen = state["losses_seen"]
        self._smoothed = state["smoothed"]
        self._best = state["best"]
        self._updates_without_progress = state["updates_without_progress"]

    def _reduce(self) -> None:
        for group, base in zip(self._optimizer.param_groups, self._bases, strict=True):
            rate = float(group["lr"])
            lowered = max(rate * self._terms.gamma, base * self._terms.floor)
            if lowered < rate:
                _write(group, "lr", lowered)


def make_schedule(
    spec: ScheduleSpec, optimizer: torch.optim.Optimizer, *, total_steps: int, from_step: int
) -> Schedule:
    """Create the schedule for the updates from `from_step` to `total_steps`, starting from the groups' base rates.

    The base rate is the optimizer's original rate, not the rate that an earlier schedule has set. For example,
    `constant` after a finished cosine returns to the base rate. Must not be used with an optimizer that has a user's
    own scheduler.
    """
    for group, base in zip(optimizer.param_groups, base_rates(optimizer), strict=True):
        _write(group, "lr", base)
        _write(group, "initial_lr", base)
    kind = Plateau if spec.name == "plateau" else ClosedForm
    return kind(spec, optimizer, from_step=from_step, total_steps=total_steps)


def base_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Each group's rate before any schedule."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def _write(group: dict[str, Any], key: str, value: float) -> None:
    # A rate that is a tensor is changed in place, since a captured CUDA graph reads this tensor object.
    if isinstance(group.get(key), torch.Tensor):
        group[key].fill_(value)
    else:
        group[key] = value
