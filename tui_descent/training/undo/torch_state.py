"""What modules, optimizers, tensors and plain containers hold, saved so that it can be put back in place.

`state_dict()` would not do: it leaves out a network's structure, non-persistent buffers, modes and plain attributes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

_SIMPLE = frozenset({type(None), bool, int, float, complex, str, bytes})
State = list[tuple[Any, Any]]


class TorchState:
    """Everything below `roots`, through attributes and containers; each object once, whoever refers to it.

    Every object stays the same one: tensors get their numbers back by `copy_`, modules and optimizers their attributes,
    so that whoever refers to one of them still refers to the right one. Gradients, hooks and a `forward` or `step` set
    on an object are left alone. An object of another kind stays as it is: what changes in it is for its own `state()`.
    """

    def __init__(self, *roots: object) -> None:
        self._roots = roots

    def state(self) -> State:
        """Each object with what it holds; a tensor with a copy of its numbers and its `requires_grad`."""
        return [
            (found, (found.detach().clone(), held) if isinstance(found, Tensor) else held)
            for found, held in reachable(*self._roots)
        ]

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Put it all back."""
        for found, held in state:
            _put_back(found, held)


def reachable(*roots: object) -> Iterator[tuple[Any, Any]]:
    """Each object below `roots` with what it holds, nothing copied but containers."""
    seen: set[int] = set()
    waiting = deque(roots)
    while waiting:
        found = waiting.popleft()
        if type(found) in _SIMPLE or id(found) in seen or (held := contents_of(found)) is None:
            continue
        seen.add(id(found))
        yield found, held
        if isinstance(held, dict):
            waiting.extend(held.keys())
            waiting.extend(held.values())
        elif isinstance(held, list | set):
            waiting.extend(held)
        if isinstance(found, LRScheduler):
            waiting.extend(_factor_counters(found))


def contents_of(found: object) -> Any:
    """What an object holds, of a tensor its `requires_grad`; None for an object of a kind that is not saved."""
    match found:
        case Tensor():
            return found.requires_grad if found.is_leaf else None  # one with a history is a result, not state
        case torch.Generator():
            return found.get_state()
        case dict():
            return dict(found)
        case list() | deque() | tuple():
            return list(found)
        case set():
            return set(found)
        case nn.Module() | torch.optim.Optimizer() | LRScheduler():
            return {name: value for name, value in vars(found).items() if not _left_alone(found, name)}
        case _ if is_dataclass(found) and not isinstance(found, type):
            if getattr(type(found), "__dataclass_params__").frozen:  # noqa: B009 - not in typeshed
                return None
            return {f.name: getattr(found, f.name) for f in fields(found) if hasattr(found, f.name)}
    return None


def _put_back(found: Any, held: Any) -> None:
    match found:
        case Tensor():
            numbers, requires_grad = held
            found.grad = None
            found.requires_grad_(False).copy_(numbers)
            found.requires_grad_(requires_grad)
        case torch.Generator():
            found.set_state(held)
        case dict() | set():
            found.clear()
            found.update(held)
        case list() | deque():
            found.clear()
            found.extend(held)
        case nn.Module() | torch.optim.Optimizer() | LRScheduler():
            attributes = vars(found)
            for name in [name for name in attributes if name not in held and not _left_alone(found, name)]:
                del attributes[name]
            attributes.update(held)  # without nn.Module's __setattr__, which would register a part a second time
        case tuple():
            pass
        case _:
            for name, value in held.items():
                setattr(found, name, value)


def _left_alone(found: object, name: str) -> bool:
    if isinstance(found, nn.Module):
        return name == "forward" or "_hooks" in name
    return isinstance(found, torch.optim.Optimizer) and (name == "step" or "_hooks" in name)


def _factor_counters(scheduler: LRScheduler) -> list[dict[str, Any]]:
    """The attributes of LambdaLR's and MultiplicativeLR's factors where these are objects, which may count."""
    factors = getattr(scheduler, "lr_lambdas", ())
    return [vars(factor) for factor in factors if hasattr(factor, "__dict__") and not isinstance(factor, FunctionType)]
