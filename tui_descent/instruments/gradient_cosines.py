"""cos(g_t, g_{t−1}): the cosine between the gradients of two successive steps, for each parameter and for all together.

A cosine near 0 means that the gradients are noisy; near +1, that the steps are small. Towards −1, the parameters
oscillate between two sides of a valley.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from tui_descent.instruments.deferred import is_asynchronous
from tui_descent.instruments.float32_range import in_range, limits
from tui_descent.instruments.row_sums import exact_cosines, product_dtype, products_shape, row_products
from tui_descent.instruments.tensor_groups import TensorGroups


class GradientPair:
    """The gradients of two successive steps, `new` and `old`: one (k, n) matrix for each group of k parameters.

    `products` holds one tensor (k,) per group: the dot product Σ g_t·g_{t−1} of each parameter.
    """

    def __init__(self, groups: TensorGroups, new: Sequence[Tensor], old: Sequence[Tensor]) -> None:
        self._groups, self._new, self._old = groups, new, old
        self.products = [self._products(n, x, y) for n, (x, y) in enumerate(zip(new, old, strict=True))]

    def cosines(
        self, products: Sequence[float], new_norms: Sequence[float], old_norms: Sequence[float]
    ) -> tuple[list[float | None], float | None]:
        """The cosine of each parameter, and of the whole gradient; None if one of the two norms is 0.

        `products` are the numbers in `self.products`, one group of tensors after the other. `new_norms` and
        `old_norms` are the L2 norms of the gradients of both steps, one per parameter, in the order of the parameters.
        """
        dots = self._groups.in_order(products)
        pairs = list(zip(dots, new_norms, old_norms, strict=True))
        cosines = [dot / (a * b) if a and b and a * b else None for dot, a, b in pairs]
        for n, cosine in self._out_of_range(new_norms, old_norms).items():
            cosines[n] = cosine
        new, old = math.hypot(*new_norms), math.hypot(*old_norms)
        if not new or not old:
            return cosines, None
        weighted = (c * (a / new) * (b / old) for c, (_, a, b) in zip(cosines, pairs, strict=True) if c is not None)
        return cosines, math.fsum(weighted)

    def _products(self, n: int, x: Tensor, y: Tensor) -> Tensor:
        if is_asynchronous(x.device):
            return row_products(x, y)
        shape, dtype = products_shape(x), product_dtype(x)
        key = n if shape == x.shape else dtype
        return row_products(x, y, self._groups.memory("products", key, shape, x, dtype=dtype))

    def _out_of_range(self, new_norms: Sequence[float], old_norms: Sequence[float]) -> dict[int, float]:
        """The cosines of the parameters whose dot products may be inexact, computed again in float64, by index.

        On an asynchronous device the products were already summed in float64, so none is computed again.
        """
        longest = max(matrix.shape[1] for matrix in self._new)
        if in_range(new_norms, longest) and in_range(old_norms, longest):
            return {}
        found: dict[int, float] = {}
        for x, y, group in zip(self._new, self._old, self._groups.groups, strict=True):
            if is_asynchronous(x.device):
                continue
            low, high = limits(x.shape[1], x.dtype)
            pairs = [(new_norms[n], old_norms[n]) for n in group]
            rows = [
                row
                for row, pair in enumerate(pairs)
                if all(0 < norm < math.inf for norm in pair) and not all(low < norm < high for norm in pair)
            ]
            if rows:
                new, old = ([pairs[row][k] for row in rows] for k in (0, 1))
                found |= zip((group[row] for row in rows), exact_cosines(x, y, rows, new, old), strict=True)
        return found
