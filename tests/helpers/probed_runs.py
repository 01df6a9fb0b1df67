"""Runs of presets in this process, to compare one that is probed between its steps with one that is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from nets import copy_of, same, same_state, state_of
from torch import Tensor

from tui_descent.scenario import presets
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.watch.watch import Watch


def made(name: str, *overrides: str) -> Setup:
    _, scenario = presets.find(name, overrides=list(overrides))
    return build(scenario, on=torch.device("cpu"))


class Outcome(NamedTuple):
    losses: list[float]
    random_numbers: Tensor
    training: list[bool]
    setup: Setup


def train(run: Watch, setup: Setup, steps: int, after_step: Callable[[], object] = int) -> list[float]:
    """The losses of some steps of a whole run. `after_step` is called after each update."""
    losses = []
    with run:
        run.begin_step()
        for _ in range(steps):
            if setup.path is not None:
                setup.path.add(run.next_step)
            loss = setup.loss()
            run.loss(loss)
            setup.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            setup.optimizer.step()
            losses.append(loss.item())
            after_step()
            run.step(loss)
    return losses


def outcome(run: Watch, setup: Setup, steps: int, after_step: Callable[[], object] = int) -> Outcome:
    """What is left of a run that starts from fixed random numbers."""
    torch.manual_seed(1)
    losses = train(run, setup, steps, after_step)
    return Outcome(losses, torch.get_rng_state(), [m.training for m in setup.model.modules()], setup)


def assert_same_run(one: Outcome, other: Outcome) -> None:
    """Bitwise the same losses, random numbers, weights and optimizer state."""
    assert one.losses == other.losses
    assert torch.equal(one.random_numbers, other.random_numbers)
    assert one.training == other.training
    assert same(copy_of(one.setup.model), copy_of(other.setup.model))
    assert same_state(state_of(one.setup.optimizer), state_of(other.setup.optimizer))
