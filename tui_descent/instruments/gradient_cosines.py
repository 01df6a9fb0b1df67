"""cos(g_t, g_{t−1}): the cosine between the gradients of two successive steps, for each parameter and for all together.

A cosine near 0 means noisy gradients, near +1 small steps; towards −1 the parameters oscillate between two sides of a
valley.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from tui_descent.instruments.deferred import is_asynchronous
from tui_descent.instruments.float32_range import in_range, limits, scaled_rows
from tui_descent.instruments.tensor_groups import TensorGroups

# At most this many numbers are converted to float64 at a time.
FLOAT64_AT_A_TIME = 1 << 24


class GradientPair:
    """The gradients of two successive steps, `new` and `old`: one (k, n) matrix for each group of k parameters.

    `products` holds one tensor (k,) per group: the dot product Σ g_t·g_{t−1} of each parameter.
    """

    def __init__(self, groups: TensorGroups, new: Sequence[Tensor], old: Sequence[Tensor]) -> None:
        self._groups, self._new, self._old = groups, new, old
        self.products = [
            _row_products(x, y, None if is_asynchronous(x.device) else groups.memory("products", n, x.shape, x))
            for n, (x, y) in enumerate(zip(new, old, strict=True))
        ]

    def cosines(
        self, products: Sequence[float], new_norms: Sequence[float], old_norms: Sequence[float]
    ) -> tuple[list[float | None], float | None]:
        """The cosine of each parameter, and of the whole gradient; None if one of the two norms is 0.

        `products` are the numbers in `self.products`, one group of tensors after the other. `new_norms` and
        `old_norms` are the L2 norms of the gradients of both steps, one per parameter, in the order of the parameters.
        """
        dots = self._groups.in_order(products)
        sizes = [a * b for a, b in zip(new_norms, old_norms, strict=True)]
        for n, cosine in self._scaled_cosines(self._out_of_range(new_norms, old_norms)).items():
            dots[n] = cosine * sizes[n]
        cosines = [dot / size if size else None for dot, size in zip(dots, sizes, strict=True)]
        size = math.hypot(*new_norms) * math.hypot(*old_norms)
        return cosines, math.fsum(dots) / size if size else None

    def _out_of_range(self, new_norms: Sequence[float], old_norms: Sequence[float]) -> set[int]:
        """The indices of the parameters whose dot products may be inexact, since they were summed in float32."""
        if is_asynchronous(self._new[0].device):
            return set()  # summed in float64
        longest = max(matrix.shape[1] for matrix in self._new)
        if in_range(new_norms, longest) and in_range(old_norms, longest):
            return set()
        low, high = limits(longest)
        pairs = enumerate(zip(new_norms, old_norms, strict=True))
        finite = {n: pair for n, pair in pairs if all(0 < norm < math.inf for norm in pair)}
        return {n for n, pair in finite.items() if not all(low < norm < high for norm in pair)}

    def _scaled_cosines(self, of: Collection[int]) -> dict[int, float]:
        """The cosines of the parameters with the indices `of`, from rows scaled by their largest magnitude.

        Waits for the device.
        """
        found: dict[int, float] = {}
        for x, y, group in zip(self._new, self._old, self._groups.groups, strict=True):
            rows = [row for row, n in enumerate(group) if n in of]
            if rows:
                x, y = scaled_rows(x, rows), scaled_rows(y, rows)
                norms = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
                found |= zip((group[row] for row in rows), (_row_products(x, y) / norms).tolist(), strict=True)
        return found


def _row_products(x: Tensor, y: Tensor, memory: Tensor | None = None) -> Tensor:
    """Σ x·y of each pair of rows, (k,)."""
    if is_asynchronous(x.device):
        parts = zip(*(torch.split(m, FLOAT64_AT_A_TIME, dim=1) for m in (x, y)), strict=True)
        return torch.stack([(a.double() * b.double()).sum(dim=1) for a, b in parts]).sum(dim=0)
    if len(x) == 1:
        return torch.dot(x[0], y[0]).reshape(1)
    return torch.mul(x, y, out=memory).sum(dim=1)
