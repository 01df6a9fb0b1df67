"""The picture of the digits: what the net takes held-out images for, and its most frequent mistakes."""

from __future__ import annotations

import torch
from torch import Tensor

from tui_descent.protocol.task_pictures import MAX_CONFUSIONS, MAX_DIGITS, NO_GUESS, Confusion, DigitsPicture
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.data.digits import held_out_pixels

CLASSES = 10


class DigitsPainter:
    """Makes the pictures of one run on the digits."""

    def __init__(self, setup: Setup) -> None:
        assert setup.batches is not None
        self._setup = setup
        self._x, self._y = setup.batches.data.held_out_x, setup.batches.data.held_out_y.cpu()  # (n, 64), (n,)
        self._fits_outputs = setup.scenario.loss is not None and setup.scenario.loss.name == "mse"
        self._pixels = bytes(held_out_pixels()[:MAX_DIGITS].flatten().tolist())
        self._digits = bytes(self._y[:MAX_DIGITS].tolist())

    def picture(self, columns: int, rows: int) -> DigitsPicture:
        """The picture, whatever the size of the screen. All held-out images are evaluated in one pass."""
        outputs = self._setup.outputs(self._x).cpu().double()  # (n, 10)
        known = outputs.isfinite().all(dim=1)
        guesses = torch.where(known, outputs.argmax(dim=1), NO_GUESS)
        chances = outputs.clamp(0, 1) if self._fits_outputs else outputs.softmax(dim=1)
        sureness = torch.where(known, (chances.amax(dim=1) * 255).round(), 0)
        return DigitsPicture(
            pixels=self._pixels,
            digits=self._digits,
            guesses=bytes(guesses[:MAX_DIGITS].tolist()),
            sureness=bytes(sureness[:MAX_DIGITS].int().tolist()),
            right=int((guesses == self._y).sum()),
            count=len(self._y),
            confusions=confusions(self._y[known], guesses[known]),
        )


def confusions(true: Tensor, guesses: Tensor) -> tuple[Confusion, ...]:
    """The most frequent mistakes, the most frequent one first. Digits and guesses have the shape (n,)."""
    counts = torch.bincount(true * CLASSES + guesses, minlength=CLASSES**2)
    counts.view(CLASSES, CLASSES).fill_diagonal_(0)
    most = counts.argsort(descending=True, stable=True)[:MAX_CONFUSIONS].tolist()
    return tuple(Confusion(pair // CLASSES, pair % CLASSES, n) for pair in most if (n := int(counts[pair])) > 0)
