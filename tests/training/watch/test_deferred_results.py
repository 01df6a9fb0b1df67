"""Results that arrive later than their step, as on a GPU, are reported as if they had been there at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deferred_loops import FUSED, SlowArrival, fused, recorded_run, train, train_into_fault
from fake_keeper import FakeKeeper
from nets import OPTIMIZERS, copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import nn
from training_fixtures import ARRIVALS

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Mark, TurnKnob
from tui_descent.protocol.events import CommandDone, KnobTurned, Marked, StateChanged
from tui_descent.scenario import presets
from tui_descent.training.setup.build import build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch import loss_readback, results
from tui_descent.training.watch.watch import Watch


def arrival_cases() -> list[Any]:
    """Every arrival, number of micro-batches and check of the loss; usually every pair of two of them."""
    heavy = {("at once", 1, False), ("at once", 3, True), ("soon", 1, True), ("soon", 3, False)}
    return [
        pytest.param(
            ARRIVALS[arrival],
            micro,
            check,
            id=f"{arrival}-{micro}-{'loss checked first' if check else ''}",
            marks=pytest.mark.heavy if (arrival, micro, check) in heavy else (),
        )
        for arrival in ARRIVALS
        for micro in (1, 3)
        for check in (False, True)
    ]


@pytest.mark.parametrize(("slow_arrivals", "micro", "check"), arrival_cases(), indirect=["slow_arrivals"])
def test_deferred_results_equal_immediate_ones_and_none_is_lost(
    micro: int,
    check: bool,
    deferred_numbers: None,
    slow_arrivals: type[SlowArrival],
    losses_at_once: Callable[[bool], None],
    tmp_path: Path,
) -> None:
    how: dict[str, Any] = {"micro": micro, "check": check, "steps": 90 // micro}
    losses_at_once(True)
    now = recorded_run(tmp_path / "now", **how)
    losses_at_once(False)
    later = recorded_run(tmp_path / "later", **how)
    assert len(now[0]) == 90 // micro
    assert [step[1] for step in later[0]] == list(range(90 // micro))
    for a, b in zip(now, later, strict=True):
        assert repr(a) == repr(b)
    if micro == 1:
        assert [step[2] for step in later[0]] == later[3]
    assert slow_arrivals.open == 0, "every transfer that was started has been read"


@pytest.mark.parametrize("name", [*FUSED, "rmsprop"])
def test_watching_with_deferred_results_keeps_weights_and_state_bitwise_equal(
    name: str, deferred_numbers: None, slow_arrivals: type[SlowArrival]
) -> None:
    def made(net: nn.Module) -> torch.optim.Optimizer:
        return OPTIMIZERS[name](net.parameters()) if name == "rmsprop" else fused(name, net)

    _, _, _, watched = train_into_fault(None, made, bad_at=-1, check=True)
    net = mlp()
    optimizer = made(net)
    batches = digit_batches(20)
    for n in range(60):
        optimizer.zero_grad()
        loss_of(net, batches[n % 20]).backward()
        optimizer.step()
        assert same(copy_of(net), watched[n][0])
        assert same_state(state_of(optimizer), watched[n][1])


def arrived(rows: loss_readback.DeviceLosses) -> list[loss_readback.Row]:
    rows.collect()
    found = [*rows.rows]
    rows.rows.clear()
    return found


def test_rows_are_sent_together_while_steps_are_short_and_singly_when_long() -> None:
    rows = loss_readback.DeviceLosses(torch.device("cpu"))
    sent = []
    for n, now_s in enumerate((0.0, 0.01, 0.02, 0.035, 1.0, 2.0)):
        rows.add_row(float(n), now_s)
        sent.append([row.loss for row in arrived(rows)])
    assert sent == [[0.0], [], [], [1.0, 2.0, 3.0], [4.0], [5.0]]
    for n in range(loss_readback.ROWS):
        rows.add_row(float(n), 2.0)
    assert len(arrived(rows)) == loss_readback.ROWS, "a full buffer is sent at once"


def test_unfinished_row_survives_sending_the_rows_before_it() -> None:
    rows = loss_readback.DeviceLosses(torch.device("cpu"))
    weight = nn.Parameter(torch.zeros(2))
    for loss in (1.0, 2.0):
        rows.check_loss(torch.tensor(loss))
        rows.check_gradient(torch.tensor([loss, -3 * loss]), torch.optim.SGD([weight]), stop=False)
        if loss == 2.0:
            rows._send()
        rows.add_row(torch.tensor(loss), 0.0)
    rows._send()
    assert arrived(rows) == [(1.0, 3.0, 0.0), (2.0, 6.0, 0.0)]


def record_order(link: Any) -> list[Any]:
    """A list that fills with every event and the number of steps written when it was emitted."""
    found: list[Any] = []
    emit = link.emit

    def recording_emit(event: Any, **more: Any) -> None:
        if isinstance(event, KnobTurned | Marked | StateChanged | CommandDone):
            found.append((type(event).__name__, getattr(event, "step", None), steps()))
        emit(event, **more)

    def steps() -> int:
        return link.ring._written if link.ring is not None else 0

    link.emit = recording_emit
    return found


@pytest.mark.parametrize("every", [0, 3])
def test_interventions_and_marks_keep_their_place_among_the_steps(
    every: int,
    deferred_numbers: None,
    slow_arrivals: type[SlowArrival],
    losses_at_once: Callable[[bool], None],
    tmp_path: Path,
) -> None:
    seen = []
    for direct in (True, False):
        losses_at_once(direct)
        folder = tmp_path / str(direct)
        folder.mkdir()
        keeper = FakeKeeper(folder)
        places = record_order(keeper.link)
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        plan = [(17, TurnKnob(knob="lr", value="*2")), (17, TurnKnob(knob="lr", value="*2"))]
        with Watch(net, optimizer, link=keeper.link, plan=plan, sampler=Sampler(every=every)) as run:
            for n in range(50):
                loss = loss_of(net, digit_batches(1)[0])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if n == 30:
                    keeper.send(Mark(text="here"))
                    keeper.send(TurnKnob(knob="lr", value="0.01"))
                run.step(loss)
        records = [(r.step, r.loss, r.lr) for r in keeper.steps()]
        seen.append((places, records))
        keeper.close()
    assert seen[0] == seen[1]
    turned = [(at, written) for kind, at, written in seen[1][0] if kind == "KnobTurned"]
    assert turned == [(17, 17), (17, 17), (31, 31)]


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_schedule_moves_the_same_with_deferred_and_immediate_losses(
    schedule: str,
    deferred_numbers: None,
    slow_arrivals: type[SlowArrival],
    losses_at_once: Callable[[bool], None],
    tmp_path: Path,
) -> None:
    if schedule not in RATES_AT_ONCE:  # nothing is deferred then, so these are the same in every case
        losses_at_once(True)
        RATES_AT_ONCE[schedule] = rates_of(schedule, tmp_path / "now")
    losses_at_once(False)
    rates = rates_of(schedule, tmp_path / "later")
    assert rates == RATES_AT_ONCE[schedule]
    assert len(rates) == 400
    assert len(set(rates)) > 1, "the rate has moved"


RATES_AT_ONCE: dict[str, list[float]] = {}


def rates_of(schedule: str, folder: Path) -> list[float]:
    """The rate of each of 400 steps, none of which makes any progress."""
    folder.mkdir()
    keeper = FakeKeeper(folder)
    _, scenario = presets.find("healthy", overrides=["model.depth=1", "model.width=8", "data.batch_size=8"])
    setup = build(scenario, on=torch.device("cpu"))
    with Watch(
        setup.model,
        setup.optimizer,
        link=keeper.link,
        steering=Steering(setup.model, setup.optimizer, setup=setup, steps=400),
        plan=[(3, TurnKnob(knob="schedule", value=schedule))],
        is_scenario=True,
        sampler=Sampler(every=0),
    ) as run:
        run.begin_step()
        for _ in range(400):
            loss = setup.loss() * 0 + 1
            assert run.loss(loss)
            setup.optimizer.zero_grad()
            loss.backward()
            setup.optimizer.step()
            run.step(loss)
    rates = [r.lr for r in keeper.steps()]
    keeper.close()
    return rates


@pytest.mark.parametrize("send_after_s", [0.0, math.inf], ids=["each row singly", "rows together"])
def test_waiting_results_are_bounded_and_none_is_lost(
    send_after_s: float, deferred_numbers: None, monkeypatch: pytest.MonkeyPatch, keeper: FakeKeeper
) -> None:
    monkeypatch.setattr(loss_readback, "SEND_AFTER_S", send_after_s)
    monkeypatch.setattr(results, "MOST_WAITING", 20)
    monkeypatch.setattr(loss_readback, "HostCopy", SlowArrival)
    monkeypatch.setattr(results, "HostCopy", SlowArrival)
    monkeypatch.setattr(SlowArrival, "asks", 10**9)
    SlowArrival.waited = SlowArrival.open = SlowArrival.most_open = 0
    losses = train(keeper, steps=80, every=2)
    assert SlowArrival.waited > 0
    assert SlowArrival.most_open <= 22, "20 waiting results, one row and its reading"
    assert SlowArrival.open == 0
    assert [r.loss for r in keeper.steps()] == losses
    assert {r.step for r in keeper.readings()} <= set(range(0, 80, 2))
