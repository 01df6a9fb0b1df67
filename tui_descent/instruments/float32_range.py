"""Finds L2 norms for which the sum of squares over- or underflowed, and computes these norms again in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tui_descent.instruments.deferred import is_asynchronous

# At most this many numbers are converted to another dtype at a time.
PIECE = 1 << 18


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of sums over a tensor's numbers.

    It is float64 for float64 tensors, and on devices where checking a result would mean waiting for it. Otherwise
    float32, which is faster; `correct_norms` then checks the results.
    """
    return torch.float64 if tensor.dtype == torch.float64 or is_asynchronous(tensor.device) else torch.float32


def limits(count: int, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """The lowest and the highest norm for which a sum of `count` squares is as exact as `dtype`.

    In float32, squares below the smallest normal number, 1.2e-38, may be lost. If the norm is above 2e-16·√count, the
    lost squares are less than 1e-6 of the squared norm. In float64 these three numbers are 2.2e-308, 1e-146·√count and
    1e-16.
    """
    if dtype == torch.float64:
        return 1e-146 * math.sqrt(count), 1e150
    return 2e-16 * math.sqrt(count), 1e18


def in_range(norms: Sequence[float], count: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether none of the norms over- or underflowed; each is from a sum of `count` squares. NaN counts as correct."""
    low, high = limits(count, dtype)
    if not norms or (low < min(norms) and max(norms) < high):
        return True  # if there is a NaN, min and max may or may not return it, so the slower check below decides
    return all(low < norm < high or norm != norm for norm in norms)


def correct_norms(norms: Sequence[float], matrix: Tensor) -> Sequence[float]:
    """The correct L2 norms of the k rows of a (k, n) matrix. `norms` are those computed in `sum_dtype`.

    Norms that are out of range are computed again in float64. Waits for the device.
    """
    if not matrix.numel() or in_range(norms, matrix.shape[1], matrix.dtype):
        return norms
    low, high = limits(matrix.shape[1], matrix.dtype)
    wrong = [row for row, norm in enumerate(norms) if not (low < norm < high or norm != norm)]
    if not any(norms[row] for row in wrong):
        # Most often a row with norm 0 is all zeros: an update too small to change float32 weights.
        part = matrix[wrong[0] : wrong[-1] + 1] if wrong[-1] - wrong[0] < len(wrong) else matrix[wrong]
        if part.amax().item() == 0.0 == part.amin().item():
            return norms
    found = list(norms)
    for row, norm in zip(wrong, scaled_norms(matrix, wrong), strict=True):
        found[row] = norm
    return found


def scaled_norms(matrix: Tensor, rows: Sequence[int]) -> list[float]:
    """The L2 norms of some rows of a matrix, as max|x|·‖x / max|x|‖ in float64: right for numbers of any size."""
    norms = [0.0] * len(rows)
    for part, chosen in pieces_of_rows(rows, matrix.shape[1]):
        numbers = as_float64(matrix, rows[part], chosen)
        sizes = numbers.abs().amax(dim=1)  # (rows of the part,)
        ones = torch.ones_like(sizes)
        scales = torch.where((sizes > 0) & sizes.isfinite(), sizes, ones)
        found = torch.linalg.vector_norm(numbers / scales[:, None], dim=1)
        for n, norm, scale in zip(range(part.start, part.stop), found.tolist(), scales.tolist(), strict=True):
            norms[n] = math.hypot(norms[n], norm * scale)
    return norms


def pieces_of_rows(rows: Sequence[int], length: int, size: int = PIECE) -> Iterator[tuple[slice, slice]]:
    """Divides rows of `length` numbers into pieces of at most `size` numbers: (places in `rows`, columns)."""
    at_once = max(1, size // max(1, length))
    for first in range(0, len(rows), at_once):
        for start in range(0, length, size):
            yield slice(first, min(first + at_once, len(rows))), slice(start, min(start + size, length))


def as_float64(matrix: Tensor, rows: Sequence[int], columns: slice) -> Tensor:
    """A part of a matrix in float64. On a device without float64, such as MPS, the result is on the CPU."""
    part = matrix[:, columns][list(rows)] if len(rows) > 1 else matrix[rows[0] : rows[0] + 1, columns]
    return (part.cpu() if part.device.type == "mps" else part).double()
