"""The order in which a net's modules run, recorded in a forward pass."""

from __future__ import annotations

from functools import partial

from torch import nn

from tui_descent.instruments.failures import Failures
from tui_descent.instruments.module_hooks import Args, ModuleHooks


class ForwardOrder:
    """`names` are the modules of one net, in the order in which they were first called."""

    def __init__(self, failures: Failures | None = None) -> None:
        self.names: list[str] = []
        self._failures = failures
        self._known: frozenset[str] = frozenset()
        self._hooks = ModuleHooks()

    def record(self, model: nn.Module) -> None:
        """Record all forward passes until `stop` is called."""
        self._known = frozenset(name for name, _ in model.named_modules())
        self._hooks = ModuleHooks(self._failures, every_pass=True)
        for name, module in model.named_modules():
            self._hooks.on_input(module, partial(self._called, name), "the forward order of the layers")
        self._hooks.attach()

    def stop(self) -> None:
        """Stop recording."""
        self._hooks.detach()

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

    def _called(self, name: str, args: Args) -> None:
        if name not in self.names:
            self.names.append(name)
