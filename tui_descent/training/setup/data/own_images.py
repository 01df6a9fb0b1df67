"""The user's own images as data."""

from __future__ import annotations

import torch
from torch import Tensor

from tui_descent.scenario.own_data import images
from tui_descent.scenario.spec import OwnImagesData
from tui_descent.training.setup.data.batches import DataSet


def load(spec: OwnImagesData, *, seed: int) -> DataSet:
    """Load the images. Inputs are float32, (n, height · width). Raises `ValueError`.

    A fifth of the images, drawn from the seed, is held out. Pixels are divided by 255; then the training mean of each
    pixel is subtracted, and all are divided by the standard deviation of the training data.
    """
    found, raw, y, order = _tables(spec, seed)
    chosen, held_out = order[: found.training], order[len(order) - found.held_out :]
    x, held_out_x = raw[chosen].float() / 255, raw[held_out].float() / 255
    mean = x.mean(dim=0)
    x, held_out_x = x - mean, held_out_x - mean
    std = x.std().clamp(min=1e-6)  # 0 if all images are equal
    return DataSet(
        x=x / std,
        y=y[chosen],
        held_out_x=held_out_x / std,
        held_out_y=y[held_out],
        classes=found.classes,
        image=(found.height, found.width),
    )


def held_out_pixels(spec: OwnImagesData, *, seed: int, count: int) -> Tensor:
    """The first held-out images as they are in the file: (at most count, height · width), bytes from 0 to 255."""
    found, raw, _, order = _tables(spec, seed)
    return raw[order[len(order) - found.held_out :][:count]]


def _tables(spec: OwnImagesData, seed: int) -> tuple[images.Sizes, Tensor, Tensor, Tensor]:
    """Sizes, pixels (n, height · width) and classes (n,) as in the file, and the order from which images are taken."""
    found = images.read(spec)
    raw = torch.frombuffer(bytearray(found.pixels), dtype=torch.uint8).view(-1, found.sizes.pixels)
    y = torch.frombuffer(bytearray(found.labels), dtype=torch.uint8).long()
    return found.sizes, raw, y, torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
