"""The newest value of every metric. A single reading has only the metrics that were due at its step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from tui_descent.protocol.events import Layer, ReadingsTaken

T = TypeVar("T")


class NewestReadings:
    """For each metric, the newest reading that has it. All readings are from one segment, and their rows are for the
    same layers.
    """

    def __init__(self) -> None:
        self._newest: dict[str, ReadingsTaken] = {}

    def add(self, reading: ReadingsTaken) -> None:
        """Add a reading. The first reading of another segment replaces all earlier readings."""
        if any(known.segment != reading.segment for known in self._newest.values()):
            self._newest.clear()
        self._newest |= dict.fromkeys(reading.values, reading)

    def of(self, segment: int) -> Mapping[str, ReadingsTaken]:
        """The readings of this segment by metric. Right after an undo there may be none."""
        return {metric: reading for metric, reading in self._newest.items() if reading.segment == segment}

    def change_layers(self, old: Sequence[Layer], new: Sequence[Layer], structure: int) -> None:
        """Rearrange the rows of all readings for the `new` layers."""
        moved = {r.step: move_rows(r, old, new, structure) for r in self._newest.values()}
        self._newest = {metric: moved[reading.step] for metric, reading in self._newest.items()}

    def rewind(self, still_valid: Callable[[ReadingsTaken], ReadingsTaken | None]) -> ReadingsTaken | None:
        """Replace each reading by what `still_valid` returns; None drops it.

        Returns the newest reading that is left.
        """
        known = {r.step: r for r in self._newest.values()}
        self._newest.clear()
        kept = [moved for _, r in sorted(known.items()) if (moved := still_valid(r)) is not None]
        for reading in kept:
            self.add(reading)
        return kept[-1] if kept else None

    def older(self, newest: ReadingsTaken | None) -> list[ReadingsTaken]:
        """Readings with the metrics that the newest reading lacks, oldest first. Adding these and then the newest
        reading to an empty object gives the same state.
        """
        newest_step = newest.step if newest is not None else None
        kept = {r.step: r for r in self._newest.values() if r.step != newest_step}
        return [
            msgspec.structs.replace(r, values={m: r.values[m] for m, of in self._newest.items() if of is r})
            for _, r in sorted(kept.items())
        ]


def move_rows(reading: ReadingsTaken, old: Sequence[Layer], new: Sequence[Layer], structure: int) -> ReadingsTaken:
    """Convert a reading of the `old` layers to one row for each of the `new` layers. An added layer has no values."""
    row = {layer.name: n for n, layer in enumerate(old)}
    sources = [row.get(layer.name) for layer in new]

    def moved(values: Sequence[T], missing: T) -> list[T]:
        return [missing if n is None or n >= len(values) else values[n] for n in sources]

    return msgspec.structs.replace(
        reading,
        values={metric: moved(values, None) for metric, values in reading.values.items()},
        ages=moved(reading.ages, 0),
        statuses=moved(reading.statuses, "used") if reading.statuses else [],
        structure=structure,
    )
