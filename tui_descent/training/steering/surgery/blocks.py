"""Blocks of a foreign net, and a skip around one by a `forward` of the module's own.

It leaves names, `state_dict`, class and identity of every module as they are, and nothing behind when it is taken off.
A wrapper would rename the parameters, and a hook sends each call the long way through torch's `Module.__call__`. What
is compiled has its graph already and would not see it: refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tui_descent.instruments.same_batch import undisturbed
from tui_descent.training.setup.nets.block import Skip

CONTAINERS = (nn.Sequential, nn.ModuleList)


class Around:
    """A foreign module as a block: setting `skip` puts it around the module's `forward`, None takes it off.

    Raises `ValueError` for a module that is compiled or scripted.
    """

    def __init__(self, module: nn.Module) -> None:
        refuse_compiled(module)
        self.module = module
        self._skip: Skip | None = None
        self._own: Callable[..., Any] | None = None  # a forward that the user had set on this very module

    @property
    def skip(self) -> Skip | None:
        """What joins the module's input to its output."""
        return self._skip

    @skip.setter
    def skip(self, skip: Skip | None) -> None:
        if skip is not None and self._skip is None:
            self._own = vars(self.module).get("forward")
            self.module.forward = self._forward
        elif skip is None and self._skip is not None:
            if self._own is None:
                del self.module.forward
            else:
                self.module.forward = self._own
        self._skip = skip

    def _forward(self, *args: Any, **kwargs: Any) -> Tensor:
        # The module's own one is looked up anew each time: one kept here would be this very one in a copy of the net.
        module, skip = self.module, self._skip
        assert skip is not None
        output = type(module).forward(module, *args, **kwargs) if self._own is None else self._own(*args, **kwargs)
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x.shape != output.shape:
            raise ValueError(f"residual around {type(module).__name__}: {_shapes(x, output)}")
        return skip.combine(x, output)


class BlockFinder:
    """Listens to one forward pass for what can bear a skip: `listen` before it, `found` after it.

    Blocks are the children with weights of the outermost `Sequential`s and `ModuleList`s that run once, in order, and
    keep their input's shape.
    """

    def __init__(self, model: nn.Module) -> None:
        refuse_compiled(model)
        self._model = model
        self._candidates = [(n, m) for n, m in _children(model) if not isinstance(m, torch.jit.ScriptModule)]
        self._runs: dict[str, int] = {}
        self._order: list[str] = []
        self._versions: dict[str, int] = {}
        self._reasons = {
            name: "it is TorchScript, which takes no hooks"
            for name, module in _children(model)
            if isinstance(module, torch.jit.ScriptModule)
        }
        self._handles: list[RemovableHandle] = []

    def listen(self) -> None:
        """Attach to the next pass."""
        for name, module in self._candidates:
            self._handles.append(module.register_forward_pre_hook(self._entering(name)))
            self._handles.append(module.register_forward_hook(self._leaving(name)))

    def found(self) -> tuple[dict[str, nn.Module], dict[str, str]]:
        """Blocks by name in forward order, and of the other children why each is none."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._order != [name for name, _ in self._candidates if name in self._runs]:
            for name, _ in self._candidates:
                self._reasons.setdefault(name, "the children do not run in their order")
        for name, _ in self._candidates:
            if self._runs.get(name, 0) != 1:
                self._reasons[name] = f"it ran {self._runs.get(name, 0)} times in one pass; a block runs once"
        blocks = {name: module for name, module in self._candidates if name not in self._reasons}
        return blocks, self._reasons

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._runs[name] = self._runs.get(name, 0) + 1
            if self._runs[name] == 1:
                self._order.append(name)
            if args and isinstance(args[0], Tensor):
                self._versions[name] = _version(args[0])

        return hook

    def _leaving(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            x = args[0] if args else None
            if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x.shape != output.shape:
                self._reasons[name] = _shapes(x, output)
            elif not x.is_floating_point():
                self._reasons[name] = "its input are whole numbers, which cannot be added to its output"
            elif _version(x) != self._versions.get(name):
                self._reasons[name] = "it changes its input in place, so there is nothing left to add"

        return hook


@torch.no_grad()
def foreign_blocks(model: nn.Module, *sample: Any) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """`BlockFinder.found` of one pass on `sample`, in eval mode, with random numbers and buffers left as they are."""
    finder, modes = BlockFinder(model), {module: module.training for module in model.modules()}
    finder.listen()
    model.eval()
    try:
        with undisturbed(model):
            model(*sample)
    finally:
        found = finder.found()
        for module, mode in modes.items():
            module.training = mode
    return found


def refuse_compiled(model: nn.Module) -> None:
    """Raises `ValueError` where torch.compile or TorchScript holds the net or a part of it."""
    for name, module in model.named_modules():
        by = None
        if isinstance(module, torch.jit.ScriptModule):
            by = "torch.jit"
        elif hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            by = "torch.compile"
        if by is not None:
            raise ValueError(f"{name or 'the net'} is compiled by {by}; its graph takes no more changes")


def _children(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    inside = isinstance(model, CONTAINERS)
    for name, child in model.named_children():
        if not inside:
            yield from _children(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{prefix}{name}", child


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _shapes(x: object, output: object) -> str:
    if not isinstance(x, Tensor) or not isinstance(output, Tensor):
        kind = type(output if isinstance(x, Tensor) else x).__name__
        return f"it takes or gives a {kind}; a skip adds one tensor to another"
    return f"its output's shape {tuple(output.shape)} is not its input's {tuple(x.shape)}"
