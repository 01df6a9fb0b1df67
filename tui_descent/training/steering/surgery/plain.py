"""Copies a net without anything of this package. A file with the copy can be loaded where this package is not
installed.
"""

from __future__ import annotations

import copy
import inspect
import operator
from typing import Any

from torch import fx, nn

from tui_descent.training.setup.nets.block import Skip
from tui_descent.training.steering.surgery.user_blocks import UserBlock

PACKAGE = __name__.partition(".")[0]
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def plain(model: nn.Module) -> nn.Module:
    """A deep copy of `model` that consists of torch's and the user's modules only, with bitwise the same outputs. A
    block with a skip becomes an `fx.GraphModule` that calls the block, under the name `block`, and adds its input; the
    names of its weights get that prefix. Raises `ValueError` for what cannot be expressed in this way: a blend of two
    activations that has not ended, and a skip around a module whose `forward` takes `*args`.
    """
    result = copy.deepcopy(model)
    for module in list(result.modules()):
        skipped = getattr(vars(module).get("forward"), "__self__", None)
        if isinstance(skipped, UserBlock) and skipped.skip is not None:
            skip, skipped.skip = skipped.skip, None
            if module is result:
                result = _with_skip(module, skip)
            else:
                _replace(result, module, _with_skip(module, skip))
    left = [name for name, module in result.named_modules() if type(module).__module__.split(".")[0] == PACKAGE]
    if left:
        what = type(result.get_submodule(left[0])).__name__
        end = "; it becomes plain when the blend ends" if what == "Blend" else ""
        raise ValueError(f"{left[0] or 'the net'} is a {what} of {PACKAGE}{end}")
    return result


def _with_skip(block: nn.Module, skip: Skip) -> nn.Module:
    """A module that computes gate·x + branch·block(x), by the same operations as `Skip.combine`."""
    signature = inspect.signature(block.forward)
    if any(parameter.kind in _VARIADIC for parameter in signature.parameters.values()):
        raise ValueError(
            f"the skip around {type(block).__name__} cannot be made plain: its forward takes *args or **kwargs"
        )
    graph = fx.Graph()
    inputs = [
        graph.placeholder(name, default_value=parameter.default) for name, parameter in signature.parameters.items()
    ]
    by_name: dict[str, Any] = {
        name: node
        for (name, parameter), node in zip(signature.parameters.items(), inputs, strict=True)
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    y = graph.call_module("block", tuple(node for node in inputs if node not in by_name.values()), by_name)
    if (skip.gate, skip.branch) != (0.0, 1.0):
        scaled: Any = graph.call_function(operator.mul, (skip.branch, y))
        x: Any = inputs[0] if skip.gate == 1.0 else graph.call_function(operator.mul, (skip.gate, inputs[0]))
        y = graph.call_function(operator.add, (x, scaled))
    graph.output(y)
    return fx.GraphModule({"block": block}, graph, class_name=f"{type(block).__name__}WithSkip").train(block.training)


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is old and parent is not new:
                parent._modules[name] = new
