"""Update an optimizer's parameter groups and per-parameter state after the model's parameters have changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from tui_descent.training.steering.surgery.transition import ParameterChanges


def replace_parameters(optimizer: torch.optim.Optimizer, model: nn.Module, changed: ParameterChanges) -> None:
    """Update the optimizer's groups after the parameters in `changed` were removed from and added to the model.

    Removed parameters lose their state. All others keep their group and state. A new vector joins the first group that
    contains only vectors, usually the group without weight decay. If there is no such group, it joins the first group
    with a matrix, as a new matrix does. Within a group the model's order is kept.
    """
    removed = {id(p) for p in changed.removed.values()}
    groups = optimizer.param_groups
    for group in groups:
        for parameter in group["params"]:
            if id(parameter) in removed:
                optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if id(p) not in removed]
    order = {id(p): n for n, p in enumerate(model.parameters())}
    for parameter in changed.added.values():
        matrices = [g for g in groups if any(p.dim() >= 2 for p in g["params"])]
        vectors = [g for g in groups if g["params"] and g not in matrices] if parameter.dim() < 2 else []
        group = (vectors or matrices or groups)[0]
        later = (n for n, p in enumerate(group["params"]) if order.get(id(p), -1) > order[id(parameter)])
        group["params"].insert(next(later, len(group["params"])), parameter)


def clear_state(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Drop the optimizer state of re-initialised parameters."""
    for parameter in parameters:
        optimizer.state.pop(parameter, None)


def fill_momentum_buffers(optimizer: torch.optim.Optimizer) -> None:
    """Add momentum buffers of zeros in groups of a fused SGD in which only some parameters have one.

    torch's fused SGD requires that in each group either all parameters have a buffer or none has. The first update with
    a buffer of zeros is the same as without a buffer.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if not (group.get("fused") and group["momentum"]):
            continue
        missing = [p for p in group["params"] if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        if len(missing) < len(group["params"]):
            for parameter in missing:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
