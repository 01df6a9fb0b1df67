"""Undo and redo across a turn of the optimizer under a loop that goes on calling its own, to the last bit."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from families import setup as make_setup
from kept import Kept
from nets import OPTIMIZERS, copy_of, digit_batches, loss_of, mlp, same, same_state, state_of

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Redo, Resume, Undo
from tui_descent.protocol.events import CommandRejected, Rewound, RunStarted
from tui_descent.scenario.knobs import parse
from tui_descent.training.steering import Steering
from tui_descent.training.watch import Watch


@pytest.fixture
def kept_past(kept: Kept) -> Kept:
    kept.link.launch = msgspec.structs.replace(kept.link.launch, socket="there")
    return kept


def train(kept: Kept | None, old: str, asked: dict[int, Any], steps: int) -> tuple[list[float], Any, Any]:
    """One batch again and again, so that the loss tells where the run stands; `asked` before that update."""
    net = mlp()
    optimizer = OPTIMIZERS[old](net.parameters())
    (batch,) = digit_batches(1)
    losses = []
    plan = [] if kept else list(asked.items())
    with Watch(net, optimizer, link=kept.link if kept else None, plan=plan, sampler=Sampler(every=2)) as run:
        for n in range(steps):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if kept is not None and n + 1 in asked:
                kept.order(asked[n + 1])
            run.step(loss)
            losses.append(loss.item())
    return losses, net, optimizer


@pytest.mark.parametrize(("old", "new"), [("momentum", "adam"), ("adam", "sgd"), ("adam", "muon"), ("sgd", "rmsprop")])
def test_undone_and_redone(old: str, new: str, kept_past: Kept) -> None:
    turn = parse(f"optimizer={new}")
    losses, net, optimizer = train(kept_past, old, {4: turn, 8: Undo(), 12: Redo(), 16: Undo()}, 20)
    plain, twin, other = train(None, old, {}, 8)
    through, _, _ = train(None, old, {4: turn}, 12)
    assert losses[:8] == through[:8]
    assert losses[8:12] == plain[4:8], "undone: from the turn on as if it had never been"
    assert losses[12:16] == through[8:12], "redone: from the undo on as if it had never been"
    assert losses[16:20] == plain[4:8] != through[4:8], (
        "the second undo leads to where it was redone to"[:0] or "undone"
    )
    assert same(copy_of(net), copy_of(twin))
    assert same_state(state_of(optimizer), state_of(other))
    assert not kept_past.events(CommandRejected)


def test_turned_twice_undone_twice(kept_past: Kept) -> None:
    asked = {3: parse("optimizer=adam"), 6: parse("optimizer=momentum"), 9: Undo(), 11: Undo()}
    losses, _, _ = train(kept_past, "momentum", asked, 15)
    once, _, _ = train(None, "momentum", {3: asked[3]}, 12)
    plain, _, _ = train(None, "momentum", {}, 12)
    assert losses[9:11] == once[6:8]
    assert losses[11:15] == plain[3:7]


def test_held_within_its_step_the_loop_can_be_sent_back_across_the_turn(kept_past: Kept) -> None:
    net = mlp()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    (batch,) = digit_batches(1)
    losses = []
    run = Watch(net, optimizer, link=kept_past.link, plan=[(3, parse("optimizer=adam"))], on_fault="hold")
    with run:
        for n in range(9):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            if n == 5:
                for p in net.parameters():
                    p.grad.fill_(math.nan)
                for command in (parse("optimizer=sgd"), Undo(), parse("optimizer=rmsprop"), Resume()):
                    kept_past.order(command)
            optimizer.step()
            run.step(loss)
            losses.append(loss.item())
    plain, _, _ = train(None, "momentum", {}, 9)
    # Neither before the undo nor behind it: the optimizer's own step is still to come.
    refused = [event.reason for event in kept_past.events(CommandRejected)]
    assert refused == ["the run is held within optimizer.step(); make a step first, then turn the optimizer"] * 2
    assert losses[:3] == plain[:3]
    assert losses[6:9] == plain[3:6], "undone to before the turn, from within the step"


def test_an_own_loop_of_ours_held_within_its_step_is_sent_back_too(kept_past: Kept) -> None:
    made = make_setup("mlp", optimizer={"name": "momentum", "lr": 0.01})
    steering = Steering(made.model, made.optimizer, setup=made, steps=40, init="he")
    about = RunStarted(
        run="", title="", name="", scenario={}, device="cpu", threads=1, parameters=0, layers=(), knobs=(), steps=40
    )
    with Watch(
        made.model, made.optimizer, link=kept_past.link, steering=steering, about=about, is_scenario=True, state=(made,),
        on_fault="hold", plan=[(3, parse("optimizer=adam"))],
    ) as run:  # fmt: skip
        run.begin_step()
        first, seen = made.optimizer, {}
        while run.next_step < 6:
            loss = made.loss()
            made.optimizer.zero_grad()
            loss.backward()
            if run.next_step == 5 and "held" not in seen:
                seen["held"] = made.optimizer
                made.optimizer.register_step_pre_hook(lambda *_: None)  # torch goes on to it, behind the watch's own
                for p in made.model.parameters():
                    p.grad.fill_(math.nan)
                for command in (Undo(), Resume()):
                    kept_past.order(command)
            made.optimizer.step()
            run.step(loss)
            if run.next_step == 3:
                seen["optimizer"] = made.optimizer
        assert seen["held"] is not first
        assert seen["optimizer"] is made.optimizer is first
    (told,) = kept_past.events(Rewound)
    assert told.to_step == 3
