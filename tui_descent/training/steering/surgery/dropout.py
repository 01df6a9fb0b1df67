"""Sets dropout during a run: in the blocks of a built-in net, or in the dropout modules of a user's net."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from tui_descent.training.setup.nets.block import Block


def set_dropout(model: nn.Module, p: float) -> list[str]:
    """Set the dropout probability `p`. Returns the names of the dropout modules that now have it.

    In a built-in net, each block gets an `nn.Dropout`, or loses it if `p` is 0. In a user's net only existing dropout
    modules are changed. Raises `ValueError` for a user's net without dropout modules, and for p outside 0 ≤ p < 1.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout = {p:g}; allowed: a number ≥ 0 and < 1")
    blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, Block)]
    for _, block in blocks:
        block.put_dropout(p)
    if blocks:
        return [f"{name}.dropout" for name, _ in blocks] if p else []
    modules = {name: module for name, module in model.named_modules() if isinstance(module, _DropoutNd)}
    if not modules:
        raise ValueError(f"{type(model).__name__} has no nn.Dropout")
    for module in modules.values():
        module.p = p
    return list(modules)
