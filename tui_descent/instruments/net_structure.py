"""What can be measured in a net: its layers, its units (the parts that the signal passes through one after another),
and its activations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tui_descent.instruments.not_measured import count_numbers, why_not_measured
from tui_descent.protocol.events import Layer

CONTAINERS = (nn.Sequential, nn.ModuleList)
# Elementwise modules whose input is a pre-activation. A `Blend` of two of them has `old`, `new` and `t`.
ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.Identity,
    nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Mish, nn.SELU, nn.CELU, nn.PReLU, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WatchedLayer:
    """A weight, the module that it belongs to, and the row that shows it."""

    layer: Layer
    module: nn.Module
    weight: nn.Parameter


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of the net that the signal passes through. `row` is the row number of its first layer with a matrix, or of
    its first layer if none has a matrix.
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
    with other names are left out. A layer is a module with weights of its own; a module with several, such as an LSTM,
    has one layer for each, named `module.weight`. Parameters that a module names in `not_layers` are left out. A shared
    weight belongs to the first layer that has it. Units are the children with weights of the outermost `Sequential`s
    and `ModuleList`s.
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
    # The net itself has no path, so its name is that of its class, in capitals if a child already has that name.
    root = type(model).__name__
    root = root if dict(model.named_modules()).get(root.lower()) else root.lower()
    seen: set[int] = set()
    for name, module in sorted(model.named_modules(), key=lambda item: position(item[0])):
        left_out = getattr(module, "not_layers", ())
        own = [(of, p) for of, p in module.named_parameters(recurse=False) if id(p) not in seen and of not in left_out]
        seen.update(id(p) for _, p in own)
        weights, path = _weights(own), name or root
        for of, weight in weights:
            layer = Layer(
                name=path if len(weights) == 1 else f"{path}.{of}",
                kind=type(module).__name__,
                params=count_numbers([weight] if len(weights) > 1 else (p for _, p in own)),
                block=block.get(id(module)),
                not_measured=why_not_measured(weight),
            )
            if only is None or layer.name in only:
                layers.append(WatchedLayer(layer, module, weight))
    rows: dict[int, int] = {}
    for n, watched in enumerate(layers):
        rows.setdefault(id(watched.module), n)
    matrices = frozenset(n for n, watched in enumerate(layers) if _is_matrix(watched.weight))
    inside = [(name, module, [rows[id(m)] for m in module.modules() if id(m) in rows]) for name, module in units]
    return NetStructure(
        layers=tuple(layers),
        # A row with a matrix is preferred, because it remains the unit's row when a norm layer is inserted.
        units=tuple(Unit(name, module, min(matrices.intersection(of) or of)) for name, module, of in inside if of),
        activations=tuple(_activations(model, rows, matrices, position)),
    )


def _weights(own: Sequence[tuple[str, nn.Parameter]]) -> Sequence[tuple[str, nn.Parameter]]:
    """The module's own parameters that are shown: its matrices. If it has none: its vectors without the biases. If it
    has only biases: the largest one.
    """
    weights = [(name, p) for name, p in own if "bias" not in name]
    matrices = [(name, p) for name, p in weights if _is_matrix(p)]
    return matrices or weights or sorted(own, key=lambda item: count_numbers(item[1:]))[-1:]


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Whether the parameter has at least two dimensions. A lazy parameter has no shape yet, but most often becomes a
    matrix.
    """
    return is_lazy(parameter) or parameter.dim() >= 2


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
