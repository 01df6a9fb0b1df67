"""Text as data: Python's help pages (`pydoc_data.topics`), which need no download, or the user's own text; and batches
of random windows of it.

The pages differ between Python versions, so a seed reproduces batches only with the same Python version.
"""

from __future__ import annotations

import importlib
import string

import torch
from torch import Tensor

from tui_descent.scenario.own_data import text as own_text
from tui_descent.scenario.spec import SYMBOLS as SYMBOL_COUNT
from tui_descent.scenario.spec import OwnTextData
from tui_descent.training.setup.data.batches import DataSet

# Fixed, because a net's shape must not depend on the Python version.
SYMBOLS = "\n" + "".join(sorted(set(string.printable) - set(string.whitespace) | {" "}))
HELD_OUT = 0.1  # fraction of the text, at its end
HELD_OUT_WINDOWS = 128
LARGEST_BATCH = 4096


def load(context: int) -> DataSet:
    """Load the text as character codes: `x` (n,) for training, and held-out windows (128, context).

    The target of each character is the next one. There are about 465,000 characters, all of them printable ASCII or
    line feeds; others are left out. Raises `ValueError` if this Python has no help pages.
    """
    ascii_codes = torch.frombuffer(bytearray(pages(), "ascii", "ignore"), dtype=torch.uint8)
    codes = _CODES[ascii_codes.int()]
    return data_set(codes[codes >= 0], SYMBOLS, context)


def load_own(spec: OwnTextData, context: int) -> DataSet:
    """Load the user's own text in the same way, with the characters of that text. Raises `ValueError`."""
    found = own_text.read(spec, context)
    code_of = {symbol: code for code, symbol in enumerate(found.symbols)}
    return data_set(torch.tensor([code_of[character] for character in found.characters]), found.symbols, context)


def data_set(codes: Tensor, symbols: str, context: int) -> DataSet:
    """Character codes (n,) as data: the last tenth is held out. A net has outputs for `spec.SYMBOLS` codes, even if
    there are fewer symbols.
    """
    cut = round(len(codes) * (1 - HELD_OUT))
    train, held_out = codes[:cut], codes[cut:]
    starts = torch.linspace(0, len(held_out) - context - 1, HELD_OUT_WINDOWS).long()
    x, y = windows(held_out, starts, context)
    return DataSet(x=train, y=train[1:], held_out_x=x, held_out_y=y, classes=SYMBOL_COUNT, symbols=symbols)


def pages() -> str:
    """All help pages, ordered by name."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise ValueError("data text needs Python's help pages (pydoc_data); this Python has none") from error
    return "\n".join(topics[name] for name in sorted(topics))


def windows(codes: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """The windows of `codes` (n,) that begin at `starts` (B,), and the windows shifted by one: each (B, context)."""
    positions = starts[:, None] + torch.arange(context, device=starts.device)  # (B, T)
    return codes[positions], codes[positions + 1]


class Windows:
    """Endless batches of windows at random positions. The positions come from a random number generator that only these
    batches use.
    """

    def __init__(self, data: DataSet, *, batch_size: int, context: int, seed: int) -> None:
        self.data = data
        self.size = batch_size
        self.samples_each = context
        self.full = False
        self._context = context
        # On the CPU, so that the order does not depend on the device.
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def largest(self) -> int:
        """The largest possible batch size."""
        return LARGEST_BATCH

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` adjacent windows from the beginning of the text, or as many as there are."""
        fit = (len(self.data.x) - 1) // self._context
        starts = torch.arange(min(count, fit), device=self.data.x.device) * self._context
        return windows(self.data.x, starts, self._context)

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch: character codes, and for each the code of the next character; both (size, context)."""
        starts = torch.randint(len(self.data.x) - self._context, (self.size,), generator=self._generator)
        return windows(self.data.x, starts.to(self.data.x.device), self._context)

    def state(self) -> tuple[Tensor, int]:
        """Everything that determines the next batches: the state of the generator, and the batch size."""
        return self._generator.get_state(), self.size

    def restore(self, state: tuple[Tensor, int]) -> None:
        """Continue with the batches that followed the call of `state`."""
        generator, self.size = state
        self._generator.set_state(generator)


_CODES = torch.tensor([SYMBOLS.find(chr(n)) for n in range(128)])  # by ASCII code; -1: left out
