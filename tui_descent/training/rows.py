"""A sample's rows put into the places that the run's layers had when it began."""

from __future__ import annotations

from collections.abc import Sequence

from tui_descent.instruments.structure import Structure
from tui_descent.protocol.readings import pack_row


def laid_out(rows: list[tuple[float, ...]], net: Structure | None, names: Sequence[str]) -> list[tuple[float, ...]]:
    """One row a name; an empty one for a layer that surgery took out."""
    if net is None or len(rows) == len(names):
        return rows
    by_name = {watched.layer.name: row for watched, row in zip(net.layers, rows, strict=True)}
    return [by_name.get(name) or pack_row([], status="unused") for name in names]
