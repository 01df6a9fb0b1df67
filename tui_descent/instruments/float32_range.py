"""Norms whose squares are too small or too large for a float32 sum: found, and computed from scaled numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tui_descent.instruments.deferred import is_asynchronous


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of sums over a tensor's numbers.

    float64 for float64 tensors, and on devices where checking a result would mean waiting for it; else float32, which
    is faster, and whose results `correct_norms` checks.
    """
    return torch.float64 if tensor.dtype == torch.float64 or is_asynchronous(tensor.device) else torch.float32


def limits(count: int) -> tuple[float, float]:
    """The norms between which a float32 sum of `count` squares is right to 1e-6, relatively.

    A square below the least normal number, 1.2e-38, may be lost: that is less than 1e-6 of the squared norm if the norm
    is above 2e-16·√count.
    """
    return 2e-16 * math.sqrt(count), 1e18


def in_range(norms: Sequence[float], count: int) -> bool:
    """Whether float32 sums of `count` squares have given these norms right. A NaN is right as it is."""
    low, high = limits(count)
    if not norms or (low < min(norms) and max(norms) < high):
        return True  # min and max may pass over a NaN, and stop at one
    return all(low < norm < high or norm != norm for norm in norms)


def correct_norms(norms: Sequence[float], matrix: Tensor) -> Sequence[float]:
    """The L2 norms (k,) of the rows of a (k, n) matrix, from those that were summed in `sum_dtype`.

    Norms out of range are computed again as max|x|·‖x / max|x|‖. Waits for the device.
    """
    if matrix.dtype == torch.float64 or in_range(norms, matrix.shape[1]) or not matrix.numel():
        return norms
    low, high = limits(matrix.shape[1])
    wrong = [row for row, norm in enumerate(norms) if not (low < norm < high or norm != norm)]
    if not any(norms[row] for row in wrong):
        # A norm of 0 is most often one of zeros: updates too small to change float32 weights.
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
    """Some rows of a (k, n) matrix, each divided by its largest magnitude, which must be finite and not 0."""
    return _divide_rows(matrix, _largest(matrix), rows)


def _divide_rows(matrix: Tensor, divisors: Tensor, rows: Sequence[int]) -> Tensor:
    chosen = torch.tensor(rows, device=matrix.device)
    floats = matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix
    return floats[chosen] / divisors[chosen, None]


def _largest(matrix: Tensor) -> Tensor:
    """The largest magnitude of each row, (k,)."""
    return torch.maximum(matrix.amax(dim=1), -matrix.amin(dim=1))  # thirty times as fast as the ∞-norm
