"""Says which parameters cannot be measured, and why."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


def why_not_measured(parameter: Tensor) -> str | None:
    """Why the numbers of a parameter cannot be read, to complete "not measured: …"; None if they can be read."""
    kind = type(parameter)
    if is_lazy(parameter):
        return "its shape is not known before its first forward pass"
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"a {kind.__name__} is a tensor subclass that keeps its numbers elsewhere"
    if parameter.is_meta:
        return "it is on the meta device, which holds no numbers"
    dtype = str(parameter.dtype).removeprefix("torch.")
    if parameter.is_quantized:
        return f"its weights are quantized ({dtype})"
    if parameter.layout is not torch.strided:
        return "its weights are a sparse tensor"
    if not (parameter.is_floating_point() or parameter.is_complex()):
        return f"its weights are integers ({dtype})"
    return None if parameter.numel() else "it is empty: it has no numbers"


def count_numbers(parameters: Iterable[Tensor]) -> int:
    """How many numbers the parameters have in total; those without a shape yet count as none."""
    return sum(0 if is_lazy(p) else p.numel() for p in parameters)
