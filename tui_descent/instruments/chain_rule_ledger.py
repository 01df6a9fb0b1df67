"""The chain-rule ledger: dL/dx of each block, computed from dL/dy by formulas instead of autograd.

The formulas are Wᵀ(φ′ ⊙ δ) for the Linear and the activation, plus those of the skip and of the norm layer. The ledger
compares the results with autograd's at the same boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.activation_derivatives import derivative
from tui_descent.instruments.deferred import Deferred
from tui_descent.protocol.events import LedgerEntry


class Skip(Protocol):
    """A block's residual connection: y = gate·x + branch·f(x)."""

    gate: float
    branch: float


class Block(Protocol):
    """A Linear and an activation. `where` is the place of the norm layer: before the Linear ("pre"), between the Linear
    and the activation ("mid"), or after the activation ("post").
    """

    linear: nn.Linear
    activation: nn.Module
    norm: nn.Module | None
    where: str
    skip: Skip | None
    dropout: nn.Module | None


@dataclass(slots=True)
class _Pass:
    """The tensors of one block in one forward and backward pass, (B, W) each."""

    x: Tensor | None = None  # input
    h: Tensor | None = None  # after the Linear
    z: Tensor | None = None  # before the activation
    a: Tensor | None = None  # after the activation
    dy: Tensor | None = None  # dL/dy
    dx: Tensor | None = None  # dL/dx by autograd
    handles: list[RemovableHandle] = field(default_factory=list)


class ChainRuleLedger:
    """Measures one forward and backward pass of the `blocks`, which are (name, module) in forward order."""

    def __init__(self, blocks: Sequence[tuple[str, nn.Module]]) -> None:
        self._blocks = list(blocks)
        self._passes: list[_Pass] = []

    def attach(self) -> None:
        """Measure the next pass."""
        self.detach()
        self._passes = [_Pass() for _ in self._blocks]
        for (_, block), tensors in zip(self._blocks, self._passes, strict=True):
            assert isinstance(block.linear, nn.Module)
            assert isinstance(block.activation, nn.Module)
            tensors.handles = [
                block.register_forward_pre_hook(partial(_before_block, tensors)),
                block.linear.register_forward_hook(partial(_after_linear, tensors)),
                block.activation.register_forward_hook(partial(_after_activation, tensors)),
                block.register_forward_hook(partial(_after_block, tensors)),
            ]

    def detach(self) -> None:
        """Remove the forward hooks. Gradients of tensors that already have a hook are still kept."""
        for tensors in self._passes:
            for handle in tensors.handles:
                handle.remove()
            tensors.handles = []

    @torch.no_grad()
    def entries(self) -> Deferred[list[LedgerEntry]]:
        """One entry per block, in forward order; empty if no pass was measured. Call it after the backward pass.

        Let dx be dL/dx by the formulas and dx′ be dL/dx by autograd. Then `factor` is ‖dx‖/‖dL/dy‖, `autograd` is
        ‖dx′‖/‖dL/dy‖, `discrepancy` is ‖dx − dx′‖/‖dx′‖, and `product` is the product of the factors from the last
        block to this one. A value that is not known is None.
        """
        passes, self._passes = self._passes, []
        if all(tensors.dy is None for tensors in passes):
            passes = []
        columns: list[Tensor] = []
        # For each block, the indices of the columns with ‖dL/dy‖, ‖dx′‖, ‖dx‖ and ‖dx − dx′‖.
        blocks: list[tuple[str, list[int | None]]] = []
        for (name, block), tensors in reversed(list(zip(self._blocks, passes, strict=False))):
            dx = self._dx(cast(Block, block), tensors)
            difference = None if dx is None or tensors.dx is None else dx - tensors.dx.double()
            places: list[int | None] = []
            for tensor in (tensors.dy, tensors.dx, dx, difference):
                places.append(None if tensor is None else len(columns))
                if tensor is not None:
                    columns.append(tensor.double().square().sum().sqrt().reshape(1))
            blocks.append((name, places))

        def read(values: Sequence[float]) -> list[LedgerEntry]:
            product, entries = 1.0, []
            for name, places in blocks:
                dy, autograd, dx, difference = (None if n is None else values[n] for n in places)
                factor = dx / dy if dx is not None and dy else None
                product *= 1.0 if factor is None else factor
                entries.append(
                    LedgerEntry(
                        block=name,
                        factor=factor,
                        autograd=autograd / dy if autograd is not None and dy else None,
                        discrepancy=difference / autograd if difference is not None and autograd else None,
                        product=None if factor is None else product,
                    )
                )
            return entries[::-1]

        return Deferred(columns, read)

    def _dx(self, block: Block, tensors: _Pass) -> Tensor | None:
        """dL/dx of a block from dL/dy, in float64; None if a tensor or a derivative is not known."""
        if tensors.dy is None or tensors.x is None or tensors.z is None or tensors.a is None or tensors.h is None:
            return None
        if block.dropout is not None:
            return None  # the dropout mask is not known
        dy = tensors.dy.double()
        skip: Skip | None = block.skip
        gate, branch = (0.0, 1.0) if skip is None else (skip.gate, skip.branch)
        delta = branch * dy
        if block.norm is not None and block.where == "post":
            delta = norm_backward(block.norm, tensors.a.double(), delta)
        slopes = derivative(block.activation, tensors.z.double())
        if slopes is None:
            return None
        delta = slopes * delta  # φ′ ⊙ δ
        if block.norm is not None and block.where == "mid":
            delta = norm_backward(block.norm, tensors.h.double(), delta)
        delta = delta @ block.linear.weight.double()  # Wᵀδ, one row per sample
        if block.norm is not None and block.where == "pre":
            delta = norm_backward(block.norm, tensors.x.double(), delta)
        return gate * dy + delta


def norm_backward(norm: nn.Module, x: Tensor, delta: Tensor) -> Tensor:
    """dL/dx of a LayerNorm or RMSNorm over the last dimension, from δ = dL/dy; shapes (…, n).

    LayerNorm (Ba et al. 2016, arXiv 1607.06450): with x̂ = (x − μ)/σ and d = γ·δ, (d − mean(d) − x̂·mean(d·x̂))/σ.
    RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467): with r = √mean(x²) and x̂ = x/r, (d − x̂·mean(d·x̂))/r.
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


def _before_block(tensors: _Pass, module: object, args: tuple[Any, ...]) -> None:
    tensors.x = args[0].detach()
    if args[0].requires_grad:
        args[0].register_hook(_keep_gradient(tensors, "dx"))


def _after_linear(tensors: _Pass, module: object, args: object, output: Tensor) -> None:
    tensors.h = output.detach().clone()  # copied, since the activation may change it in place


def _after_activation(tensors: _Pass, module: object, args: tuple[Any, ...], output: Tensor) -> None:
    tensors.z, tensors.a = args[0].detach(), output.detach()


def _after_block(tensors: _Pass, module: object, args: object, output: Tensor) -> None:
    if output.requires_grad:
        output.register_hook(_keep_gradient(tensors, "dy"))  # type: ignore[no-untyped-call]


def _keep_gradient(tensors: _Pass, name: str) -> Callable[[Tensor], None]:
    def keep(grad: Tensor) -> None:
        setattr(tensors, name, grad)

    return keep
