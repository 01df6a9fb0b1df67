"""A test surface has no held-out data: none is reported, and `e` says so. The loss at its end is reported."""

from __future__ import annotations

import torch
from fake_keeper import FakeKeeper
from knob_turns import steering_of
from small_scenario import SURFACE, make

from tui_descent.protocol.commands import Evaluate
from tui_descent.protocol.events import CommandRejected, Evaluated, RunEnded
from tui_descent.training.loop import train
from tui_descent.training.probes.evaluation import evaluate
from tui_descent.training.setup.build import build
from tui_descent.training.watch.watch import Watch


def test_a_surface_reports_no_held_out_loss(keeper: FakeKeeper) -> None:
    setup = build(make(SURFACE + 'function = "fragment"\nstart = [1.0]'), on=torch.device("cpu"))
    run = Watch(
        setup.model,
        setup.optimizer,
        link=keeper.link,
        steering=steering_of(setup),
        evaluate=lambda: evaluate(setup),
        is_scenario=True,
    )
    with run:
        train(run, setup, steps=1, evaluate_every=0, attended=False)
        keeper.send(Evaluate())
        train(run, setup, steps=4, evaluate_every=2, attended=False)
    events = keeper.events()
    assert not [event for event in events if isinstance(event, Evaluated)]
    (rejected,) = (event for event in events if isinstance(event, CommandRejected))
    assert rejected.reason == "a test surface has no held-out data"
    (ended,) = (event for event in events if isinstance(event, RunEnded))
    assert ended.loss == setup.loss().item()
