"""In which order a net's modules run, heard in a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class ForwardOrder:
    """Of one net. `names` are its modules' in the order in which they were first called."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._handles: list[RemovableHandle] = []

    def listen(self, model: nn.Module) -> None:
        """Until `stop`."""
        self._handles = [module.register_forward_pre_hook(self._saw(name)) for name, module in model.named_modules()]

    def stop(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _saw(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if name not in self.names:
                self.names.append(name)

        return hook
