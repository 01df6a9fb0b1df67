"""Finds L2 norms whose squares are out of range for a float32 sum, and computes them again from scaled numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tui_descent.instruments.deferred import is_asynchronous


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of sums over a tensor's numbers.

    float64 for float64 tensors, and on devices where checking a result would mean waiting for it. Otherwise float32,
    which is faster; `correct_norms` then checks the results.
    """
    return torch.float64 if tensor.dtype == torch.float64 or is_asynchronous(tensor.device) else torch.float32


def limits(count: int) -> tuple[float, float]:
    """The lowest and the highest norm for which a float32 sum of `count` squares has a relative error below 1e-6.

    Squares below the smallest normal number, 1.2e-38, may be lost. If the norm is above 2e-16·√count, the lost squares
    are less than 1e-6 of the squared norm.
    """
    return 2e-16 * math.sqrt(count), 1e18


def in_range(norms: Sequence[float], count: int) -> bool:
    """Whether no norm over- or underflowed when each was the float32 sum of `count` squares. NaN counts as correct."""
    low, high = limits(count)
    if not norms or (low < min(norms) and max(norms) < high):
        return True  # with a NaN, min and max may or may not return it, so the slower check below decides
    return all(low < norm < high or norm != norm for norm in norms)


def correct_norms(norms: Sequence[float], matrix: Tensor) -> Sequence[float]:
    """The correct L2 norms of the k rows of a (k, n) matrix. `norms` are those computed in `sum_dtype`.

    Norms that are out of range are computed again as max|x|·‖x / max|x|‖. Waits for the device.
    """
    if matrix.dtype == torch.float64 or in_range(norms, matrix.shape[1]) or not matrix.numel():
        return norms
    low, high = limits(matrix.shape[1])
    wrong = [row for row, norm in enumerate(norms) if not (low < norm < high or norm != norm)]
    if not any(norms[row] for row in wrong):
        # Most often a row with norm 0 is all zeros: an update too small to change float32 weights.
        part = matrix[wrong[0] : wrong[-1] + 1] if wrong[-1] - wrong[0] < len(wrong) else matrix[wrong]
        if part.amax().item() == 0.0 == part.amin().item():
            return norms
    largest = _largest(matrix)
    sizes = largest.tolist()
    rows = [row for row in wrong if 0 < sizes[row] < math.inf]
    found = list(norms)
    if rows:
        scaled = _divide_rows(matrix, largest, rows)
        for row, norm in zip(rows, torch.linalg.vector_norm(scaled, dim=1).tolist(), strict=True):
            found[row] = norm * sizes[row]
    return found


def scaled_rows(matrix: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of a (k, n) matrix, each divided by its largest magnitude. This must be finite and not 0."""
    return _divide_rows(matrix, _largest(matrix), rows)


def _divide_rows(matrix: Tensor, divisors: Tensor, rows: Sequence[int]) -> Tensor:
    chosen = torch.tensor(rows, device=matrix.device)
    floats = matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix
    return floats[chosen] / divisors[chosen, None]


def _largest(matrix: Tensor) -> Tensor:
    """The largest magnitude of each row, (k,)."""
    return torch.maximum(matrix.amax(dim=1), -matrix.amin(dim=1))  # thirty times as fast as the ∞-norm
