"""Adds a skip to a block of a user's net by overriding `forward` on the module object.

The override does not change the names, `state_dict`, class and identity of any module, and nothing is left of it when
the skip is removed. A wrapper module would rename the parameters, and a hook would slow down each call through torch's
`Module.__call__`. Compiled modules are refused, since their graph already exists and would not contain the override.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.protocol.layer_names import in_words
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
            # Looked up at each call: a stored bound method would still belong to the original module in a copy of the
            # net.
            output = type(module).forward(module, *args, **kwargs)
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x.shape != output.shape:
            raise ValueError(f"residual around {type(module).__name__}: {shape_problem(x, output)}")
        return skip.combine(x, output)


def refuse_compiled(model: nn.Module) -> None:
    """Raises `ValueError` if the net or a part of it is compiled by torch.compile or TorchScript."""
    for name, module in model.named_modules():
        compiler = None
        if isinstance(module, torch.jit.ScriptModule):
            compiler = "torch.jit"
        elif hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            compiler = "torch.compile"
        if compiler is not None:
            raise ValueError(f"{in_words(name or 'the net')} is compiled by {compiler}; its graph cannot be changed")


def shape_problem(x: object, output: object) -> str:
    """Why a module with this input and output cannot have a skip."""
    if not isinstance(x, Tensor) or not isinstance(output, Tensor):
        kind = type(output if isinstance(x, Tensor) else x).__name__
        return f"its input or output is a {kind}; a skip needs tensors"
    return f"its output's shape {tuple(output.shape)} differs from its input's {tuple(x.shape)}"
