"""A turn as one piece: everything that it may change, kept as it was, to be put back exactly when it fails half-way."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tui_descent.training.knobs.ground import Ground
from tui_descent.training.nets.block import Skip

_CONTAINERS = (dict, set, list)
_KEPT = ("rate", "optimizer", "pace", "clip", "init", "kicked", "version", "around")


class Whole:
    """A run's net, optimizer, schedule, batches' size, random numbers and knobs at the moment this was made.

    Tensors are put back in place and every object stays the one it is. Takes as much memory as net and optimizer do.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._settings = {name: getattr(ground, name) for name in _KEPT}
        self._multiplier = ground.rate.multiplier
        self._under_way = [(key, transition, transition.made) for key, transition in ground.under_way.items()]
        self._wished = dict(ground.wished)
        self._objects = [_Attributes(m) for m in (*ground.model.modules(), *ground.around.values())]
        skips = [b.skip for b in ground.blocks.values()] + [a.skip for a in ground.around.values()]
        self._skips = [(skip, skip.gate, skip.branch) for skip in skips if isinstance(skip, Skip)]
        self._optimizer = _Optimizer(ground.optimizer)
        held = [p for group in ground.optimizer.param_groups for p in group["params"]]
        tensors: dict[int, nn.Parameter] = {id(p): p for p in (*ground.model.parameters(), *held)}
        self._parameters = [(p, p.detach().clone(), p.requires_grad, p.grad) for p in tensors.values()]
        self._buffers = [(b, b.clone()) for b in ground.model.buffers()]
        setup = ground.setup
        self._schedule = None if setup is None else setup.schedule
        self._schedule_state = None if self._schedule is None else self._schedule.state()
        self._random = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    @torch.no_grad()
    def put_back(self) -> None:
        """All as it was."""
        ground = self._ground
        if ground.optimizer is not self._optimizer.optimizer:
            ground.change_optimizer(self._optimizer.optimizer)
        for name, value in self._settings.items():
            setattr(ground, name, value)
        ground.rate.multiplier = self._multiplier
        ground.under_way.clear()
        for key, transition, made in self._under_way:
            ground.under_way[key], transition.made = transition, made
        ground.wished.clear()
        ground.wished.update(self._wished)
        for kept in self._objects:
            kept.put_back()
        for skip, gate, branch in self._skips:
            skip.gate, skip.branch = gate, branch
        for parameter, value, trains, grad in self._parameters:
            parameter.copy_(value)
            parameter.requires_grad_(trains)
            parameter.grad = grad
        for buffer, value in self._buffers:
            buffer.copy_(value)
        self._optimizer.put_back()
        if ground.setup is not None:
            ground.setup.schedule = self._schedule
            if self._schedule is not None and self._schedule_state is not None:
                self._schedule.restore(self._schedule_state)
        torch.set_rng_state(self._random)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


class _Attributes:
    """One object's attributes, with the contents of its dicts, sets and lists: modules, hooks, settings."""

    def __init__(self, of: object) -> None:
        self._of = of
        self._kept = {
            name: (value, copy.copy(value) if isinstance(value, _CONTAINERS) else None)
            for name, value in of.__dict__.items()
        }

    def put_back(self) -> None:
        """Containers are filled anew and not exchanged: handles of hooks know them by identity."""
        attributes = self._of.__dict__
        for name in [name for name in attributes if name not in self._kept]:
            del attributes[name]
        for name, (value, contents) in self._kept.items():
            attributes[name] = value
            if isinstance(value, dict | set) and isinstance(contents, dict | set):
                value.clear()
                value.update(contents)
            elif isinstance(value, list) and isinstance(contents, list):
                value[:] = contents


class _Optimizer:
    """Groups and state of one optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._groups = [(group, dict(group), list(group["params"])) for group in optimizer.param_groups]
        self._state = [
            (p, state, {key: (value, _copied(value)) for key, value in state.items()})
            for p, state in optimizer.state.items()
        ]

    def put_back(self) -> None:
        """In place."""
        for group, kept, parameters in self._groups:
            group.clear()
            group.update(kept)
            group["params"] = parameters
        self.optimizer.param_groups[:] = [group for group, _, _ in self._groups]
        self.optimizer.state.clear()
        for parameter, state, values in self._state:
            state.clear()
            for key, (value, kept) in values.items():
                if isinstance(value, torch.Tensor):
                    value.copy_(kept)
                state[key] = value
            self.optimizer.state[parameter] = state


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
