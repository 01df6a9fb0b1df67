"""The picture of a race on a test surface: the map, and the path of each lane."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain

import msgspec

from tui_descent.protocol.task_pictures import MAX_RACE_PATHS, LanePath, RacePicture
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.nets.surface import Surface
from tui_descent.training.task_pictures.surface import SurfacePainter

# A lane that leaves the map, for example because it diverges, widens it at most this often: the others stay visible.
MOST_DOUBLINGS = 1


class RacePainter:
    """Makes the pictures of one race on a surface. `setups` are those of the lanes."""

    def __init__(self, setups: Sequence[Setup]) -> None:
        self._setups = setups
        self._map = SurfacePainter(setups[0], most_doublings=MOST_DOUBLINGS)

    def picture(self, columns: int, rows: int) -> RacePicture:
        """The picture for `columns` × `rows` cells, with the current weights of each lane."""
        paths = [_positions(setup) for setup in self._setups]
        for path in paths:
            self._map.widen(path)
        surface = self._map.picture(columns, rows)
        most = MAX_RACE_PATHS // len(paths)
        lanes = tuple(LanePath(array("f", chain.from_iterable(_thinned(path, most))).tobytes()) for path in paths)
        return RacePicture(surface=msgspec.structs.replace(surface, path=b""), lanes=lanes)


def _positions(setup: Setup) -> list[tuple[float, ...]]:
    """The positions of a lane, from its start to its current one."""
    assert isinstance(setup.model, Surface)
    assert setup.path is not None
    return [*setup.path.positions(), tuple(setup.model.w.tolist())]


def _thinned(path: list[tuple[float, ...]], most: int) -> list[tuple[float, ...]]:
    """At most `most` positions of a path, spread evenly, with its first and its last one."""
    if len(path) <= most:
        return path
    return [path[round(n * (len(path) - 1) / (most - 1))] for n in range(most)]
