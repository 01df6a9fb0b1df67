"""The chain-rule ledger: dL/dx of each block, computed from dL/dy by formulas instead of autograd.

The formula is Wᵀ(φ′ ⊙ δ) for the Linear and the activation. The skip connection and the norm layer have formulas of
their own. The ledger compares the results with autograd's at the same boundaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from tui_descent.instruments.activation_derivatives import derivative
from tui_descent.instruments.deferred import Deferred
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.gradient_hooks import GradientHooks
from tui_descent.instruments.module_hooks import Args, Kwargs, ModuleHooks, first_tensor, plain, version
from tui_descent.protocol.events import BlockPart, LedgerEntry, PartFactor
from tui_descent.protocol.layer_names import in_words

PART = "the chain-rule ledger"


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


class _Kept(NamedTuple):
    """A tensor of the forward pass. If it was changed in place since then, its original numbers are lost."""

    tensor: Tensor
    version: int

    @property
    def unchanged(self) -> Tensor | None:
        return self.tensor if version(self.tensor) == self.version else None


@dataclass(slots=True)
class _Pass:
    """The tensors of one block in one forward pass, (B, W) each."""

    calls: int = 0
    x: _Kept | None = None  # input
    h: Tensor | None = None  # after the Linear
    z: _Kept | None = None  # before the activation
    a: _Kept | None = None  # after the activation


class ChainRuleLedger:
    """Measures one forward and backward pass of the `blocks`, which are (name, module) in forward order."""

    def __init__(self, blocks: Sequence[tuple[str, nn.Module]], failures: Failures | None = None) -> None:
        self._blocks = list(blocks)
        self._failures = failures = Failures() if failures is None else failures
        self._parts = [f"{PART} of {name}" for name, _ in self._blocks]
        self._passes: list[_Pass] = []
        # Keys: the number of the block, and "dx" for dL/dx or "dy" for dL/dy.
        self._gradients: GradientHooks[tuple[int, str], Tensor] = GradientHooks(lambda grad: grad, failures)
        self._hooks = hooks = ModuleHooks(failures)
        for n, ((_, module), part) in enumerate(zip(self._blocks, self._parts, strict=True)):
            block = cast(Block, module)
            hooks.on_input(module, partial(self._before_block, n), part)
            hooks.on_output(block.linear, partial(self._after_linear, n), part)
            hooks.on_output(block.activation, partial(self._after_activation, n), part)
            hooks.on_output(module, partial(self._after_block, n), part)

    def attach(self) -> None:
        """Measure the next pass."""
        self._passes = [_Pass() for _ in self._blocks]
        self._gradients.clear()
        self._hooks.attach()

    def detach(self) -> None:
        """Remove the hooks. The tensors that they have kept stay available for `entries`."""
        self._hooks.detach()
        self._gradients.detach()

    @torch.no_grad()
    def entries(self, *, parts: bool = False) -> Deferred[list[LedgerEntry]]:
        """One entry per block, in forward order; empty if no pass was measured. Call it after the backward pass.

        Let dx be dL/dx by the formulas and dx′ be dL/dx by autograd. Then `factor` is ‖dx‖/‖dL/dy‖, `autograd` is
        ‖dx′‖/‖dL/dy‖, `discrepancy` is ‖dx − dx′‖/‖dx′‖, and `product` is the product of the factors from the last
        block to this one. A value that is not known is None. With `parts`, each entry also has the factors of its
        block's parts, with the norms of the gradients between them.
        """
        passes, self._passes = self._passes, []
        gradients = [(self._gradients.get((n, "dy")), self._gradients.get((n, "dx"))) for n in range(len(passes))]
        self._gradients.clear()
        if all(dy is None for dy, _ in gradients):
            passes = []
        columns: list[Tensor] = []
        # For each block, the indices of the columns with ‖dL/dy‖, ‖dx′‖, ‖dx‖ and ‖dx − dx′‖; then the names of its
        # parts, and the index of the first of their columns, which have the norms of the gradients after each part.
        blocks: list[tuple[str, list[int | None], list[BlockPart], int]] = []
        for n in reversed(range(len(passes))):
            (name, block), (dy, autograd), chain = self._blocks[n], gradients[n], None
            if passes[n].calls > 1:  # the kept tensors belong to one call, and the gradients perhaps to another
                self._failures.leave_out(PART, f"{in_words(name)} ran {passes[n].calls} times in one step")
                dy = autograd = None
            elif dy is not None and self._parts[n] not in self._failures:
                with self._failures.guard(self._parts[n]):
                    chain = self._chain(cast(Block, block), passes[n], dy)
            dx = None if chain is None else chain[-1][1]
            difference = None if dx is None or autograd is None else dx - autograd.double()
            places: list[int | None] = []
            for tensor in (dy, autograd, dx, difference):
                places.append(None if tensor is None else len(columns))
                if tensor is not None:
                    columns.append(_norm(tensor))
            chain = chain if parts and chain is not None else []
            blocks.append((name, places, [part for part, _ in chain], len(columns)))
            columns += [_norm(tensor) for _, tensor in chain]

        def read(values: Sequence[float]) -> list[LedgerEntry]:
            product, entries = 1.0, []
            for name, places, named, first in blocks:
                dy, autograd, dx, difference = (None if n is None else values[n] for n in places)
                factor = dx / dy if dx is not None and dy else None
                product *= 1.0 if factor is None else factor
                norms = [dy or 0.0, *values[first : first + len(named)]]
                factors = [after / before if before else None for before, after in pairwise(norms)]
                entries.append(
                    LedgerEntry(
                        block=name,
                        factor=factor,
                        autograd=autograd / dy if autograd is not None and dy else None,
                        discrepancy=difference / autograd if difference is not None and autograd else None,
                        product=None if factor is None else product,
                        parts=tuple(map(PartFactor, named, factors)),
                    )
                )
            return entries[::-1]

        return Deferred(columns, read)

    def _chain(self, block: Block, tensors: _Pass, dy: Tensor) -> list[tuple[BlockPart, Tensor]] | None:
        """The gradient after each part of a block, from dL/dy to dL/dx, in float64; None if a tensor or a derivative is
        not known.
        """
        x, z, a = (None if kept is None else kept.unchanged for kept in (tensors.x, tensors.z, tensors.a))
        if x is None or z is None or a is None or tensors.h is None:
            return None
        if block.dropout is not None:
            return None  # the dropout mask is not known
        dy = dy.double()
        skip: Skip | None = block.skip
        gate, branch = (0.0, 1.0) if skip is None else (skip.gate, skip.branch)
        delta = branch * dy
        chain: list[tuple[BlockPart, Tensor]] = [] if skip is None else [("scale", delta)]
        if block.norm is not None and block.where == "post":
            delta = norm_backward(block.norm, a.double(), delta)
            chain.append(("norm", delta))
        slopes = derivative(block.activation, z.double())
        if slopes is None:
            return None
        delta = slopes * delta  # φ′ ⊙ δ
        chain.append(("activation", delta))
        if block.norm is not None and block.where == "mid":
            delta = norm_backward(block.norm, tensors.h.double(), delta)
            chain.append(("norm", delta))
        delta = delta @ block.linear.weight.double()  # Wᵀδ, one row per sample
        chain.append(("weights", delta))
        if block.norm is not None and block.where == "pre":
            delta = norm_backward(block.norm, x.double(), delta)
            chain.append(("norm", delta))
        return chain if skip is None else [*chain, ("skip", gate * dy + delta)]

    def _before_block(self, n: int, args: Args) -> None:
        tensors = self._passes[n]
        tensors.calls += 1
        tensors.x = _keep(first_tensor(args))
        self._gradients.listen((n, "dx"), first_tensor(args), self._parts[n])

    def _after_linear(self, n: int, args: Args, kwargs: Kwargs, output: Tensor) -> None:
        kept = _keep(output)
        self._passes[n].h = None if kept is None else kept.tensor.clone()  # the activation may change it in place

    def _after_activation(self, n: int, args: Args, kwargs: Kwargs, output: Tensor) -> None:
        self._passes[n].z, self._passes[n].a = _keep(first_tensor(args)), _keep(output)

    def _after_block(self, n: int, args: Args, kwargs: Kwargs, output: Tensor) -> None:
        self._gradients.listen((n, "dy"), first_tensor(output), self._parts[n])


def is_block(module: nn.Module) -> bool:
    """Whether the ledger's formulas hold for a module, that is, whether the module is one of our `Block`s around a
    Linear.
    """
    names = ("linear", "activation", "norm", "where", "skip", "dropout")
    known = all(hasattr(module, name) for name in names)
    return known and isinstance(module.linear, nn.Linear) and isinstance(module.activation, nn.Module)


def _norm(tensor: Tensor) -> Tensor:
    return tensor.double().square().sum().sqrt().reshape(1)


def _keep(tensor: Tensor | None) -> _Kept | None:
    if tensor is None or (ordinary := plain(tensor)) is None or ordinary.is_complex():
        return None
    return _Kept(ordinary, version(ordinary))


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
    dtype = torch.float64 if weight is not None and weight.dtype == torch.float64 else torch.float32
    eps = norm.eps if norm.eps is not None else torch.finfo(dtype).eps
    size = (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    hat = x / size
    return (d - hat * (d * hat).mean(dim=-1, keepdim=True)) / size
