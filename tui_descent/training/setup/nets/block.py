"""A block of a net and its skip connection. The activation, norm, dropout and residual knobs change blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tui_descent.scenario.spec import ResidualSpec

Where = Literal["pre", "mid", "post"]


@dataclass(slots=True)
class Skip:
    """A skip connection y = gate·x + branch·f(x). With gate 0 and branch 1 it has no effect: y = f(x).

    A `branch` that is a parameter of shape () is learnt. It starts at 0, so the block starts as y = x: ReZero,
    Bachlechner et al. 2020, arXiv 2003.04887.
    """

    branch: float | nn.Parameter
    gate: float = 1.0

    def __repr__(self) -> str:
        branch = "learnt" if isinstance(self.branch, nn.Parameter) else self.branch
        return f"Skip(branch={branch}, gate={self.gate})"

    def combine(self, x: Tensor, fx: Tensor) -> Tensor:
        """The block's output from its input x and its branch f(x), which have the same shape."""
        if self.gate == 0.0 and isinstance(self.branch, float) and self.branch == 1.0:
            return fx  # exact, even if x is infinite
        if self.gate == 1.0:
            return x + self.branch * fx
        return self.gate * x + self.branch * fx


def rezero(like: Tensor | None = None) -> Skip:
    """A skip whose branch is learnt and starts at 0, with the dtype and device of `like`."""
    return Skip(nn.Parameter(torch.zeros(()) if like is None else like.new_zeros(())))


def skip_of(spec: ResidualSpec, scale: float) -> Skip | None:
    """The skip that a scenario describes; `scale` is the default one."""
    if spec.name == "off":
        return None
    return rezero() if spec.way == "rezero" else Skip(spec.scale or scale)


class Block(nn.Module):
    """x → f(x), with an optional skip connection around f. Output and input have the same shape.

    f is norm "pre" → core → norm "mid" → activation → out → dropout → norm "post". Parts that are None are left out.
    There is at most one norm layer; `where` is its place, and `norm_places` are the places that it may have. The core
    contains the weights (Linear, Conv2d, attention) and is registered under the name `kind`. `out` restores the width
    if the core changes it. With `norm_after_skip` a "post" norm layer comes after the skip: norm(x + f(x)), as in
    Vaswani et al. 2017, arXiv 1706.03762. `alpha` is the learnt branch of the skip, if it has one.
    """

    not_layers = ("alpha",)  # parameters that get no row of their own in a reading

    def __init__(
        self,
        core: nn.Module,
        activation: nn.Module | None,
        *,
        kind: str = "linear",
        out: nn.Module | None = None,
        norm: nn.Module | None = None,
        where: Where = "pre",
        skip: Skip | None = None,
        dropout: float = 0.0,
        norm_after_skip: bool = False,
        norm_places: tuple[Where, ...] = ("pre", "mid", "post"),
    ) -> None:
        super().__init__()
        self.norm: nn.Module | None
        self.activation: nn.Module | None
        self.out: nn.Module | None
        self.dropout: nn.Module | None
        self.kind = kind
        self.where: Where = where
        self.put_skip(skip)
        self.norm_after_skip = norm_after_skip
        self.norm_places = norm_places
        drop = nn.Dropout(dropout) if dropout else None
        self._register(core=core, activation=activation, out=out, dropout=drop, norm=norm)

    @property
    def core(self) -> nn.Module:
        """The module with the block's main weights."""
        core = self._modules[self.kind]
        assert core is not None
        return core

    def put_skip(self, skip: Skip | None) -> None:
        """Set or remove the skip, with its learnt branch as the parameter `alpha`."""
        self.skip = skip
        self._parameters.pop("alpha", None)
        if skip is not None and isinstance(skip.branch, nn.Parameter):
            self._parameters["alpha"] = skip.branch

    def put_norm(self, norm: nn.Module | None, where: Where) -> None:
        """Replace the norm layer, or remove it with None. The result is as if the block had been built this way."""
        self.where = where
        self._register(norm=norm)

    def put_dropout(self, p: float) -> None:
        """Set the dropout probability. With 0 the block has no dropout module."""
        drop = nn.Dropout(p).train(self.training) if p else None
        self._register(dropout=drop)

    def _register(self, **changed: nn.Module | None) -> None:
        """Register the parts in forward order, so that the layers of a run are listed in this order.

        `changed` are the parts to replace, by name. Parts that are None become plain attributes.
        """
        parts: dict[str, nn.Module | None] = {}
        for name in ("core", "activation", "out", "dropout", "norm"):
            present = self._modules.get(self.kind if name == "core" else name)
            parts[name] = changed.get(name, present)
        order = ["core", "activation", "out", "dropout"]
        order.insert({"pre": 0, "mid": 1, "post": 4}[self.where], "norm")
        self._modules.clear()
        for name in order:
            if (module := parts[name]) is not None:
                self.__dict__.pop(name, None)
                self._modules[self.kind if name == "core" else name] = module
            else:
                self.__dict__[name] = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → the same shape."""
        norm, where = self.norm, self.where
        h = x
        if norm is not None and where == "pre":
            h = norm(h)
        h = self.core(h)
        if norm is not None and where == "mid":
            h = norm(h)
        if self.activation is not None:
            h = self.activation(h)
        if self.out is not None:
            h = self.out(h)
        if self.dropout is not None:
            h = self.dropout(h)
        post_norm = norm if where == "post" else None
        if post_norm is not None and not self.norm_after_skip:
            h = post_norm(h)
        if self.skip is not None:
            h = self.skip.combine(x, h)
        return post_norm(h) if post_norm is not None and self.norm_after_skip else h
