"""The picture of a small net's saddles: the loss against the index along the run, and the critical points near it."""

from __future__ import annotations

from array import array
from collections.abc import Generator
from itertools import chain

import torch

from tui_descent.protocol.task_pictures import MAX_FOUND, MAX_INDEX_PATH, FoundPoint, IndexPicture
from tui_descent.training.probes.index_search import flat_loss, index_at, search_steps, weights_of
from tui_descent.training.setup.build import Setup

# A picture must fit into the wait between two steps, so a search is spread over several pictures.
ITERATIONS_EACH = 3
SAME_LOSS = 1e-3  # of the loss: critical points of the same index are one if their losses differ by less


class IndexPainter:
    """Makes the pictures of one run. Each picture adds the current weights to the path, and goes on with a search that
    began at an earlier point of it, or begins one.
    """

    def __init__(self, setup: Setup) -> None:
        self._net = setup.model
        self._path: list[tuple[int, float]] = []
        self._found: list[FoundPoint] = []
        self._search: Generator[None, None, torch.Tensor | None] | None = None

    def picture(self, columns: int, rows: int) -> IndexPicture:
        """The path so far and the critical points found so far. The size does not matter."""
        loss, weights = flat_loss(self._net), weights_of(self._net)
        now = float(loss(weights))
        if bool(weights.isfinite().all()) and (not self._path or self._path[-1][1] != now):
            self._path.append((index_at(loss, weights), now))
            self._path = self._path if len(self._path) <= MAX_INDEX_PATH else [self._path[0], *self._path[2::2]]
            self._go_on_searching(weights)
        return IndexPicture(
            parameters=len(weights),
            path=array("f", chain.from_iterable(self._path)).tobytes(),
            found=tuple(self._found),
        )

    def _go_on_searching(self, weights: torch.Tensor) -> None:
        self._search = self._search or search_steps(flat_loss(self._net), weights)
        try:
            for _ in range(ITERATIONS_EACH):
                next(self._search)
        except StopIteration as end:
            self._search = None
            self._add(end.value)

    def _add(self, at: torch.Tensor | None) -> None:
        if at is None or len(self._found) >= MAX_FOUND:
            return
        loss = flat_loss(self._net)
        index, value = index_at(loss, at), float(loss(at))
        known = (p for p in self._found if p.index == index)
        if all(abs(p.loss - value) > SAME_LOSS * max(abs(value), SAME_LOSS) for p in known):
            self._found.append(FoundPoint("saddle" if index else "minimum", index, value))
