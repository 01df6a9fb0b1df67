"""Activations: their mean and spread, units that are dead, pairs that are saturated.

φ′ is what autograd makes of the module itself, so any elementwise module can be read, a blend of two as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.structure import WatchedActivation, WatchedLayer

# A unit counts as dead only over this many samples, newest batches together (Lu et al. 2019, arXiv 1903.06733).
DEAD_SAMPLES = 256
# Saturated: φ′ under this part of its greatest value (Glorot & Bengio 2010). Bounded activations only.
SATURATED = 0.1
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
        self._scalars: dict[int, list[Tensor]] = {}
        self._dead: dict[int, Tensor] = {}

    def attach(self) -> None:
        """Listen to the next forward pass."""
        self.detach()
        self._scalars.clear()
        self._dead.clear()
        self._handles = [w.module.register_forward_hook(partial(self._look, n)) for n, w in enumerate(self._watched)]

    def detach(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self) -> dict[int, ActivationReading]:
        """By layer row, what the pass showed; one read-back for all."""
        places = sorted(self._scalars)
        flat = [s for n in places for s in (*self._scalars[n], *([self._dead[n]] if n in self._dead else []))]
        values = iter(torch.stack([s.double() for s in flat]).tolist() if flat else [])
        readings = {}
        for n in places:
            mean, square = next(values), next(values)
            saturated = next(values) if len(self._scalars[n]) == 3 else None
            dead = next(values) if n in self._dead else None
            std = max(0.0, square - mean * mean) ** 0.5
            readings[self._watched[n].row] = ActivationReading(mean, std, dead, saturated)
        self._scalars.clear()
        self._dead.clear()
        return readings

    def _look(self, n: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if n in self._scalars or not isinstance(output, Tensor) or not torch.is_grad_enabled():
            return
        z, a = args[0].detach().clone(), output.detach()
        with torch.enable_grad():
            probe = z.requires_grad_()
            # Past the module's own hooks, and on a copy, since it may work in place.
            (slope,) = torch.autograd.grad(module.forward(probe.clone()).sum(), probe)
        samples = slope.movedim(1, -1) if self._channels_first[n] and slope.dim() > 2 else slope
        samples = samples.reshape(-1, samples.shape[-1])  # (samples, units)
        wide = a.double() if a.device.type == "cpu" else a.float()
        self._scalars[n] = [wide.mean(), wide.square().mean()]
        if (greatest := SLOPE_MAX.get(type(module))) is not None:
            self._scalars[n].append((slope < SATURATED * greatest).double().mean())
        alive = self._alive[n]
        seen = (samples != 0).any(dim=0)
        alive.units = seen if alive.units is None or alive.units.shape != seen.shape else alive.units | seen
        alive.samples += len(samples)
        if alive.samples >= DEAD_SAMPLES:
            self._dead[n] = 1 - alive.units.double().mean()
            self._alive[n] = _Alive()
