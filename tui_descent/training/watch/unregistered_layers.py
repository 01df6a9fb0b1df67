"""Finds layers that a net keeps in a plain list, tuple or dict. `parameters()` does not know them, so an optimizer made
from it does not train them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.facts import Evidence, Facts
from tui_descent.training.watch.other_optimizers import OtherOptimizers
from tui_descent.training.watch.unheld_weights import UnheldWeights

UNCHANGED = 3  # how often a weight is checked before it is reported, as something else may train it
MOST_ITEMS = 1000  # of a list; longer ones are not looked at
DEPTH = 3  # lists of lists of lists
_OF_TORCH = ("_modules", "_parameters", "_buffers")


@dataclass(frozen=True, slots=True)
class Plain:
    """An attribute with layers or parameters. `name` is its module path, `kind` is "list", "tuple" or "dict"."""

    name: str
    kind: str
    count: int
    are_layers: bool
    parameters: tuple[nn.Parameter, ...]


class UnregisteredLayers:
    """Checks, at each of the first updates, whether such layers get a gradient but no optimizer trains them.

    Layers that are hidden on purpose have no gradient, or an optimizer of their own, or are changed by the loop.
    """

    def __init__(self, facts: Facts, model: nn.Module, steering: Steering, others: OtherOptimizers) -> None:
        self._facts, self._model, self._steering, self._others = facts, model, steering, others
        self._candidates: list[Plain] | None = None
        self._weights = UnheldWeights()

    def check(self) -> None:
        """Called after an update."""
        if self._candidates is None:
            self._candidates = list(_plain_attributes(self._model))
        if not self._candidates:
            return
        held = {id(p) for one in self._steering.optimizers for p in one.parameters()}
        for one in self._candidates:
            used = [p for p in one.parameters if p.requires_grad and p.grad is not None]
            if not used or any(id(p) in held or self._others.holds(p) for p in one.parameters):
                continue
            if all(self._weights.is_constant(p) for p in used) and self._weights.looks(used[0]) >= UNCHANGED:
                evidence: Evidence = {"container": one.kind, "count": float(one.count), "layers": float(one.are_layers)}
                self._facts.found("unregistered", one.name, evidence)
                return
        self._facts.ended("unregistered")


def _plain_attributes(model: nn.Module) -> Iterator[Plain]:
    own = {id(p) for p in model.parameters()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in _OF_TORCH or not isinstance(value, list | tuple | dict | set):
                continue
            items = list(_items(value, DEPTH))
            modules = [item for item in items if isinstance(item, nn.Module)]
            parameters = [p for item in modules for p in item.parameters()]
            parameters += [item for item in items if isinstance(item, nn.Parameter)]
            if parameters and not any(id(p) in own for p in parameters):
                kind = next(k.__name__ for k in (list, tuple, dict, set) if isinstance(value, k))
                count = sum(any(True for _ in m.parameters()) for m in modules) or len(parameters)
                where = f"{path}.{name}" if path else name
                yield Plain(where, kind, count, bool(modules), tuple(parameters))


def _items(value: object, depth: int) -> Iterator[nn.Module | Tensor]:
    if isinstance(value, nn.Module | nn.Parameter):
        yield value
    elif depth and isinstance(value, list | tuple | dict | set) and len(value) <= MOST_ITEMS:
        parts: Iterable[object] = value.values() if isinstance(value, Mapping) else value
        for part in parts:
            yield from _items(part, depth - 1)
