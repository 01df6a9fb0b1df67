"""In which order a net's modules run, heard in a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class ForwardOrder:
    """Of one net. `names` are its modules' in the order in which they were first called."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._known: frozenset[str] = frozenset()
        self._handles: list[RemovableHandle] = []

    def listen(self, model: nn.Module) -> None:
        """Until `stop`."""
        self._known = frozenset(name for name, _ in model.named_modules())
        self._handles = [
            module.register_forward_pre_hook(self._saw(name))
            for name, module in model.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
        ]

    def stop(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def now(self, model: nn.Module) -> list[str] | None:
        """The names in order, with the modules that came since where they are registered; None if nothing was heard."""
        if not self.names:
            return None
        place = {name: n for n, name in enumerate(self.names)}
        ends = dict(place)  # where what is in a module ends
        for name, n in place.items():
            while "." in name:
                name = name.rpartition(".")[0]
                ends[name] = n
        for name, module in model.named_modules():
            behind = place.get(name, len(place))
            for child, _ in module.named_children():
                path = f"{name}.{child}" if name else child
                if path not in self._known:
                    place[path] = behind
                behind = ends.get(path, behind)
        return sorted((name for name, _ in model.named_modules() if name in place), key=place.__getitem__)

    def _saw(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if name not in self.names:
                self.names.append(name)

        return hook
