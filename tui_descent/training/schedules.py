"""The learning rate's own movement: one `torch.optim.lr_scheduler` over the updates left, stepped after each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from tui_descent.scenario import schedules
from tui_descent.scenario.spec import ScheduleSpec

_PLATEAU = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


class Schedule:
    """A schedule at work on an optimizer, made by `make`. Updates are the run's own, counted from 0.

    All but plateau are one `LambdaLR` over the closed form of scenario/schedules.py: the curve drawn is the curve run.
    It writes nothing but the groups' `lr` and `initial_lr`; momentum is left alone, in one_cycle too.
    """

    def __init__(
        self, spec: ScheduleSpec, optimizer: torch.optim.Optimizer, *, from_step: int, total_steps: int
    ) -> None:
        self.spec = spec
        self.from_step = from_step
        self.total_steps = total_steps
        self._optimizer = optimizer
        self._terms = schedules.terms(spec, total_steps - from_step)
        self._seen, self._loss = 0, 0.0
        self._lambda: LambdaLR | None = None
        self._plateau: ReduceLROnPlateau | None = None
        if spec.name == "plateau":
            self._plateau = ReduceLROnPlateau(
                optimizer,
                factor=self._terms.gamma,
                patience=self._terms.patience,
                threshold=schedules.PROGRESS,
                min_lr=[base * self._terms.floor for base in base_rates(optimizer)],
                eps=0.0,
            )
        else:
            # The closed form by name and not by a lambda over self: no circle keeps an optimizer alive.
            made_of = self._terms
            self._lambda = LambdaLR(optimizer, lambda k: schedules.factor_of(made_of, k))

    def step(self, loss: float | torch.Tensor) -> None:
        """After every update that was made. Only plateau reads the loss, and passes over one that is not a number."""
        if self._lambda is not None:
            self._lambda.step()
            return
        assert self._plateau is not None
        value = loss.item() if isinstance(loss, torch.Tensor) else loss
        if not math.isfinite(value):
            return
        # A mean over all so far at first, then an exponential one.
        self._seen += 1
        self._loss += (value - self._loss) / min(self._seen, schedules.SMOOTHED_OVER)
        self._plateau.step(self._loss)

    def back(self, updates: int) -> None:
        """As if the last ones had not been made; not for plateau, which is stepped once an update's loss is known."""
        assert self._lambda is not None
        at = self._lambda.last_epoch - updates
        rates = [base * schedules.factor_of(self._terms, at) for base in base_rates(self._optimizer)]
        self.restore(self.state() | {"last_epoch": at, "step_count": self._lambda._step_count - updates, "lrs": rates})

    @property
    def needs_loss(self) -> bool:
        """Whether its next rate hangs on the loss: plateau's does."""
        return self._plateau is not None

    @property
    def factor(self) -> float:
        """What the next update's rate is of the base rate."""
        if self._lambda is not None:
            return schedules.factor_of(self._terms, self._lambda.last_epoch)
        base = base_rates(self._optimizer)[0]
        return float(self._optimizer.param_groups[0]["lr"]) / base if base else 1.0

    def factor_at(self, step: int) -> float:
        """The factor of the run's update `step`. Raises `ValueError` for plateau: it has none to foretell."""
        return schedules.factor_of(self._terms, step - self.from_step)

    def curve(self, *, points: int = 200) -> tuple[tuple[int, float], ...]:
        """(the run's update, factor) from where it was made to the end. Raises `ValueError` for plateau."""
        part = schedules.curve(self.spec, self.total_steps - self.from_step, points=points)
        return tuple((self.from_step + k, value) for k, value in part)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, as plain values: numbers, texts, lists."""
        groups = self._optimizer.param_groups
        held = {"lrs": [float(g["lr"]) for g in groups], "bases": base_rates(self._optimizer)}
        if self._lambda is not None:
            return {
                "name": self.spec.name,
                "step_count": self._lambda._step_count,
                "last_epoch": self._lambda.last_epoch,
            } | held
        assert self._plateau is not None
        kept = {key: getattr(self._plateau, key) for key in _PLATEAU}
        return {"name": self.spec.name, "seen": self._seen, "loss": self._loss, **kept} | held

    def restore(self, state: dict[str, Any]) -> None:
        """Back to a state taken from a schedule of the same spec and span: the same rates to the last bit from here on.

        Raises `ValueError`, with nothing changed, when the state is another schedule's or another number of groups'.
        """
        groups = self._optimizer.param_groups
        if state["name"] != self.spec.name or len(state["lrs"]) != len(groups):
            found = f"{state['name']} over {len(state['lrs'])} groups"
            raise ValueError(f"the state is of {found}; allowed: {self.spec.name} over {len(groups)}")
        for group, lr, base in zip(groups, state["lrs"], state["bases"], strict=True):
            _set(group, "lr", lr)
            _set(group, "initial_lr", base)
        # Attribute by attribute: torch's own load_state_dict would also take over what is not the schedule's state.
        if self._lambda is not None:
            self._lambda.last_epoch = state["last_epoch"]
            self._lambda._step_count = state["step_count"]
            self._lambda.base_lrs = list(state["bases"])
            self._lambda._last_lr = list(state["lrs"])
            return
        assert self._plateau is not None
        for key in _PLATEAU:
            setattr(self._plateau, key, state[key])
        self._plateau.min_lrs = [base * self._terms.floor for base in state["bases"]]
        self._plateau._last_lr = list(state["lrs"])
        self._seen, self._loss = state["seen"], state["loss"]

    def onto(self, optimizer: torch.optim.Optimizer) -> Schedule:
        """The same schedule at the same point on another optimizer, such as a swap's, from that one's base rates.

        Raises `ValueError` when it has another number of groups.
        """
        state, factor, bases = self.state(), self.factor, base_rates(optimizer)
        lrs = [base * factor for base in bases]
        if len(lrs) != len(state["lrs"]):
            raise ValueError(f"found {len(lrs)} groups; allowed: {len(state['lrs'])}")
        moved = make(self.spec, optimizer, total_steps=self.total_steps, from_step=self.from_step)
        moved.restore(state | {"bases": bases, "lrs": lrs})
        return moved


def make(spec: ScheduleSpec, optimizer: torch.optim.Optimizer, *, total_steps: int, from_step: int) -> Schedule:
    """The schedule over the updates from `from_step` to `total_steps`, beginning now, from the groups' base rates.

    The base rate is what the optimizer was given, not what an earlier schedule has made of it: after a cosine has run
    down, `constant` is back at the base rate. Not for an optimizer that a user's own scheduler moves.
    """
    for group, base in zip(optimizer.param_groups, base_rates(optimizer), strict=True):
        _set(group, "lr", base)
        _set(group, "initial_lr", base)
    return Schedule(spec, optimizer, from_step=from_step, total_steps=total_steps)


def base_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Each group's rate before any schedule."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def _set(group: dict[str, Any], key: str, value: float) -> None:
    # A captured graph holds on to a tensor rate, so it is written into.
    if isinstance(group.get(key), torch.Tensor):
        group[key].fill_(value)
    else:
        group[key] = value
