"""What a test surface lacks, and that it says so: held-out data, layers, batches. The loss at its end is reported."""

from __future__ import annotations

import pytest
import torch
from fake_keeper import FakeKeeper
from knob_turns import steering_of
from small_scenario import SURFACE, make

from tui_descent.protocol.commands import Evaluate
from tui_descent.protocol.events import CommandRejected, Evaluated, RunEnded
from tui_descent.scenario import presets
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


@pytest.mark.parametrize(
    ("name", "reason", "untouched"),
    [
        ("saddle", "a test surface has no layers, only one point that moves", {"batch_size"}),
        ("saddle-to-saddle", "this net has no blocks, only two matrices", {"batch_size", "init", "freeze"}),
    ],
)
def test_knobs_that_need_layers_say_why_they_cannot_act(name: str, reason: str, untouched: set[str]) -> None:
    steering = steering_of(build(presets.find(name)[1], on=torch.device("cpu")))
    reasons = {state.name: state.unavailable for state in steering.states()}
    layered = {"activation", "residual", "norm", "dropout", "init", "freeze"} - untouched
    assert {reasons[knob] for knob in layered} == {reason}
    assert reasons["batch_size"] in ("a surface has no data, so no batches", "every step uses all of its data")
    assert (reasons["init"] is None) == ("init" in untouched)
    assert reasons["lr"] is reasons["optimizer"] is None
    assert len(f"activation: {reason}") <= 80
