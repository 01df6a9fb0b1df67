"""Notices that a loop reverts each update before the next one, for example by loading older weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tui_descent.instruments.deferred import is_asynchronous
from tui_descent.instruments.module_hooks import plain
from tui_descent.instruments.net_structure import WatchedLayer

# Larger weights are not copied. If less than this share of an update is left, the update counts as reverted.
MOST_NUMBERS, LEFT = 1 << 16, 0.05


class OverwrittenWeights:
    """Compares how much a weight has changed since before the last update with the size of that update. `watched` is a
    layer whose weight the optimizer updates, and `row` is its row in a reading. `in_a_row` is the number of measured
    updates in a row of which almost nothing was left. `left` is the share of the last update that was left.
    """

    def __init__(self, watched: WatchedLayer, row: int) -> None:
        self.name, self.row = watched.layer.name, row
        self.in_a_row, self.left = 0, 1.0
        self._weight = watched.weight
        self._before: tuple[int, Tensor] | None = None  # the last update and a copy of the weight before it
        self._update: float | None = None  # the norm of the last update, if it was measured

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        """Called when update `step` is about to be made."""
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
        """Called with the reading of update `step`."""
        if self._before is not None and self._before[0] == step:
            self._update = update_norm


def can_be_compared(weight: nn.Parameter) -> bool:
    """Whether a weight is small enough to be copied and can be read without waiting."""
    return not is_asynchronous(weight.device) and weight.numel() <= MOST_NUMBERS and plain(weight) is not None
