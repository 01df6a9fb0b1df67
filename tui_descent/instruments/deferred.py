"""Results whose numbers are still on the device: copied to the host all at once, without waiting for the device.

On a CPU the numbers are there at once. From a GPU they are copied into pinned memory while the training goes on;
`HostCopy.ready` says whether they have arrived, without synchronising.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
# Types of devices from which a number cannot be read without waiting for all work queued before it.
ASYNCHRONOUS = {"cuda"}


def is_asynchronous(device: torch.device) -> bool:
    """Whether reading a number from the device waits for it.

    There results are read later, and sums are made in float64, since they cannot be checked and made again.
    """
    return device.type in ASYNCHRONOUS


@dataclass(frozen=True, slots=True)
class Deferred(Generic[T]):
    """A result to be computed on the host by `read` from the numbers of `columns`, (k,) each and on the device.

    `read` takes the numbers of all columns, one column after the other. Without columns the result needs no numbers.
    """

    columns: Sequence[Tensor]
    read: Callable[[Sequence[float]], T]

    @property
    def count(self) -> int:
        """How many numbers `read` takes."""
        return sum(len(column) for column in self.columns)

    def result(self) -> T:
        """The result; waits for its numbers."""
        return self.read(HostCopy(self.columns).values() if self.columns else ())


def combine(parts: Sequence[Deferred[T]]) -> Deferred[list[T]]:
    """Several results as one, so that their numbers are copied together."""

    def read(values: Sequence[float]) -> list[T]:
        results, at = [], 0
        for part in parts:
            results.append(part.read(values[at : at + part.count]))
            at += part.count
        return results

    return Deferred([column for part in parts for column in part.columns], read)


class HostCopy:
    """A copy of the columns' numbers to the host, started at once; float64 if one of the columns is."""

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
    def ready(self) -> bool:
        """Whether the numbers have arrived; does not wait."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def values(self) -> list[float]:
        """The numbers, one column after the other; waits until they have arrived."""
        if self._event is not None and not self.ready:
            self._event.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers
