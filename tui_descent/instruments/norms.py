"""Norms of gradients, weights and updates, layer by layer: `_foreach` passes on the device and one read-back a sample.

Symbols: W a layer's weight (n entries), g = dL/dW as the optimizer receives it, Δ = W after the step − W before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tui_descent.instruments.groups import Groups, all_safe, dots
from tui_descent.instruments.structure import WatchedLayer

RATIO_FLOOR = 1e-12


class LayerNorms(NamedTuple):
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
        # Of each layer: its weight's place among the parameters, √n, and whether it is a matrix.
        self._about = [
            (self._place[id(w.weight)], math.sqrt(w.weight.numel()), w.weight.dim() >= 2) for w in self.watched
        ]
        self._groups_of: dict[tuple[int, ...], Groups] = {}
        self._with_grad: tuple[int, ...] = ()
        self._grads: list[Tensor] = []
        self._grad_rows: list[Tensor] = []
        self._grad_norms: Tensor | None = None
        self._before: list[Tensor] = []
        self._scale: Tensor | None = None
        self._previous: tuple[tuple[int, ...], list[Tensor], Tensor] | None = None

    @torch.no_grad()
    def before_update(self, grad_scale: Tensor | None = None) -> None:
        """Take hold of the gradients and copy the weights; gradients are still multiplied by `grad_scale`, a scalar."""
        self._gather()
        self._scale = grad_scale
        self._before = self._weight_groups.rows(self._weights, copy=True)

    @torch.no_grad()
    def remember(self) -> None:
        """Keep this step's gradients for the next step's cosine."""
        if not self._grad_rows:
            self._gather()
        # A row of one is a view of the gradient, which the next step writes over.
        kept = [r.clone() if len(r) == 1 else r for r in self._grad_rows]
        self._previous = self._with_grad, kept, self._sizes()
        if not self._before:  # not a step that is measured: nobody comes back for these
            self._grads, self._grad_rows, self._grad_norms = [], [], None

    @torch.no_grad()
    def cosines(self) -> tuple[dict[int, float], float | None]:
        """cos(g_t, g_{t−1}) by parameter, and of all together; before the update, with the gradients remembered."""
        if self._previous is None or self._previous[0] != self._with_grad or not self._grad_rows:
            return {}, None
        _, old_rows, old = self._previous
        new, groups, new_rows = self._sizes(), self._groups(), self._grad_rows
        sizes = new * old
        if all_safe(torch.cat([new, old])):
            products = groups.in_order(dots(new_rows, old_rows))
            each = torch.where(sizes > 0, products / sizes, torch.zeros_like(sizes))
        else:
            # Of unit rows the product is the cosine, however small the gradients.
            units = groups.units(new_rows, new), groups.units(old_rows, old)
            each = groups.in_order(dots(*units))
            products = each * sizes
        both = sizes.tolist()
        by_parameter = {n: c for n, c, size in zip(self._with_grad, each.tolist(), both, strict=True) if size}
        size = math.hypot(*new.tolist()) * math.hypot(*old.tolist())
        return by_parameter, math.fsum(products.tolist()) / size if size else None

    @torch.no_grad()
    def after_update(self) -> tuple[list[float | None], list[LayerNorms]]:
        """The gradient norm of every parameter, None without a gradient, and the norms of every layer."""
        weights = self._weight_groups.norms(self._before).tolist()
        # In the copies' own room: before − now has the norm of now − before.
        updates = [
            before.sub_(now) for now, before in zip(self._weight_groups.rows(self._weights), self._before, strict=True)
        ]
        moves = self._weight_groups.norms(updates).tolist()
        grad_norms: list[float | None] = [None] * len(self._parameters)
        scale = 1.0 if self._scale is None else float(self._scale)
        for n, value in zip(self._with_grad, self._sizes().tolist(), strict=True):
            grad_norms[n] = value / scale
        layers = [
            _layer(grad_norms[place], weights[n], moves[n], root, matrix)
            for n, (place, root, matrix) in enumerate(self._about)
        ]
        self._grads, self._grad_rows, self._grad_norms, self._before = [], [], None, []
        return grad_norms, layers

    def place_of(self, row: int) -> int:
        """Where a layer's weight stands among the parameters."""
        return self._place[id(self.watched[row].weight)]

    def _gather(self) -> None:
        self._with_grad = tuple(n for n, p in enumerate(self._parameters) if p.grad is not None)
        self._grads = [g for p in self._parameters if (g := p.grad) is not None]
        self._grad_rows = self._groups().rows(self._grads)
        self._grad_norms = None

    def _sizes(self) -> Tensor:
        """The gathered gradients' norms, in the parameters' order."""
        if self._grad_norms is None:
            self._grad_norms = self._groups().norms(self._grad_rows)
        return self._grad_norms

    def _groups(self) -> Groups:
        if self._with_grad not in self._groups_of:
            self._groups_of = {self._with_grad: Groups(self._grads)}
        return self._groups_of[self._with_grad]


def _layer(grad_norm: float | None, weight: float, update: float, root: float, matrix: bool) -> LayerNorms:
    if grad_norm is None:
        return LayerNorms(None, None, weight, None, None)
    return LayerNorms(grad_norm, grad_norm / root, weight, update, update / (weight + RATIO_FLOOR) if matrix else None)
