"""Numbers that are still on the device, and what is made of them once they are here: one copy for all, never a wait.

On a CPU they are here at once. From a GPU they travel into pinned memory beside the training; whoever waits for them
asks `Arrival.here` between two steps, which does not synchronise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
# Kinds of devices whose numbers cannot be looked at without waiting for all that was asked of them before.
FAR = {"cuda"}


def far(device: torch.device) -> bool:
    """Whether its numbers are to be read late, and sums made in float64 at once, since no second look is free."""
    return device.type in FAR


@dataclass(frozen=True, slots=True)
class Deferred(Generic[T]):
    """A result of `columns`, (k,) each and on the device: `read` makes it of their numbers, one after the other."""

    columns: Sequence[Tensor]
    read: Callable[[Sequence[float]], T]

    @property
    def count(self) -> int:
        """How many numbers `read` takes."""
        return sum(len(column) for column in self.columns)

    def now(self) -> T:
        """The result, waited for."""
        return self.read(Arrival(self.columns).values() if self.columns else ())


def together(parts: Sequence[Deferred[T]]) -> Deferred[list[T]]:
    """Several results as one: their columns one after the other."""

    def read(values: Sequence[float]) -> list[T]:
        found, at = [], 0
        for part in parts:
            found.append(part.read(values[at : at + part.count]))
            at += part.count
        return found

    return Deferred([column for part in parts for column in part.columns], read)


class Arrival:
    """Columns' numbers on their way to the host, in float64 where one of them is."""

    def __init__(self, columns: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = torch.zeros(0)
        if not columns:
            return
        first = columns[0].device
        packed = torch.cat([column if column.device == first else column.to(first) for column in columns])
        if first.type != "cuda":
            self._host = packed
            return
        self._host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        self._host.copy_(packed, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    @property
    def here(self) -> bool:
        """Whether they have arrived."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def values(self) -> list[float]:
        """The numbers; waits for those that have not arrived."""
        if self._event is not None and not self.here:
            self._event.synchronize()
        found: list[float] = self._host.tolist()
        return found
