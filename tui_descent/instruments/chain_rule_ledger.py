"""The chain-rule ledger: each block's factor from its parts, Wᵀ(φ′ ⊙ δ) + skip and the norm's share, without autograd.

Beside it stands what autograd found at the same boundaries: two measurements of one thing, and their discrepancy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.activation_derivatives import slope
from tui_descent.instruments.deferred import Deferred
from tui_descent.protocol.events import LedgerEntry


class Skip(Protocol):
    """What a block adds around its branch: y = gate·x + branch·f(x)."""

    gate: float
    branch: float


class Block(Protocol):
    """A block the ledger can take apart."""

    linear: nn.Linear
    activation: nn.Module
    norm: nn.Module | None
    where: str
    skip: Skip | None
    dropout: nn.Module | None


@dataclass(slots=True)
class _Kept:
    """One block's tensors of one pass."""

    x: Tensor | None = None  # (B, W) input
    z: Tensor | None = None  # (B, W) pre-activation
    a: Tensor | None = None  # (B, W) after the activation
    h: Tensor | None = None  # (B, W) after the Linear
    up: Tensor | None = None  # (B, W) dL/dy
    down: Tensor | None = None  # (B, W) dL/dx, autograd's
    handles: list[RemovableHandle] = field(default_factory=list)


class ChainRuleLedger:
    """Listens to one forward and backward pass; `entries()` afterwards, first block first."""

    def __init__(self, blocks: Sequence[tuple[str, nn.Module]]) -> None:
        self._blocks = list(blocks)
        self._kept: list[_Kept] = []

    def attach(self) -> None:
        """Listen to the next pass."""
        self.detach()
        self._kept = [_Kept() for _ in self._blocks]
        for (_, block), kept in zip(self._blocks, self._kept, strict=True):
            assert isinstance(block.linear, nn.Module)
            assert isinstance(block.activation, nn.Module)
            kept.handles = [
                block.register_forward_pre_hook(partial(_entered, kept)),
                block.linear.register_forward_hook(partial(_projected, kept)),
                block.activation.register_forward_hook(partial(_activated, kept)),
                block.register_forward_hook(partial(_left, kept)),
            ]

    def detach(self) -> None:
        """Stop listening to forward passes."""
        for kept in self._kept:
            for handle in kept.handles:
                handle.remove()
            kept.handles = []

    @torch.no_grad()
    def entries(self) -> Deferred[list[LedgerEntry]]:
        """A line a block: both factors, the discrepancy |parts − autograd| / autograd, the product from the output."""
        heard, self._kept = self._kept, []
        if all(kept.up is None for kept in heard):
            heard = []  # no pass was listened to
        columns: list[Tensor] = []
        # Of each block, the places of ‖dL/dy‖, autograd's ‖dL/dx‖, the parts' and of these two's difference.
        places: list[tuple[str, list[int | None]]] = []
        for (name, block), kept in reversed(list(zip(self._blocks, heard, strict=False))):
            parts = None if kept.up is None else self._through(block, kept)
            off = None if parts is None or kept.down is None else parts - kept.down.double()
            place: list[int | None] = []
            for tensor in (kept.up, kept.down, parts, off):
                place.append(None if tensor is None else len(columns))
                if tensor is not None:
                    columns.append(tensor.double().square().sum().sqrt().reshape(1))
            places.append((name, place))

        def read(values: Sequence[float]) -> list[LedgerEntry]:
            product, entries = 1.0, []
            for name, place in places:
                up, down, parts, off = (None if n is None else values[n] for n in place)
                by_parts = parts / up if parts is not None and up else None
                product *= 1.0 if by_parts is None else by_parts
                entries.append(
                    LedgerEntry(
                        block=name,
                        factor=by_parts,
                        autograd=down / up if down is not None and up else None,
                        discrepancy=off / down if off is not None and down else None,
                        product=product if by_parts is not None else None,
                    )
                )
            return entries[::-1]

        return Deferred(columns, read)

    def _through(self, block: Any, kept: _Kept) -> Tensor | None:
        """dL/dx of a block from dL/dy, part by part, in float64."""
        if kept.up is None or kept.x is None or kept.z is None or kept.a is None or kept.h is None:
            return None
        if block.dropout is not None:
            return None  # which numbers it set to 0 is not kept
        up = kept.up.double()
        skip: Skip | None = block.skip
        gate, branch = (0.0, 1.0) if skip is None else (skip.gate, skip.branch)
        delta = branch * up
        if block.norm is not None and block.where == "post":
            delta = norm_back(block.norm, kept.a.double(), delta)
        bend = slope(block.activation, kept.z.double())
        if bend is None:
            return None
        delta = bend * delta  # φ′ ⊙ δ
        if block.norm is not None and block.where == "mid":
            delta = norm_back(block.norm, kept.h.double(), delta)
        delta = delta @ block.linear.weight.double()  # Wᵀδ, for rows as samples
        if block.norm is not None and block.where == "pre":
            delta = norm_back(block.norm, kept.x.double(), delta)
        return gate * up + delta


def norm_back(norm: nn.Module, x: Tensor, delta: Tensor) -> Tensor:
    """The way back through LayerNorm or RMSNorm over the last dimension, by the closed form.

    LayerNorm (Ba et al. 2016, arXiv 1607.06450): with x̂ = (x − μ)/σ and d = γ·δ, (d − mean(d) − x̂·mean(d·x̂))/σ.
    RMSNorm (Zhang & Sennrich 2019, 1910.07467): with x̂ = x/r, (d − x̂·mean(d·x̂))/r.
    """
    weight = getattr(norm, "weight", None)
    d = delta if weight is None else delta * weight.double()
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean(dim=-1, keepdim=True)
        size = (x.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
        hat = x / size
        return (d - d.mean(dim=-1, keepdim=True) - hat * (d * hat).mean(dim=-1, keepdim=True)) / size
    assert isinstance(norm, nn.RMSNorm)
    eps = norm.eps if norm.eps is not None else torch.finfo(torch.float32).eps
    size = (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    hat = x / size
    return (d - hat * (d * hat).mean(dim=-1, keepdim=True)) / size


def _entered(kept: _Kept, module: object, args: tuple[Any, ...]) -> None:
    kept.x = args[0].detach()
    if args[0].requires_grad:
        args[0].register_hook(_into(kept, "down"))


def _projected(kept: _Kept, module: object, args: object, output: Tensor) -> None:
    kept.h = output.detach().clone()  # an activation may work in place on it


def _activated(kept: _Kept, module: object, args: tuple[Any, ...], output: Tensor) -> None:
    kept.z, kept.a = args[0].detach(), output.detach()


def _left(kept: _Kept, module: object, args: object, output: Tensor) -> None:
    if output.requires_grad:
        output.register_hook(_into(kept, "up"))  # type: ignore[no-untyped-call]


def _into(kept: _Kept, name: str) -> Callable[[Tensor], None]:
    def keep(grad: Tensor) -> None:
        setattr(kept, name, grad)

    return keep
