"""Saves the contents of modules, optimizers, tensors and plain containers, and restores them into the same objects.

The contents of a module include its weights. The contents of an optimizer include its state, such as Adam's averages
and momentum buffers.

`state_dict()` is not enough, since it does not contain a network's structure, non-persistent buffers, train/eval modes
and plain attributes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import LRScheduler

_SIMPLE = frozenset({type(None), bool, int, float, complex, str, bytes})
State = list[tuple[Any, Any]]


class TorchState:
    """The state of every object reachable from `roots` through attributes and containers, each object once.

    Restoring keeps the objects themselves, so references to them stay valid. The values of tensors are restored by
    `copy_`, modules and optimizers by setting their attributes. Hooks, and a `forward` or `step` set on an instance,
    are neither saved nor changed. The gradients of restored tensors are set to None. Other objects are not saved; they
    need a `state()` and a `restore()` of their own.
    """

    def __init__(self, *roots: object) -> None:
        self._roots = roots

    def state(self) -> State:
        """Each object with its contents; for a tensor, a copy of its values and its `requires_grad`.

        A lazy parameter without a shape has no values, so restoring leaves it as it is.
        """
        return [
            (obj, (_copy(obj), contents) if isinstance(obj, Tensor) else contents)
            for obj, contents in reachable(*self._roots)
        ]

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Restore the contents of every object in `state`."""
        for obj, saved in state:
            _restore_contents(obj, saved)


@contextmanager
def unchanged(*roots: object) -> Iterator[None]:
    """Restores every object reachable from `roots` on exit, except for the values and gradients of parameters.

    This is for a forward pass that does not belong to the training. It may change buffers, attributes and containers.
    """
    found = [(obj, contents) for obj, contents in reachable(*roots) if not isinstance(obj, nn.Parameter)]
    copies = [(obj, obj.detach().clone()) for obj, _ in found if isinstance(obj, Tensor)]
    try:
        yield
    finally:
        for obj, contents in found:
            if not isinstance(obj, Tensor):
                _restore_contents(obj, contents)
        with torch.no_grad():
            for obj, copy in copies:
                obj.copy_(copy)


def reachable(*roots: object) -> Iterator[tuple[Any, Any]]:
    """Each object reachable from `roots` with its contents. Containers are copied, tensors are not."""
    seen: set[int] = set()
    waiting = deque(roots)
    while waiting:
        obj = waiting.popleft()
        if type(obj) in _SIMPLE or id(obj) in seen or (contents := contents_of(obj)) is None:
            continue
        seen.add(id(obj))
        yield obj, contents
        if isinstance(contents, dict):
            waiting.extend(contents.keys())
            waiting.extend(contents.values())
        elif isinstance(contents, list | set):
            waiting.extend(contents)
        if isinstance(obj, LRScheduler):
            waiting.extend(_factor_attributes(obj))


def contents_of(obj: object) -> Any:
    """The attributes or items of an object; for a tensor, its `requires_grad`. None for an object that is not saved."""
    match obj:
        case Tensor():
            return obj.requires_grad if obj.is_leaf else None  # a tensor with a graph is a result, not state
        case torch.Generator():
            return obj.get_state()
        case dict():
            return dict(obj)
        case list() | deque() | tuple():
            return list(obj)
        case set():
            return set(obj)
        case nn.Module() | torch.optim.Optimizer() | LRScheduler():
            return {name: value for name, value in vars(obj).items() if not _is_left_alone(obj, name)}
        case _ if is_dataclass(obj) and not isinstance(obj, type):
            if getattr(type(obj), "__dataclass_params__").frozen:  # noqa: B009 - not in typeshed
                return None
            return {f.name: getattr(obj, f.name) for f in fields(obj) if hasattr(obj, f.name)}
    return None


def _copy(tensor: Tensor) -> Tensor | None:
    """A copy of a tensor's values; None if it has no values yet."""
    return None if is_lazy(tensor) else tensor.detach().clone()


def _copy_into(tensor: Tensor, values: Tensor) -> None:
    dense = tensor.layout is torch.strided and not tensor.is_nested
    if dense and tensor.shape != values.shape:  # the loop has replaced its `.data`
        tensor.data = values.clone()
        return
    if dense:
        for dim, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[dim] > 1:  # the entries of an expanded tensor share memory
                tensor, values = tensor.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    tensor.copy_(values)


def _restore_contents(obj: Any, saved: Any) -> None:
    match obj:
        case Tensor() if is_lazy(obj):
            pass
        case Tensor():
            values, requires_grad = saved
            obj.grad = None
            if values is not None:
                _copy_into(obj.requires_grad_(False), values)
            obj.requires_grad_(requires_grad)
        case torch.Generator():
            obj.set_state(saved)
        case dict() | set():
            obj.clear()
            obj.update(saved)
        case list() | deque():
            obj.clear()
            obj.extend(saved)
        case nn.Module() | torch.optim.Optimizer() | LRScheduler():
            attributes = vars(obj)
            for name in [name for name in attributes if name not in saved and not _is_left_alone(obj, name)]:
                del attributes[name]
            # This avoids nn.Module's `__setattr__`, which would register submodules and parameters a second time.
            attributes.update(saved)
        case tuple():
            pass
        case _:
            for name, value in saved.items():
                setattr(obj, name, value)


def _is_left_alone(obj: object, name: str) -> bool:
    if isinstance(obj, nn.Module):
        return name == "forward" or "_hooks" in name
    return isinstance(obj, torch.optim.Optimizer) and (name == "step" or "_hooks" in name)


def _factor_attributes(scheduler: LRScheduler) -> list[dict[str, Any]]:
    """The attributes of the factors of a LambdaLR or MultiplicativeLR, for factors that are objects with a state."""
    factors = getattr(scheduler, "lr_lambdas", ())
    return [vars(factor) for factor in factors if hasattr(factor, "__dict__") and not isinstance(factor, FunctionType)]
