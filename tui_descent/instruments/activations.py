"""Measures activations: their mean and standard deviation, the dead units, and the share of saturated outputs.

The hooks only keep references to the tensors. After the forward pass, all activations of one kind and shape are
measured together. The derivative φ′ comes from a formula, or from autograd for a module without a formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.activation_derivatives import FORMULAS, derivative
from tui_descent.instruments.deferred import Deferred, combine
from tui_descent.instruments.net_structure import WatchedActivation, WatchedLayer

# A unit is dead if φ′ = 0 on at least this many samples, over several batches (Lu et al. 2019, arXiv 1903.06733).
DEAD_SAMPLES = 256
# Saturated: φ′ is below this fraction of its maximum (Glorot & Bengio 2010). Only for bounded activations.
SATURATED = 0.1
MAX_DERIVATIVE: dict[type[nn.Module], float] = {nn.Sigmoid: 0.25, nn.Tanh: 1.0}
# At most this many numbers are measured in one operation: more do not fit into the cache, and would need new memory.
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


class Activations:
    """Measures the activations of a training forward pass. The pass itself is not changed."""

    def __init__(self, watched: Sequence[WatchedActivation], layers: Sequence[WatchedLayer]) -> None:
        self._watched = list(watched)
        self._channels_first = [layers[w.row].weight.dim() > 2 for w in self._watched]
        self._alive = [_Alive() for _ in self._watched]
        self._handles: list[RemovableHandle] = []
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}  # by activation: its input z and its output

    def attach(self) -> None:
        """Measure the next forward pass."""
        self.detach()
        self._seen.clear()
        for n, w in enumerate(self._watched):
            if getattr(w.module, "inplace", False):  # it overwrites its input
                self._handles.append(w.module.register_forward_pre_hook(partial(self._keep_input, n)))
            self._handles.append(w.module.register_forward_hook(partial(self._keep_output, n)))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def read(self) -> Deferred[dict[int, ActivationReading]]:
        """The readings of the pass. The keys are the layers' row numbers."""
        groups: dict[object, list[int]] = {}
        for n, (z, _) in self._seen.items():
            if not z.numel():
                continue  # an empty batch has no activations
            module = self._watched[n].module
            small = type(module) in FORMULAS and z.numel() <= CHUNK
            key = (type(module), module.extra_repr(), z.shape, z.dtype, self._channels_first[n]) if small else n
            groups.setdefault(key, []).append(n)
        parts = []
        for members in groups.values():
            size = max(1, CHUNK // max(1, self._seen[members[0]][0].numel()))
            parts += [self._read_group(members[k : k + size]) for k in range(0, len(members), size)]
        self._seen.clear()
        groups_read = combine(parts)

        def read(values: Sequence[float]) -> dict[int, ActivationReading]:
            return {row: reading for group in groups_read.read(values) for row, reading in group.items()}

        return Deferred(groups_read.columns, read)

    def _read_group(self, members: list[int]) -> Deferred[dict[int, ActivationReading]]:
        module = self._watched[members[0]].module
        z = torch.stack([self._seen[n][0] for n in members])  # (k, samples…, units) or (k, samples, units, places…)
        a = torch.stack([self._seen[n][1] for n in members])
        slopes = derivative(module, z)  # φ′(z)
        if slopes is None:
            slopes = torch.stack([_derivative_by_autograd(module, one) for one in z])
        by_unit = slopes.movedim(2, -1) if self._channels_first[members[0]] and slopes.dim() > 3 else slopes
        by_unit = by_unit.reshape(len(members), -1, by_unit.shape[-1])  # (k, samples, units)
        alive = by_unit.abs().amax(dim=1) != 0  # (k, units); ten times as fast as `any`
        alive_fractions = [self._alive_fraction(n, alive[k], by_unit.shape[1]) for k, n in enumerate(members)]
        columns = [fraction.reshape(1) for fraction in alive_fractions if fraction is not None]
        maximum = MAX_DERIVATIVE.get(type(module))
        if maximum is not None:
            columns.append((slopes.flatten(1) < SATURATED * maximum).to(_sum_dtype(slopes)).mean(dim=1))
        outputs = a.flatten(1).to(_sum_dtype(a))
        means = outputs.mean(dim=1)
        # Two passes over a copy: as exact as `std`, and ten times as fast.
        columns += [means, torch.linalg.vector_norm(outputs.sub_(means[:, None]), dim=1) / math.sqrt(outputs.shape[1])]

        def read(values: Sequence[float]) -> dict[int, ActivationReading]:
            numbers = iter(values)
            dead = [None if fraction is None else 1 - next(numbers) for fraction in alive_fractions]
            saturated = [None if maximum is None else next(numbers) for _ in members]
            means, stds = ([next(numbers) for _ in members] for _ in range(2))
            readings = map(ActivationReading, means, stds, dead, saturated)
            return {self._watched[n].row: reading for n, reading in zip(members, readings, strict=True)}

        return Deferred(columns, read)

    def _alive_fraction(self, n: int, alive: Tensor, samples: int) -> Tensor | None:
        """The share of units that are not dead, a scalar; None until `DEAD_SAMPLES` samples were seen."""
        total = self._alive[n]
        total.units = alive if total.units is None or total.units.shape != alive.shape else total.units | alive
        total.samples += samples
        if total.samples < DEAD_SAMPLES:
            return None
        self._alive[n] = _Alive()
        return total.units.to(_sum_dtype(total.units)).mean()

    def _keep_input(self, n: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        if n not in self._seen and torch.is_grad_enabled():
            self._seen[n] = (args[0].detach().clone(), args[0])

    def _keep_output(self, n: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or not torch.is_grad_enabled():
            return
        if n not in self._seen:
            self._seen[n] = (args[0].detach(), output.detach())
        elif self._seen[n][1] is args[0]:  # an in-place module, whose input `_keep_input` has saved
            self._seen[n] = (self._seen[n][0], output.detach().clone())


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # MPS has no float64


def _derivative_by_autograd(module: nn.Module, z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.clone().requires_grad_()
        # `forward` does not call the module's hooks; it gets a copy, since it may work in place.
        (slopes,) = torch.autograd.grad(module.forward(z.clone()).sum(), z)
    return slopes
