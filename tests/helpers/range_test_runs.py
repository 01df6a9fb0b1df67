"""Scenario runs for range tests."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import torch
from digests import digest
from fake_keeper import FakeKeeper
from played_run import SCENARIO
from torch import Tensor, nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import AnyCommand
from tui_descent.protocol.events import RunStarted
from tui_descent.scenario.knobs import parse
from tui_descent.scenario.toml import from_table
from tui_descent.training.probes.range_test import RangeTest
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.watch.watch import Watch

ABOUT = RunStarted(
    run="", title="", name="", scenario={}, device="cpu", threads=1, parameters=0, layers=(), knobs=(), steps=60
)

SHUFFLED = SCENARIO.replace("steps = 500", "steps = 60")

CPU = torch.device("cpu")


def setup_of(text: str, **optimizer: Any) -> Setup:
    table = tomllib.loads(text) | ({"optimizer": optimizer} if optimizer else {})
    return build(from_table(table, source="test"), on=CPU)


class Run:
    """A scenario run, made step by step. Commands are sent during one step and act before the next."""

    def __init__(self, keeper: FakeKeeper, made: Setup, *, plan: dict[int, str] | None = None, **how: Any) -> None:
        self.keeper, self.setup = keeper, made
        keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there")
        self.watch = Watch(
            made.model,
            made.optimizer,
            link=keeper.link,
            plan=[(at, parse(turn)) for at, turn in (plan or {}).items()],
            about=ABOUT,
            is_scenario=True,
            state=(made,),
            sampler=Sampler(every=1),
            steering=Steering(made.model, made.optimizer, setup=made, seed=1, steps=60, **how),
            replay=made,
        )
        self.losses: list[float] = []
        self.watch.__enter__()
        self.watch.begin_step()

    @property
    def steering(self) -> Steering:
        return self.watch.steering

    def step(self, *asked: AnyCommand) -> None:
        loss = self.setup.loss()
        self.setup.optimizer.zero_grad()
        loss.backward()
        self.setup.optimizer.step()
        self.losses.append(loss.item())
        for command in asked:
            self.keeper.send(command)
        self.watch.step(loss)

    def go(self, until: int, asked: dict[int, list[AnyCommand]] | None = None) -> list[float]:
        """Make the updates before `until`; the commands `asked[k]` act before update k. Returns all losses so far."""
        while self.watch.next_step < until:
            self.step(*(asked or {}).get(self.watch.next_step + 1, ()))
        return self.losses

    def digest(self) -> str:
        return digest([*self.steering.holders(), RandomState()])

    def end(self) -> None:
        self.watch.__exit__(None, None, None)


def nothing_asked(where: str) -> None:
    """No command arrives during the range test."""


def new_range_test(made: Setup, **how: Any) -> tuple[Steering, RangeTest]:
    steering = Steering(made.model, made.optimizer, setup=made, seed=1, steps=60, **how)
    return steering, RangeTest(steering, made)


def train_setup(made: Setup, steps: int) -> None:
    for _ in range(steps):
        made.optimizer.zero_grad()
        made.loss().backward()
        made.optimizer.step()


SMALL = (
    SHUFFLED.replace("dropout = 0.2", "")
    .replace('name = "cosine"', 'name = "constant"')
    .replace("seed = 5", 'seed = 5\ndtype = "float64"')
)


class NanAtLargeOutputs(nn.Module):
    """NaN or infinite as soon as an output is large."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs().max() < 12)
