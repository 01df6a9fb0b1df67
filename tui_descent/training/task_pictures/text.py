"""The picture of a text: lines that the net writes, and its loss at each character of held-out text."""

from __future__ import annotations

import time
from array import array

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_descent.protocol.task_pictures import MAX_LINE, MAX_TEXT, TEXT_LINES, TextPicture
from tui_descent.scenario.spec import TransformerModel
from tui_descent.training.setup.build import Setup

MOST_WINDOWS = 24
# One character takes a pass of its own. The first picture gets lines that can be read, later ones what fits into this
# time: a picture must not take longer than the wait between two steps.
FIRST_CHARACTERS, WRITE_S = 40, 0.004


class TextPainter:
    """Makes the pictures of one run on the text. It draws characters with a generator of its own."""

    def __init__(self, setup: Setup) -> None:
        assert setup.batches is not None
        assert isinstance(setup.scenario.model, TransformerModel)
        data, context = setup.batches.data, setup.scenario.model.context
        count = max(1, min(MOST_WINDOWS, MAX_TEXT // context))
        self._setup, self._context = setup, context
        # The net has outputs for more characters than a short text has; it does not write those.
        self._symbols = data.symbols
        self._x, self._y = data.held_out_x[:count], data.held_out_y[:count]  # (windows, context)
        self._windows = tuple(self._text(window) for window in self._y)
        self._generator = torch.Generator().manual_seed(setup.scenario.run.seed)
        # Each line begins after a line feed, which is not part of it.
        self._codes = torch.full((TEXT_LINES, 1), self._symbols.index("\n"), device=data.x.device)

    def picture(self, columns: int, rows: int) -> TextPicture:
        """The picture, whatever the size of the screen."""
        logits = self._setup.outputs(self._x).float()  # (windows, context, symbols)
        losses = F.cross_entropy(logits.flatten(0, 1), self._y.flatten(), reduction="none")
        new = self._write()
        return TextPicture(
            lines=tuple(self._text(line)[-MAX_LINE:] for line in self._codes[:, 1:]),
            new=new,
            windows=self._windows,
            losses=array("f", losses.tolist()).tobytes(),
            loss=losses.mean().item(),
        )

    def _write(self) -> int:
        """Append characters to all lines at once. Returns their number: 0 if the outputs are not finite."""
        end_s, first = time.perf_counter() + WRITE_S, self._codes.shape[1] == 1
        new = 0
        while new < (FIRST_CHARACTERS if first else 1) or (not first and time.perf_counter() < end_s):
            chances = (
                self._setup.outputs(self._codes[:, -self._context :])[:, -1, : len(self._symbols)].softmax(dim=-1).cpu()
            )
            if not bool(chances.isfinite().all()):
                return new
            drawn = torch.multinomial(chances, 1, generator=self._generator)  # (lines, 1)
            self._codes = torch.cat([self._codes, drawn.to(self._codes.device)], dim=1)
            new += 1
        # Not all of the lines are kept, but always what the net sees next, and a column for the line feed before.
        self._codes = self._codes[:, -max(MAX_LINE + 1, self._context) :]
        return new

    def _text(self, codes: Tensor) -> str:
        return "".join(self._symbols[code] for code in codes.tolist())
