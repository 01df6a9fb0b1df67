"""Norms in float64 NumPy, and what a reading's row has to be."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tui_descent.instruments.norms import RATIO_FLOOR
from tui_descent.protocol.events import ReadingsTaken
from tui_descent.training.setup.nets.surface import Surface

Array = NDArray[np.float64]
WITHIN = {torch.float32: 1e-5, torch.float64: 1e-12}


def array(tensor: Tensor) -> Array:
    return tensor.detach().numpy().astype(np.float64)


def l2(values: Array) -> float:
    """Scaled, so that squares neither vanish nor overflow."""
    largest = float(np.abs(values).max(initial=0.0))
    return largest * math.sqrt(math.fsum(((values / largest) ** 2).ravel().tolist())) if largest else 0.0


def close(found: float | None, wanted: float, within: float) -> bool:
    return found is not None and math.isclose(found, wanted, rel_tol=within, abs_tol=0.0)


def check_row(reading: ReadingsTaken, n: int, g: Array, before: Array, after: Array, within: float) -> None:
    values = {name: column[n] for name, column in reading.values.items()}
    delta = after - before
    where = f"step {reading.step}, layer {n}: {values}"
    assert close(values["grad_norm"], l2(g), within), where
    assert close(values["grad_rms"], l2(g) / math.sqrt(g.size), within), where
    assert close(values["weight_norm"], l2(before), within), where
    assert close(values["update_norm"], l2(delta), within), where
    if before.ndim >= 2:
        assert close(values["update_ratio"], l2(delta) / (l2(before) + RATIO_FLOOR), within), where
    else:
        assert values["update_ratio"] is None


def own_weight(module: nn.Module) -> nn.Parameter:
    """Of a module's own parameters the greatest matrix, else vector."""
    return max(module.parameters(recurse=False), key=lambda p: (min(p.dim(), 2), p.numel()))


class SurfaceAgain:
    def __init__(self, surface: Surface) -> None:
        self.surface = surface

    def replay_forward(self) -> Tensor:
        return self.surface()

    def loss_of_part(self, where: slice) -> Tensor | None:
        return None

    def size(self) -> int:
        return 0
