"""The columns of a reading, in the order they stand in shared memory, and how rows become an event."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tui_descent.protocol.events import ReadingsTaken
from tui_descent.protocol.ring import ReadingRecord

COLUMNS = ("grad_norm", "grad_rms", "weight_norm", "update_norm", "update_ratio")


def pack_row(values: Sequence[float | None], *, age: int = 0) -> list[float]:
    """A layer's values as a row: the bits of those that apply (and the age above them), then the values."""
    bits = sum(1 << n for n, value in enumerate(values) if value is not None) | age << len(COLUMNS)
    return [float(bits), *(math.nan if value is None else value for value in values)]


def unpack(record: ReadingRecord) -> ReadingsTaken:
    """The event of a record."""
    masks = [int(row[0]) for row in record.rows]
    return ReadingsTaken(
        segment=record.segment,
        step=record.step,
        values={
            name: [row[n + 1] if mask >> n & 1 else None for row, mask in zip(record.rows, masks, strict=True)]
            for n, name in enumerate(COLUMNS)
        },
        ages=[mask >> len(COLUMNS) for mask in masks],
        global_grad_norm=record.global_grad_norm,
        watch_cost=record.watch_cost,
    )
