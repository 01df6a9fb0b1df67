"""The columns of a reading in shared memory, and the conversion between rows and `ReadingsTaken`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tui_descent.protocol.events import LayerStatus, ReadingsTaken
from tui_descent.protocol.ring import ReadingRecord

COLUMNS = (
    "grad_norm",
    "grad_rms",
    "weight_norm",
    "update_norm",
    "update_ratio",
    "backprop_factor",
    "grad_cosine",
    "dead_fraction",
    "saturated_fraction",
    "activation_mean",
    "activation_std",
)
STATUSES: tuple[LayerStatus, ...] = ("used", "frozen", "unused", "not measured")
# The first number of a row has one bit for each column that applies, then two bits of status, then the age in steps.
_STATUS_AT = len(COLUMNS)
_AGE_AT = _STATUS_AT + 2
_STATUS_BITS = {status: n << _STATUS_AT for n, status in enumerate(STATUSES)}


def pack_rows(
    columns: Sequence[Sequence[float | None]], *, statuses: Sequence[LayerStatus], ages: Sequence[int] | None = None
) -> list[tuple[float, ...]]:
    """Convert columns with one value per layer to one row per layer.

    A column does not apply to a layer if its value is None, or if the column is missing at the end of `columns`.
    """
    bits = [_STATUS_BITS[status] for status in statuses]
    if ages is not None:
        bits = [b | age << _AGE_AT for b, age in zip(bits, ages, strict=True)]
    known, everywhere = [], 0
    for n, column in enumerate(columns):
        if None in column:
            bits = [b | (value is not None) << n for b, value in zip(bits, column, strict=True)]
            column = [math.nan if value is None else value for value in column]
        else:
            everywhere |= 1 << n
        known.append(column)
    absent = [[math.nan] * len(statuses)] * (len(COLUMNS) - len(columns))
    return list(zip([float(b | everywhere) for b in bits], *known, *absent, strict=True))


def pack_row(values: Sequence[float | None], *, status: LayerStatus = "used", age: int = 0) -> tuple[float, ...]:
    """One layer's row. A column does not apply if its value is None or is left out at the end."""
    return pack_rows([[value] for value in values], statuses=[status], ages=[age])[0]


def row_value(row: Sequence[float], column: str) -> float | None:
    """A value of one layer's row; None if its column does not apply. `age` is the layer's age in steps."""
    mask = int(row[0])
    if column == "age":
        return float(mask >> _AGE_AT)
    n = COLUMNS.index(column)
    return row[n + 1] if mask >> n & 1 else None


def unpack(record: ReadingRecord) -> ReadingsTaken:
    """Convert a record to an event. A column that applies to no layer is left out."""
    masks = [int(row[0]) for row in record.rows]
    return ReadingsTaken(
        segment=record.segment,
        step=record.step,
        values={
            name: [row[n + 1] if mask >> n & 1 else None for row, mask in zip(record.rows, masks, strict=True)]
            for n, name in enumerate(COLUMNS)
            if any(mask >> n & 1 for mask in masks)
        },
        statuses=[STATUSES[mask >> _STATUS_AT & 3] for mask in masks],
        ages=[mask >> _AGE_AT for mask in masks],
        global_grad_norm=record.global_grad_norm,
        global_cosine=None if math.isnan(record.global_cosine) else record.global_cosine,
        watch_cost=record.watch_cost,
        grad_norm_preclip=None if math.isnan(record.grad_norm_preclip) else record.grad_norm_preclip,
        structure=record.structure,
    )
