"""Notices that a loop takes each update back before the next one, as by loading older weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tui_descent.instruments.deferred import is_asynchronous
from tui_descent.instruments.module_hooks import plain
from tui_descent.instruments.net_structure import WatchedLayer

# Larger weights are not copied. With less than this share of an update left, it counts as taken back.
MOST_NUMBERS, LEFT = 1 << 16, 0.05


class OverwrittenWeights:
    """Compares how far a weight is from where it was before the last update with the size of that update.

    `watched` and its `row` in a reading are a weight that the optimizer updates. `in_a_row` is for how many measured
    updates in a row almost nothing was left, `left` the share that was left of the last one.
    """

    def __init__(self, watched: WatchedLayer, row: int) -> None:
        self.name, self.row = watched.layer.name, row
        self.in_a_row, self.left = 0, 1.0
        self._weight = watched.weight
        self._before: tuple[int, Tensor] | None = None  # the last update and a copy of the weight before it
        self._update: float | None = None  # its norm, if it was measured

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        """Update `step` is about to be made."""
        weight = plain(self._weight)
        if weight is None:
            return
        if self._before is not None and self._update and self._before[0] == step - 1:
            copy = self._before[1]
            if copy.shape == weight.shape:
                self.left = float(torch.linalg.vector_norm((weight - copy).flatten())) / self._update
                self.in_a_row = self.in_a_row + 1 if self.left < LEFT else 0
        self._before, self._update = (step, weight.clone()), None

    def measured(self, step: int, update_norm: float | None) -> None:
        """The reading of update `step`."""
        if self._before is not None and self._before[0] == step:
            self._update = update_norm


def can_be_compared(weight: nn.Parameter) -> bool:
    """Whether a weight is small enough to be copied, and has ordinary numbers that can be read without waiting."""
    return not is_asynchronous(weight.device) and weight.numel() <= MOST_NUMBERS and plain(weight) is not None
