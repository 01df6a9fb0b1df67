"""Norms of gradients, weights and updates, layer by layer: `_foreach` passes on the device and one read-back a sample.

Symbols: W a layer's weight (n entries), g = dL/dW as the optimizer receives it, Δ = W after the step − W before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tui_descent.instruments.groups import Groups, dots, is_safe, norms, scaled
from tui_descent.instruments.structure import WatchedLayer

RATIO_FLOOR = 1e-12


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """One layer's norms of one step; None where it has no gradient, and the ratio only for matrices."""

    grad_norm: float | None
    grad_rms: float | None
    weight_norm: float
    update_norm: float | None
    update_ratio: float | None


class Norms:
    """One sample: `before_update` in the optimizer's pre-hook, `after_update` in its post-hook.

    `remember` keeps a step's gradients, so that the next sample has a cosine with them.
    """

    def __init__(self, watched: Sequence[WatchedLayer], parameters: Sequence[nn.Parameter]) -> None:
        self.watched = list(watched)
        self._parameters = list(parameters)
        self._place = {id(p): n for n, p in enumerate(self._parameters)}
        self._weights: list[Tensor] = [w.weight for w in self.watched]
        self._weight_groups = Groups(self._weights)
        self._groups_of: dict[tuple[int, ...], Groups] = {}
        self._with_grad: tuple[int, ...] = ()
        self._grads: list[Tensor] = []
        self._grad_rows: list[Tensor] = []
        self._before: list[Tensor] = []
        self._previous: tuple[tuple[int, ...], list[Tensor]] | None = None

    @torch.no_grad()
    def before_update(self) -> None:
        """Take hold of the gradients and copy the weights."""
        self._gather()
        self._before = self._weight_groups.rows(self._weights, copy=True)

    @torch.no_grad()
    def remember(self) -> None:
        """Keep this step's gradients for the next step's cosine."""
        if not self._grad_rows:
            self._gather()
        # A row of one is a view of the gradient, which the next step writes over.
        kept = [r.clone() if len(r) == 1 else r for r in self._grad_rows]
        self._previous = self._with_grad, kept

    @torch.no_grad()
    def cosines(self) -> tuple[dict[int, float], float | None]:
        """cos(g_t, g_{t−1}) by parameter, and of all together; before the update, with the gradients remembered."""
        if self._previous is None or self._previous[0] != self._with_grad or not self._grad_rows:
            return {}, None
        old, groups = self._previous[1], self._groups()
        columns = (norms(self._grad_rows), norms(old), dots(self._grad_rows, old))
        news, olds, products = (groups.in_order(c).tolist() for c in columns)
        if not all(is_safe(v) for v in (*news, *olds)):
            # Of unit rows the product is the cosine, however small the gradients.
            new_units, old_units = [scaled(r)[0] for r in self._grad_rows], [scaled(r)[0] for r in old]
            columns = (norms(new_units), norms(old_units), dots(new_units, old_units))
            sizes = groups.norms(self._grad_rows), groups.norms(old)
            news, olds, products = (groups.in_order(c).tolist() for c in columns)
            each = _ratios(self._with_grad, products, news, olds)
            news, olds = sizes
            products = [each.get(n, 0.0) * new * was for n, new, was in zip(self._with_grad, news, olds, strict=True)]
        else:
            each = _ratios(self._with_grad, products, news, olds)
        size = math.hypot(*news) * math.hypot(*olds)
        return each, math.fsum(products) / size if size else None

    @torch.no_grad()
    def after_update(self) -> tuple[list[float | None], list[LayerNorms]]:
        """The gradient norm of every parameter, None without a gradient, and the norms of every layer."""
        updates = [
            now - before for now, before in zip(self._weight_groups.rows(self._weights), self._before, strict=True)
        ]
        weights, moves = self._weight_groups.norms(self._before), self._weight_groups.norms(updates)
        grad_norms: list[float | None] = [None] * len(self._parameters)
        for n, value in zip(self._with_grad, self._groups().norms(self._grad_rows), strict=True):
            grad_norms[n] = value
        layers = [
            _layer(watched, grad_norms[self.place_of(n)], weights[n], moves[n])
            for n, watched in enumerate(self.watched)
        ]
        self._grads, self._grad_rows, self._before = [], [], []
        return grad_norms, layers

    def place_of(self, row: int) -> int:
        """Where a layer's weight stands among the parameters."""
        return self._place[id(self.watched[row].weight)]

    def _gather(self) -> None:
        self._with_grad = tuple(n for n, p in enumerate(self._parameters) if p.grad is not None)
        self._grads = [g for p in self._parameters if (g := p.grad) is not None]
        self._grad_rows = self._groups().rows(self._grads)

    def _groups(self) -> Groups:
        if self._with_grad not in self._groups_of:
            self._groups_of = {self._with_grad: Groups(self._grads)}
        return self._groups_of[self._with_grad]


def _ratios(
    places: Sequence[int], products: Sequence[float], news: Sequence[float], olds: Sequence[float]
) -> dict[int, float]:
    return {
        n: product / new / old for n, product, new, old in zip(places, products, news, olds, strict=True) if new and old
    }


def _layer(watched: WatchedLayer, grad_norm: float | None, weight: float, update: float) -> LayerNorms:
    if grad_norm is None:
        return LayerNorms(None, None, weight, None, None)
    ratio = update / (weight + RATIO_FLOOR) if watched.weight.dim() >= 2 else None
    return LayerNorms(grad_norm, grad_norm / math.sqrt(watched.weight.numel()), weight, update, ratio)
