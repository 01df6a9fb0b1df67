"""Norms of gradients, weights and updates, layer by layer: `_foreach` passes on the device and one read-back a sample.

Symbols: W a layer's weight (n entries), g = dL/dW as the optimizer receives it, Δ = W after the step − W before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tui_descent.instruments.structure import WatchedLayer

RATIO_FLOOR = 1e-12
# Between these a float32 sum of squares loses nothing; beyond them the tensor is looked at again in float64.
FLOAT32_SAFE = (1e-13, 1e13)


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """One layer's norms of one step; None where it has no gradient, and the ratio only for matrices."""

    grad_norm: float | None
    grad_rms: float | None
    weight_norm: float
    update_norm: float | None
    update_ratio: float | None


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
    def after_update(self) -> tuple[list[float | None], list[LayerNorms]]:
        """The gradient norm of every parameter, None without a gradient, and the norms of every layer."""
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
        grad_norms: list[float | None] = [None] * len(self._parameters)
        for n, value in zip(self._with_grad, values[:k], strict=True):
            grad_norms[n] = value
        layers = [
            _layer(watched, grad_norms[self._place[id(watched.weight)]], values[k + n], values[k + count + n])
            for n, watched in enumerate(self.watched)
        ]
        return grad_norms, layers

    def place_of(self, row: int) -> int:
        """Where a layer's weight stands among the parameters."""
        return self._place[id(self.watched[row].weight)]


def _layer(watched: WatchedLayer, grad_norm: float | None, weight: float, update: float) -> LayerNorms:
    if grad_norm is None:
        return LayerNorms(None, None, weight, None, None)
    ratio = update / (weight + RATIO_FLOOR) if watched.weight.dim() >= 2 else None
    return LayerNorms(grad_norm, grad_norm / math.sqrt(watched.weight.numel()), weight, update, ratio)


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
