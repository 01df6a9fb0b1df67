"""Finds out which parameters cannot be measured, and why. Its functions accept tensors of any kind."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


def why_not_measured(parameter: Tensor) -> str | None:
    """Why the numbers of a parameter cannot be read, to complete "not measured: …"; None if they can be read."""
    kind = type(parameter)
    if is_lazy(parameter):
        return "it has no shape before its first pass"
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"a {kind.__name__} keeps its numbers elsewhere"
    if parameter.is_meta:
        return "it is on the meta device, without numbers"
    dtype = str(parameter.dtype).removeprefix("torch.")
    if parameter.is_quantized:
        return f"its weights are quantized ({dtype})"
    if parameter.layout is not torch.strided or parameter.is_nested:
        layout = "nested" if parameter.is_nested else str(parameter.layout).removeprefix("torch.").lstrip("_")
        return f"its weights are not a dense tensor ({layout})"
    if not (parameter.is_floating_point() or parameter.is_complex()):
        return f"its weights are integers ({dtype})"
    return None if parameter.numel() else "it is empty: it has no numbers"


def all_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite; true if they cannot be read. Waits for the device."""
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    return why_not_measured(tensor) is not None or bool(tensor.isfinite().all())


def size_in_bytes(tensor: Tensor) -> int:
    """The memory of a tensor's numbers; 0 if it has no shape yet."""
    if is_lazy(tensor):
        return 0
    if tensor.is_sparse:
        return tensor._values().nbytes + tensor._indices().nbytes
    return tensor.numel() * tensor.element_size()


def identity(parameter: Tensor) -> object:
    """A value that changes when the parameter is replaced by another object or has to be measured in another way."""
    sized = not is_lazy(parameter) and not parameter.is_nested
    return id(parameter), type(parameter), parameter.dtype.is_floating_point, parameter.shape if sized else None


def count_numbers(parameters: Iterable[Tensor]) -> int:
    """How many numbers the parameters have in total. Parameters without a shape yet count as 0."""
    return sum(0 if is_lazy(p) else p.numel() for p in parameters)
