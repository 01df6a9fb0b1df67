"""Norms of gradients, weights and updates, layer by layer: few passes on the device and one read-back a sample.

Symbols: W a layer's weight (n entries), g = dL/dW as the optimizer receives it, Δ = W after the step − W before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tui_descent.instruments.deferred import Deferred
from tui_descent.instruments.net_structure import WatchedLayer
from tui_descent.instruments.tensor_groups import TensorGroups, bounds, norms, safe, wide

RATIO_FLOOR = 1e-12
# With more layers the weights are taken by thirds, every third layer's, where a reading is to cost little.
MANY_LAYERS, PARTS = 30, 3


class LayerNorms(NamedTuple):
    """Norms of one step, columns of a number a layer; None where one has no gradient, the ratio for matrices alone.

    `ages` are the steps since a layer's weight norm, update norm and ratio were taken; None where all are of this one.
    """

    grad_norm: Sequence[float | None]
    grad_rms: Sequence[float | None]
    weight_norm: Sequence[float]
    update_norm: Sequence[float | None]
    update_ratio: Sequence[float | None]
    ages: Sequence[int] | None = None


class _Part(NamedTuple):
    """Some of the layers: which, their weights, and how these fall into groups."""

    cut: slice
    weights: list[Tensor]
    groups: TensorGroups


class NormsRead(NamedTuple):
    """One sample. By parameter: gradient norms, None without a gradient, and cos(g_t, g_{t−1}) where there is one."""

    grad_norms: list[float | None]
    layers: LayerNorms
    cosines: dict[int, float]
    global_cosine: float | None


class _Gradients(NamedTuple):
    """All gradients of one step: whose they are, side by side if asked, their norms or on a GPU columns of these."""

    of: tuple[int, ...]
    groups: TensorGroups
    rows: list[Tensor]
    sizes: list[float]
    columns: list[Tensor]


class Norms:
    """One sample: `before_update` in the optimizer's pre-hook, `after_update` in its post-hook.

    `remember` keeps a step's gradients, so that the next sample has a cosine with them.
    """

    def __init__(self, watched: Sequence[WatchedLayer], parameters: Sequence[nn.Parameter]) -> None:
        self.watched = list(watched)
        self._parameters = list(parameters)
        self._place = {id(p): n for n, p in enumerate(self._parameters)}
        weights: list[Tensor] = [w.weight for w in self.watched]
        self._whole = _part(weights, slice(None))
        cuts = [slice(first, None, PARTS) for first in range(PARTS)]
        self._parts = [_part(weights, cut) for cut in cuts] if len(weights) > MANY_LAYERS else [self._whole]
        self._taken: _Part | None = None
        # What was last known of each layer's weight and its update, and at which step.
        self._held, self._went = [0.0] * len(weights), [0.0] * len(weights)
        self._at = [0] * len(weights)
        self._known = False  # whether any reading is
        self._turns = 0  # that parts have taken
        self._step = 0
        # Of each layer's weight: its place among the parameters, √n, and whether it is a matrix.
        self._places = [self._place[id(weight)] for weight in weights]
        self._roots = [math.sqrt(weight.numel()) for weight in weights]
        self._matrices = [weight.dim() >= 2 for weight in weights]
        self._all = tuple(range(len(self._parameters)))
        self._groups_of: dict[tuple[int, ...], TensorGroups] = {}
        self._rooms = ("this", "that")  # the step's gradients, and those of the step before
        self._now: _Gradients | None = None
        self._previous: _Gradients | None = None
        self._previous_at = -1  # which update's they are
        self._against: tuple[_Gradients, list[Tensor]] | None = None
        self._before: list[Tensor] = []
        self._scale: Tensor | None = None

    @torch.no_grad()
    def before_update(
        self, grad_scale: Tensor | None = None, *, cosines: bool = False, step: int = 0, partly: bool = False
    ) -> None:
        """Take hold of the gradients and copy the weights; gradients are still multiplied by `grad_scale`, a scalar.

        `cosines` with the gradients that were remembered, if those were of the same parameters. `step` is the update's
        number. `partly`: a third of many layers' weights will do, the others being those of earlier readings.
        """
        compared = cosines and self._previous is not None and self._previous_at == step - 1
        self._now = now = self._gather() if compared else self._measure()
        self._scale = grad_scale
        self._against = None
        if compared and self._previous is not None and self._previous.of == now.of and now.rows:
            self._against = self._previous, now.groups.dots(now.rows, self._previous.rows)
        # As long as nothing is known of the others it is a whole one: a reading may come to nothing.
        partly = partly and self._known
        self._taken = taken = self._parts[self._turns % len(self._parts)] if partly else self._whole
        self._turns += partly
        self._step = step
        self._before = taken.groups.rows(taken.weights, room="before", copy=True)

    @torch.no_grad()
    def remember(self, step: int = -1) -> None:
        """Keep this step's gradients for the next step's cosine; its number, by default that of the one before 0."""
        self._previous_at = step
        now = self._now if self._now is not None and self._now.rows else self._gather()
        # A row of one is a view of the gradient, which the next step writes over.
        kept = now.groups.own(now.rows, room=self._rooms[0])
        self._previous, self._rooms = now._replace(rows=kept), self._rooms[::-1]

    @torch.no_grad()
    def after_update(self) -> Deferred[NormsRead]:
        """The update is made."""
        taken, before, step = self._taken, self._before, self._step
        assert taken is not None
        held, held_columns = _looked_at(taken.groups, before)
        # In the copies' own memory, or the pages of another would push the training's out of the cache: before − now
        # has the norm of now − before.
        torch._foreach_sub_(taken.groups.apart(before, taken.weights), taken.weights)
        moved, moved_columns = _looked_at(taken.groups, before)
        now, self._now, self._before = self._now, None, []
        assert now is not None
        previous, products = self._against or (None, [])
        scale = [] if self._scale is None else [self._scale.reshape(1)]
        columns = [*now.columns, *held_columns, *moved_columns, *scale]
        if previous is not None:
            columns += [*previous.columns, *products]

        def read(values: Sequence[float]) -> NormsRead:
            found = _Cut(values)
            sizes = now.sizes or now.groups.in_order(found.next(len(now.of)))
            weights = held or taken.groups.in_order(found.next(len(taken.weights)))
            went = moved or taken.groups.in_order(found.next(len(taken.weights)))
            factor = found.next(1)[0] if scale else 1.0
            grad_norms: list[float | None] = [None] * len(self._parameters)
            for n, size in zip(now.of, sizes, strict=True):
                grad_norms[n] = size / factor
            self._know(taken, step, weights, went)
            layers = self._layers([grad_norms[place] for place in self._places], self._ages(taken, step))
            if previous is None:
                return NormsRead(grad_norms, layers, {}, None)
            old = previous.sizes or now.groups.in_order(found.next(len(now.of)))
            return NormsRead(grad_norms, layers, *_cosines(now, previous, sizes, old, found.next(len(now.of))))

        return Deferred(columns, read)

    @property
    def places(self) -> Sequence[int]:
        """Where each layer's weight stands among the parameters."""
        return self._places

    def _know(self, taken: _Part, step: int, held: Sequence[float], went: Sequence[float]) -> None:
        self._known = True
        self._held[taken.cut], self._went[taken.cut], self._at[taken.cut] = held, went, [step] * len(held)

    def _ages(self, taken: _Part, step: int) -> Sequence[int] | None:
        return None if taken is self._whole else [step - at for at in self._at]

    def _layers(self, grads: list[float | None], ages: Sequence[int] | None) -> LayerNorms:
        held, went = list(self._held), list(self._went)
        ratios: list[float | None] = [u / (w + RATIO_FLOOR) for u, w in zip(went, held, strict=True)]
        if not all(self._matrices):
            ratios = [r if matrix else None for r, matrix in zip(ratios, self._matrices, strict=True)]
        if None not in grads:
            rms: list[float | None] = [g / root for g, root in zip(grads, self._roots, strict=True)]  # type: ignore[operator]
            return LayerNorms(grads, rms, held, went, ratios, ages)
        rms = [None if g is None else g / root for g, root in zip(grads, self._roots, strict=True)]
        moved = [None if g is None else u for g, u in zip(grads, went, strict=True)]
        ratios = [None if g is None else r for g, r in zip(grads, ratios, strict=True)]
        return LayerNorms(grads, rms, held, moved, ratios, ages)

    def _measure(self) -> _Gradients:
        """The norms alone, where they are at hand."""
        of, groups, grads = self._gradients()
        if not grads or wide(grads[0]):
            return self._gather()
        return _Gradients(of, groups, [], groups.sizes(grads), [])

    def _gather(self) -> _Gradients:
        of, groups, grads = self._gradients()
        rows = groups.rows(grads, room=self._rooms[0])
        return _Gradients(of, groups, rows, *_looked_at(groups, rows))

    def _gradients(self) -> tuple[tuple[int, ...], TensorGroups, list[Tensor]]:
        """Those there are, whose, and how they fall into groups."""
        known = [g for p in self._parameters if (g := p.grad) is not None]
        grads = [g.to_dense() if g.is_sparse else g for g in known]
        of = self._all
        if len(grads) < len(of):
            of = tuple(n for n, p in enumerate(self._parameters) if p.grad is not None)
        if of not in self._groups_of:
            self._groups_of = {of: TensorGroups(grads)}
        return of, self._groups_of[of], grads


def _part(weights: Sequence[Tensor], cut: slice) -> _Part:
    return _Part(cut, list(weights[cut]), TensorGroups(weights[cut]))


def _looked_at(groups: TensorGroups, rows: Sequence[Tensor]) -> tuple[list[float], list[Tensor]]:
    """Norms in the tensors' own order, while the rows are in the cache; where that would wait, what will tell them."""
    columns = norms(rows)
    if not rows or wide(rows[0]):
        return [], columns
    return groups.exact(rows, [size for column in columns for size in column.tolist()]), []


class _Cut:
    """Numbers handed out from the first to the last."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values, self._at = values, 0

    def next(self, count: int) -> Sequence[float]:
        self._at += count
        return self._values[self._at - count : self._at]


def _cosines(
    now: _Gradients, previous: _Gradients, new: Sequence[float], old: Sequence[float], told: Sequence[float]
) -> tuple[dict[int, float], float | None]:
    sizes = [a * b for a, b in zip(new, old, strict=True)]
    products = now.groups.in_order(told)
    most = max((row.shape[1] for row in now.rows), default=0)
    if not (now.rows and wide(now.rows[0])) and not (safe(new, most) and safe(old, most)):
        # Of rows scaled up or down the product is the cosine, however small the gradients.
        low, high = bounds(most)
        pairs = enumerate(zip(new, old, strict=True))
        real = {n: both for n, both in pairs if 0 < both[0] < math.inf and 0 < both[1] < math.inf}
        lost = {n for n, (a, b) in real.items() if not (low < a < high and low < b < high)}
        for n, cosine in now.groups.cosines(now.rows, previous.rows, lost).items():
            products[n] = cosine * sizes[n]
    each = [p / size if size else 0.0 for p, size in zip(products, sizes, strict=True)]
    size = math.hypot(*new) * math.hypot(*old)
    by_parameter = {n: c for n, c, both in zip(now.of, each, sizes, strict=True) if both}
    return by_parameter, math.fsum(products) / size if size else None
