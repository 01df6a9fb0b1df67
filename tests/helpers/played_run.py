"""A scenario run, made step by step by the test."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import torch
from digests import digest
from fake_keeper import FakeKeeper

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import AnyCommand
from tui_descent.protocol.events import RunStarted
from tui_descent.scenario.knobs import parse
from tui_descent.scenario.toml import from_text
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.undo.undo_stack import UndoStack
from tui_descent.training.watch.watch import Watch

ABOUT = RunStarted(
    run="", title="", name="", scenario={}, device="cpu", threads=1, parameters=0, layers=(), knobs=(), steps=500
)
TURNS = {40: "lr=*2", 80: "activation=gelu", 120: "residual=on"}  # each in another epoch
SCENARIO = """
title = "undo"
[data]
name = "digits"
batch_size = 48
[model]
name = "mlp"
depth = 4
width = 24
activation = "tanh"
norm = "layer"
dropout = 0.2
[optimizer]
name = "adam"
lr = 2e-3
[schedule]
name = "cosine"
[run]
steps = 500
seed = 5
"""


class PlayedRun:
    """A scenario run. Commands are sent during one step and act before the next."""

    def __init__(self, keeper: FakeKeeper, plan: dict[int, str], *, budget: int = 256_000_000) -> None:
        keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there", undo_budget=budget)
        self.keeper = keeper
        self.setup: Setup = build(from_text(SCENARIO, source="test"), on=torch.device("cpu"))
        self.watch = Watch(
            self.setup.model,
            self.setup.optimizer,
            link=keeper.link,
            steering=Steering(self.setup.model, self.setup.optimizer, setup=self.setup, seed=5, steps=500, init="he"),
            plan=[(at, parse(turn)) for at, turn in plan.items()],
            about=ABOUT,
            is_scenario=True,
            state=(self.setup,),
            sampler=Sampler(every=7),
        )
        self.losses: list[float] = []
        self.watch.__enter__()
        self.watch.begin_step()

    @property
    def undo(self) -> UndoStack:
        assert self.watch.control.undo_stack is not None
        return self.watch.control.undo_stack

    def step(self, *asked: AnyCommand) -> None:
        setup = self.setup
        loss = setup.loss()
        setup.optimizer.zero_grad()
        loss.backward()
        setup.optimizer.step()
        self.losses.append(loss.item())
        for command in asked:
            self.keeper.send(command)
        if asked:  # during fast steps, commands are otherwise received at most every 50 ms
            self.watch.control.received_s = -math.inf
        self.watch.step(loss)

    def go(self, until: int, *asked: AnyCommand) -> list[float]:
        """Make the steps before `until`; the commands act before step `until`. Returns the losses."""
        self.losses = []
        while self.watch.next_step < until - 1:
            self.step()
        self.step(*asked)
        return self.losses

    def digest(self) -> str:
        return digest(self.undo.holders())


def losses_without_undo(folder: Path, until: int, plan: dict[int, str] | None = None) -> list[float]:
    """The losses of a run without any undo."""
    folder.mkdir()
    keeper = FakeKeeper(folder)
    run = PlayedRun(keeper, plan or {})
    losses = run.go(until)
    run.watch.__exit__(None, None, None)
    keeper.close()
    return losses
