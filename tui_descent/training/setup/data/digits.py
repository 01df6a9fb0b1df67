"""The 1,797 hand-written digits shipped with the package. Source and licence: `DIGITS.md`."""

from __future__ import annotations

import lzma
from pathlib import Path

import torch
from torch import Tensor

from tui_descent.scenario.spec import DigitsData
from tui_descent.training.setup.data.batches import DataSet

TRAIN = 1437  # the number of training samples; the rest is held out
PIXELS = 64


def load(spec: DigitsData) -> DataSet:
    """Load the digits. Inputs are float32, (n, 64).

    Pixels are divided by 16; then the training mean of each pixel is subtracted, and all are divided by the standard
    deviation of the training data.
    """
    table = _table()
    x, y = table[:, :PIXELS].float() / 16, table[:, PIXELS].long()
    x = x - x[:TRAIN].mean(dim=0)
    x = x / x[:TRAIN].std()
    n = spec.subset or TRAIN
    return DataSet(x=x[:n], y=y[:n], held_out_x=x[TRAIN:], held_out_y=y[TRAIN:], classes=10, image=(8, 8))


def held_out_pixels() -> Tensor:
    """The held-out images as they were before normalisation: (360, 64), bytes from 0 to 16."""
    return _table()[TRAIN:, :PIXELS]


def _table() -> Tensor:
    """All images with their digits: (1797, 65), bytes."""
    raw = bytearray(lzma.decompress((Path(__file__).parent / "digits.xz").read_bytes()))
    return torch.frombuffer(raw, dtype=torch.uint8).view(-1, PIXELS + 1)
