"""Data sets in memory, and shuffled batches of them in an order that depends only on the seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Inputs `x` (n, features) and class numbers `y` (n,) for training, and the same for the held-out data.

    For text, `x` and `y` are character codes (n,), and the held-out ones are windows (number of windows, context);
    `symbols` are the characters by code. For images, `image` is their height and width. `names` are the classes' names
    in the user's file, if it has some.
    """

    x: Tensor
    y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor
    classes: int
    symbols: str = ""
    image: tuple[int, int] | None = None
    names: tuple[str, ...] = ()

    @property
    def features(self) -> int:
        """The number of features of each input."""
        return self.x.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> DataSet:
        """Copy the data to a device. Inputs are converted to `dtype`, unless they are character codes."""
        input_dtype = dtype if self.x.is_floating_point() else self.x.dtype
        return replace(
            self,
            x=self.x.to(device, input_dtype),
            y=self.y.to(device),
            held_out_x=self.held_out_x.to(device, input_dtype),
            held_out_y=self.held_out_y.to(device),
        )


class Batches:
    """Endless batches. Every epoch is shuffled by a random number generator that only these batches use. An incomplete
    last batch is dropped.

    With `full`, every batch contains all samples in their original order.
    """

    samples_each = 1  # how many targets each row of a batch has

    def __init__(self, data: DataSet, *, batch_size: int, full: bool, seed: int) -> None:
        self.data = data
        self.size = len(data.x) if full else min(batch_size, len(data.x))
        self.full = full
        # On the CPU, so that the order does not depend on the device.
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.arange(0)
        self._cursor = 0

    @property
    def largest(self) -> int:
        """The largest possible batch size."""
        return len(self.data.x)

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` samples, or all if there are fewer."""
        return self.data.x[:count], self.data.y[:count]

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch: (size, features), (size,)."""
        if self.full:
            return self.data.x, self.data.y
        if self._cursor + self.size > len(self._order):
            self._order = torch.randperm(len(self.data.x), generator=self._generator).to(self.data.x.device)
            self._cursor = 0
        chosen = self._order[self._cursor : self._cursor + self.size]
        self._cursor += self.size
        return self.data.x[chosen], self.data.y[chosen]

    def state(self) -> tuple[Tensor, Tensor, int, int]:
        """Everything that determines the next batches: generator, order of the epoch, position in it, batch size."""
        return self._generator.get_state(), self._order, self._cursor, self.size

    def restore(self, state: tuple[Tensor, Tensor, int, int]) -> None:
        """Continue with the batches that followed the call of `state`."""
        generator, self._order, self._cursor, self.size = state  # not copied: an order is never changed in place
        self._generator.set_state(generator)
