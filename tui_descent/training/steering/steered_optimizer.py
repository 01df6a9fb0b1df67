"""One of the optimizers of a run, with the settings that knobs have made for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tui_descent.training.steering.knobs.learning_rate import RateMultiplier


@dataclass(slots=True, eq=False)
class SteeredOptimizer:
    """An optimizer, its rate multiplier and its limit for the gradient norm (`clip`, None if clipping is off).

    `name` tells several optimizers apart; the only optimizer of a run has none.
    """

    optimizer: torch.optim.Optimizer
    name: str = ""
    clip: float | None = None
    rate: RateMultiplier = field(init=False)

    def __post_init__(self) -> None:
        self.rate = RateMultiplier(self.optimizer)

    @property
    def target(self) -> str:
        """The target by which a command names this optimizer, as in `lr@optimizer.g=*0.5`; `all` if it has no name."""
        return f"optimizer.{self.name}" if self.name else "all"

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters in its groups."""
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def state(self) -> tuple[Any, ...]:
        """The optimizer object and the settings. The optimizer's contents belong to `TorchState`."""
        return self.optimizer, self.clip, self.rate.state()

    def restore(self, state: tuple[Any, ...]) -> None:
        """Restore what `state` returned."""
        self.optimizer, self.clip, rate = state
        self.rate.restore(rate)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Use another optimizer object from now on."""
        self.optimizer = optimizer
        self.rate.follow(optimizer)
