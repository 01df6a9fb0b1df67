"""Notices hidden layers whose weights all start at one value: their units then get the same gradient and stay equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from tui_descent.instruments.module_hooks import plain
from tui_descent.instruments.net_structure import WatchedLayer

EQUAL = 1e-4  # largest difference of two units, relative to the largest weight: rounding makes a small one
PARALLEL = 1e-2  # the same for nets that start at 0, whose units differ by a factor


class EqualUnits:
    """The hidden layers that start with equal weights. Make it before the first update; `layers` in forward order.

    The last layer is left out: its units belong to different outputs, so it learns from any start.
    """

    def __init__(self, layers: Sequence[WatchedLayer]) -> None:
        matrices = [w for w in layers if _is_matrix(w)]
        starts = [_value(w.weight) for w in matrices]
        self._hidden = [w for w, value in zip(matrices[:-1], starts, strict=False) if value is not None]
        # If all layers start at 0, the later ones make the units of the earlier ones multiples of each other.
        self._near = PARALLEL if len(matrices) > 1 and not any(value is None or value for value in starts) else EQUAL
        self.at_zero = all(value == 0 for w, value in zip(matrices, starts, strict=True) if w in self._hidden)

    def __bool__(self) -> bool:
        return bool(self._hidden)

    def still_equal(self) -> list[str]:
        """The names of those whose units are still equal."""
        return [w.layer.name for w in self._hidden if _are_equal(w.weight, self._near)]


def _is_matrix(w: WatchedLayer) -> bool:
    weight = w.weight
    if is_lazy(weight) or not isinstance(w.module, nn.Linear | _ConvNd):
        return False
    return weight.requires_grad and weight.dim() > 1 and len(weight) > 1


@torch.no_grad()
def _value(weight: nn.Parameter) -> float | None:
    """The value that all numbers of a weight have, if there is one."""
    numbers = plain(weight)
    if numbers is None or numbers.is_complex() or numbers.numel() < 2:
        return None
    flat = numbers.reshape(-1)
    if not torch.equal(flat[: 1 << 10], flat[:1].expand(min(len(flat), 1 << 10))):
        return None  # the usual case
    low, high = (float(end) for end in flat.aminmax())
    return low if low == high else None


@torch.no_grad()
def _are_equal(weight: nn.Parameter, near: float) -> bool:
    """Whether all rows (units) are equal or, if `near` allows it, multiples of one row."""
    numbers = plain(weight)
    if numbers is None:
        return False
    rows: Tensor = numbers.flatten(1).double()
    if near == EQUAL:
        rest = rows - rows[0]
    else:
        longest = rows[rows.norm(dim=1).argmax()]
        rest = rows - torch.outer(rows @ longest / longest.square().sum().clamp(min=1e-300), longest)
    return float(rest.abs().max()) <= near * float(rows.abs().max())
