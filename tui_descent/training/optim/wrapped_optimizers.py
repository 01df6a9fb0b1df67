"""Finds the optimizer inside a wrapper, such as the wrappers of Accelerate and Fabric, SAM or Lookahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tui_descent.training.run_description import describe_wrong_optimizer


def unwrap(wrapper: object) -> torch.optim.Optimizer:
    """The optimizer that makes the updates when `wrapper` is stepped. A plain optimizer is returned itself.

    Raises `ValueError` if there is no such optimizer, if there are several, and for LBFGS.
    """
    found = wrapper
    seen = {id(found)}
    while True:
        inside = [one for one in _inside(found) if id(one) not in seen]
        if has_hooks(found):
            # An optimizer that uses another one for some of its parameters, as Muon does, is not a wrapper.
            inside = [one for one in inside if _parameters(one) >= _parameters(found)]
            if len(inside) != 1:
                break
        elif len(inside) > 1:
            names = ", ".join(type(one).__name__ for one in inside)
            kind = type(found).__name__
            raise ValueError(f"{kind} holds {len(inside)} optimizers ({names}): pass them to watch() as a list or dict")
        elif not inside:
            raise ValueError(f"watch() takes torch.optim.Optimizer objects; found {describe_wrong_optimizer(wrapper)}")
        found = inside[0]
        seen.add(id(found))
    assert isinstance(found, torch.optim.Optimizer)
    if isinstance(found, torch.optim.LBFGS):
        raise ValueError("LBFGS cannot be watched: one step makes many updates, each at its own rate")
    return found


def with_wrappers(optimizer: torch.optim.Optimizer, wrapper: object = None) -> tuple[Any, ...]:
    """The optimizer and the wrappers around it. `wrapper` is the outermost object; it is left out if it holds another
    optimizer.
    """
    around: list[object] = []
    while wrapper is not None and wrapper is not optimizer and not any(wrapper is one for one in around):
        around.append(wrapper)
        inside = _inside(wrapper)
        found = any(one is optimizer for one in inside)
        wrapper = optimizer if found else inside[0] if len(inside) == 1 else None
    return (optimizer, *around) if wrapper is optimizer else (optimizer,)


def has_hooks(obj: object) -> bool:
    """Whether this is an optimizer on which torch's step hooks can be registered.

    A wrapper may inherit from `Optimizer` without running its `__init__`.
    """
    return isinstance(obj, torch.optim.Optimizer) and "_optimizer_step_pre_hooks" in vars(obj)


def _inside(wrapper: object) -> list[object]:
    """The distinct optimizers that are attributes of an object, or elements of containers that are."""
    attributes = vars(wrapper) if hasattr(wrapper, "__dict__") else {}
    values: list[object] = []
    for name, value in attributes.items():
        if name in ("param_groups", "state", "defaults"):
            continue
        values += value.values() if isinstance(value, Mapping) else value if type(value) in (list, tuple) else [value]
    values.append(_attribute(wrapper, "optimizer"))  # `optimizer` may be a property
    found = {id(value): value for value in values if value is not wrapper and _is_optimizer(value)}
    return list(found.values())


def _is_optimizer(obj: object) -> bool:
    if isinstance(obj, torch.optim.Optimizer):
        return True
    # Another wrapper, whose class does not inherit from `Optimizer`.
    return isinstance(_attribute(obj, "optimizer"), torch.optim.Optimizer) and callable(_attribute(obj, "zero_grad"))


def _attribute(obj: object, name: str) -> object:
    try:
        return getattr(obj, name, None)
    except Exception:  # noqa: BLE001 - a property of somebody else's class
        return None


def _parameters(optimizer: object) -> set[int]:
    groups: Any = _attribute(optimizer, "param_groups") or ()
    return {id(parameter) for group in groups for parameter in group["params"]}
