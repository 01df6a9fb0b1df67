"""Runs the program of a formula on tensors, so that autograd differentiates it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tui_descent.scenario.formula import Operation, parse

_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "negate": torch.neg,
    "abs": torch.abs,
    "atan": torch.atan,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "^": torch.pow,
}


def function_of(formula: str) -> Callable[[Tensor], Tensor]:
    """The function w → f(w) of a formula; w has shape (1, …) or (2, …), x first, and the result the rest of it.

    Where the formula is not defined, as log(x) for x < 0, the result is NaN or infinite. Raises `FormulaError`.
    """
    program = parse(formula)
    return lambda w: _run(program, w)


def _run(program: tuple[Operation, ...], w: Tensor) -> Tensor:
    stack: list[Tensor] = []
    for operation in program:
        match operation.name:
            case "number":
                stack.append(torch.tensor(operation.number, dtype=w.dtype, device=w.device))
            case "x" | "y":
                stack.append(w["xy".index(operation.name)])
            case name if name in _ONE:
                stack[-1] = _ONE[name](stack[-1])
            case name:
                right = stack.pop()
                stack[-1] = _TWO[name](stack[-1], right)
    return stack[0]
