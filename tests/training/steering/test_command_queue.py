"""Changes that wait together become one intervention, and every request still gets exactly one reply."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from torch import nn

from tui_descent.protocol.commands import AnyCommand, ClientRequest, Mark, Pause, Resume, TurnKnob
from tui_descent.protocol.events import CommandDone, CommandRejected, KnobTurned
from tui_descent.training.steering import command_queue as module
from tui_descent.training.steering.command_queue import CommandQueue, QueuedCommand
from tui_descent.training.watch.watch import Watch

Reply = KnobTurned | CommandDone | CommandRejected


class Loop:
    """A small user loop. The commands given to `step` arrive together before the next update."""

    def __init__(self, keeper: FakeKeeper) -> None:
        torch.manual_seed(0)
        self.keeper = keeper
        self.model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.run = Watch(self.model, self.optimizer, link=keeper.link)
        self.x = torch.randn(8, 4)

    def step(self, *commands: AnyCommand) -> list[Reply]:
        loss = self.model(self.x).square().mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        for command in commands:
            self.keeper.send(command)
        self.run.step(loss)
        return [event for event in self.keeper.events() if isinstance(event, Reply)]


@pytest.fixture
def loop(keeper: FakeKeeper) -> Any:
    made = Loop(keeper)
    with made.run:
        made.step()
        yield made


def lr(value: str) -> TurnKnob:
    return TurnKnob(knob="lr", value=value)


def test_twenty_waiting_changes_become_one_with_twenty_replies(loop: Loop) -> None:
    replies = loop.step(*[lr("*1.25")] * 20)
    *earlier, last = replies
    assert [reply.request for reply in replies] == list(range(1, 21))
    assert all(isinstance(reply, CommandDone) and "one of 20 changes" in reply.what for reply in earlier)
    assert isinstance(last, KnobTurned)
    assert (last.id, last.turns, last.old, last.new) == (1, 20, "0.1", "8.67362")
    assert last.step == loop.run.next_step  # it applies to the very next update
    single = 0.1
    for _ in range(20):
        single *= 1.25
    assert loop.run.steering.rate.value == pytest.approx(single, rel=1e-14)


def test_changes_are_not_merged_across_another_command(loop: Loop) -> None:
    replies = loop.step(lr("*2"), lr("*2"), Mark(), lr("*2"), TurnKnob(knob="weight_decay", value="0.1"), lr("*2"))
    assert [reply.request for reply in replies] == [1, 2, 3, 4, 5, 6]
    turned = [(r.knob, r.old, r.new, r.turns) for r in replies if isinstance(r, KnobTurned)]
    assert turned == [
        ("lr", "0.1", "0.4", 2),
        ("lr", "0.4", "0.8", 1),
        ("weight_decay", "0", "0.1", 1),
        ("lr", "0.8", "1.6", 1),
    ]


def test_changes_of_two_clients_are_not_merged(loop: Loop) -> None:
    orders = CommandQueue()
    for client, source in ((1, "key"), (2, "key"), (2, "key"), (2, "send")):
        orders.put(ClientRequest(client=client, request=1, source=source, command=lr("*2")))  # type: ignore[arg-type]
    taken = []
    while queued := orders.take(at_once=True):
        taken.append((queued.request.client, queued.request.source, len(queued.merged)))
    assert taken == [(1, "key", 0), (2, "key", 1), (2, "send", 0)]


def test_merged_changes_are_applied_or_rejected_together(loop: Loop) -> None:
    replies = loop.step(lr("*1e5"), lr("*10"), lr("*100"), lr("1e7"))
    assert [type(reply) for reply in replies] == [CommandDone, KnobTurned, CommandRejected, CommandRejected]
    replies = loop.step(lr("*2"), lr("*10"))
    assert [type(reply) for reply in replies] == [CommandRejected] * 2
    assert [reply.request for reply in replies] == [5, 6]
    assert loop.run.steering.rate.value == pytest.approx(1e5)


class Clock:
    """A clock that the test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now_s)


def order(command: AnyCommand, request: int = 1) -> ClientRequest:
    return ClientRequest(client=1, request=request, source="key", command=command)


def use_up_free_changes(orders: CommandQueue, took_s: float) -> None:
    """Make as many changes in quick succession as are made at once."""
    for n in range(module.FREE_COUNT + 1):
        orders.put(order(lr("*2"), n))
        queued = orders.take(at_once=False)
        assert queued is not None, n
        orders.add_cost(queued, took_s)


def test_after_the_free_changes_the_next_waits_in_proportion_to_their_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, orders = Clock(monkeypatch), CommandQueue()
    use_up_free_changes(orders, 0.00025)  # 64 ms each at a share of 1/256
    orders.put(order(lr("*2"), 20))
    assert orders.take(at_once=False) is None
    assert 0.06 < orders.wait_s(clock.now_s) < 0.065
    clock.now_s += 0.03
    orders.put(order(lr("*2"), 21))
    assert orders.take(at_once=False) is None
    clock.now_s += 0.035
    assert orders.wait_s(clock.now_s) == 0
    both = orders.take(at_once=False)
    assert isinstance(both, QueuedCommand)
    assert (both.request.request, len(both.merged)) == (21, 1)
    assert orders.take(at_once=True) is None
    assert orders.wait_s(clock.now_s) == math.inf


def test_a_flood_of_changes_takes_no_more_than_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, orders = Clock(monkeypatch), CommandQueue()
    spent_s, answered = 0.0, 0
    for n in range(2000):  # 200 a second, for ten seconds
        clock.now_s += 0.005
        orders.put(order(lr("*2" if n % 2 else "/2"), n))
        while queued := orders.take(at_once=False):
            answered += 1 + len(queued.merged)
            spent_s += 0.001
            orders.add_cost(queued, 0.001)
    assert spent_s < 10 * module.TIME_SHARE + (module.FREE_COUNT + 2) * 0.001
    assert answered > 1900


@pytest.mark.parametrize("other", [Pause(), TurnKnob(knob="weight_decay", value="0.1"), TurnKnob(knob="x", value="1")])
def test_no_other_command_waits(other: AnyCommand) -> None:
    orders = CommandQueue()
    use_up_free_changes(orders, 0.1)
    orders.put(order(other, 2))
    assert orders.take(at_once=False) is not None
    # A waiting change is carried out as soon as another command arrives after it.
    orders.put(order(lr("*2"), 3))
    assert orders.take(at_once=False) is None
    orders.put(order(other, 4))
    assert [orders.take(at_once=False).request.request for _ in range(2)] == [3, 4]  # type: ignore[union-attr]


def test_no_change_waits_longer_than_the_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, orders = Clock(monkeypatch), CommandQueue()
    use_up_free_changes(orders, 60.0)
    orders.put(order(lr("*2")))
    assert orders.take(at_once=False) is None
    clock.now_s += module.MAX_WAIT_S
    assert orders.take(at_once=False) is not None


def test_a_paused_run_carries_out_changes_at_once(loop: Loop) -> None:
    replies = loop.step(lr("*2"), Pause(), lr("*2"), lr("*2"), Resume(), lr("*2"))
    assert [reply.request for reply in replies][:5] == [1, 2, 3, 4, 5]
