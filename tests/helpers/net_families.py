"""Setups of every family of nets, small, and their training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from tui_descent.scenario.toml import from_table
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.steering.surgery import Transition

DATA = {"mlp": "digits", "conv": "digits", "transformer": "text"}


def setup(family: str, *, seed: int = 0, optimizer: Any = None, dtype: str = "float32", **model: Any) -> Setup:
    small = {"depth": 3, "width": 16} if family != "transformer" else {"depth": 2, "width": 16, "context": 12}
    table = {
        "title": "t",
        "data": {"name": DATA[family], "batch_size": 8 if family == "transformer" else 64},
        "model": {"name": family} | small | model,
        "optimizer": optimizer or {"name": "adam", "lr": 1e-3},
        "run": {"seed": seed, "dtype": dtype},
    }
    return build(from_table(table, source="test"), on=torch.device("cpu"))


def train(made: Setup, steps: int, transitions: Iterable[Transition] = ()) -> list[float]:
    under_way, losses = list(transitions), []
    for _ in range(steps):
        under_way = [t for t in under_way if not t.advance()]
        loss = made.loss()
        made.optimizer.zero_grad()
        loss.backward()
        made.optimizer.step()
        losses.append(loss.item())
    return losses
