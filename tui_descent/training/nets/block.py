"""One block of a net and its skip connection: the stretch that activation, norm and residual knobs act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(slots=True)
class Skip:
    """y = gate·x + (1 − gate·(1 − scale))·f(x): f(x) alone at gate 0, x + scale·f(x) at gate 1."""

    scale: float
    gate: float = 1.0

    def join(self, x: Tensor, fx: Tensor) -> Tensor:
        """The block's output from its input and its branch, of one shape."""
        branch = 1 - self.gate * (1 - self.scale)
        if self.gate == 1.0:
            return x + branch * fx
        return self.gate * x + branch * fx


class Block(nn.Module):
    """activation(Linear(x)), width to width, with a norm before, between or after and an optional skip."""

    def __init__(
        self,
        linear: nn.Linear,
        activation: nn.Module,
        *,
        norm: nn.Module | None = None,
        where: Literal["pre", "mid", "post"] = "pre",
        skip: Skip | None = None,
    ) -> None:
        super().__init__()
        # Registered in forward order, in which a run's layers are told.
        if where == "pre":
            self.norm = norm
        self.linear = linear
        if where == "mid":
            self.norm = norm
        self.activation = activation
        if where == "post":
            self.norm = norm
        self.where = where
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, W) → (B, W)."""
        h = x
        if self.norm is not None and self.where == "pre":
            h = self.norm(h)
        h = self.linear(h)
        if self.norm is not None and self.where == "mid":
            h = self.norm(h)
        h = self.activation(h)
        if self.norm is not None and self.where == "post":
            h = self.norm(h)
        return h if self.skip is None else self.skip.join(x, h)
