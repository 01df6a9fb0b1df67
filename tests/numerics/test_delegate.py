"""Another optimizer under a loop that goes on calling its own: the updates are those of a loop that calls the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from aside import AT, STEPS, train, twin
from kept import Kept
from nets import OPTIMIZERS, copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tui_descent.protocol.events import KnobTurned
from tui_descent.scenario.knobs import parse
from tui_descent.training.guard import Guard
from tui_descent.training.optimizers import swap
from tui_descent.training.watch import Watch

Made = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@pytest.mark.parametrize("new", ["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "muon"])
@pytest.mark.parametrize("old", OPTIMIZERS)
def test_the_updates_are_those_of_a_loop_that_calls_the_new_one(old: str, new: str) -> None:
    if old == new:
        return
    net, other = mlp(), mlp()
    losses = train(net, OPTIMIZERS[old](net.parameters()), [(AT, f"optimizer={new}")])
    expected = twin(other, OPTIMIZERS[old](other.parameters()), lambda o: swap(o, new, model=other).optimizer)
    assert losses == expected
    assert same(copy_of(net), copy_of(other))


def test_against_optimizers_made_by_hand() -> None:
    net, other = mlp(), mlp()
    lr = 0.05 * (1 / 1500**0.5)
    losses = train(net, OPTIMIZERS["sgd"](net.parameters()), [(AT, "optimizer=adam")])
    plain = twin(other, OPTIMIZERS["sgd"](other.parameters()), lambda _: torch.optim.Adam(other.parameters(), lr=lr))
    assert losses == plain
    net, other = mlp(), mlp()
    lr = 1e-3 * 1500**0.5
    losses = train(net, OPTIMIZERS["adam"](net.parameters()), [(AT, "optimizer=sgd")])
    assert losses == twin(
        other, OPTIMIZERS["adam"](other.parameters()), lambda _: torch.optim.SGD(other.parameters(), lr=lr)
    )


def test_the_update_that_was_made_is_measured_and_the_rate_recorded(kept: Kept) -> None:
    net, other = mlp(), mlp()
    train(net, OPTIMIZERS["sgd"](net.parameters()), [(AT, "optimizer=adam"), (7, "lr=*2")], kept.link)
    optimizer: Any = OPTIMIZERS["sgd"](other.parameters())
    readings, rates = {r.step: r for r in kept.readings()}, {r.step: r.lr for r in kept.steps()}
    lr = 0.05 * (1 / 1500**0.5)
    for n, batch in enumerate(digit_batches(STEPS)):
        if n == AT:
            optimizer = torch.optim.Adam(other.parameters(), lr=lr)
        optimizer.param_groups[0]["lr"] = 0.05 if n < AT else lr if n < 7 else lr * 2
        before = other.blocks[0].core.weight.detach().clone()
        loss = loss_of(other, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved = (other.blocks[0].core.weight - before).double().norm().item()
        found = readings[n].values["update_norm"][1]  # behind the stem
        assert found == pytest.approx(moved, rel=1e-4), n
        assert rates[n] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
    (optimizer_turn, _) = kept.events(KnobTurned)
    assert (optimizer_turn.old, optimizer_turn.new) == ("sgd", "adam")
    assert "SGD stands aside" in optimizer_turn.note


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.8**k),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=STEPS + 1),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_loops_scheduler_stays_right_and_the_new_rate_follows_it(name: str) -> None:
    net = mlp()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    scheduler = SCHEDULES[name](optimizer)
    plain = OPTIMIZERS["momentum"](mlp().parameters())
    other = SCHEDULES[name](plain)
    used: list[float] = []
    handle = register_optimizer_step_pre_hook(
        lambda o, *_: used.append(o.param_groups[0]["lr"]) if isinstance(o, torch.optim.Adam) else None
    )
    own = []
    with Watch(net, optimizer, link=None, plan=[(AT, parse("optimizer=adam")), (7, parse("lr=*3"))]) as run:
        for n, batch in enumerate(digit_batches(STEPS)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            run.step(loss)
            plain.step()
            own.append(plain.param_groups[0]["lr"])
            other.step()
            assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
            if n >= AT:
                factor = 0.1 * (3 if n + 1 >= 7 else 1)
                assert run.steering.rate.value == pytest.approx(plain.param_groups[0]["lr"] * factor)
    handle.remove()
    assert used[: 7 - AT] == pytest.approx([0.1 * lr for lr in own[AT:7]], rel=1e-12)


def test_turned_twice_and_back_the_loops_own_goes_on_with_what_it_kept() -> None:
    net, other = mlp(), mlp()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    plan = [(3, "optimizer=adam"), (5, "optimizer=rmsprop"), (7, "optimizer=momentum")]
    losses = train(net, optimizer, plan)
    first: Any = OPTIMIZERS["momentum"](other.parameters())
    acting, expected = first, []
    for n, batch in enumerate(digit_batches(STEPS)):
        if n in (3, 5):
            acting = swap(acting, "adam" if n == 3 else "rmsprop", model=other).optimizer
        if n == 7:
            acting = first
        loss = loss_of(other, batch)
        acting.zero_grad()
        loss.backward()
        acting.step()
        expected.append(loss.item())
    assert losses == expected
    assert same(copy_of(net), copy_of(other))
    assert same_state(state_of(optimizer), state_of(first))
    assert "tui_descent" not in optimizer.state_dict()


def test_between_two_steps_the_loop_finds_its_optimizer_as_it_was() -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    held = optimizer.param_groups[0]["params"]
    seen: list[int] = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(len(o.param_groups[0]["params"])))
    optimizer.register_step_post_hook(lambda o, *_: seen.append(len(o.param_groups[0]["params"])))
    train(net, optimizer, [(AT, "optimizer=adam")])
    assert optimizer.param_groups[0]["params"] is held
    assert [id(p) for p in held] == [id(p) for p in net.parameters()]
    assert set(seen) == {len(held)}
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_gradients_are_looked_at_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    fine = Guard.fine
    monkeypatch.setattr(Guard, "fine", lambda self: looked.append(fine(self)) or looked[-1])
    net = mlp()
    train(net, OPTIMIZERS["sgd"](net.parameters()), [(AT, "optimizer=adam"), (7, "optimizer=sgd")])
    assert looked == [True] * STEPS
