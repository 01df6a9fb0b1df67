"""The picture of images: what the net takes held-out ones for, and its most frequent mistakes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_descent.protocol.task_pictures import (
    MAX_CONFUSIONS,
    MAX_DIGITS,
    MAX_IMAGE_SIDE,
    NO_GUESS,
    Confusion,
    DigitsPicture,
)
from tui_descent.scenario.spec import OwnImagesData
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.data import digits, own_images

BRIGHTEST = 16  # the largest value of a pixel in a picture


class DigitsPainter:
    """Makes the pictures of one run on the digits, or on the user's own images."""

    def __init__(self, setup: Setup) -> None:
        assert setup.batches is not None
        self._setup = setup
        self._classes = setup.batches.data.classes
        self._x, self._y = setup.batches.data.held_out_x, setup.batches.data.held_out_y.cpu()  # (n, pixels), (n,)
        self._fits_outputs = setup.scenario.loss is not None and setup.scenario.loss.name == "mse"
        images = _held_out_images(setup)  # (n, height, width)
        self._height, self._width = images.shape[1:]
        self._pixels = bytes(images.flatten().tolist())
        self._digits = bytes(self._y[:MAX_DIGITS].tolist())

    def picture(self, columns: int, rows: int) -> DigitsPicture:
        """The picture, whatever the size of the screen. All held-out images are evaluated in one pass."""
        outputs = self._setup.outputs(self._x).cpu().double()  # (n, classes)
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
            confusions=confusions(self._y[known], guesses[known], self._classes),
            height=self._height,
            width=self._width,
        )


def _held_out_images(setup: Setup) -> Tensor:
    """The first held-out images for the screen: (n, height, width), bytes from 0 to `BRIGHTEST`."""
    spec = setup.scenario.data
    if not isinstance(spec, OwnImagesData):
        return digits.held_out_pixels()[:MAX_DIGITS].view(-1, 8, 8)
    assert setup.batches is not None
    assert setup.batches.data.image is not None
    pixels = own_images.held_out_pixels(spec, seed=setup.scenario.run.seed, count=MAX_DIGITS)
    return shrunk(pixels.view(-1, *setup.batches.data.image))


def shrunk(images: Tensor) -> Tensor:
    """Images (n, height, width) of bytes from 0 to 255 as bytes from 0 to `BRIGHTEST`. Each side is divided by the same
    whole number, so that none is longer than `MAX_IMAGE_SIDE`; each new pixel is the mean of old ones.
    """
    by = math.ceil(max(images.shape[1:]) / MAX_IMAGE_SIDE)
    size = (math.ceil(images.shape[1] / by), math.ceil(images.shape[2] / by))
    small = F.adaptive_avg_pool2d(images.double()[:, None], size)[:, 0]
    return (small / 255 * BRIGHTEST).round().byte()


def confusions(true: Tensor, guesses: Tensor, classes: int = 10) -> tuple[Confusion, ...]:
    """The most frequent mistakes, the most frequent one first. Classes and guesses have the shape (n,)."""
    counts = torch.bincount(true * classes + guesses, minlength=classes**2)
    counts.view(classes, classes).fill_diagonal_(0)
    most = counts.argsort(descending=True, stable=True)[:MAX_CONFUSIONS].tolist()
    return tuple(Confusion(pair // classes, pair % classes, n) for pair in most if (n := int(counts[pair])) > 0)
