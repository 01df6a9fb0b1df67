"""The newest value of every metric, though the slower tiers are not in every reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from tui_descent.protocol.events import Layer, ReadingsTaken
from tui_descent.telemetry.gradient_history import carried


class Tiers:
    """Metric by metric the newest reading that has it, all of one segment and in the rows of the same layers."""

    def __init__(self) -> None:
        self._newest: dict[str, ReadingsTaken] = {}

    def add(self, reading: ReadingsTaken) -> None:
        """Take in a reading; the first of another segment puts an end to what was known."""
        if any(known.segment != reading.segment for known in self._newest.values()):
            self._newest.clear()
        self._newest |= dict.fromkeys(reading.values, reading)

    def of(self, segment: int) -> Mapping[str, ReadingsTaken]:
        """Those of this segment: right behind an undo there are none."""
        return {metric: reading for metric, reading in self._newest.items() if reading.segment == segment}

    def change(self, old: Sequence[Layer], new: Sequence[Layer], structure: int) -> None:
        """Into the rows of other layers."""
        moved = {r.step: carried(r, old, new, structure) for r in self._newest.values()}
        self._newest = {metric: moved[reading.step] for metric, reading in self._newest.items()}

    def go_back(self, here: Callable[[ReadingsTaken], ReadingsTaken | None]) -> ReadingsTaken | None:
        """Keep what `here` gives of each reading, where it is one of the stretch gone on with; the newest of them."""
        known = {r.step: r for r in self._newest.values()}
        self._newest.clear()
        kept = [moved for _, r in sorted(known.items()) if (moved := here(r)) is not None]
        for reading in kept:
            self.add(reading)
        return kept[-1] if kept else None

    def older(self, newest: ReadingsTaken | None) -> list[ReadingsTaken]:
        """What the newest reading lacks, oldest first: it and these, added again, make the same."""
        at = newest.step if newest is not None else None
        kept = {r.step: r for r in self._newest.values() if r.step != at}
        return [
            msgspec.structs.replace(r, values={m: r.values[m] for m, of in self._newest.items() if of is r})
            for _, r in sorted(kept.items())
        ]
