"""Undo and redo restore the exact state: the run then equals one without what was undone, bit for bit."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from digests import digest_of
from fake_keeper import FakeKeeper
from net_families import setup as make_setup
from nets import copy_of, digit_batches, loss_of, mlp, same
from played_run import TURNS, PlayedRun, losses_without_undo

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Redo, Resume, TurnKnob, Undo
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    KnobTurned,
    Rewound,
    RunStarted,
    SnapshotTaken,
    StateChanged,
)
from tui_descent.scenario.knobs import parse
from tui_descent.training.steering.knobs.context import KnobChange
from tui_descent.training.steering.steering import Steering
from tui_descent.training.undo import undo_stack
from tui_descent.training.undo.snapshot import Snapshot
from tui_descent.training.watch.watch import Watch


@pytest.fixture
def play(keeper: FakeKeeper) -> Iterator[Callable[..., PlayedRun]]:
    runs: list[PlayedRun] = []

    def start(plan: dict[int, str] | None = None, **how: Any) -> PlayedRun:
        runs.append(PlayedRun(keeper, plan or {}, **how))
        return runs[-1]

    yield start
    for run in runs:
        run.watch.__exit__(None, None, None)


def test_three_undone_interventions_leave_no_trace(play: Any, home: Path) -> None:
    plain = losses_without_undo(home / "plain", 160)
    run = play(TURNS)
    turned = run.go(160, Undo(), Undo(), Undo())
    assert turned[:40] == plain[:40]
    assert turned[40:] != plain[40:]
    assert run.watch.next_step == 40
    assert run.go(160) == plain[40:]
    places = [(e.from_segment, e.from_step, e.to_step, e.segment) for e in run.keeper.events(Rewound)]
    assert places == [(0, 160, 120, 1), (1, 120, 80, 2), (2, 80, 40, 3)]


def test_redo_of_three_interventions_equals_a_run_without_undo(play: Any, home: Path) -> None:
    through = losses_without_undo(home / "through", 180, TURNS)
    run = play(TURNS)
    run.go(160, Undo(), Undo(), Undo())
    run.go(60, Redo(), Redo(), Redo())
    assert run.watch.next_step == 160
    assert run.go(180) == through[160:]


def test_undo_after_redo_is_exact(play: Any, home: Path) -> None:
    plain, through = losses_without_undo(home / "plain", 150), losses_without_undo(home / "through", 160, TURNS)
    run = play(TURNS)
    run.go(151, Undo(), Undo(), Undo())
    run.go(50, Redo(), Redo(), Redo())
    assert run.watch.next_step == 151
    assert run.go(160) == through[151:]
    run.go(161, Undo(), Undo(), Undo())
    assert run.go(150) == plain[40:]
    events = run.keeper.events()
    assert len([e for e in events if isinstance(e, Rewound)]) == 9
    assert all("value only" not in e.what for e in events if isinstance(e, CommandDone))


def test_one_redo_after_three_undos_is_exact(play: Any, home: Path) -> None:
    first = losses_without_undo(home / "first", 140, {40: TURNS[40]})
    run = play(TURNS)
    run.go(160, Undo(), Undo(), Undo(), Redo())
    assert run.watch.next_step == 80
    assert run.go(140) == first[80:]


@pytest.mark.parametrize("turn", ["activation=gelu", "residual=on"])
def test_undo_and_redo_are_exact_during_a_transition(turn: str, play: Any, home: Path) -> None:
    through, plain = losses_without_undo(home / "t", 120, {20: turn}), losses_without_undo(home / "p", 120)
    run = play({20: turn})
    run.go(30, Undo())
    assert run.go(60, Redo()) == plain[20:60]
    assert run.watch.next_step == 30
    assert run.go(110, Undo()) == through[30:110]
    assert run.go(120) == plain[20:120]


def test_undo_during_a_transition_keeps_the_transition_before_it(play: Any, home: Path) -> None:
    blended = losses_without_undo(home / "b", 100, {20: "activation=gelu"})
    run = play({20: "activation=gelu", 40: "activation=relu"})
    run.go(90, Undo())
    assert run.watch.next_step == 40
    assert run.go(100) == blended[40:]


def test_digest_covers_the_whole_state(play: Any) -> None:
    run = play()
    run.go(10)
    before = run.digest()
    snapshot = Snapshot(run.undo.holders(), segment=0, step=10)
    assert run.digest() == digest_of(snapshot) == before
    run.go(12)
    assert run.digest() != before
    snapshot.restore()
    assert run.digest() == before
    snapshot.restore()
    assert run.digest() == before
    with torch.no_grad():
        next(run.setup.model.parameters()).view(-1)[0] += 1e-6
    assert run.digest() != before
    snapshot.restore()
    torch.rand(1)
    random.random()
    assert run.digest() != before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: next(iter(s.optimizer.state.values()))["exp_avg"].add_(1),
        lambda s: s.optimizer.param_groups[0].update(betas=(0.5, 0.9)),
        lambda s: s.optimizer.state.clear(),
        lambda s: s.schedule.step(1.0),
        lambda s: s.batches.next(),
        lambda s: s.model.eval(),
        lambda s: [setattr(m, "p", 0.5) for m in s.model.modules() if isinstance(m, torch.nn.Dropout)],
        lambda s: next(s.model.parameters()).requires_grad_(False),
        lambda s: random.random(),
    ],
    ids=["average", "betas", "state", "schedule", "batches", "mode", "dropout", "frozen", "random"],
)
def test_snapshot_restores_every_part_of_the_state(spoil: Any, play: Any) -> None:
    run = play()
    run.go(10)
    before = run.digest()
    snapshot = Snapshot(run.undo.holders(), segment=0, step=10)
    parameters = [id(p) for p in run.setup.model.parameters()]
    spoil(run.setup)
    assert run.digest() != before
    snapshot.restore()
    assert run.digest() == before
    assert [id(p) for p in run.setup.model.parameters()] == parameters


def test_undo_and_redo_without_interventions_are_rejected(play: Any) -> None:
    run = play()
    run.go(5, Undo(), Redo())
    assert run.watch.next_step == 5
    reasons = [e.reason for e in run.keeper.events(CommandRejected)]
    assert reasons == ["nothing to undo: no intervention is in effect", "nothing to redo"]


def test_new_intervention_clears_the_redo_stack(play: Any) -> None:
    run = play({5: "lr=*2"})
    run.go(10, Undo(), parse("lr=*3"), Redo())
    assert [e.reason for e in run.keeper.events(CommandRejected)] == ["nothing to redo"]


def test_pace_change_cannot_be_undone(play: Any) -> None:
    run = play()
    run.go(5, parse("pace=400"), Undo())
    assert len(run.keeper.events(CommandRejected)) == 1
    assert run.watch.steering.pace == 400


def test_undo_over_budget_restores_the_value_only(play: Any) -> None:
    run = play({5: "lr=*2"}, budget=1000)
    run.go(10, Undo(), Redo())
    assert run.watch.next_step == 10
    events = run.keeper.events()
    assert not [e for e in events if isinstance(e, Rewound | SnapshotTaken)]
    done = [e.what for e in events if isinstance(e, CommandDone)]
    assert "only the value was restored: the exact state takes" in done[0]
    first, back, forth = [e for e in events if isinstance(e, KnobTurned)]
    assert (back.new, forth.new) == (first.old, first.new)


def test_undo_by_value_is_announced_when_the_knob_is_turned(play: Any) -> None:
    run = play({5: "lr=*2"}, budget=1000)
    run.go(10, parse("activation=gelu"))
    for turned in run.keeper.events(KnobTurned):
        reason = re.search(
            r"an undo will restore only the value: the exact state takes ([\d,]+) MB, the undo budget is 0 MB$",
            turned.note,
        )
        assert reason is not None


def test_no_snapshot_is_kept_with_a_budget_of_zero(play: Any) -> None:
    run = play(budget=0)
    run.go(10, parse("lr=*2"))
    run.go(12, Undo())
    assert run.undo.nbytes == 0
    (done,) = run.keeper.events(CommandDone)
    assert "only the value was restored" in done.what


def test_run_continues_if_there_is_no_memory_for_a_snapshot(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("injected")

    run = play()
    run.go(10)
    monkeypatch.setattr(undo_stack, "Snapshot", full)
    run.go(12, parse("lr=*2"), Undo())
    (done,) = run.keeper.events(CommandDone)
    assert "only the value was restored: no memory is left for the exact state" in done.what


def test_rejected_intervention_takes_no_snapshot(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = play()
    run.go(4)
    taken: list[Any] = []
    monkeypatch.setattr(undo_stack, "Snapshot", lambda *args, **_: taken.append(args))
    run.go(5, TurnKnob(knob="lr", value="-1"), TurnKnob(knob="batch_size", value="no"), TurnKnob(knob="x", value="1"))
    assert len(run.keeper.events(CommandRejected)) == 3
    assert not taken


@pytest.mark.parametrize("budget", [10**9, 1000], ids=["from the snapshot", "over the budget"])
def test_failed_intervention_is_rolled_back(budget: int, play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = play(budget=budget)
    run.go(10)
    before = run.digest()

    def fails(*_: Any, **__: Any) -> Any:
        with torch.no_grad():
            next(run.setup.model.parameters()).add_(1)
        run.setup.optimizer.state.clear()
        raise RuntimeError("injected")

    monkeypatch.setattr("tui_descent.training.steering.surgery.kick", fails)
    run.keeper.send(parse("kick=0.1"))
    run.watch.control.before_update()
    (rejected,) = run.keeper.events(CommandRejected)
    assert "injected" in rejected.reason
    assert run.digest() == before


def test_budget_is_kept_by_dropping_the_oldest_snapshots(play: Any) -> None:
    run = play()
    run.go(2)  # Adam's averages are there now
    one = Snapshot(run.undo.holders(), segment=0, step=2).nbytes
    run.undo.budget = 3 * one + one // 2
    for step in range(5, 30, 5):
        run.go(step, parse("lr=*1.1"))
        assert run.undo.nbytes <= run.undo.budget
    assert [t.before is None for t in run.undo._done] == [True, True, False, False, False]
    run.go(40, Undo(), Undo(), Undo(), Undo())
    done = [e.what for e in run.keeper.events(CommandDone)]
    assert run.watch.next_step == 15
    assert ["only the value was restored" in what for what in done] == [False, False, False, True]


def test_undo_after_nan_restores_the_last_good_snapshot(play: Any) -> None:
    run = play()
    run.go(10)
    good = run.digest()
    run.undo._next_periodic_s = 0.0
    assert run.undo.take_periodic(0, 10) is not None
    run.go(15)
    run.watch.control.on_fault = "hold"
    run.keeper.send(Undo())
    run.keeper.send(Resume())
    assert not run.watch.loss(math.nan)
    assert run.watch.next_step == 10
    assert run.watch.progress.rewound
    assert run.digest() == good
    held = [e.reason for e in run.keeper.events(StateChanged) if e.state == "held"]
    assert held == []  # both commands had arrived before the run was held


def test_undo_in_a_user_loop_restores_model_and_optimizer_but_not_its_step_count(keeper: FakeKeeper) -> None:
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there")
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    seen: dict[int, list[torch.Tensor]] = {}
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(budget=0.0)) as run:
        for n, batch in enumerate(digit_batches(12)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen[n + 1] = copy_of(net)
            if n == 3:
                keeper.send(parse("lr=*2"))
            if n == 7:
                keeper.send(Undo())
            run.step(loss)
            if n == 7:
                assert same(copy_of(net), seen[4])
                assert {float(s["step"]) for s in optimizer.state.values()} == {4.0}
                assert run.steering.rate.value == 1e-3
        assert run.next_step == 12
    (rewound,) = keeper.events(Rewound)
    assert (rewound.to_step, rewound.step, rewound.segment) == (4, 8, 1)


def test_undo_while_held_within_a_step_restores_the_first_optimizer(keeper: FakeKeeper) -> None:
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there")
    made = make_setup("mlp", optimizer={"name": "momentum", "lr": 0.01})
    steering = Steering(made.model, made.optimizer, setup=made, steps=40, init="he")
    about = RunStarted(
        run="", title="", name="", scenario={}, device="cpu", threads=1, parameters=0, layers=(), knobs=(), steps=40
    )
    with Watch(
        made.model, made.optimizer, link=keeper.link, steering=steering, about=about, is_scenario=True,
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
                made.optimizer.register_step_pre_hook(lambda *_: None)  # runs after the watch's own hook
                for p in made.model.parameters():
                    p.grad.fill_(math.nan)
                for command in (Undo(), Resume()):
                    keeper.send(command)
            made.optimizer.step()
            run.step(loss)
            if run.next_step == 3:
                seen["optimizer"] = made.optimizer
        assert seen["held"] is not first
        assert seen["optimizer"] is made.optimizer is first
    (rewound,) = keeper.events(Rewound)
    assert rewound.to_step == 3


def test_an_undone_rate_is_shown_with_four_digits_and_restored_exactly() -> None:
    turned = KnobChange(old="0.15625", new="0.195312")
    entry = undo_stack.undo_entry(
        1, (0, 0, 0), TurnKnob(knob="lr", value="*1.25"), turned, None, rates=(0.15625, 0.1953125)
    )
    assert entry.label == "lr 0.1562 → 0.1953"
    assert [turn.value for turn in entry.undo_turns] == ["0.15625"]
