"""Characters that need no download: Python's own help pages (`pydoc_data.topics`), and random windows of them.

Every Python version has its own pages, so the same seed gives the same batches only under one version.
"""

from __future__ import annotations

import importlib
import string

import torch
from torch import Tensor

from tui_descent.training.data.batches import DataSet

# Fixed, whatever the pages hold: a net's shape must not depend on the Python version.
SYMBOLS = "\n" + "".join(sorted(set(string.printable) - set(string.whitespace) | {" "}))
HELD_OUT = 0.1  # the last part of the text
HELD_OUT_WINDOWS = 128
LARGEST_BATCH = 4096


def load(context: int) -> DataSet:
    """Numbers of the symbols: x (n,) to train on, held out (128, context) with the next symbol of each place.

    About 465,000 symbols; other characters than line ends and printable ASCII are left out.
    Raises `ValueError` where this Python has no help pages.
    """
    codes = torch.tensor([_NUMBER[c] for c in pages() if c in _NUMBER])
    cut = round(len(codes) * (1 - HELD_OUT))
    train, held_out = codes[:cut], codes[cut:]
    starts = torch.linspace(0, len(held_out) - context - 1, HELD_OUT_WINDOWS).long()
    x, y = windows(held_out, starts, context)
    return DataSet(x=train, y=train[1:], held_out_x=x, held_out_y=y, classes=len(SYMBOLS))


def pages() -> str:
    """All help pages in the order of their names."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise ValueError("this Python comes without its help pages (pydoc_data), the text of data text") from error
    return "\n".join(topics[name] for name in sorted(topics))


def windows(codes: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """The windows that begin at `starts` (B,), and the same one place on: each (B, context)."""
    places = starts[:, None] + torch.arange(context, device=starts.device)  # (B, T)
    return codes[places], codes[places + 1]


class Windows:
    """Endless batches of windows, each begun anywhere, by a generator that only the seed decides."""

    def __init__(self, data: DataSet, *, batch_size: int, context: int, seed: int) -> None:
        self.data = data
        self.size = batch_size
        self.full = False
        self._context = context
        # On the CPU, so that the order does not depend on the device.
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def largest(self) -> int:
        """The largest batch there can be."""
        return LARGEST_BATCH

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Windows side by side from the text's beginning, as many as fit."""
        fit = (len(self.data.x) - 1) // self._context
        starts = torch.arange(min(count, fit), device=self.data.x.device) * self._context
        return windows(self.data.x, starts, self._context)

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch: symbols and the ones that follow, each (size, context)."""
        starts = torch.randint(len(self.data.x) - self._context, (self.size,), generator=self._generator)
        return windows(self.data.x, starts.to(self.data.x.device), self._context)

    def state(self) -> tuple[Tensor, int]:
        """What the coming batches depend on: the generator and the batch size."""
        return self._generator.get_state(), self.size

    def restore(self, state: tuple[Tensor, int]) -> None:
        """Go on as when `state` was taken."""
        generator, self.size = state
        self._generator.set_state(generator)


_NUMBER = {symbol: number for number, symbol in enumerate(SYMBOLS)}
