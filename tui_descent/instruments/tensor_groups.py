"""Measures many small tensors in few operations: tensors of one shape become the rows of one matrix.

A net of 200 equal layers is then measured with as many operations as a single layer. A large tensor forms a group of
its own, so it does not have to be copied. On a CPU the memory of the matrices is reused at every call: freed memory
would go back to the system, and allocating it again would take longer than the copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tui_descent.instruments.row_sums import one_row

# For tensors of up to this many numbers, an operation takes longer to start than to run.
SMALL = 1 << 16
# The size of a chunk: it fits into the cache without evicting the training's data.
CHUNK_BYTES = 1 << 18
# The most memory that one `TensorGroups` keeps for reuse. Matrices beyond this are allocated at each call.
KEPT_BYTES = 32 << 20


class TensorGroups:
    """Groups of tensors with the same shape, dtype and device; k tensors of n numbers make a (k, n) matrix.

    Every list of tensors passed to a method must have the shapes of `like`, in the same order. The methods must be
    called under `torch.no_grad()`.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        by_kind: dict[object, list[int]] = {}
        for n, tensor in enumerate(like):
            small = tensor.numel() <= SMALL
            by_kind.setdefault((tensor.shape, tensor.dtype, tensor.device) if small else n, []).append(n)
        self._groups = list(by_kind.values())  # for each group, the indices of its tensors
        self._chunks: list[list[int]] = []
        for group in self._groups:
            size = max(1, CHUNK_BYTES // max(1, like[group[0]].nbytes))
            self._chunks += [group[start : start + size] for start in range(0, len(group), size)]
        # The row of each tensor in all groups' matrices, stacked on top of each other.
        self._rows = [0] * len(like)
        for row, n in enumerate(n for group in self._groups for n in group):
            self._rows[n] = row
        self._memory: dict[tuple[str, object], Tensor] = {}
        self._kept_bytes = 0
        self._copied_rows: list[Tensor] | None = None

    @property
    def groups(self) -> Sequence[Sequence[int]]:
        """The indices of each group's tensors."""
        return self._groups

    def in_order(self, values: Sequence[float]) -> list[float]:
        """Sort `values`, one per row of all matrices, into the order of the tensors."""
        return [values[row] for row in self._rows]

    def chunks(self, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
        """All rows in a few matrices, each small enough for the cache. Each matrix may overwrite the one before it."""
        for members in self._chunks:
            first = tensors[members[0]]
            if len(members) == 1:
                yield one_row(first)
                continue
            key = (first.dtype, first.device)
            memory = self.memory("chunk", key, (CHUNK_BYTES // first.element_size(),), first)
            matrix = memory[: len(members) * first.numel()].view(len(members), first.numel())
            yield _fill(matrix, [tensors[n] for n in members])

    def stack(self, tensors: Sequence[Tensor], *, name: str) -> list[Tensor]:
        """One matrix per group, in the memory called `name`. For a group of one tensor it is a view of the tensor."""
        return [
            tensors[group[0]].reshape(1, -1) if len(group) == 1 else self._copy_group(name, n, tensors)
            for n, group in enumerate(self._groups)
        ]

    def copy_views(self, matrices: Sequence[Tensor], *, name: str) -> list[Tensor]:
        """The `matrices` of `stack`, with views of tensors replaced by copies in the memory called `name`."""
        return [
            self.memory(name, n, matrix.shape, matrix).copy_(matrix) if len(group) == 1 else matrix
            for n, (matrix, group) in enumerate(zip(matrices, self._groups, strict=True))
        ]

    def copy(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Copy all tensors. Returns one matrix per group, and views of its rows in the tensors' shapes and order."""
        matrices = [self._copy_group("copy", n, tensors) for n in range(len(self._groups))]
        if self._copied_rows is not None:
            return matrices, self._copied_rows
        rows = [row for matrix in matrices for row in matrix.unbind()]
        views = [rows[row].view(tensor.shape) for row, tensor in zip(self._rows, tensors, strict=True)]
        if all(("copy", n) in self._memory for n in range(len(self._groups))):
            self._copied_rows = views
        return matrices, views

    def memory(
        self, name: str, key: object, shape: Sequence[int], like: Tensor, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Uninitialised memory on `like`'s device, by default of its dtype.

        On a CPU the memory of a `name` and `key` is reused at every call, up to `KEPT_BYTES` in total.
        """
        kept = self._memory.get((name, key))
        if kept is not None:
            return kept
        made = like.new_empty(tuple(shape), dtype=dtype)
        if like.device.type == "cpu" and self._kept_bytes + made.nbytes <= KEPT_BYTES:
            self._memory[name, key] = made
            self._kept_bytes += made.nbytes
        return made

    def _copy_group(self, name: str, n: int, tensors: Sequence[Tensor]) -> Tensor:
        members = [tensors[m] for m in self._groups[n]]
        return _fill(self.memory(name, n, (len(members), members[0].numel()), members[0]), members)


def _fill(matrix: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Copy tensors of one shape into the rows of a matrix."""
    rows = matrix.view(len(tensors), *tensors[0].shape)
    if len(tensors) == 1:
        rows[0].copy_(tensors[0])
    else:
        torch.stack(list(tensors), out=rows)
    return matrix
