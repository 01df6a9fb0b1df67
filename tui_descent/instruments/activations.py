"""Measures activations: their mean and standard deviation, the dead units, and the share of saturated outputs.

During the forward pass the hooks only keep references to the tensors. After it, all activations of the same kind and
shape are measured together. The derivative φ′ comes from a formula, or from autograd for a module without a formula.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tui_descent.instruments.activation_derivatives import FORMULAS, derivative
from tui_descent.instruments.deferred import Deferred, combine
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.module_hooks import Args, Kwargs, ModuleHooks, plain, version, why_not_plain
from tui_descent.instruments.net_structure import WatchedActivation, WatchedLayer

PART = "the activations"

# A unit is dead if φ′ = 0 on at least this many samples, over several batches (Lu et al. 2019, arXiv 1903.06733).
DEAD_SAMPLES = 256
# Saturated: φ′ is below this fraction of its maximum (Glorot & Bengio 2010). Only for bounded activations.
SATURATED = 0.1
MAX_DERIVATIVE: dict[type[nn.Module], float] = {nn.Sigmoid: 0.25, nn.Tanh: 1.0}
# At most this many numbers are measured in one operation. More would not fit into the cache and would need new memory.
CHUNK = 1 << 15


@dataclass(slots=True)
class _Alive:
    """The samples seen since the last result: their number, and which units had φ′ ≠ 0 on any of them, (units,)."""

    units: Tensor | None = None
    samples: int = 0


@dataclass(frozen=True, slots=True)
class ActivationReading:
    """The activation after one layer at one step.

    `dead_fraction` is a share of the units, None until enough samples were seen. `saturated_fraction` is a share of all
    outputs, None for activations that cannot saturate.
    """

    mean: float
    std: float
    dead_fraction: float | None
    saturated_fraction: float | None


@dataclass(slots=True)
class _Seen:
    """One call of an activation. The versions show whether a tensor was changed in place afterwards."""

    z: Tensor  # input
    z_version: int
    a: Tensor | None = None  # output
    a_version: int = 0

    @property
    def unchanged(self) -> bool:
        return self.a is not None and version(self.z) == self.z_version and version(self.a) == self.a_version


class Activations:
    """Measures the activations of a training forward pass. The pass itself is not changed.

    If a module runs several times, its first call is measured, because its place in the forward order decides which
    layer it follows.
    """

    def __init__(
        self, watched: Sequence[WatchedActivation], layers: Sequence[WatchedLayer], failures: Failures | None = None
    ) -> None:
        self._watched = list(watched)
        self._failures = failures = Failures() if failures is None else failures
        self._parts = [f"{PART} after {layers[w.row].layer.name}" for w in self._watched]
        weights = [layers[w.row].weight for w in self._watched]
        self._channels_first = [not is_lazy(weight) and weight.dim() > 2 for weight in weights]
        self._alive = [_Alive() for _ in self._watched]
        self._seen: dict[int, _Seen] = {}  # by the activation's number
        self._complete: set[int] = set()  # the activations whose first call has returned
        # Activations whose tensors are copied, because the module itself or a later operation changes them in place.
        self._changing: set[int] = set()
        self._reasons: set[str] = set()  # reported reasons why activations cannot be measured
        self._hooks = ModuleHooks(failures)
        for n, w in enumerate(self._watched):
            if getattr(w.module, "inplace", False):
                self._changing.add(n)
            self._hooks.on_output(w.module, partial(self._keep_output, n), self._parts[n])
        self._listen_to_inputs(self._changing)

    def attach(self) -> None:
        """Measure the next forward pass."""
        self._seen.clear()
        self._complete.clear()
        self._hooks.attach()

    def detach(self) -> None:
        """Remove the hooks. The tensors that they have kept stay available for `read`."""
        self._hooks.detach()

    @torch.no_grad()
    def read(self) -> Deferred[dict[int, ActivationReading]]:
        """The readings of the pass. The keys are the layers' row numbers.

        An activation is left out if it was not called or if its numbers cannot be read. It is also left out if its
        input or output was changed in place before this call; from the next pass on, both are then copied.
        """
        self._report_gaps()
        groups: dict[object, list[int]] = {}
        for n in self._take_unchanged():
            seen, module = self._seen[n], self._watched[n].module
            if not seen.z.numel():
                continue  # an empty batch has no activations
            small = type(module) in FORMULAS and seen.z.numel() <= CHUNK
            z, a = seen.z, seen.a
            assert a is not None
            kind = (type(module), module.extra_repr(), self._channels_first[n])
            key = (*kind, z.shape, z.dtype, z.device, a.shape, a.dtype, a.device) if small else n
            groups.setdefault(key, []).append(n)
        parts = []
        for members in groups.values():
            size = max(1, CHUNK // max(1, self._seen[members[0]].z.numel()))
            for k in range(0, len(members), size):
                parts += self._read_members(members[k : k + size])
        self._seen.clear()
        groups_read = combine(parts)

        def read(values: Sequence[float]) -> dict[int, ActivationReading]:
            return {row: reading for group in groups_read.read(values) for row, reading in group.items()}

        return Deferred(groups_read.columns, read)

    def _take_unchanged(self) -> list[int]:
        """The activations whose tensors were not changed since the forward pass."""
        unchanged = [n for n, seen in self._seen.items() if seen.unchanged]
        changed = {n for n, seen in self._seen.items() if seen.a is not None and not seen.unchanged}
        self._listen_to_inputs(changed - self._changing)
        self._changing |= changed
        return unchanged

    def _listen_to_inputs(self, activations: Iterable[int]) -> None:
        for n in activations:
            self._hooks.on_input(self._watched[n].module, partial(self._keep_input, n), self._parts[n])

    def _report_gaps(self) -> None:
        """Report why the hooks did not see activations, unless the net simply did not use them."""
        if self._watched and (reason := self._hooks.silence("their modules")) is not None:
            self._failures.leave_out(PART, reason)
        elif self._hooks.reason is not None and not all(self._hooks.was_called(w.module) for w in self._watched):
            self._failures.leave_out(PART, f"some of their modules run {self._hooks.reason}")

    def _read_members(self, members: list[int]) -> list[Deferred[dict[int, ActivationReading]]]:
        """The readings of a group. If that raises, each is read alone, to find the ones that must be switched off."""
        try:
            return [self._read_group(members)]
        except Exception as error:  # noqa: BLE001 - it must not end the user's training
            if len(members) > 1:
                return [reading for n in members for reading in self._read_members([n])]
            self._failures.add(self._parts[members[0]], error)
            return []

    def _read_group(self, members: list[int]) -> Deferred[dict[int, ActivationReading]]:
        module = self._watched[members[0]].module
        z = torch.stack([self._seen[n].z for n in members])  # (k, samples…, units) or (k, samples, units, places…)
        a = torch.stack([t for n in members if (t := self._seen[n].a) is not None])
        slopes = _slopes(module, z)
        if slopes is None:
            return self._means(members, a)
        by_unit = slopes.movedim(2, -1) if self._channels_first[members[0]] and slopes.dim() > 3 else slopes
        by_unit = by_unit.reshape(len(members), -1, by_unit.shape[-1])  # (k, samples, units)
        alive = by_unit.abs().amax(dim=1) != 0  # (k, units); ten times as fast as `any`
        alive_fractions = [self._alive_fraction(n, alive[k], by_unit.shape[1]) for k, n in enumerate(members)]
        columns = [fraction.reshape(1) for fraction in alive_fractions if fraction is not None]
        maximum = MAX_DERIVATIVE.get(type(module))
        if maximum is not None:
            columns.append((slopes.flatten(1) < SATURATED * maximum).to(_sum_dtype(slopes)).mean(dim=1))
        columns += _mean_and_std(a)

        def read(values: Sequence[float]) -> dict[int, ActivationReading]:
            numbers = iter(values)
            dead = [None if fraction is None else 1 - next(numbers) for fraction in alive_fractions]
            saturated = [None if maximum is None else next(numbers) for _ in members]
            means, stds = ([next(numbers) for _ in members] for _ in range(2))
            readings = map(ActivationReading, means, stds, dead, saturated)
            return {self._watched[n].row: reading for n, reading in zip(members, readings, strict=True)}

        return Deferred(columns, read)

    def _means(self, members: list[int], a: Tensor) -> Deferred[dict[int, ActivationReading]]:
        """The readings of activations whose derivative is not known."""

        def read(values: Sequence[float]) -> dict[int, ActivationReading]:
            means, stds = values[: len(members)], values[len(members) :]
            rows = (self._watched[n].row for n in members)
            return {
                row: ActivationReading(mean, std, None, None) for row, mean, std in zip(rows, means, stds, strict=True)
            }

        return Deferred(_mean_and_std(a), read)

    def _alive_fraction(self, n: int, alive: Tensor, samples: int) -> Tensor | None:
        """The share of units that are not dead, a scalar; None until `DEAD_SAMPLES` samples were seen."""
        total = self._alive[n]
        total.units = alive if total.units is None or total.units.shape != alive.shape else total.units | alive
        total.samples += samples
        if total.samples < DEAD_SAMPLES:
            return None
        self._alive[n] = _Alive()
        return total.units.to(_sum_dtype(total.units)).mean()

    def _keep_input(self, n: int, args: Args) -> None:
        if n not in self._seen and (z := self._ordinary(n, args[0] if args else None)) is not None:
            self._seen[n] = _Seen(z.clone(), 0)

    def _keep_output(self, n: int, args: Args, kwargs: Kwargs, output: Any) -> None:
        if n in self._complete:
            return
        self._complete.add(n)
        if (a := self._ordinary(n, output)) is None:
            self._seen.pop(n, None)
            return
        if n not in self._seen:
            z = self._ordinary(n, args[0] if args else next(iter(kwargs.values()), None))
            if z is None:
                return
            # If the module changed its input in place, the version before that is not known. −1 differs from every
            # version.
            same = bool(z.numel()) and z.data_ptr() == a.data_ptr()
            in_place = same and not isinstance(self._watched[n].module, nn.Identity)
            self._seen[n] = _Seen(z, -1 if in_place else version(z))
        a = a.clone() if n in self._changing else a
        self._seen[n].a, self._seen[n].a_version = a, version(a)

    def _ordinary(self, n: int, value: object) -> Tensor | None:
        """The value as an ordinary real tensor; None, with a report, if it is not one."""
        if isinstance(value, Tensor) and (tensor := plain(value)) is not None:
            if not tensor.is_complex():
                return tensor
            reason = "its numbers are complex"
        else:
            reason = why_not_plain(value)
        if reason not in self._reasons:  # often it is the same in all layers: then one report is enough
            self._reasons.add(reason)
            self._failures.leave_out(self._parts[n], reason)
        return None


def _mean_and_std(a: Tensor) -> list[Tensor]:
    """Mean and standard deviation of each of the k activations in a tensor (k, …), two columns (k,)."""
    outputs = a.flatten(1).to(_sum_dtype(a)) if a.dim() > 1 else a[:, None].to(_sum_dtype(a))
    means = outputs.mean(dim=1)
    # Two passes over a copy: as exact as `std`, and ten times as fast.
    return [means, torch.linalg.vector_norm(outputs.sub_(means[:, None]), dim=1) / math.sqrt(outputs.shape[1])]


def _slopes(module: nn.Module, z: Tensor) -> Tensor | None:
    """φ′(z) of k inputs z (k, …), in float32 or float64; None if the derivative is not known.

    A user's own module is never called for this, because a call might draw random numbers or change a counter.
    """
    if "forward" in vars(module):
        return None  # set by the user on this object
    weight = next(module.parameters(), None)
    if weight is not None:
        z = z.to(weight.dtype)  # they differ under autocast
    elif z.dtype.itemsize < 4:
        z = z.float()
    slopes = derivative(module, z)
    if slopes is None and type(module).__module__.startswith(("torch.nn.", "tui_descent.")):
        slopes = torch.stack([_derivative_by_autograd(module, one) for one in z])
    return slopes if slopes is None or slopes.dim() > 1 else slopes[:, None]


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # MPS has no float64


def _derivative_by_autograd(module: nn.Module, z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.clone().requires_grad_()
        # `forward` does not run the module's hooks. It gets a copy of z, because it may work in place.
        (slopes,) = torch.autograd.grad(module.forward(z.clone()).sum(), z)
    return slopes
