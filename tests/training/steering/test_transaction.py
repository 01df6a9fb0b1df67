"""A failed intervention is rolled back from one copy of net and optimizer; accumulated gradients stay."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from fake_keeper import FakeKeeper
from net_families import setup as make_setup
from nets import copy_of, digit_batches, loss_of, mlp, same, same_state, state_of

from tui_descent.protocol.events import CommandRejected, KnobTurned
from tui_descent.scenario.knobs import parse
from tui_descent.training.steering.steering import Steering
from tui_descent.training.undo.snapshot import Snapshot
from tui_descent.training.watch.watch import Watch


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Snapshot]:
    """All snapshots that were taken."""
    taken: list[Snapshot] = []
    init = Snapshot.__init__

    def counted(snapshot: Snapshot, *args: Any, **kwargs: Any) -> None:
        init(snapshot, *args, **kwargs)
        taken.append(snapshot)

    monkeypatch.setattr(Snapshot, "__init__", counted)
    return taken


def test_an_intervention_copies_net_and_optimizer_once(keeper: FakeKeeper, copies: list[Snapshot]) -> None:
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there")
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    with Watch(net, optimizer, link=keeper.link, plan=[(2, parse("kick=0.1")), (3, parse("lr=*2"))]) as run:
        for n, batch in enumerate(digit_batches(4)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            before = len(copies)
            run.step(loss)
            assert len(copies) - before == [1, 1, 1, 0][n], "at the start of the run and before each intervention"
    assert len(keeper.events(KnobTurned)) == 2


def test_a_change_of_the_net_copies_it_even_without_an_undo_stack(copies: list[Snapshot]) -> None:
    made = make_setup("mlp")
    steering = Steering(made.model, made.optimizer, setup=made)
    steering.turn(parse("lr=*2"))
    assert not copies
    steering.turn(parse("kick=0.1"))
    assert len(copies) == 1


@pytest.mark.parametrize("socket", [None, "there"], ids=["with a copy of its own", "from the snapshot before it"])
def test_a_failed_intervention_during_accumulation_keeps_the_gradients(
    socket: str | None, keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket=socket)
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def fails(*_: Any, **__: Any) -> Any:
        with torch.no_grad():
            next(net.parameters()).add_(1)
        optimizer.state.clear()
        optimizer.param_groups[0]["lr"] = 7.0
        torch.rand(3)
        raise RuntimeError("injected")

    monkeypatch.setattr("tui_descent.training.steering.surgery.kick", fails)
    with Watch(net, optimizer, link=keeper.link) as run:
        for n, batch in enumerate(digit_batches(6)):
            loss = loss_of(net, batch)
            loss.backward()
            if n % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()
                run.step(loss)
            if n == 4:
                grads = [(p.grad, p.grad.clone()) for p in net.parameters() if p.grad is not None]
                before = copy_of(net), state_of(optimizer), torch.get_rng_state()
                keeper.send(parse("kick=0.1"))
                run.control.before_update()
                assert same(copy_of(net), before[0])
                assert same_state(state_of(optimizer), before[1])
                assert torch.equal(torch.get_rng_state(), before[2])
                assert optimizer.param_groups[0]["lr"] == 1e-3
                assert len(grads) == len(list(net.parameters()))
                for p, (grad, value) in zip(net.parameters(), grads, strict=True):
                    assert p.grad is grad
                    assert torch.equal(grad, value)
    (rejected,) = keeper.events(CommandRejected)
    assert "injected" in rejected.reason
