"""Dropout set in mid-run: at the places a built-in net has for it, or where a foreign net already has some."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from tui_descent.training.setup.nets.block import Block


def set_dropout(model: nn.Module, p: float) -> list[str]:
    """The share p of numbers set to 0 in training; returns the names of the modules it is in force at.

    Blocks of a built-in net get and lose their `nn.Dropout`; of a foreign net only those that are there are set.
    Raises `ValueError` for a foreign net without any and for p outside 0 ≤ p < 1.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout = {p:g}; allowed: a number ≥ 0 and < 1")
    blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, Block)]
    for _, block in blocks:
        block.put_dropout(p)
    if blocks:
        return [f"{name}.dropout" for name, _ in blocks] if p else []
    found = {name: module for name, module in model.named_modules() if isinstance(module, _DropoutNd)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no nn.Dropout whose share could be set")
    for module in found.values():
        module.p = p
    return list(found)
