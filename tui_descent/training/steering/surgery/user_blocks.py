"""Finds the blocks of a user's net, and adds a skip to a block by overriding `forward` on the module object.

The override does not change the names, `state_dict`, class and identity of any module, and nothing is left of it when
the skip is removed. A wrapper module would rename the parameters, and a hook would slow down each call through torch's
`Module.__call__`. Compiled modules are refused, since their graph already exists and would not contain the override.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.instruments.module_hooks import Args, Kwargs, ModuleHooks, version
from tui_descent.training.setup.nets.block import Skip

CONTAINERS = (nn.Sequential, nn.ModuleList)


class UserBlock:
    """A module of a user's net, used as a block.

    Setting `skip` to a `Skip` adds it around the module's `forward`; setting it to None removes the skip.
    Raises `ValueError` for a module that is compiled or scripted.
    """

    def __init__(self, module: nn.Module) -> None:
        refuse_compiled(module)
        self.module = module
        self._skip: Skip | None = None
        self._user_forward: Callable[..., Any] | None = None  # a `forward` that the user had set on this object

    @property
    def skip(self) -> Skip | None:
        """The skip that adds the module's input to its output; None if there is no skip."""
        return self._skip

    @skip.setter
    def skip(self, skip: Skip | None) -> None:
        if skip is not None and self._skip is None:
            self._user_forward = vars(self.module).get("forward")
            self.module.forward = self._forward
        elif skip is None and self._skip is not None:
            if self._user_forward is None:
                del self.module.forward
            else:
                self.module.forward = self._user_forward
        self._skip = skip

    def _forward(self, *args: Any, **kwargs: Any) -> Tensor:
        module, skip = self.module, self._skip
        assert skip is not None
        if self._user_forward is not None:
            output = self._user_forward(*args, **kwargs)
        else:
            # Looked up at each call: in a copy of the net, a bound method stored here would be the original module's.
            output = type(module).forward(module, *args, **kwargs)
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x.shape != output.shape:
            raise ValueError(f"residual around {type(module).__name__}: {_shape_problem(x, output)}")
        return skip.combine(x, output)


class BlockFinder:
    """Finds the blocks of a user's net during one forward pass: call `attach` before it and `finish` after it.

    If there are several passes between the two, as with gradient accumulation, the last one decides. Passes without
    gradients do not count.

    A child of an outermost `Sequential` or `ModuleList` is a block if it has weights, runs once and in the order of
    registration, and its output has the shape of its input. Raises `ValueError` for a net that is compiled or scripted.
    """

    def __init__(self, model: nn.Module) -> None:
        refuse_compiled(model)
        self._candidates = [(n, m) for n, m in _children(model) if not isinstance(m, torch.jit.ScriptModule)]
        self._calls: dict[str, int] = {}
        self._call_order: list[str] = []
        self._versions: dict[str, int] = {}
        self._reasons = {
            name: "it is TorchScript, which does not support hooks"
            for name, module in _children(model)
            if isinstance(module, torch.jit.ScriptModule)
        }
        self._hooks = ModuleHooks()
        self._hooks.on_input(model, self._start_pass, "the search for blocks")
        for name, module in self._candidates:
            self._hooks.on_input(module, partial(self._before_forward, name), f"the search for blocks at {name}")
            self._hooks.on_output(module, partial(self._after_forward, name), f"the search for blocks at {name}")

    def attach(self) -> None:
        """Listen to the next forward pass."""
        self._hooks.attach()

    def finish(self) -> tuple[dict[str, nn.Module], dict[str, str]]:
        """Stop to listen. Returns the blocks by name in forward order, and for the other children by name the reason
        why they are not blocks.
        """
        self._hooks.detach()
        if self._call_order != [name for name, _ in self._candidates if name in self._calls]:
            for name, _ in self._candidates:
                self._reasons.setdefault(name, "the children do not run in the order in which they are registered")
        for name, _ in self._candidates:
            if (calls := self._calls.get(name, 0)) != 1:
                self._reasons[name] = f"it ran {calls} times in one forward pass; a block runs once"
                if calls == 0 and self._hooks.reason is not None:
                    self._reasons[name] = f"it ran {self._hooks.reason}"
        for name, module in self._candidates:
            try:
                refuse_compiled(module)  # the loop may have compiled it meanwhile
            except ValueError as error:
                self._reasons[name] = str(error)
        blocks = {name: module for name, module in self._candidates if name not in self._reasons}
        return blocks, self._reasons

    def _start_pass(self, args: Args) -> None:
        self._calls.clear()
        self._call_order.clear()

    def _before_forward(self, name: str, args: Args) -> None:
        self._calls[name] = self._calls.get(name, 0) + 1
        if self._calls[name] == 1:
            self._call_order.append(name)
        if args and isinstance(args[0], Tensor):
            self._versions[name] = version(args[0])

    def _after_forward(self, name: str, args: Args, kwargs: Kwargs, output: Any) -> None:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x.shape != output.shape:
            self._reasons[name] = _shape_problem(x, output)
        elif not x.is_floating_point():
            self._reasons[name] = "its input is not floating point"
        elif version(x) != self._versions.get(name):
            self._reasons[name] = "it changes its input in place, so the input cannot be added afterwards"


def refuse_compiled(model: nn.Module) -> None:
    """Raises `ValueError` if the net or a part of it is compiled by torch.compile or TorchScript."""
    for name, module in model.named_modules():
        compiler = None
        if isinstance(module, torch.jit.ScriptModule):
            compiler = "torch.jit"
        elif hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            compiler = "torch.compile"
        if compiler is not None:
            raise ValueError(f"{name or 'the net'} is compiled by {compiler}; its graph cannot be changed")


def _children(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    in_container = isinstance(model, CONTAINERS)
    for name, child in model.named_children():
        if not in_container:
            yield from _children(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{prefix}{name}", child


def _shape_problem(x: object, output: object) -> str:
    if not isinstance(x, Tensor) or not isinstance(output, Tensor):
        kind = type(output if isinstance(x, Tensor) else x).__name__
        return f"its input or output is a {kind}; a skip needs tensors"
    return f"its output's shape {tuple(output.shape)} differs from its input's {tuple(x.shape)}"
