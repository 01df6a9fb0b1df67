"""A scenario run without a keeper that may die at any step, and the same run resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from torch import Tensor

from tui_descent.protocol.commands import AnyCommand, Stop, Undo
from tui_descent.protocol.launch import Launch
from tui_descent.scenario.toml import from_text, to_table
from tui_descent.training import scenario_run
from tui_descent.training.setup import build
from tui_descent.training.watch import watch

SCENARIO = """
title = "resume"
[data]
name = "digits"
batch_size = 48
subset = 400
[model]
name = "mlp"
depth = 3
width = 16
activation = "tanh"
norm = "layer"
dropout = 0.2
[optimizer]
name = "adam"
lr = 2e-3
[schedule]
name = "cosine"
[run]
steps = 120
seed = 5
device = "cpu"
"""
STEPS = 120
PLAN = ((20, "lr=*2"), (45, "residual=on"), (90, "activation=gelu"), (100, "optimizer=momentum"))


class Killed(BaseException):
    """Takes the place of a SIGKILL: nothing of the trainer runs after it, except for what closes the connection."""


class Run:
    """One part of a run, from its start or its resumption to its end or its death."""

    def __init__(
        self,
        folder: Path,
        launch: Launch,
        *,
        kill_at: int | None = None,
        sent: Mapping[int, Sequence[AnyCommand]] | None = None,
        **commands: int,
    ) -> None:
        self.keeper = FakeKeeper(folder)
        self.keeper.link.launch = launch
        killed = Killer(self.keeper, kill_at, sent or {}, **commands)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build.Setup, "loss", lambda setup: killed.loss(setup))
            patch.setattr(watch, "COMMANDS_EVERY_S", 0.0)
            with contextlib.suppress(Killed):
                self.code = scenario_run.train_scenario(self.keeper.link)
        torch.set_num_threads(1)
        self.losses = {(record.segment, record.step): record.loss for record in self.keeper.steps()}
        self.events = self.keeper.events()
        self.keeper.close()

    def all(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class Killer:
    """Computes the loss, but dies when it has been asked for `kill_at` others. The commands in `sent` act when as many
    losses have been computed, an undo after `undo_at`, and the command to stop after `stop_at`.
    """

    def __init__(
        self,
        keeper: FakeKeeper,
        kill_at: int | None,
        sent: Mapping[int, Sequence[AnyCommand]],
        *,
        undo_at: int = -1,
        stop_at: int = -1,
    ) -> None:
        self.keeper, self.kill_at, self.calls = keeper, kill_at, 0
        self.commands: dict[int, Sequence[AnyCommand]] = {undo_at: [Undo()], stop_at: [Stop()], **sent}
        self.original: Callable[[build.Setup], Tensor] = build.Setup.loss

    def loss(self, setup: build.Setup) -> Tensor:
        loss = self.original(setup)
        self.calls += 1
        for command in self.commands.get(self.calls, ()):
            self.keeper.send(command)
        if self.calls - 1 == self.kill_at:
            raise Killed
        return loss


def launch_of(folder: Path, **settings: Any) -> Launch:
    table = to_table(from_text(SCENARIO, source="test"))
    settings = {"snapshot_every_s": 0.02, "plan": PLAN, **settings}
    return Launch(run="r", name="r", folder=str(folder), socket="there", scenario=table, **settings)


def losses_of(*parts: Run) -> dict[int, float]:
    """The loss of each step; a later part replaces what an earlier one has made."""
    return {step: loss for part in parts for (_, step), loss in part.losses.items()}
