"""Many small tensors in few operations: those of one shape are put side by side as the rows of one matrix.

A net of 200 equal layers is then measured with the handful of operations that one layer takes. Large tensors stand
alone, so that nothing large is copied. On a CPU rows are copied into the same memory again and again: fresh memory
costs more than the copy, since freed memory goes back to the system and comes again page by page.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from tui_descent.instruments.deferred import far

# Up to this many numbers an operation costs more to start than to run.
SMALL = 1 << 16
# So much at a time is put side by side where nothing is kept of it: it stays in the cache, and leaves others there.
PART_BYTES = 1 << 18
# A list of tensors keeps no more memory of its own than this; what goes beyond is taken anew each time.
KEPT_BYTES = 32 << 20


class TensorGroups:
    """How a list of tensors falls into groups; lists handed in later must have the same shapes in the same order."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        by_kind: dict[object, list[int]] = {}
        for n, tensor in enumerate(like):
            small = tensor.numel() <= SMALL
            by_kind.setdefault((tensor.shape, tensor.dtype, tensor.device) if small else n, []).append(n)
        self._members = list(by_kind.values())
        # Where each tensor's row comes to lie when all groups' rows are put one below the other.
        self._place = [0] * len(like)
        for row, n in enumerate(n for members in self._members for n in members):
            self._place[n] = row
        self._longest = max((tensor.numel() for tensor in like), default=0)
        self._parts: list[tuple[list[int], Tensor | None, Tensor | None]] | None = None
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._kept_bytes = 0
        self._cut_up: list[Tensor] = []
        self._views: list[Tensor] = []

    def _cut(self, like: Sequence[Tensor]) -> list[tuple[list[int], Tensor | None, Tensor | None]]:
        """The groups in parts: members, memory to put them side by side in, shared by all, and its rows.

        One alone has none.
        """
        rooms: dict[object, Tensor] = {}
        parts: list[tuple[list[int], Tensor | None, Tensor | None]] = []
        for members in self._members:
            first = like[members[0]]
            many = max(1, PART_BYTES // max(1, first.nbytes))
            for start in range(0, len(members), many):
                part = members[start : start + many]
                if len(part) == 1:
                    parts.append((part, None, None))
                    continue
                kind = first.dtype, first.device
                if kind not in rooms:
                    rooms[kind] = first.new_empty(PART_BYTES // first.element_size())
                rows = rooms[kind][: len(part) * first.numel()].view(len(part), first.numel())
                parts.append((part, rows.view(len(part), *first.shape), rows))
        return parts

    def sizes(self, tensors: Sequence[Tensor]) -> list[float]:
        """The tensors' L2 norms, right at every size, in their own order; waits for the device. Keeps no rows."""
        found: list[float] = []
        if self._parts is None:
            self._parts = self._cut(tensors)
        for at, (part, into, rows) in enumerate(self._parts):
            if into is None or rows is None:
                rows = tensors[part[0]].reshape(1, -1)
            else:
                torch.stack([tensors[n] for n in part], out=into)
            told: list[float] = torch.linalg.vector_norm(rows, dim=1, dtype=_sum_dtype(rows.dtype)).tolist()
            if rows.dtype != torch.float64 and not safe(told, rows.shape[1]):
                told = self._again(-1 - at, rows, told)  # as memory for what is scaled no group's
            found += told
        return self.in_order(found)

    def rows(self, tensors: Sequence[Tensor], *, room: str, copy: bool = False) -> list[Tensor]:
        """A (k, n) matrix a group, in the memory of that name; a group of one is a view unless `copy`."""
        found = []
        for n, members in enumerate(self._members):
            first = tensors[members[0]]
            if len(members) == 1 and not copy:
                found.append(first.reshape(1, -1))
                continue
            matrix = self._matrix(room, n, first, (len(members), first.numel()))
            into = matrix.view(len(members), *first.shape)
            if len(members) == 1:
                into[0].copy_(first)
            else:
                torch.stack([tensors[m] for m in members], out=into)
            found.append(matrix)
        return found

    def apart(self, rows: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """Views of the rows, each in its tensor's shape, in the tensors' own order."""
        if len(self._cut_up) != len(rows) or any(a is not b for a, b in zip(self._cut_up, rows, strict=True)):
            views = [row for matrix in rows for row in matrix.unbind()]
            shaped = [views[place].view(tensor.shape) for place, tensor in zip(self._place, like, strict=True)]
            if not all(any(row is kept for kept in self._kept.values()) for row in rows):
                return shaped
            self._views, self._cut_up = shaped, list(rows)
        return self._views

    def own(self, rows: Sequence[Tensor], *, room: str) -> list[Tensor]:
        """The rows with those that are views copied, so that they outlast the tensors."""
        return [
            self._matrix(room, n, matrix, matrix.shape).copy_(matrix) if len(members) == 1 else matrix
            for n, (matrix, members) in enumerate(zip(rows, self._members, strict=True))
        ]

    def dots(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
        """The products Σ a·b of each pair of rows, a column (k,) a group; in float64 on CUDA."""
        return [self._dot(n, x, y) for n, (x, y) in enumerate(zip(a, b, strict=True))]

    def in_order(self, values: Sequence[float]) -> list[float]:
        """Columns' numbers in the tensors' own order."""
        return [values[place] for place in self._place]

    def exact(self, rows: Sequence[Tensor], values: Sequence[float]) -> list[float]:
        """Norms as `norms` has told them, in the tensors' own order; looked at again where float32 was not enough."""
        if rows and not wide(rows[0]) and not safe(values, self._longest):
            at = 0
            for n, matrix in enumerate(rows):
                here = slice(at, at + len(matrix))
                if matrix.dtype != torch.float64 and not safe(values[here], matrix.shape[1]):
                    values = list(values)
                    values[here] = self._again(n, matrix, values[here])
                at += len(matrix)
        return self.in_order(values)

    def cosines(self, a: Sequence[Tensor], b: Sequence[Tensor], of: Collection[int]) -> dict[int, float]:
        """The products of some tensors' rows over their norms, right however small they are; none may be all zeros.

        Waits for the device.
        """
        found: dict[int, float] = {}
        for n, (x, y, members) in enumerate(zip(a, b, self._members, strict=True)):
            which = [row for row, tensor in enumerate(members) if tensor in of]
            if not which:
                continue
            x = self._over(n, x, _greatest(x), which, room="scaled")
            y = self._over(n, y, _greatest(y), which, room="scaled too")
            told = self._dot(n, x, y) / (torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1))
            found |= zip((members[row] for row in which), told.tolist(), strict=True)
        return found

    def _again(self, n: int, matrix: Tensor, values: Sequence[float]) -> list[float]:
        """A group's norms, those that are not safe by squares that can neither under- nor overflow."""
        if not matrix.numel():
            return list(values)
        least, most = bounds(matrix.shape[1])
        unsafe = [row for row, value in enumerate(values) if not (least < value < most or value != value)]
        if not any(values[row] for row in unsafe):
            # Zeros are most often what they seem: updates too small for float32 weights to show.
            part = matrix[unsafe[0] : unsafe[-1] + 1] if unsafe[-1] - unsafe[0] < len(unsafe) else matrix[unsafe]
            if part.amax().item() == 0.0 == part.amin().item():
                return list(values)
        greatest = _greatest(matrix)
        tops, exact = greatest.tolist(), list(values)
        which = [row for row in unsafe if 0 < tops[row] < math.inf]
        if which:
            scaled = self._over(n, matrix, greatest, which, room="scaled")
            for row, size in zip(which, torch.linalg.vector_norm(scaled, dim=1).tolist(), strict=True):
                exact[row] = size * tops[row]
        return exact

    def _over(self, n: int, matrix: Tensor, greatest: Tensor, which: Sequence[int], *, room: str) -> Tensor:
        """Some of a group's rows over the greatest of their numbers: squares of these neither under- nor overflow."""
        floats = matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix
        into = self._matrix(room, n, floats, floats.shape)[: len(which)]
        if len(which) < len(floats):
            at = torch.tensor(which, device=floats.device)
            floats, greatest = torch.index_select(floats, 0, at, out=into), greatest[at]
        return torch.div(floats, greatest[:, None], out=into)

    def _dot(self, n: int, x: Tensor, y: Tensor) -> Tensor:
        if wide(x):
            return _wide_dots(x, y)
        if len(x) == 1:
            return torch.dot(x[0], y[0]).reshape(1)
        room = self._matrix("products", n, x, (len(self._members[n]), x.shape[1]))
        return torch.mul(x, y, out=room[: len(x)]).sum(dim=1)

    def _matrix(self, room: str, n: int, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Memory for a group's rows; on a CPU the same as the last time, within bounds."""
        kept = self._kept.get((room, n))
        if kept is not None:
            return kept
        made = like.new_empty(tuple(shape))
        if like.device.type == "cpu" and self._kept_bytes + made.nbytes <= KEPT_BYTES:
            self._kept[room, n] = made
            self._kept_bytes += made.nbytes
        return made


def _greatest(matrix: Tensor) -> Tensor:
    """Each row's greatest magnitude, (k,)."""
    return torch.maximum(matrix.amax(dim=1), -matrix.amin(dim=1))  # a thirtieth of what the ∞-norm takes


def bounds(count: int) -> tuple[float, float]:
    """Norms between which float32 sums of `count` squares are right.

    A square below the least normal number, 1.2e-38, may be lost: of a norm above 2e-16·√count that is under 1e-6.
    """
    return 2e-16 * math.sqrt(count), 1e18


def safe(values: Sequence[float], count: int) -> bool:
    """Whether float32 sums of `count` squares of these sizes are right; what is no number is as right as it gets."""
    least, most = bounds(count)
    if not values or (least < min(values) and max(values) < most):
        return True  # min and max may pass over a NaN, and stop at one
    return all(least < v < most or v != v for v in values)


def wide(tensor: Tensor) -> bool:
    """Whether sums are in float64 from the start: where a second look would have to wait for the device."""
    return far(tensor.device)


def norms(rows: Sequence[Tensor]) -> list[Tensor]:
    """The L2 norm of each row by a plain sum of squares, a column (k,) a matrix.

    In float64 on CUDA and for float64 tensors, otherwise in float32, and then `Groups.exact` has to look at them.
    """
    return [torch.linalg.vector_norm(r, dim=1, dtype=torch.float64 if wide(r) else _sum_dtype(r.dtype)) for r in rows]


def size_of(tensor: Tensor) -> Tensor | float:
    """One tensor's L2 norm, right at every size: on the host at once, on CUDA a float64 scalar, not waited for."""
    if wide(tensor):
        on_device: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
        return on_device
    size: float = torch.linalg.vector_norm(tensor, dtype=_sum_dtype(tensor.dtype)).item()
    if safe((size,), tensor.numel()) or tensor.dtype == torch.float64:
        return size
    if tensor.device.type == "mps":  # no float64 there
        return TensorGroups([tensor]).exact([tensor.reshape(1, -1)], [size])[0]
    exact: float = torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
    return exact


# Numbers made float64 at a time.
_AT_ONCE = 1 << 24


def _wide_dots(x: Tensor, y: Tensor) -> Tensor:
    parts = zip(torch.split(x, _AT_ONCE, dim=1), torch.split(y, _AT_ONCE, dim=1), strict=True)
    return torch.stack([(a.double() * b.double()).sum(dim=1) for a, b in parts]).sum(dim=0)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
