"""Pictures of what is being learnt, for the task view. The trainer makes them; each has a bounded size."""

from __future__ import annotations

from typing import Literal

import msgspec

# The most cells of a grid. A net is evaluated at every cell, a test surface costs almost nothing.
MAX_NET_CELLS = 4096
MAX_SURFACE_CELLS = 12_288
MAX_PATH = 768  # positions of the path on a surface
MAX_SAMPLES = 512  # points of a data set in the plane


class CriticalPoint(msgspec.Struct, frozen=True):
    """A point of a test surface where the gradient is 0."""

    kind: Literal["minimum", "saddle"]
    at: tuple[float, ...]


class SurfacePicture(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="surface"):
    """A test surface around the run's path, and the run's position on it.

    `losses` are the bytes of an `array('f')`, at the centres of `rows` × `columns` equal cells between the corners
    `low` and `high`. The row with the largest second coordinate comes first. A loss of one parameter has one row.

    `path` are the bytes of an `array('d')`: the positions from the start on, without the present one, `point`. Of a
    long path only some are kept. `loss` and `gradient` are those at `point`.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    columns: int
    rows: int
    losses: bytes
    critical: tuple[CriticalPoint, ...]
    path: bytes
    point: tuple[float, ...]
    loss: float
    gradient: tuple[float, ...]


class RegionsPicture(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="regions"):
    """Data in the plane with two classes, and which class the net predicts where.

    `predictions` has a byte for the centre of each of `rows` × `columns` equal cells between the corners `low` and
    `high`, the upper row first: 0 where an output is not finite, 1 to 127 for class 0, 128 to 255 for class 1. The
    probability of class 1 is (byte - 1) / 254.

    `points` are the bytes of an `array('f')` with x and y of each point; `classes` and `right` have a byte for each
    point: its true class, and 1 if the net predicts that class.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    columns: int
    rows: int
    predictions: bytes
    points: bytes
    classes: bytes
    right: bytes


TaskPicture = SurfacePicture | RegionsPicture


def grid_size(columns: int, rows: int, most: int) -> tuple[int, int]:
    """The grid for a picture of `columns` × `rows` cells: the same, or a coarser one with at most `most` cells."""
    columns, rows = max(2, columns), max(1, rows)
    if columns * rows > most:
        shrink = (most / (columns * rows)) ** 0.5
        columns, rows = max(2, int(columns * shrink)), max(1, int(rows * shrink))
    return min(columns, most), max(1, min(rows, most // min(columns, most)))
