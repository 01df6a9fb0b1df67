"""L2 norms of gradients, weights and updates, by layer.

Symbols: W is a layer's weight with n entries, g = dL/dW as the optimizer receives it, Δ = W after the step − W before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from tui_descent.instruments.deferred import Deferred, combine, is_asynchronous
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.float32_range import sum_dtype
from tui_descent.instruments.gradient_cosines import GradientPair
from tui_descent.instruments.net_structure import WatchedLayer
from tui_descent.instruments.not_measured import why_not_measured
from tui_descent.instruments.row_sums import (
    SUMMED,
    device_difference_norms,
    difference_norms,
    host_norms,
    l2_norm,
    real_view,
)
from tui_descent.instruments.tensor_groups import TensorGroups

T = TypeVar("T")
# Added to ‖W‖₂ in the update ratio, which is then defined even if all weights are 0.
RATIO_FLOOR = 1e-12
# With more than `MANY_LAYERS` layers, a partial reading measures the weights of every third layer only.
MANY_LAYERS, PARTS = 30, 3


class LayerNorms(NamedTuple):
    """The norms of one step. Each column has one value per layer.

    A value is None if the layer is not measured. Only `weight_norm` has a value for a layer without a gradient. `ages`
    says how many steps ago the weight norm, update norm and ratio of each layer were measured. It is None if all of
    them were measured at this step.
    """

    grad_norm: Sequence[float | None]  # ‖g‖₂
    grad_rms: Sequence[float | None]  # ‖g‖₂/√n
    weight_norm: Sequence[float | None]  # ‖W‖₂, before the step
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
    """Some of the layers, by row number, and their weights.

    `any_complex` says whether some weights are complex, `summed` whether no weight has to be converted to float32.
    `kinds` are the types, dtypes, shapes and device of the weights.
    """

    rows: Sequence[int]
    weights: Sequence[Tensor]
    groups: TensorGroups
    any_complex: bool
    summed: bool
    kinds: tuple[object, ...]

    def real_weights(self) -> Sequence[Tensor]:
        """The weights as real numbers."""
        return [real_view(weight) for weight in self.weights] if self.any_complex else self.weights

    @property
    def changed(self) -> bool:
        """Whether the loop has changed the dtype, shape or device of a weight."""
        return _kinds(self.weights) != self.kinds


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

    A complex number counts as one entry with its magnitude. Cosines are computed from the real and imaginary parts. The
    loop may change the dtype, device or shape of a parameter at any time. `not_measured` says, by row number, why
    layers are not measured: their numbers cannot be read, or measuring them raised an exception, which is added to
    `failures`.
    """

    def __init__(
        self, watched: Sequence[WatchedLayer], parameters: Sequence[nn.Parameter], failures: Failures | None = None
    ) -> None:
        self._parameters, self._watched = list(parameters), list(watched)
        self._failures = failures or Failures()
        index = {id(p): n for n, p in enumerate(self._parameters)}
        self._weight_indices = [index[id(w.weight)] for w in self._watched]
        self._failed: dict[int, str] = {}  # by parameter: the exception that was raised
        self._partial_readings = 0
        # The step in progress: its gradients, the part whose weights were copied, and the copies.
        self._now: _Gradients | None = None
        self._pair: tuple[GradientPair, _Gradients] | None = None
        self._scale: Tensor | None = None
        self._step = 0
        self._copies: tuple[list[Tensor], list[Tensor]] = [], []
        self._memory_names = ("new gradients", "old gradients")  # swapped when gradients are kept
        # The gradients that were kept, and their step.
        self._previous: _Gradients | None = None
        self._previous_step = -1
        self._examine()

    @property
    def weight_indices(self) -> Sequence[int]:
        """The index of each layer's weight among the parameters."""
        return self._weight_indices

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

        `copy_weights` is False if the weights were copied already: before a closure was run, or before an earlier
        update of the same step. In the second case, the new gradients replace the earlier ones.

        `grad_scale`, a scalar tensor, is the factor by which a GradScaler has multiplied the gradients. With `cosines`,
        the gradients are compared with those of the previous step, if these were kept. With `partial`, only a third of
        the weights is measured if there are many layers.
        """
        self._scale, self._step = grad_scale, step
        self._repeat_without_failing(
            lambda: self._before_update(cosines=cosines, partial=partial, copy_weights=copy_weights)
        )

    def copy_weights(self, *, partial: bool = False) -> None:
        """Copy the weights before the update. With `partial`, copy only a third of them if there are many layers."""

        def copy() -> None:
            self._choose_part(partial=partial)
            if self._changed(self._part):
                self._examine()
            self._copies = self._part.groups.copy(self._part.real_weights())

        self._repeat_without_failing(copy)

    def forget(self) -> None:
        """Drop the gradients that were kept for the next cosine."""
        self._previous, self._previous_step = None, -1

    def remember(self, step: int = -1) -> None:
        """Keep the gradients of update `step` for the cosine of the next one. By default the next one is update 0."""
        self._repeat_without_failing(lambda: self._remember(step))

    def after_update(self) -> Deferred[NormsReading]:
        """Measure the update, and return the result for the step."""

        def measure() -> Deferred[NormsReading]:
            try:
                return self._after_update(self._part)
            except Exception:
                if not self._whole.changed and not self._leave_out_failing():
                    raise
                self._copies = [], []
                return self._after_update(_part([], []))

        try:
            return self._repeat_without_failing(measure)
        finally:  # otherwise they would keep gradients in memory that the loop has released
            self._now = self._pair = None
            self._copies = [], []

    def _repeat_without_failing(self, measure: Callable[[], T]) -> T:
        """Call `measure`. If it raises, leave out the parameters that cannot be measured, and call it again.

        The operations are hidden from the user's tensor subclasses and from modes such as `FlopCounterMode`.
        """
        modes = _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext()
        with torch.no_grad(), torch._C.DisableTorchFunction(), modes:
            try:
                return measure()
            except Exception:
                if not self._leave_out_failing():
                    raise
                return measure()

    def _leave_out_failing(self) -> bool:
        """Measure every parameter on its own, and leave out those that raise. Returns whether there are any."""
        known = len(self._failed)
        for n, parameter in self._measured:
            try:
                for tensor in (parameter, parameter.grad):
                    if tensor is not None:
                        float(l2_norm(tensor))
            except Exception as error:  # noqa: BLE001 - whatever it is, the other layers can be measured
                self._leave_out(n, error)
        if len(self._failed) == known:
            return False
        self._examine()
        return True

    def _leave_out(self, n: int, error: Exception) -> str:
        """Stop measuring parameter `n`. Returns the reason, which is shown for its layer."""
        rows = (w.layer.name for index, w in zip(self._weight_indices, self._watched, strict=True) if index == n)
        name = next(rows, None)
        self._failures.add("the norms of a parameter" if name is None else f"the norms of layer {name}", error)
        self._failed[n] = f"reading it raised {type(error).__name__}"
        return self._failed[n]

    def _why_not_measured(self, n: int, parameter: nn.Parameter) -> str | None:
        if n in self._failed:
            return self._failed[n]
        try:
            reason = why_not_measured(parameter)
            if reason is None:
                real_view(parameter)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other layers can be measured
            return self._leave_out(n, error)
        return reason

    def _examine(self) -> None:
        """Find out what can be measured. This is called again when a parameter has changed; older readings are then
        dropped.
        """
        reasons = {n: self._why_not_measured(n, p) for n, p in enumerate(self._parameters)}
        self._reasons = {n: reason for n, reason in reasons.items() if reason is not None}
        self.not_measured = {row: self._reasons[n] for row, n in enumerate(self._weight_indices) if n in self._reasons}
        self._measured = [(n, p) for n, p in enumerate(self._parameters) if n not in self._reasons]
        rows = [row for row in range(len(self._watched)) if row not in self.not_measured]
        weights = [self._watched[row].weight for row in rows]
        self._lazy = [p for p in self._parameters if is_lazy(p)]
        numbers = dict(zip(rows, (weight.numel() for weight in weights), strict=True))
        self._roots = [math.sqrt(numbers.get(row, 1)) for row in range(len(self._watched))]  # √n
        self._matrices = [row in numbers and w.weight.dim() >= 2 for row, w in enumerate(self._watched)]
        # All layers, and the parts that partial readings measure in turn.
        self._part = self._whole = _part(rows, weights)
        self._parts = [self._whole]
        if len(rows) > MANY_LAYERS:
            self._parts = [_part(rows[first::PARTS], weights[first::PARTS]) for first in range(PARTS)]
        # The last known norms of each layer's weight and update, and the step at which they were measured.
        self._weight_norms: list[float | None] = [None] * len(self._watched)
        self._update_norms: list[float | None] = [None] * len(self._watched)
        self._taken_at = [0] * len(self._watched)
        self._any_read = False
        self.forget()
        # The parameters, dtypes and layouts of the gradients of the last reading.
        self._gradient_kinds: tuple[object, ...] = ()
        self._groups = TensorGroups([])
        self._all_real = self._on_host = True

    def _changed(self, part: _Part) -> bool:
        """Whether the loop has changed the dtype, shape or device of a part's weights, or a lazy parameter now has a
        shape.
        """
        return part.changed or (bool(self._lazy) and not all(is_lazy(p) for p in self._lazy))

    def _before_update(self, *, cosines: bool, partial: bool, copy_weights: bool) -> None:
        if copy_weights:
            self._choose_part(partial=partial)
        if changed := self._changed(self._part):
            self._examine()
        previous = self._previous if cosines and self._previous_step == self._step - 1 else None
        self._now = now = self._gradients(only_norms=previous is None)
        self._pair = None
        if previous is not None and previous.groups is now.groups and now.matrices:
            self._pair = GradientPair(now.groups, now.matrices, previous.matrices), previous
        if copy_weights or changed:
            self._copies = self._part.groups.copy(self._part.real_weights())

    def _choose_part(self, *, partial: bool) -> None:
        # A partial reading repeats the last values of the other layers, so a complete reading has to come first.
        partial = partial and self._any_read
        self._part = self._parts[self._partial_readings % len(self._parts)] if partial else self._whole
        self._partial_readings += partial

    def _remember(self, step: int) -> None:
        if self._now is None and self._changed(self._whole):
            self._examine()
        now = self._now if self._now is not None and self._now.matrices else self._gradients(only_norms=False)
        # A group of one tensor is a view of the gradient, which the next backward pass overwrites.
        matrices = now.groups.copy_views(now.matrices, name=self._memory_names[0])
        self._previous, self._previous_step = now._replace(matrices=matrices), step
        self._memory_names = self._memory_names[::-1]

    def _after_update(self, part: _Part) -> Deferred[NormsReading]:
        now, pair, step = self._now, self._pair, self._step
        assert now is not None
        before, rows = self._copies
        weight_norms = row_norms(part.groups, before)
        update_norms = self._update_norms_of(part, before, rows)
        scale = [] if self._scale is None else [self._scale.reshape(1)]
        old_norms: Deferred[list[float]] = Deferred((), list) if pair is None else pair[1].norms
        products = Deferred(() if pair is None else pair[0].products, list)
        numbers = combine((now.norms, weight_norms, update_norms, Deferred(scale, list), old_norms, products))
        whole = part is self._whole

        def read(values: Sequence[float]) -> NormsReading:
            norms, weights, updates, factor, old, dots = numbers.read(values)
            grad_norms: list[float | None] = [None] * len(self._parameters)
            for n, norm in zip(now.parameters, norms, strict=True):
                grad_norms[n] = norm / factor[0] if factor else norm
            for row, weight, update in zip(part.rows, weights, updates, strict=True):
                self._weight_norms[row], self._update_norms[row], self._taken_at[row] = weight, update, step
            self._any_read = self._any_read or whole
            layers = self._layer_norms(grad_norms, None if whole else [step - at for at in self._taken_at])
            if pair is None:
                return NormsReading(grad_norms, layers, {}, None)
            cosines, global_cosine = pair[0].cosines(dots, norms, old)
            by_parameter = {n: c for n, c in zip(now.parameters, cosines, strict=True) if c is not None}
            return NormsReading(grad_norms, layers, by_parameter, global_cosine)

        return Deferred(numbers.columns, read)

    def _update_norms_of(self, part: _Part, before: list[Tensor], rows: list[Tensor]) -> Deferred[list[float]]:
        """‖Δ‖₂ of each weight of a part. `before` and `rows` are the copies of its weights, which are overwritten."""
        weights = part.real_weights()
        if part.summed:
            if rows:
                # Computes −Δ in the memory of the copies. New memory would evict the training's data from the cache.
                torch._foreach_sub_(rows, list(weights))
            return row_norms(part.groups, before)
        # In bfloat16 the difference would be rounded to three digits.
        after = part.groups.stack(weights, name="after")
        return _deferred(part.groups, [_difference_norms(x, y) for x, y in zip(before, after, strict=True)])

    def _layer_norms(self, grad_norms: Sequence[float | None], ages: Sequence[int] | None) -> LayerNorms:
        grads = [grad_norms[n] for n in self._weight_indices]
        rms = [None if g is None else g / root for g, root in zip(grads, self._roots, strict=True)]
        updates = [None if g is None else u for g, u in zip(grads, self._update_norms, strict=True)]
        ratios = [
            u / (w + RATIO_FLOOR) if u is not None and w is not None and matrix else None
            for u, w, matrix in zip(updates, self._weight_norms, self._matrices, strict=True)
        ]
        return LayerNorms(grads, rms, list(self._weight_norms), updates, ratios, ages)

    def _gradients(self, *, only_norms: bool) -> _Gradients:
        """The current gradients, and ‖g‖₂ of each."""
        known = [(n, grad) for n, p in self._measured if (grad := p.grad) is not None]
        parameters = tuple(n for n, _ in known)
        grads: list[Tensor] = [grad for _, grad in known]
        kinds = parameters, [g.dtype for g in grads], [g.layout for g in grads]
        if kinds != self._gradient_kinds:
            self._gradient_kinds = kinds
            self._all_real = not any(g.layout is not torch.strided or g.is_complex() for g in grads)
            self._on_host = not any(is_asynchronous(g.device) for g in grads)
            self._groups = TensorGroups([real_view(g) for g in grads])
        if not self._all_real:
            grads = [real_view(g) for g in grads]
        groups = self._groups
        if only_norms and self._on_host:
            norms = groups.in_order(host_norms(groups.chunks(grads)))
            return _Gradients(parameters, groups, [], Deferred((), lambda _: norms))
        matrices = groups.stack(grads, name=self._memory_names[0])
        return _Gradients(parameters, groups, matrices, row_norms(groups, matrices))


def row_norms(groups: TensorGroups, matrices: Sequence[Tensor]) -> Deferred[list[float]]:
    """The L2 norm of every row of the groups' (k, n) matrices, in the order of the tensors."""
    return _deferred(groups, [_norms_of_rows(matrix) for matrix in matrices])


def _norms_of_rows(matrix: Tensor) -> Tensor | list[float]:
    if is_asynchronous(matrix.device):
        norms: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=sum_dtype(matrix))
        return norms
    return host_norms([matrix])


def _difference_norms(x: Tensor, y: Tensor) -> Tensor | list[float]:
    if x.dtype in SUMMED:
        return _norms_of_rows(x.sub_(y))
    return device_difference_norms(x, y) if is_asynchronous(x.device) else difference_norms(x, y)


def _deferred(groups: TensorGroups, by_group: Sequence[Tensor | list[float]]) -> Deferred[list[float]]:
    """The values of all rows in the order of the tensors. Each group's values may be on the device or on the host."""
    columns = [values for values in by_group if isinstance(values, Tensor)]

    def read(numbers: Sequence[float]) -> list[float]:
        arrived = iter(numbers)
        return groups.in_order(
            [
                v
                for values in by_group
                for v in ([next(arrived) for _ in values] if isinstance(values, Tensor) else values)
            ]
        )

    return Deferred(columns, read)


def _part(rows: Sequence[int], weights: Sequence[nn.Parameter]) -> _Part:
    real = [real_view(weight) for weight in weights]
    any_complex, summed = any(w.is_complex() for w in weights), all(w.dtype in SUMMED for w in real)
    return _Part(rows, list(weights), TensorGroups(real), any_complex, summed, _kinds(weights))


def _kinds(weights: Sequence[Tensor]) -> tuple[object, ...]:
    # Called at every reading, so it checks the device of one weight only: a net is moved to another device as a whole.
    device = weights[0].device if weights else None
    return [type(p) for p in weights], [p.dtype for p in weights], [p.shape for p in weights], device
