"""Scenario optimizers are fused on a GPU. Here they are fused on the CPU and behave as unfused ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from net_families import setup, train
from nets import copy_of, mlp
from played_run import PlayedRun, losses_without_undo
from torch import nn

from tui_descent.protocol.commands import Redo, Undo
from tui_descent.scenario.knobs import parse
from tui_descent.training.optim import optimizers
from tui_descent.training.optim.optimizers import swap
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.loss_readback import stoppable

FUSED_NAMES = ["sgd", "momentum", "nesterov", "adam", "adamw"]


@pytest.fixture
def fused_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "FUSED_ON", {"cpu"})


@pytest.mark.parametrize("name", [*FUSED_NAMES, "rmsprop", "muon"])
def test_scenario_optimizer_is_fused_on_a_gpu_if_torch_has_a_fused_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = setup("mlp", optimizer={"name": name, "lr": 1e-3})
    assert not stoppable(plain.optimizer)
    monkeypatch.setattr(optimizers, "FUSED_ON", {"cpu"})
    made = setup("mlp", optimizer={"name": name, "lr": 1e-3})
    assert stoppable(made.optimizer) == (name in FUSED_NAMES)
    for old in (made, plain):
        for new in FUSED_NAMES:
            if new != name:
                assert stoppable(swap(old.optimizer, new, model=old.model).optimizer)


@pytest.mark.parametrize("chosen", [{"fused": False}, {"foreach": True}, {"differentiable": True}], ids=str)
def test_flags_chosen_by_the_user_are_kept_by_a_swap(chosen: Any, fused_here: None) -> None:
    old = torch.optim.Adam(mlp().parameters(), lr=1e-3, **chosen)
    new = swap(old, "sgd").optimizer
    assert not new.param_groups[0]["fused"]
    assert {key: new.param_groups[0][key] for key in chosen} == chosen


# New, re-initialised and frozen parameters and transferred optimizer state, next to parameters with momentum.
TURNS = {
    4: ["norm=layer,way=instant"],
    7: ["init@blocks.1=xavier"],
    9: ["freeze@blocks.0=on", "activation=gelu,way=instant"],
    11: ["norm=none", "freeze=off"],
    13: ["momentum=0.5"],
    15: ["optimizer=adam"],
    17: ["norm=rms", "optimizer=nesterov"],
    20: ["optimizer=adamw"],
    22: ["norm=none", "optimizer=rmsprop"],
    24: ["optimizer=momentum", "residual=on"],
    26: ["optimizer=sgd", "init=orthogonal"],
    28: ["momentum=0.9"],
}


def losses_with_turns(name: str) -> tuple[list[float], Any]:
    """The losses in float64 of a run with all interventions of `TURNS`, and its setup."""
    made = setup("mlp", optimizer={"name": name, "lr": 0.01}, dtype="float64")
    steering = Steering(made.model, made.optimizer, setup=made, seed=1, steps=40)
    losses = []
    for n in range(40):
        for turn in TURNS.get(n, []):
            command = parse(turn)
            if steering._knobs[command.knob].unavailable() is None:  # Adam has no momentum
                steering.turn(command, step=n)
        steering.advance()
        losses += train(made, 1)
    return losses, made


@pytest.mark.parametrize("name", FUSED_NAMES)
def test_fused_optimizer_trains_as_an_unfused_one_through_every_intervention(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, plain = losses_with_turns(name)
    monkeypatch.setattr(optimizers, "FUSED_ON", {"cpu"})
    found, made = losses_with_turns(name)
    assert made.optimizer.param_groups[0]["fused"]
    assert found == pytest.approx(expected, rel=1e-8)
    for a, b in zip(copy_of(made.model), copy_of(plain.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("turn", ["norm=none", "optimizer=momentum", "init=xavier"])
def test_undo_and_redo_are_exact_with_a_fused_optimizer(turn: str, keeper: Any, home: Path, fused_here: None) -> None:
    plain, through = losses_without_undo(home / "plain", 60), losses_without_undo(home / "through", 60, {20: turn})
    run = PlayedRun(keeper, {20: turn})
    run.go(40, Undo())
    assert run.setup.optimizer.param_groups[0]["fused"]
    assert run.go(50, Redo()) == plain[20:50]
    assert run.go(60) == through[40:60]
    run.watch.__exit__(None, None, None)


def test_zero_momentum_buffer_of_a_new_parameter_acts_as_no_buffer(fused_here: None) -> None:
    """torch's fused SGD refuses a group in which only some parameters have a buffer."""
    nets = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(3, 4)
    for net, fused in zip(nets, (False, True), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=fused)
        steering = Steering(net, optimizer)
        for n in range(4):
            if n == 2:
                steering.turn(parse("init@0=xavier"), step=n)
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(*(copy_of(net) for net in nets), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
