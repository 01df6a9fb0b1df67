"""What is no number is found before it reaches weights or optimizer state, and what is one is let through."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import OPTIMIZERS, copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import Tensor, nn

from tui_descent.instruments.net_structure import structure
from tui_descent.protocol.commands import Resume
from tui_descent.protocol.events import CommandDone, NotFinite, RunEnded
from tui_descent.training.steering.control import OnFault
from tui_descent.training.watch.nan_guard import NanGuard
from tui_descent.training.watch.watch import Watch

BAD_AT = 3
BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
# The first layer's weight is the input-most; a bad number in the batch reaches all of them.
Spoil = Any


class Again:
    """The batch again, of which the guard needs the forward pass alone."""

    def __init__(self, forward_again: Callable[[], Tensor]) -> None:
        self.forward_again = forward_again

    def part(self, where: slice) -> Tensor | None:
        return None

    def size(self) -> int:
        return 0


def spoil_input_most(net: Any) -> None:
    net.stem.weight.grad[0, 0] = math.nan


def spoil_all(net: Any) -> None:
    for p in net.parameters():
        p.grad.fill_(math.inf)


def train(
    name: str, on_fault: OnFault, spoil: Spoil, *, bad_at: int = BAD_AT, link: Any = None, is_scenario: bool = True
) -> tuple[nn.Module, list[bool], Watch]:
    """At step `bad_at` the gradients are spoilt once; the step after it is a good one again."""
    net = mlp()
    optimizer = OPTIMIZERS[name](net.parameters())
    answers = []
    with Watch(net, optimizer, link=link, on_fault=on_fault, is_scenario=is_scenario) as run:
        for n, batch in enumerate(digit_batches(BAD_AT + 3)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            if n == bad_at:
                spoil(net)
                weights, state = copy_of(net), state_of(optimizer)
            try:
                optimizer.step()
            finally:
                if n == bad_at and on_fault != "note":
                    assert same(copy_of(net), weights)
                    assert same_state(state_of(optimizer), state)
            answers.append(run.step(loss))
    return net, answers, run


@pytest.mark.parametrize("spoil", [spoil_input_most, spoil_all], ids=["one number", "all"])
@pytest.mark.parametrize("bad_at", [0, BAD_AT], ids=["first step", "later"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_held_update_leaves_weights_and_state_as_they_are_bit_for_bit(name: str, bad_at: int, spoil: Spoil) -> None:
    net, answers, run = train(name, "hold", spoil, bad_at=bad_at)
    assert answers == [n != bad_at for n in range(BAD_AT + 3)]
    assert run.next_step == BAD_AT + 2, "a dropped update is no step of our own loop"
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_the_run_goes_on_as_if_the_dropped_batch_had_never_been(name: str) -> None:
    held, _, _ = train(name, "hold", spoil_all)
    twin = mlp()
    optimizer = OPTIMIZERS[name](twin.parameters())
    for n, batch in enumerate(digit_batches(BAD_AT + 3)):
        if n == BAD_AT:
            continue
        optimizer.zero_grad()
        loss_of(twin, batch).backward()
        optimizer.step()
    assert same(copy_of(held), copy_of(twin))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_a_viewer_the_run_ends_diverged_with_good_weights(name: str, kept: FakeKeeper) -> None:
    net, answers, run = train(name, "end", spoil_input_most, link=kept.link)
    assert answers == [True] * BAD_AT
    assert run.outcome is not None
    assert run.outcome[0] == "diverged"
    (ended,) = kept.events(RunEnded)
    assert (ended.status, ended.step) == ("diverged", BAD_AT)
    assert ended.reason.startswith("gradient of stem is not finite at step 3, before the update")
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_foreign_loop_is_told_and_not_stopped(kept: FakeKeeper) -> None:
    net, answers, _ = train("sgd", "note", spoil_input_most, link=kept.link, is_scenario=False)
    assert answers == [True] * (BAD_AT + 3)
    noted = kept.events(NotFinite)
    assert noted[0].step == BAD_AT
    assert noted[0].what == "gradient"
    assert "gradient of stem is not finite at step 3" in noted[0].text
    assert net.stem.weight.isnan().any(), "the loop's own update was made"


def test_a_held_run_says_why_and_goes_on_when_told_and_records_the_update_as_skipped(kept: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=kept.link, on_fault="hold") as run:
        for n, batch in enumerate(digit_batches(4)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            if n == 2:
                spoil_all(net)
                kept.order(Resume())  # heard only once the run stands still
            optimizer.step()
            run.step(loss)
    assert [(record.step, record.skipped) for record in kept.steps()] == [(0, False), (1, False), (2, True), (3, False)]
    events = kept.events()
    (done,) = [event for event in events if isinstance(event, CommandDone)]
    assert (done.step, done.what) == (2, "resumed")


def test_a_closure_whose_gradients_are_bad_makes_no_update() -> None:
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    batches = digit_batches(3)

    def closure(n: int) -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, batches[n])
        loss.backward()
        if n == 1:
            spoil_all(net)
        return loss

    with Watch(net, optimizer, link=None, on_fault="hold", is_scenario=True) as run:
        for n in range(3):
            weights, state = copy_of(net), state_of(optimizer)
            loss = optimizer.step(lambda n=n: closure(n))  # type: ignore[misc]
            assert same(copy_of(net), weights) == (n == 1)
            assert same_state(state_of(optimizer), state) == (n == 1)
            assert run.step(loss) == (n != 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_finite_gradients_whose_sum_overflows_are_no_fault(name: str) -> None:
    def huge(net: Any) -> None:
        net.stem.weight.grad.fill_(3e38)
        assert not math.isfinite(net.stem.weight.grad.sum().item())

    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-39) if name == "sgd" else OPTIMIZERS[name](net.parameters())
    with Watch(net, optimizer, link=None, on_fault="end") as run:
        for batch in digit_batches(3):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            huge(net)
            optimizer.step()
            assert run.step(loss)
    assert run.outcome == ("finished", "")


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
def test_a_bad_loss_handed_over_before_backward_is_dropped(value: float) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=None, on_fault="hold", is_scenario=True) as run:
        assert run.loss(torch.tensor(1.0))
        assert not run.loss(torch.tensor(value))
        assert not run.loss(value)
        assert run.next_step == 0


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
def test_a_bad_loss_ends_an_unattended_run_before_the_update(value: float, kept: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    weights = copy_of(net)
    with Watch(net, optimizer, link=kept.link, on_fault="end", is_scenario=True) as run:
        loss = loss_of(net, digit_batches(1)[0]) * value
        run.loss(loss)
        pytest.fail("the run must have ended")
    assert same(copy_of(net), weights)
    assert run.outcome == ("diverged", f"loss is {value} at step 0, before the update")


def test_the_fault_names_the_layer_where_it_began() -> None:
    net = mlp(depth=5, activation="identity")
    batch = digit_batches(1)[0]
    guard = NanGuard(net, lambda: loss_of(net, batch))
    with torch.no_grad():
        net.blocks[2].linear.weight.fill_(3e38)
    fault = guard.bad_loss(7, math.inf)
    assert fault.step == 7
    assert fault.text == "loss is inf at step 7, first in blocks.2.linear, before the update"


def test_looking_for_the_layer_changes_no_random_number() -> None:
    net = nn.Sequential(mlp(), nn.Dropout(0.5))
    batch = digit_batches(1)[0]
    numbers = torch.get_rng_state()
    NanGuard(net, lambda: net(batch[0])).bad_loss(0, math.nan)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_bad_loss_beside_good_gradients_is_found_just_after(kept: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=kept.link, on_fault="end") as run:
        for n, batch in enumerate(digit_batches(4)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss if n < 2 else math.nan)
    (ended,) = kept.events(RunEnded)
    assert (ended.status, ended.step) == ("diverged", 3)
    assert ended.reason == "loss is nan at step 2, found just after the update"


def test_of_a_large_first_layer_the_bias_tells_of_every_bad_number_that_comes_back(kept: FakeKeeper) -> None:
    """One δ that is no number spoils weight and bias alike, whatever the inputs."""
    for value in (math.nan, math.inf, -math.inf):
        net = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 4))
        guard = NanGuard(net)
        guard.layers = structure(net).layers
        x = torch.randn(8, 300) * (torch.rand(8, 300) > 0.5)
        out = net[0](x)
        out.backward(torch.zeros_like(out))
        assert guard.fine()
        assert guard.bad_gradient(0) is None
        net.zero_grad()
        delta = torch.zeros(8, 300)
        delta[3, 7] = value
        net[0](x).backward(delta)
        assert not guard.fine()
        found = guard.bad_gradient(5)
        assert found is not None
        assert (found.step, found.layer) == (5, "0")
