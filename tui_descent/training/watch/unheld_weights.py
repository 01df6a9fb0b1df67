"""Follows weights that no watched optimizer holds, to find out whether something else changes them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tui_descent.instruments.module_hooks import plain
from tui_descent.instruments.net_structure import WatchedLayer

# At most this many numbers of a weight are compared, evenly spaced.
MOST_NUMBERS = 1 << 16


class UnheldWeights:
    """Copies of the weights from when they were first checked, by id."""

    def __init__(self) -> None:
        self._copies: dict[int, Tensor] = {}
        self._looks: dict[int, int] = {}
        self._changed: set[int] = set()

    def is_constant(self, weight: nn.Parameter) -> bool:
        """Whether the weight is unchanged since the first call for it. Waits for the weight's device."""
        key, ordinary = id(weight), plain(weight)
        if key in self._changed or ordinary is None:
            return False
        numbers = ordinary.reshape(-1)[:: max(1, ordinary.numel() // MOST_NUMBERS)]
        copy = self._copies.get(key)
        if copy is None:
            self._copies[key], self._looks[key] = numbers.clone(), 0
        elif copy.shape == numbers.shape and copy.dtype == numbers.dtype and torch.equal(copy, numbers):
            self._looks[key] += 1
        else:
            self._changed.add(key)
            return False
        return True

    def looks(self, weight: nn.Parameter) -> int:
        """How many times the weight was found unchanged."""
        return self._looks.get(id(weight), 0)

    def keep_only(self, layers: Iterable[WatchedLayer]) -> None:
        """Forget the copies of all other weights."""
        kept = {id(w.weight) for w in layers}
        for key in [key for key in self._copies if key not in kept]:
            del self._copies[key], self._looks[key]
