"""The picture of data in the plane: the class that the net predicts at each cell of a grid, and the points."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from tui_descent.protocol.task_pictures import MAX_NET_CELLS, MAX_SAMPLES, RegionsPicture, grid_size
from tui_descent.training.setup.build import Setup

MARGIN = 0.12  # of the extent of the data, on each side


class RegionsPainter:
    """Makes the pictures of one run on two-dimensional data with two classes."""

    def __init__(self, setup: Setup) -> None:
        assert setup.batches is not None
        data = setup.batches.data
        self._setup = setup
        self._names = data.names
        self._points, self._classes = data.x[:MAX_SAMPLES], data.y[:MAX_SAMPLES].cpu()  # (n, 2), (n,)
        low, high = data.x.amin(dim=0).cpu().double(), data.x.amax(dim=0).cpu().double()
        margin = MARGIN * (high - low)
        self._low, self._high = low - margin, high + margin
        # With mse, the outputs are fitted to 0 and 1: they are probabilities, but not of a softmax.
        self._fits_outputs = setup.scenario.loss is not None and setup.scenario.loss.name == "mse"
        self._size, self._cells = (0, 0), data.x[:0]

    def picture(self, columns: int, rows: int) -> RegionsPicture:
        """The picture for `columns` × `rows` cells of two halves each: the grid has twice as many rows, or is coarser.

        Grid and points are evaluated in one pass, in eval mode.
        """
        size = grid_size(columns, 2 * rows, MAX_NET_CELLS)
        if size != self._size:
            self._size, self._cells = size, self._grid(*size)
        outputs = self._setup.outputs(torch.cat([self._cells, self._points])).cpu().double()
        bytes_ = self._bytes(outputs)
        cells, points = bytes_[: len(self._cells)], bytes_[len(self._cells) :]
        right = (points > 0) & ((points >= 128) == (self._classes == 1))
        low, high = self._low.tolist(), self._high.tolist()
        return RegionsPicture(
            low=(low[0], low[1]),
            high=(high[0], high[1]),
            columns=size[0],
            rows=size[1],
            predictions=bytes(cells.tolist()),
            points=array("f", self._points.flatten().tolist()).tobytes(),
            classes=bytes(self._classes.tolist()),
            right=bytes(right.int().tolist()),
            names=self._names,
        )

    def _grid(self, columns: int, rows: int) -> Tensor:
        """The centres of the cells, (rows · columns, 2), the upper row first."""
        shares = [(torch.arange(count, dtype=torch.float64) + 0.5) / count for count in (columns, rows)]
        across, down = torch.meshgrid(*shares, indexing="xy")  # each (rows, columns)
        at = torch.stack([across.flatten(), 1 - down.flatten()], dim=1)
        return (self._low + (self._high - self._low) * at).to(self._points)

    def _bytes(self, outputs: Tensor) -> Tensor:
        """Outputs (n, 2) as the bytes of `RegionsPicture.predictions`, (n,)."""
        ahead = outputs[:, 1] - outputs[:, 0]
        p = (0.5 + ahead / 2).clamp(0, 1) if self._fits_outputs else ahead.sigmoid()
        known = 1 + (p * 254).floor()
        # Far from the boundary rounding does not matter; next to it the class does.
        known = torch.where(ahead < 0, known.clamp(max=127), known.clamp(min=128))
        return torch.where(outputs.isfinite().all(dim=1), known, 0).int()
