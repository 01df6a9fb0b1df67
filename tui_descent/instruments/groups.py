"""Many small tensors in few operations: those of one shape are put side by side as the rows of one matrix.

A net of 200 equal layers is then measured with the handful of operations that one layer takes. Large tensors stand
alone, so that nothing large is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Up to this many numbers an operation costs more to start than to run.
SMALL = 1 << 16


class Groups:
    """How a list of tensors falls into groups; lists handed in later must have the same shapes in the same order."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        by_kind: dict[object, list[int]] = {}
        for n, tensor in enumerate(like):
            small = tensor.numel() <= SMALL
            by_kind.setdefault((tensor.shape, tensor.dtype, tensor.device) if small else n, []).append(n)
        self._members = list(by_kind.values())
        # Where each tensor's row comes to lie when all groups' rows are put one below the other.
        self.place = [0] * len(like)
        for row, n in enumerate(n for members in self._members for n in members):
            self.place[n] = row

    def rows(self, tensors: Sequence[Tensor], *, copy: bool = False) -> list[Tensor]:
        """A (k, n) matrix a group. A group of one is a view unless `copy`."""
        return [
            torch.stack([tensors[n] for n in members]).reshape(len(members), -1)
            if copy or len(members) > 1
            else tensors[members[0]].reshape(1, -1)
            for members in self._members
        ]

    def in_order(self, columns: Sequence[Tensor]) -> Tensor:
        """Groups' columns of k numbers each, as one vector in the tensors' own order."""
        return torch.cat(list(columns))[self.place] if columns else torch.zeros(0)

    def norms(self, rows: Sequence[Tensor]) -> list[float]:
        """The tensors' L2 norms in their own order, right from the smallest to the largest number of their dtype."""
        values: list[float] = self.in_order(norms(rows)).tolist()
        for members, matrix in zip(self._members, rows, strict=True):
            if matrix.dtype != torch.float64 and not all(is_safe(values[n]) for n in members):
                unit, size = scaled(matrix)
                # A zero, and what is no number, come out as they are.
                exact = (torch.linalg.vector_norm(unit, dim=1).double() * size).tolist()
                for n, value in zip(members, exact, strict=True):
                    values[n] = value
        return values


# Between these a float32 sum of squares loses nothing to under- or overflow.
SAFE = (1e-13, 1e13)


def is_safe(value: float) -> bool:
    """Whether a float32 sum of squares of this size is right."""
    return SAFE[0] < value < SAFE[1]


def scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(k, n) rows over their greatest absolute number, and those numbers (k,), in float64.

    A row of zeros stays one; of infinities or not-a-numbers, their sizes say so.
    """
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    greatest = wide.abs().amax(dim=1)
    by = torch.where((greatest > 0) & greatest.isfinite(), greatest, torch.ones_like(greatest))
    # In two steps: the reciprocal of a number under 1e-38 is infinite.
    return wide / by[:, None], torch.where(greatest > 0, by, greatest).double()


def norms(rows: Sequence[Tensor]) -> list[Tensor]:
    """The L2 norm of each row by a plain sum of squares, in float32, or in float64 where the tensors are."""
    return [torch.linalg.vector_norm(r, dim=1, dtype=_sum_dtype(r.dtype)) for r in rows]


def dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """The products Σ a·b of each pair of rows."""
    return [torch.dot(x[0], y[0]).reshape(1) if len(x) == 1 else (x * y).sum(dim=1) for x, y in zip(a, b, strict=True)]


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
