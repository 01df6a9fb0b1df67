"""What is written of an update and of its reading: into the shared memory, and what has no room there as events."""

from __future__ import annotations

from typing import NamedTuple

from tui_descent.instruments.measuring import Sample
from tui_descent.protocol.events import LedgerTaken, Measured
from tui_descent.training.link import Link


class Place(NamedTuple):
    """Where and when an update was made, and at what rate."""

    segment: int
    step: int
    rate: float
    time_s: float

    def write(self, link: Link | None, loss: float, *, skipped: bool) -> None:
        """Its record."""
        if link is not None and link.ring is not None:
            link.ring.write_step(self.step, loss, self.rate, self.time_s, self.segment, skipped)


class ReadingPlace(NamedTuple):
    """Where a reading belongs, and the number of the list of layers that it was taken of."""

    segment: int
    step: int
    structure: int

    def write(self, link: Link | None, sample: Sample, rare: dict[str, float], *, cost: float) -> None:
        """Its record, the rare tier's values, the ledger; `cost` is the share of time that watching took so far."""
        if link is None or link.ring is None:
            return
        link.ring.write_reading(
            self.step,
            self.segment,
            sample.global_grad_norm,
            cost,
            sample.rows,
            global_cosine=sample.global_cosine,
            grad_norm_preclip=sample.grad_norm_preclip,
            structure=self.structure,
        )
        for name, value in rare.items():
            link.tell(Measured(segment=self.segment, step=self.step, name=name, value=value))
        if sample.ledger is not None:
            link.tell(LedgerTaken(segment=self.segment, step=self.step, entries=sample.ledger))
