"""A watched loop that calls its own optimizer throughout, and a plain one that calls another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from nets import digit_batches, loss_of
from torch import nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.scenario.knobs import parse
from tui_descent.training.watch import Watch

AT, STEPS = 4, 10


def train(
    net: nn.Module, optimizer: torch.optim.Optimizer, plan: Iterable[tuple[int, str]] = (), link: Any = None, **how: Any
) -> list[float]:
    """Losses of a watched loop that calls its own optimizer throughout."""
    losses = []
    scheduler = how.get("scheduler")
    with Watch(
        net, optimizer, link=link, plan=[(at, parse(text)) for at, text in plan], sampler=Sampler(every=1)
    ) as run:
        for batch in digit_batches(STEPS):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            run.step(loss)
            losses.append(loss.item())
    return losses


def twin(net: nn.Module, optimizer: torch.optim.Optimizer, change: Callable[[Any], Any]) -> list[float]:
    """Losses of a plain loop that calls what `change` makes from update `AT` on."""
    losses = []
    for n, batch in enumerate(digit_batches(STEPS)):
        if n == AT:
            optimizer = change(optimizer)
        loss = loss_of(net, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
