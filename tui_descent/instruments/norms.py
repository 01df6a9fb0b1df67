"""L2 norms of gradients, weights and updates, by layer. `host_norms` computes them on a CPU, `row_norms` on a GPU.

Symbols: W is a layer's weight with n entries, g = dL/dW as the optimizer receives it, Δ = W after the step − W before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tui_descent.instruments.deferred import Deferred, combine, is_asynchronous
from tui_descent.instruments.float32_range import correct_norms, sum_dtype
from tui_descent.instruments.gradient_cosines import GradientPair
from tui_descent.instruments.net_structure import WatchedLayer
from tui_descent.instruments.tensor_groups import TensorGroups

# Added to ‖W‖₂ in the update ratio, so that the ratio is defined if all weights are 0.
RATIO_FLOOR = 1e-12
# With more than `MANY_LAYERS` layers, a partial reading measures the weights of every third layer only.
MANY_LAYERS, PARTS = 30, 3


class LayerNorms(NamedTuple):
    """The norms of one step. Each column has one value per layer, None for a layer without a gradient.

    `ages` says how many steps ago the weight norm, update norm and ratio of each layer were measured. It is None if all
    of them were measured at this step.
    """

    grad_norm: Sequence[float | None]  # ‖g‖₂
    grad_rms: Sequence[float | None]  # ‖g‖₂/√n
    weight_norm: Sequence[float]  # ‖W‖₂, before the step
    update_norm: Sequence[float | None]  # ‖Δ‖₂
    update_ratio: Sequence[float | None]  # ‖Δ‖₂/(‖W‖₂ + 1e-12), for matrices only (You et al. 2017, arXiv 1708.03888)
    ages: Sequence[int] | None = None


class NormsReading(NamedTuple):
    """The result for one step. `grad_norms` has one value per parameter, None for a parameter without a gradient.

    The keys of `cosines` are parameter indices. `cosines` is empty and `global_cosine` is None if no gradients of the
    previous step were kept.
    """

    grad_norms: list[float | None]
    layers: LayerNorms
    cosines: dict[int, float]
    global_cosine: float | None


class _Part(NamedTuple):
    """Some of the layers, selected by the slice `layers`, and their weights."""

    layers: slice
    weights: list[Tensor]
    groups: TensorGroups


class _Gradients(NamedTuple):
    """The gradients of one step. `parameters` are the indices of their parameters; `norms` is in the same order.

    `matrices` holds the gradients themselves, one (k, n) matrix per group. It is empty if only norms were requested.
    """

    parameters: tuple[int, ...]
    groups: TensorGroups
    matrices: list[Tensor]
    norms: Deferred[list[float]]


class Norms:
    """Measures one step: call `before_update` in the optimizer's pre-hook, `after_update` in its post-hook.

    A cosine needs the gradients of the previous step: call `remember` in the pre-hook of that step.
    """

    def __init__(self, watched: Sequence[WatchedLayer], parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        weights: list[Tensor] = [w.weight for w in watched]
        index = {id(p): n for n, p in enumerate(self._parameters)}
        self._weight_indices = [index[id(weight)] for weight in weights]
        self._roots = [math.sqrt(weight.numel()) for weight in weights]  # √n
        self._matrices = [weight.dim() >= 2 for weight in weights]
        # All layers, and the parts that partial readings measure in turn.
        self._whole = _part(weights, slice(None))
        thirds = [slice(first, None, PARTS) for first in range(PARTS)]
        self._parts = [_part(weights, third) for third in thirds] if len(weights) > MANY_LAYERS else [self._whole]
        self._partial_readings = 0
        # The last known norms of each layer's weight and update, and the step at which they were measured.
        self._weight_norms, self._update_norms = [0.0] * len(weights), [0.0] * len(weights)
        self._taken_at = [0] * len(weights)
        self._any_read = False
        # The step in progress: its gradients, the part whose weights were copied, and the copies.
        self._now: _Gradients | None = None
        self._pair: tuple[GradientPair, _Gradients] | None = None
        self._scale: Tensor | None = None
        self._step = 0
        self._part = self._whole
        self._copies: tuple[list[Tensor], list[Tensor]] = [], []
        # The gradients that were kept, and their step.
        self._previous: _Gradients | None = None
        self._previous_step = -1
        self._memory_names = ("new gradients", "old gradients")  # swapped when gradients are kept
        self._groups: tuple[tuple[int, ...], TensorGroups] = (), TensorGroups([])

    @property
    def weight_indices(self) -> Sequence[int]:
        """The index of each layer's weight among the parameters."""
        return self._weight_indices

    @torch.no_grad()
    def before_update(
        self,
        grad_scale: Tensor | None = None,
        *,
        cosines: bool = False,
        step: int = 0,
        partial: bool = False,
        copy_weights: bool = True,
    ) -> None:
        """Measure the gradients of update `step` and copy the weights.

        `copy_weights` is False if they were copied already: before an earlier update of the same step, whose gradients
        these ones replace, or before a closure was run.

        `grad_scale`, a scalar tensor, is the factor by which a GradScaler has multiplied the gradients. With `cosines`,
        they are compared with the gradients of the previous step, if these were kept. With `partial`, only a third of
        the weights is measured if there are many layers.
        """
        previous = self._previous if cosines and self._previous_step == step - 1 else None
        self._now = now = self._gradients(only_norms=previous is None)
        self._pair = None
        if previous is not None and previous.parameters == now.parameters and now.matrices:
            self._pair = GradientPair(now.groups, now.matrices, previous.matrices), previous
        self._scale, self._step = grad_scale, step
        if copy_weights:
            self.copy_weights(partial=partial)

    @torch.no_grad()
    def copy_weights(self, *, partial: bool = False) -> None:
        """Copy the weights before the update. With `partial`, only a third of them if there are many layers."""
        self._part = self._whole
        # A partial reading repeats the last values of the other layers, so a whole reading has to come first.
        if partial and self._any_read:
            self._part = self._parts[self._partial_readings % len(self._parts)]
            self._partial_readings += 1
        self._copies = self._part.groups.copy(self._part.weights)

    def forget(self) -> None:
        """Drop the gradients that were kept for the next cosine."""
        self._previous, self._previous_step = None, -1

    @torch.no_grad()
    def remember(self, step: int = -1) -> None:
        """Keep the gradients of update `step` for the cosine of the next one. By default the next one is update 0."""
        now = self._now if self._now is not None and self._now.matrices else self._gradients(only_norms=False)
        # A group of one tensor is a view of the gradient, which the next backward pass overwrites.
        matrices = now.groups.copy_views(now.matrices, name=self._memory_names[0])
        self._previous, self._previous_step = now._replace(matrices=matrices), step
        self._memory_names = self._memory_names[::-1]

    @torch.no_grad()
    def after_update(self) -> Deferred[NormsReading]:
        """Measure the update, and return the result for the step."""
        now, pair, part, step = self._now, self._pair, self._part, self._step
        assert now is not None
        (before, rows), self._copies = self._copies, ([], [])
        self._now = self._pair = None  # otherwise they would keep gradients alive that the loop has released
        weight_norms = row_norms(part.groups, before)
        # Computes −Δ in the memory of the copies. New memory would evict the training's data from the cache.
        torch._foreach_sub_(rows, part.weights)
        update_norms = row_norms(part.groups, before)
        scale = [] if self._scale is None else [self._scale.reshape(1)]
        old_norms: Deferred[list[float]] = Deferred((), list) if pair is None else pair[1].norms
        products = Deferred(() if pair is None else pair[0].products, list)
        numbers = combine((now.norms, weight_norms, update_norms, Deferred(scale, list), old_norms, products))

        def read(values: Sequence[float]) -> NormsReading:
            norms, weights, updates, factor, old, dots = numbers.read(values)
            grad_norms: list[float | None] = [None] * len(self._parameters)
            for n, norm in zip(now.parameters, norms, strict=True):
                grad_norms[n] = norm / factor[0] if factor else norm
            self._weight_norms[part.layers], self._update_norms[part.layers] = weights, updates
            self._taken_at[part.layers] = [step] * len(weights)
            self._any_read = True
            ages = None if part is self._whole else [step - at for at in self._taken_at]
            layers = self._layer_norms(grad_norms, ages)
            if pair is None:
                return NormsReading(grad_norms, layers, {}, None)
            cosines, global_cosine = pair[0].cosines(dots, norms, old)
            by_parameter = {n: c for n, c in zip(now.parameters, cosines, strict=True) if c is not None}
            return NormsReading(grad_norms, layers, by_parameter, global_cosine)

        return Deferred(numbers.columns, read)

    def _layer_norms(self, grad_norms: Sequence[float | None], ages: Sequence[int] | None) -> LayerNorms:
        grads = [grad_norms[n] for n in self._weight_indices]
        rms = [None if g is None else g / root for g, root in zip(grads, self._roots, strict=True)]
        updates = [None if g is None else u for g, u in zip(grads, self._update_norms, strict=True)]
        ratios = [
            u / (w + RATIO_FLOOR) if u is not None and matrix else None
            for u, w, matrix in zip(updates, self._weight_norms, self._matrices, strict=True)
        ]
        return LayerNorms(grads, rms, list(self._weight_norms), updates, ratios, ages)

    def _gradients(self, *, only_norms: bool) -> _Gradients:
        """The current gradients, and ‖g‖₂ of each."""
        known = [(n, p.grad) for n, p in enumerate(self._parameters) if p.grad is not None]
        parameters = tuple(n for n, _ in known)
        grads = [g.to_dense() if g.is_sparse else g for _, g in known]
        if self._groups[0] != parameters:
            self._groups = parameters, TensorGroups(grads)
        groups = self._groups[1]
        if only_norms and grads and not is_asynchronous(grads[0].device):
            norms = groups.in_order(host_norms(groups.chunks(grads)))
            return _Gradients(parameters, groups, [], Deferred((), lambda _: norms))
        matrices = groups.stack(grads, name=self._memory_names[0])
        return _Gradients(parameters, groups, matrices, row_norms(groups, matrices))


def row_norms(groups: TensorGroups, matrices: Sequence[Tensor]) -> Deferred[list[float]]:
    """The L2 norm of every row of the groups' (k, n) matrices, in the order of the tensors."""
    if matrices and not is_asynchronous(matrices[0].device):
        norms = groups.in_order(host_norms(matrices))
        return Deferred((), lambda _: norms)
    return Deferred([torch.linalg.vector_norm(m, dim=1, dtype=sum_dtype(m)) for m in matrices], groups.in_order)


def host_norms(matrices: Iterable[Tensor]) -> list[float]:
    """The L2 norm of every row, matrix by matrix, correct for numbers of any size. Waits for the device."""
    norms: list[float] = []
    for matrix in matrices:
        summed = torch.linalg.vector_norm(matrix, dim=1, dtype=sum_dtype(matrix))  # (k,)
        norms += correct_norms(summed.tolist(), matrix)
    return norms


def _part(weights: Sequence[Tensor], layers: slice) -> _Part:
    return _Part(layers, list(weights[layers]), TensorGroups(weights[layers]))
