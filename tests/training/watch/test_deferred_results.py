"""What a GPU tells only later, on a CPU: told late it is told the same, in its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deferred_loops import FUSED, Slow, fused, steer_into, told, train
from fake_keeper import FakeKeeper
from nets import OPTIMIZERS, copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Mark, TurnKnob
from tui_descent.protocol.events import CommandDone, KnobTurned, Marked, StateChanged
from tui_descent.scenario import presets
from tui_descent.training.setup.build import build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch import losses as losses_file
from tui_descent.training.watch import results
from tui_descent.training.watch.watch import Watch


@pytest.mark.parametrize("hand", [False, True], ids=["", "loss handed over"])
@pytest.mark.parametrize("micro", [1, 3])
def test_told_late_it_is_told_the_same_and_nothing_is_lost(
    micro: int, hand: bool, far: None, slow: type[Slow], at_hand: Callable[[bool], None], tmp_path: Path
) -> None:
    how: dict[str, Any] = {"micro": micro, "hand": hand, "steps": 150 // micro}
    at_hand(True)
    now = told(tmp_path / "now", **how)
    at_hand(False)
    later = told(tmp_path / "later", **how)
    assert len(now[0]) == 150 // micro
    assert [step[1] for step in later[0]] == list(range(150 // micro))
    for a, b in zip(now, later, strict=True):
        assert repr(a) == repr(b)
    if micro == 1:
        assert [step[2] for step in later[0]] == later[3]
    assert slow.open == 0, "whatever was set off has been read"


@pytest.mark.parametrize("name", [*FUSED, "rmsprop"])
def test_watched_late_or_not_at_all_the_bits_are_the_same(name: str, far: None, slow: type[Slow]) -> None:
    def made(net: nn.Module) -> torch.optim.Optimizer:
        return OPTIMIZERS[name](net.parameters()) if name == "rmsprop" else fused(name, net)

    _, _, _, watched = steer_into(None, made, bad_at=-1, hand=True)
    net = mlp()
    optimizer = made(net)
    batches = digit_batches(20)
    for n in range(60):
        optimizer.zero_grad()
        loss_of(net, batches[n % 20]).backward()
        optimizer.step()
        assert same(copy_of(net), watched[n][0])
        assert same_state(state_of(optimizer), watched[n][1])


def arrived(rows: losses_file.DeviceLosses) -> list[losses_file.Row]:
    rows.collect()
    found = [*rows.rows]
    rows.rows.clear()
    return found


def test_rows_go_together_while_steps_are_short_and_each_by_itself_when_they_are_long() -> None:
    rows = losses_file.DeviceLosses(torch.device("cpu"))
    sent = []
    for n, now_s in enumerate((0.0, 0.01, 0.02, 0.035, 1.0, 2.0)):
        rows.write(float(n), now_s)
        sent.append([row.loss for row in arrived(rows)])
    assert sent == [[0.0], [], [], [1.0, 2.0, 3.0], [4.0], [5.0]]
    for n in range(losses_file.ROWS):
        rows.write(float(n), 2.0)
    assert len(arrived(rows)) == losses_file.ROWS, "as many as there is room for, however short they were"


def test_a_row_that_is_begun_outlasts_the_sending_of_those_before_it() -> None:
    rows = losses_file.DeviceLosses(torch.device("cpu"))
    weight = nn.Parameter(torch.zeros(2))
    for loss in (1.0, 2.0):
        rows.check(torch.tensor(loss))
        rows.look(torch.tensor([loss, -3 * loss]), torch.optim.SGD([weight]), stop=False)
        if loss == 2.0:
            rows._send()
        rows.write(torch.tensor(loss), 0.0)
    rows._send()
    assert arrived(rows) == [(1.0, 3.0, 0.0), (2.0, 6.0, 0.0)]


def order_of(kept: FakeKeeper, link: Any) -> list[Any]:
    """Every event with the steps that had been written when it was told."""
    found: list[Any] = []
    emit = link.emit

    def told_now(event: Any, **more: Any) -> None:
        if isinstance(event, KnobTurned | Marked | StateChanged | CommandDone):
            found.append((type(event).__name__, getattr(event, "step", None), steps()))
        emit(event, **more)

    def steps() -> int:
        return link.ring._written if link.ring is not None else 0

    link.emit = told_now
    return found


@pytest.mark.parametrize("every", [0, 3])
def test_turns_and_marks_keep_their_place_among_the_steps(
    every: int, far: None, slow: type[Slow], at_hand: Callable[[bool], None], tmp_path: Path
) -> None:
    seen = []
    for direct in (True, False):
        at_hand(direct)
        folder = tmp_path / str(direct)
        folder.mkdir()
        kept = FakeKeeper(folder)
        places = order_of(kept, kept.link)
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        plan = [(17, TurnKnob(knob="lr", value="*2")), (17, TurnKnob(knob="lr", value="*2"))]
        with Watch(net, optimizer, link=kept.link, plan=plan, sampler=Sampler(every=every)) as run:
            for n in range(50):
                loss = loss_of(net, digit_batches(1)[0])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if n == 30:
                    kept.order(Mark(text="here"))
                    kept.order(TurnKnob(knob="lr", value="0.01"))
                run.step(loss)
        records = [(r.step, r.loss, r.lr) for r in kept.steps()]
        seen.append((places, records))
        kept.close()
    assert seen[0] == seen[1]
    turned = [(at, written) for kind, at, written in seen[1][0] if kind == "KnobTurned"]
    assert turned == [(17, 17), (17, 17), (31, 31)]


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_a_schedule_moves_as_it_does_where_losses_are_at_hand(
    schedule: str, far: None, slow: type[Slow], at_hand: Callable[[bool], None], tmp_path: Path
) -> None:
    rates = []
    for direct in (True, False):
        at_hand(direct)
        folder = tmp_path / str(direct)
        folder.mkdir()
        kept = FakeKeeper(folder)
        _, scenario = presets.find("healthy")
        setup = build(scenario, on=torch.device("cpu"))
        steering = Steering(setup.model, setup.optimizer, setup=setup, steps=400)
        turn = TurnKnob(knob="schedule", value=schedule)
        with Watch(
            setup.model,
            setup.optimizer,
            link=kept.link,
            steering=steering,
            plan=[(3, turn)],
            is_scenario=True,
            sampler=Sampler(every=0),
        ) as run:
            run.begin_step()
            for _ in range(400):
                loss = setup.loss() * 0 + 1  # no progress at all
                assert run.loss(loss)
                setup.optimizer.zero_grad()
                loss.backward()
                setup.optimizer.step()
                run.step(loss)
        rates.append([r.lr for r in kept.steps()])
        kept.close()
    assert rates[0] == rates[1]
    assert len(set(rates[1])) > 1, "it has moved, and a plateau was met"


@pytest.mark.parametrize("send_after_s", [0.0, math.inf], ids=["each row by itself", "rows together"])
def test_what_waits_is_bounded_and_nothing_is_lost(
    send_after_s: float, far: None, monkeypatch: pytest.MonkeyPatch, kept: FakeKeeper
) -> None:
    monkeypatch.setattr(losses_file, "SEND_AFTER_S", send_after_s)
    monkeypatch.setattr(results, "MOST_WAITING", 50)
    monkeypatch.setattr(losses_file, "HostCopy", Slow)
    monkeypatch.setattr(results, "HostCopy", Slow)
    monkeypatch.setattr(Slow, "asks", 10**9)
    Slow.waited = Slow.open = Slow.most_open = 0
    losses = train(kept, steps=400, every=2)
    assert Slow.waited > 0
    assert Slow.most_open <= 52, "besides those that wait a step's row and its reading"
    assert Slow.open == 0
    assert [r.loss for r in kept.steps()] == losses
    assert {r.step for r in kept.readings()} <= set(range(0, 400, 2))
