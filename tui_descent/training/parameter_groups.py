"""After surgery: the optimizer's parameters are the model's again, and what it remembers is of those that stayed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from tui_descent.training.surgery.transition import Changed


def put_right(optimizer: torch.optim.Optimizer, model: nn.Module, changed: Changed) -> None:
    """Removed parameters leave with their state, added ones join with none; all others keep group, state, identity.

    Vectors join the first group that holds vectors alone, where weights without decay usually are; else, and all
    others, the first group that holds a matrix. Within their group they stand in the model's order.
    """
    gone = {id(p) for p in changed.removed.values()}
    groups = optimizer.param_groups
    for group in groups:
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    place = {id(p): n for n, p in enumerate(model.parameters())}
    for parameter in changed.added.values():
        matrices = [g for g in groups if any(p.dim() >= 2 for p in g["params"])]
        vectors = [g for g in groups if g["params"] and g not in matrices] if parameter.dim() < 2 else []
        group = (vectors or matrices or groups)[0]
        later = (n for n, p in enumerate(group["params"]) if place.get(id(p), -1) > place[id(parameter)])
        group["params"].insert(next(later, len(group["params"])), parameter)


def forget(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """What was remembered of parameters that are drawn anew."""
    for parameter in parameters:
        optimizer.state.pop(parameter, None)


def even(optimizer: torch.optim.Optimizer) -> None:
    """A fused SGD takes a group whose momentum buffers are all there or all missing: those of newcomers are zeros.

    Their first update with one is the one that they would have made without.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if not (group.get("fused") and group["momentum"]):
            continue
        lacking = [p for p in group["params"] if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        if len(lacking) < len(group["params"]):
            for parameter in lacking:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
