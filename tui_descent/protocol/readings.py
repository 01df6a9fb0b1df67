"""The columns of a reading, in the order they stand in shared memory, and how rows become an event."""

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
STATUSES: tuple[LayerStatus, ...] = ("used", "frozen", "unused")
# A row's first number: a bit for each column that applies, then two bits of status, then the age in steps.
_STATUS_AT = len(COLUMNS)
_AGE_AT = _STATUS_AT + 2
_ABSENT = [math.nan] * len(COLUMNS)


def pack_row(values: Sequence[float | None], *, status: LayerStatus = "used", age: int = 0) -> list[float]:
    """A layer's values, None where one does not apply; columns left out at the end do not apply."""
    bits = STATUSES.index(status) << _STATUS_AT | age << _AGE_AT | (1 << len(values)) - 1
    known: list[float] = []
    if None in values:
        for n, value in enumerate(values):
            known.append(math.nan if value is None else value)
            bits -= (value is None) << n
    else:
        known = values  # type: ignore[assignment]
    return [float(bits), *known, *_ABSENT[len(values) :]]


def unpack(record: ReadingRecord) -> ReadingsTaken:
    """The event of a record. A column that applies to no layer is left out."""
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
    )
