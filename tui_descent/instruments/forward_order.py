"""The order in which a net's modules run, recorded in a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class ForwardOrder:
    """`names` are the modules of one net, in the order in which they were first called."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._known: frozenset[str] = frozenset()
        self._handles: list[RemovableHandle] = []

    def record(self, model: nn.Module) -> None:
        """Record all forward passes until `stop` is called."""
        self._known = frozenset(name for name, _ in model.named_modules())
        self._handles = [
            module.register_forward_pre_hook(self._hook(name))
            for name, module in model.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)  # it does not support these hooks
        ]

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def of(self, model: nn.Module) -> list[str] | None:
        """The names of the model's modules in forward order; None if no pass was recorded.

        A module that was added since the recording is placed after the child registered just before it.
        """
        if not self.names:
            return None
        place = {name: n for n, name in enumerate(self.names)}
        ends = dict(place)  # the place of the last module inside each module
        for name, n in place.items():
            while "." in name:
                name = name.rpartition(".")[0]
                ends[name] = n
        for name, module in model.named_modules():
            previous = place.get(name, len(place))
            for child, _ in module.named_children():
                path = f"{name}.{child}" if name else child
                if path not in self._known:
                    place[path] = previous
                previous = ends.get(path, previous)
        return sorted((name for name, _ in model.named_modules() if name in place), key=place.__getitem__)

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if name not in self.names:
                self.names.append(name)

        return hook
