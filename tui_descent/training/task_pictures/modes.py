"""The picture of a linear net: how much of each mode of its map it has learnt, over time."""

from __future__ import annotations

from array import array
from itertools import chain

from tui_descent.protocol.task_pictures import ModesPicture
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.nets.two_layer import TwoLayerNet


class ModesPainter:
    """Makes the pictures of one run of a linear net."""

    def __init__(self, setup: Setup) -> None:
        assert isinstance(setup.model, TwoLayerNet)
        assert setup.path is not None
        self._net, self._path = setup.model, setup.path

    def picture(self, columns: int, rows: int) -> ModesPicture:
        """The strengths of all modes before each update, and now. The size is that of the path, not of the screen."""
        steps, strengths = self._path.steps(), self._path.positions()
        now = self._net.strengths()
        return ModesPicture(
            targets=self._net.singular_values,
            steps=array("q", [*steps, steps[-1] + 1 if steps else 0]).tobytes(),
            strengths=array("f", chain.from_iterable([*strengths, now])).tobytes(),
        )
