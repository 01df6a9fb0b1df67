"""Writes readings into shared memory. Values that have no column there are sent as events."""

from __future__ import annotations

from dataclasses import dataclass

from tui_descent.instruments.instrument_set import Sample
from tui_descent.protocol.events import LedgerTaken, Measured
from tui_descent.training.keeper_link import KeeperLink


@dataclass(frozen=True, slots=True)
class ReadingPlace:
    """The segment and step of a reading. `structure` is the number of the list of layers that its rows belong to."""

    segment: int
    step: int
    structure: int

    def write(self, link: KeeperLink | None, sample: Sample, rare: dict[str, float], *, cost: float) -> None:
        """Write a reading. `rare` maps names to the values of the tier `rare`; `sample` holds all other values.

        `cost` is the share of the time that watching takes.
        """
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
            link.emit(Measured(segment=self.segment, step=self.step, name=name, value=value))
        if sample.ledger is not None:
            link.emit(LedgerTaken(segment=self.segment, step=self.step, entries=sample.ledger))
