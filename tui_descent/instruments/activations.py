"""Activations: their mean and spread, units that are dead, pairs that are saturated.

During the pass only references are kept; afterwards all activations of one kind and shape are read combine. φ′ is the
formula's, or for a module without one what autograd makes of the module itself.
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

from tui_descent.instruments.activation_derivatives import FORMULAS, slope
from tui_descent.instruments.deferred import Deferred, combine
from tui_descent.instruments.net_structure import WatchedActivation, WatchedLayer

# A unit counts as dead only over this many samples, newest batches combine (Lu et al. 2019, arXiv 1903.06733).
DEAD_SAMPLES = 256
# Saturated: φ′ under this part of its greatest value (Glorot & Bengio 2010). Bounded activations only.
SATURATED = 0.1
# So many numbers are read at a time: larger pieces leave the cache, and take memory that the system has to hand out.
TOGETHER = 1 << 15
SLOPE_MAX: dict[type[nn.Module], float] = {nn.Sigmoid: 0.25, nn.Tanh: 1.0}


@dataclass(slots=True)
class _Alive:
    units: Tensor | None = None
    samples: int = 0


@dataclass(frozen=True, slots=True)
class ActivationReading:
    """Of one layer's activation at one step; None where it does not apply or too few samples were seen yet."""

    mean: float
    std: float
    dead_fraction: float | None
    saturated_fraction: float | None


class Activations:
    """Listens to a forward pass of training, in which it changes nothing."""

    def __init__(self, watched: Sequence[WatchedActivation], layers: Sequence[WatchedLayer]) -> None:
        self._watched = list(watched)
        self._channels_first = [layers[w.row].weight.dim() > 2 for w in self._watched]
        self._alive = [_Alive() for _ in self._watched]
        self._handles: list[RemovableHandle] = []
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def attach(self) -> None:
        """Listen to the next forward pass."""
        self.detach()
        self._seen.clear()
        for n, w in enumerate(self._watched):
            before = bool(getattr(w.module, "inplace", False))
            if before:  # the pre-activation is overwritten: taken before it is
                self._handles.append(w.module.register_forward_pre_hook(partial(self._keep_input, n)))
            self._handles.append(w.module.register_forward_hook(partial(self._keep, n)))

    def detach(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def read(self) -> Deferred[dict[int, ActivationReading]]:
        """By layer row, what the pass showed."""
        groups: dict[object, list[int]] = {}
        for n, (z, _) in self._seen.items():
            if not z.numel():
                continue  # an empty batch has no activations
            module = self._watched[n].module
            alike = type(module) in FORMULAS and z.numel() <= TOGETHER
            key = (type(module), module.extra_repr(), z.shape, z.dtype, self._channels_first[n]) if alike else n
            groups.setdefault(key, []).append(n)
        parts = []
        for members in groups.values():
            most = max(1, TOGETHER // max(1, self._seen[members[0]][0].numel()))
            parts += [self._read_group(members[k : k + most]) for k in range(0, len(members), most)]
        self._seen.clear()
        every = combine(parts)
        return Deferred(every.columns, lambda values: {n: r for found in every.read(values) for n, r in found.items()})

    def _read_group(self, members: list[int]) -> Deferred[dict[int, ActivationReading]]:
        module = self._watched[members[0]].module
        z = torch.stack([self._seen[n][0] for n in members])  # (k, samples…, units) or (k, samples, units, places…)
        a = torch.stack([self._seen[n][1] for n in members])
        bend = slope(module, z)
        if bend is None:
            bend = torch.stack([_slope_by_autograd(module, one) for one in z])
        samples = bend.movedim(2, -1) if self._channels_first[members[0]] and bend.dim() > 3 else bend
        samples = samples.reshape(len(members), -1, samples.shape[-1])  # (k, samples, units)
        alive = samples.abs().amax(dim=1) != 0  # (k, units); ten times as fast as `any`
        dead = [self._dead(n, alive[k], samples.shape[1]) for k, n in enumerate(members)]
        columns = [share.reshape(1) for share in dead if share is not None]
        greatest = SLOPE_MAX.get(type(module))
        if greatest is not None:
            columns.append((bend.flatten(1) < SATURATED * greatest).to(_wide(bend)).mean(dim=1))
        wide = a.flatten(1).to(_wide(a))
        means = wide.mean(dim=1)
        # Two passes over a copy of our own: as exact as `std`, and ten times as fast.
        columns += [means, torch.linalg.vector_norm(wide.sub_(means[:, None]), dim=1) / math.sqrt(wide.shape[1])]

        def read(values: Sequence[float]) -> dict[int, ActivationReading]:
            numbers = iter(values)
            shares = [None if one is None else 1 - next(numbers) for one in dead]
            saturated = [None if greatest is None else next(numbers) for _ in members]
            centres, spreads = ([next(numbers) for _ in members] for _ in range(2))
            found = zip(centres, spreads, shares, saturated, strict=True)
            return {self._watched[n].row: ActivationReading(*one) for n, one in zip(members, found, strict=True)}

        return Deferred(columns, read)

    def _dead(self, n: int, seen: Tensor, samples: int) -> Tensor | None:
        """The share of units that live, a scalar, once enough samples were seen combine."""
        kept = self._alive[n]
        kept.units = seen if kept.units is None or kept.units.shape != seen.shape else kept.units | seen
        kept.samples += samples
        if kept.samples < DEAD_SAMPLES:
            return None
        self._alive[n] = _Alive()
        return kept.units.to(_wide(kept.units)).mean()

    def _keep_input(self, n: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        if n not in self._seen and torch.is_grad_enabled():
            self._seen[n] = (args[0].detach().clone(), args[0])

    def _keep(self, n: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or not torch.is_grad_enabled():
            return
        if n not in self._seen:
            self._seen[n] = (args[0].detach(), output.detach())
        elif self._seen[n][1] is args[0]:
            self._seen[n] = (self._seen[n][0], output.detach().clone())


def _wide(tensor: Tensor) -> torch.dtype:
    """What sums are made in; MPS has no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _slope_by_autograd(module: nn.Module, z: Tensor) -> Tensor:
    with torch.enable_grad():
        probe = z.clone().requires_grad_()
        # Past the module's own hooks, and on a copy, since it may work in place.
        (bend,) = torch.autograd.grad(module.forward(probe.clone()).sum(), probe)
    return bend
