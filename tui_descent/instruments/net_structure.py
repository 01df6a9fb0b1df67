"""What can be measured in a net: its layers, its units (the parts that the signal passes one after another), and its
activations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tui_descent.protocol.events import Layer

CONTAINERS = (nn.Sequential, nn.ModuleList)
# Elementwise modules whose input is a pre-activation. A `Blend` of two of them has `old`, `new` and `t`.
ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.Identity,
    nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Mish, nn.SELU, nn.CELU, nn.PReLU, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WatchedLayer:
    """A module with weights of its own. `weight` is the parameter that is measured."""

    layer: Layer
    module: nn.Module
    weight: nn.Parameter


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of the net that the signal passes. `row` is the row number of its first layer with a matrix, or of its
    first layer if none has a matrix.
    """

    name: str
    module: nn.Module
    row: int


@dataclass(frozen=True, slots=True)
class WatchedActivation:
    """An activation, and the row number of the layer it follows. A norm layer between the two is skipped."""

    module: nn.Module
    row: int


@dataclass(frozen=True, slots=True)
class NetStructure:
    """A net as the instruments see it. A row number is an index into `layers`, which are in forward order."""

    layers: tuple[WatchedLayer, ...]
    units: tuple[Unit, ...]
    activations: tuple[WatchedActivation, ...]


def structure(
    model: nn.Module, *, order: Sequence[str] | None = None, only: Collection[str] | None = None
) -> NetStructure:
    """Find the layers, units and activations of a net.

    `order` are the module names in forward order; by default the order of registration is used. With `only`, layers
    with other names are left out. A layer is a module with weights of its own; a shared weight belongs to the first
    layer that has it. The layer's `weight` is its largest matrix, or its largest parameter if it has no matrix. Units
    are the children with weights of the outermost `Sequential`s and `ModuleList`s.
    """
    place = {name: n for n, name in enumerate(order or ())}

    def position(name: str) -> int:
        # A module that is used without being called, such as attention's `out_proj`, has the position of its parent.
        while name not in place and "." in name:
            name = name.rpartition(".")[0]
        return place.get(name, len(place))

    units = sorted(_units(model), key=lambda unit: position(unit[0]))
    block = {id(m): n for n, (_, module) in enumerate(units) for m in module.modules()} if len(units) > 1 else {}
    layers: list[WatchedLayer] = []
    seen: set[int] = set()
    for name, module in sorted(model.named_modules(), key=lambda item: position(item[0])):
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        if not own or (only is not None and (name or type(module).__name__.lower()) not in only):
            continue
        seen.update(id(p) for p in own)
        layer = Layer(
            name=name or type(module).__name__.lower(),
            kind=type(module).__name__,
            params=sum(p.numel() for p in own),
            block=block.get(id(module)),
        )
        layers.append(WatchedLayer(layer, module, max(own, key=lambda p: (p.dim() >= 2, p.numel()))))
    rows = {id(watched.module): n for n, watched in enumerate(layers)}
    matrices = frozenset(n for n, watched in enumerate(layers) if watched.weight.dim() >= 2)
    inside = [(name, module, [rows[id(m)] for m in module.modules() if id(m) in rows]) for name, module in units]
    return NetStructure(
        layers=tuple(layers),
        # A row with a matrix is preferred: it stays the first one when a norm layer is inserted.
        units=tuple(Unit(name, module, min(matrices.intersection(of) or of)) for name, module, of in inside if of),
        activations=tuple(_activations(model, rows, matrices, position)),
    )


def _units(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    inside = isinstance(model, CONTAINERS)
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if inside and any(True for _ in child.parameters()):
            yield path, child
        elif not inside and not isinstance(child, torch.jit.ScriptModule):  # calls inside it run no hooks
            yield from _units(child, f"{path}.")


def _activations(
    model: nn.Module, rows: dict[int, int], matrices: Collection[int], position: Callable[[str], int]
) -> Iterator[WatchedActivation]:
    row: int | None = None
    for _, module in sorted(model.named_modules(), key=lambda item: position(item[0])):
        own_row = rows.get(id(module))
        if own_row is not None and (own_row in matrices or row not in matrices):
            row = own_row
        if row is not None and is_activation(module):
            yield WatchedActivation(module, row)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an elementwise activation, or a `Blend` of two activations."""
    return isinstance(module, ACTIVATIONS) or (
        hasattr(module, "old") and hasattr(module, "new") and hasattr(module, "t")
    )
