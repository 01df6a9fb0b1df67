"""One block of a net and its skip connection: the stretch that activation, norm, dropout and residual knobs act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Where = Literal["pre", "mid", "post"]


@dataclass(slots=True)
class Skip:
    """y = gate·x + branch·f(x): f(x) alone at gate 0 and branch 1."""

    branch: float
    gate: float = 1.0

    def join(self, x: Tensor, fx: Tensor) -> Tensor:
        """The block's output from its input and its branch, of one shape."""
        if self.gate == 0.0 and self.branch == 1.0:
            return fx  # exactly, even where x is infinite
        if self.gate == 1.0:
            return x + self.branch * fx
        return self.gate * x + self.branch * fx


class Block(nn.Module):
    """x → f(x) of x's shape, with an optional skip around it.

    f is norm "pre" → core → norm "mid" → activation → out → dropout → norm "post"; what is None is left out. The core
    has weights (Linear, Conv2d, attention) and is registered under the name `kind`; `out` brings the width back where
    the core changes it. With `sums_first` a "post" norm comes after the skip: norm(x + f(x)), as in Vaswani et al.
    2017, arXiv 1706.03762. `places` are the norm's possible ones.
    """

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
        sums_first: bool = False,
        places: tuple[Where, ...] = ("pre", "mid", "post"),
    ) -> None:
        super().__init__()
        self.norm: nn.Module | None
        self.activation: nn.Module | None
        self.out: nn.Module | None
        self.dropout: nn.Module | None
        self.kind = kind
        self.where: Where = where
        self.skip = skip
        self.sums_first = sums_first
        self.places = places
        drop = nn.Dropout(dropout) if dropout else None
        self._register(core=core, activation=activation, out=out, dropout=drop, norm=norm)

    @property
    def core(self) -> nn.Module:
        """The module with the block's first weights."""
        core = self._modules[self.kind]
        assert core is not None
        return core

    def put_norm(self, norm: nn.Module | None, where: Where) -> None:
        """Another norm, or none, at a place; the block is then as one built that way."""
        self.where = where
        self._register(norm=norm)

    def put_dropout(self, p: float) -> None:
        """The share of numbers that training sets to 0; without any there is no such module."""
        drop = nn.Dropout(p).train(self.training) if p else None
        self._register(dropout=drop)

    def _register(self, **changed: nn.Module | None) -> None:
        """Register the parts in forward order, in which a run's layers are told; absent ones are plain Nones."""
        parts: dict[str, nn.Module | None] = {}
        for name in ("core", "activation", "out", "dropout", "norm"):
            known = self._modules.get(self.kind if name == "core" else name)
            parts[name] = changed.get(name, known)
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
        last = norm if where == "post" else None
        if last is not None and not self.sums_first:
            h = last(h)
        if self.skip is not None:
            h = self.skip.join(x, h)
        return last(h) if last is not None and self.sums_first else h
