"""Results with numbers that are still on the device. They are copied to the host together, without synchronising.

On a CPU the numbers are available at once. From a GPU they are copied into pinned memory while training continues;
`HostCopy.ready` says whether they have arrived.
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
    """Whether reading a number from the device means waiting for the device. If so, results are read later, and sums
    are computed in float64: to check a float32 sum and repeat it would mean waiting.
    """
    return device.type in ASYNCHRONOUS


@dataclass(frozen=True, slots=True)
class Deferred(Generic[T]):
    """A result that `read` computes on the host from the numbers in `columns`, tensors (k,) on the device.

    `read` gets the numbers of all columns in one sequence, one column after the other. If there are no columns, the
    result needs no numbers from the device.
    """

    columns: Sequence[Tensor]
    read: Callable[[Sequence[float]], T]

    @property
    def count(self) -> int:
        """How many numbers `read` gets."""
        return sum(len(column) for column in self.columns)

    def result(self) -> T:
        """The result. Waits until its numbers are on the host."""
        return self.read(HostCopy(self.columns).values() if self.columns else ())


def combine(parts: Sequence[Deferred[T]]) -> Deferred[list[T]]:
    """Combine several results into one, so that all their numbers are copied together."""

    def read(values: Sequence[float]) -> list[T]:
        results, at = [], 0
        for part in parts:
            results.append(part.read(values[at : at + part.count]))
            at += part.count
        return results

    return Deferred([column for part in parts for column in part.columns], read)


class HostCopy:
    """A copy of the columns' numbers to the host. It starts at once. It is float64 if one of the columns is float64."""

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
        """Whether the numbers have arrived. Does not wait."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def values(self) -> list[float]:
        """The numbers, one column after the other. Waits until they have arrived."""
        if self._event is not None and not self.ready:
            self._event.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers
