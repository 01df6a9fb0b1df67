"""Norms of gradients, weights and updates, layer by layer: `_foreach` passes on the device and one read-back a sample.

Symbols: W a layer's weight (n entries), g = dL/dW as the optimizer receives it, Δ = W after the step − W before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tui_descent.protocol.events import Layer
from tui_descent.protocol.readings import pack_row

RATIO_FLOOR = 1e-12
# Between these a float32 sum of squares loses nothing; beyond them the tensor is looked at again in float64.
FLOAT32_SAFE = (1e-13, 1e13)


@dataclass(frozen=True, slots=True)
class WatchedLayer:
    """A module with weights of its own; `weight` is the one its readings are about."""

    layer: Layer
    weight: nn.Parameter


def layers_of(model: nn.Module, *, order: Sequence[str] | None = None) -> list[WatchedLayer]:
    """Every module with weights of its own, shared weights once; in forward order where `order` names it.

    A layer's weight is its largest parameter: a matrix before the bias.
    """
    found: dict[str, WatchedLayer] = {}
    seen: set[int] = set()
    blocks: dict[str, int] = {}
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        if not own:
            continue
        seen.update(id(p) for p in own)
        name = name or type(module).__name__.lower()
        stretch = _block_of(name)
        number = None if stretch is None else blocks.setdefault(stretch, len(blocks))
        layer = Layer(name=name, kind=type(module).__name__, params=sum(p.numel() for p in own), block=number)
        found[name] = WatchedLayer(layer, max(own, key=lambda p: (p.dim() >= 2, p.numel())))
    if order is not None:
        place = {name: n for n, name in enumerate(order)}
        return sorted(found.values(), key=lambda w: place.get(w.layer.name, len(place)))
    return list(found.values())


def _block_of(name: str) -> str | None:
    head, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return f"{head}.{number}" if head == "blocks" and number.isdecimal() else None


class Norms:
    """One sample: `before_update` in the optimizer's pre-hook, `after_update` in its post-hook."""

    def __init__(self, watched: Sequence[WatchedLayer], parameters: Sequence[nn.Parameter]) -> None:
        self.watched = list(watched)
        self._parameters = list(parameters)
        self._place = {id(p): n for n, p in enumerate(self._parameters)}
        self._weights: list[Tensor] = [w.weight for w in self.watched]
        self._before: list[Tensor] | None = None
        self._grads: list[Tensor] = []
        self._grad_norms: list[Tensor] = []
        self._with_grad: list[int] = []

    @torch.no_grad()
    def before_update(self) -> None:
        """Take the gradients' norms and a copy of the weights."""
        self._with_grad = [n for n, p in enumerate(self._parameters) if p.grad is not None]
        self._grads = [g for p in self._parameters if (g := p.grad) is not None]
        self._grad_norms = norms(self._grads)
        if self._before is None:
            self._before = [torch.empty_like(w) for w in self._weights]
        torch._foreach_copy_(self._before, self._weights)

    @torch.no_grad()
    def after_update(self) -> tuple[float, list[list[float]]]:
        """The global gradient norm and a row a layer, for the ring."""
        assert self._before is not None
        updates = torch._foreach_sub(self._weights, self._before)
        measured = [*self._grads, *self._before, *updates]
        scalars = [*self._grad_norms, *norms(self._before), *norms(updates)]
        values = [
            value if is_safe(value) else exact_norm(tensor, value)
            for tensor, value in zip(measured, torch.stack(scalars).tolist(), strict=True)
        ]
        k, count = len(self._grads), len(self.watched)
        self._grads = []
        grad_norms = dict(zip(self._with_grad, values[:k], strict=True))
        rows = [
            self._row(watched, grad_norms.get(self._place[id(watched.weight)]), values[k + n], values[k + count + n])
            for n, watched in enumerate(self.watched)
        ]
        return math.hypot(*grad_norms.values()), rows

    def _row(self, watched: WatchedLayer, grad_norm: float | None, weight: float, update: float) -> list[float]:
        if grad_norm is None:
            return pack_row([None, None, weight, None, None])
        ratio = update / (weight + RATIO_FLOOR) if watched.weight.dim() >= 2 else None
        return pack_row([grad_norm, grad_norm / math.sqrt(watched.weight.numel()), weight, update, ratio])


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """L2 norms as scalars on the tensors' device, in one pass; summed in float32 unless the tensors are float64."""
    if not tensors:
        return []
    return list(torch._foreach_norm(list(tensors), 2, dtype=_sum_dtype(tensors[0].dtype)))


def is_safe(value: float) -> bool:
    """Whether a float32 sum of squares of this size lost nothing to under- or overflow."""
    return FLOAT32_SAFE[0] < value < FLOAT32_SAFE[1]


def exact_norm(tensor: Tensor, value: float) -> float:
    """A norm right from 1e-300 to 1e300; `value` is what the fast pass gave. In float32 the square of 1e-25 is 0."""
    if tensor.dtype == torch.float64 or tensor.device.type == "mps" or not tensor.numel():
        return value
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _sum_dtype(dtype: torch.dtype) -> torch.dtype | None:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else None
