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
        place = [0] * len(like)
        for row, n in enumerate(n for members in self._members for n in members):
            place[n] = row
        self._place = torch.tensor(place, dtype=torch.long)

    def rows(self, tensors: Sequence[Tensor], *, copy: bool = False) -> list[Tensor]:
        """A (k, n) matrix a group. A group of one is a view unless `copy`."""
        return [
            torch.stack([tensors[n] for n in members]).reshape(len(members), -1)
            if copy or len(members) > 1
            else tensors[members[0]].reshape(1, -1)
            for members in self._members
        ]

    def in_order(self, columns: Sequence[Tensor]) -> Tensor:
        """Groups' columns of k numbers each, as one vector on the host in the tensors' own order, in float64."""
        if not columns:
            return torch.zeros(0, dtype=torch.float64)
        # One read-back; float64 on the host, since not every device has it.
        return torch.cat([column.to(columns[0].dtype) for column in columns]).cpu().double()[self._place]

    def norms(self, rows: Sequence[Tensor]) -> Tensor:
        """The tensors' L2 norms in their own order, right from the smallest to the largest number of their dtype."""
        columns = norms(rows)
        if rows and not all_safe(torch.cat([column.to(columns[0].dtype) for column in columns])):
            # A float32 sum of squares in float64 can neither under- nor overflow.
            columns = [
                column if matrix.dtype == torch.float64 or all_safe(column) else _exact_norms(matrix)
                for matrix, column in zip(rows, columns, strict=True)
            ]
            exact: Tensor = torch.cat([column.cpu().double() for column in columns])[self._place]
            return exact
        return self.in_order(columns)

    def units(self, rows: Sequence[Tensor], sizes: Tensor) -> list[Tensor]:
        """The rows over their norms, which stand in the tensors' own order."""
        return [unit(matrix, sizes[members]) for matrix, members in zip(rows, self._members, strict=True)]


# Between these a float32 sum of squares loses nothing to under- or overflow.
SAFE = (1e-13, 1e13)


def all_safe(values: Tensor) -> bool:
    """Whether float32 sums of squares of these sizes are right; what is no number is as right as it gets."""
    finite = values[~values.isnan()]
    if not len(finite):
        return True
    low, high = (float(v) for v in finite.aminmax())
    return SAFE[0] < low and high < SAFE[1]


def unit(rows: Tensor, sizes: Tensor) -> Tensor:
    """(k, n) rows over their norms (k,), float64 on the host; a row of zeros stays one."""
    by = torch.where(sizes > 0, 1 / sizes, torch.ones_like(sizes))
    # In two steps: the reciprocal of a number under 1e-38 is infinite in float32.
    first = by.clamp(max=1e30)
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    once = wide * first.to(wide.device, wide.dtype)[:, None]
    rest = by / first
    twice: Tensor = once if bool((rest == 1).all()) else once * rest.to(wide.device, wide.dtype)[:, None]
    return twice


def norms(rows: Sequence[Tensor]) -> list[Tensor]:
    """The L2 norm of each row by a plain sum of squares, in float32, or in float64 where the tensors are."""
    return [torch.linalg.vector_norm(r, dim=1, dtype=_sum_dtype(r.dtype)) for r in rows]


def dots(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    """The products Σ a·b of each pair of rows."""
    return [torch.dot(x[0], y[0]).reshape(1) if len(x) == 1 else (x * y).sum(dim=1) for x, y in zip(a, b, strict=True)]


def _exact_norms(matrix: Tensor) -> Tensor:
    if matrix.device.type != "mps":
        exact: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=torch.float64)
        return exact
    greatest = matrix.float().abs().amax(dim=1)  # no float64 there: over the greatest number instead
    by = torch.where((greatest > 0) & greatest.isfinite(), greatest, torch.ones_like(greatest))
    sizes: Tensor = torch.linalg.vector_norm(matrix / by[:, None], dim=1).cpu().double() * by.cpu().double()
    return sizes


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
