"""Non-finite losses and gradients are caught before they reach weights or optimizer state; finite ones pass."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import OPTIMIZERS, copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import nn
from unusual_nets import UNUSUAL

from tui_descent.instruments.failures import Failures
from tui_descent.instruments.net_structure import structure
from tui_descent.protocol.commands import Resume
from tui_descent.protocol.events import CommandDone, NotFinite, RunEnded
from tui_descent.training.steering.control import OnFault
from tui_descent.training.watch.fault_search import FaultSearch
from tui_descent.training.watch.nan_guard import NanGuard
from tui_descent.training.watch.watch import Watch

BAD_AT = 3
BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
FIRST_LAYER = r"gradient is nan at step 3, loss 2\.\d+: it arises between blocks\.0\.linear and stem"
Spoil = Any  # a function that makes gradients non-finite


def search_in(net: nn.Module, replay: Callable[[], object] | None = None) -> FaultSearch:
    return FaultSearch(net, Failures(), replay=replay, muted=nullcontext)


def spoil_input_most(net: Any) -> None:
    net.stem.weight.grad[0, 0] = math.nan


def spoil_all(net: Any) -> None:
    for p in net.parameters():
        p.grad.fill_(math.inf)


def train(
    name: str, on_fault: OnFault, spoil: Spoil, *, bad_at: int = BAD_AT, link: Any = None, is_scenario: bool = True
) -> tuple[nn.Module, list[bool], Watch]:
    """Train; at step `bad_at` the gradients are made non-finite once."""
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
def test_held_update_leaves_weights_and_state_bitwise_unchanged(name: str, bad_at: int, spoil: Spoil) -> None:
    net, answers, run = train(name, "hold", spoil, bad_at=bad_at)
    assert answers == [n != bad_at for n in range(BAD_AT + 3)]
    assert run.next_step == BAD_AT + 2, "a scenario run does not count a dropped update"
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_run_continues_as_if_the_dropped_batch_had_never_come(name: str) -> None:
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
def test_unattended_run_ends_diverged_with_finite_weights(name: str, keeper: FakeKeeper) -> None:
    net, answers, run = train(name, "end", spoil_input_most, link=keeper.link)
    assert answers == [True] * BAD_AT
    assert run.outcome is not None
    assert run.outcome[0] == "diverged"
    (ended,) = keeper.events(RunEnded)
    assert (ended.status, ended.step) == ("diverged", BAD_AT)
    assert re.fullmatch(rf"{FIRST_LAYER}, before the update", ended.reason)
    assert all(p.isfinite().all() for p in net.parameters())


def test_user_loop_is_notified_and_not_stopped(keeper: FakeKeeper) -> None:
    net, answers, _ = train("sgd", "note", spoil_input_most, link=keeper.link, is_scenario=False)
    assert answers == [True] * (BAD_AT + 3)
    noted = keeper.events(NotFinite)
    assert noted[0].step == BAD_AT
    assert noted[0].what == "gradient"
    assert re.fullmatch(rf"{FIRST_LAYER}; now the weight of stem is nan", noted[0].text)
    assert (noted[0].cause, noted[0].layer, noted[0].weights_finite) == ("backward", "stem", False)
    assert net.stem.weight.isnan().any(), "the loop's own update was made"


def test_held_user_loop_resumes_on_command_and_records_the_update_as_skipped(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link, on_fault="hold") as run:
        for n, batch in enumerate(digit_batches(4)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            if n == 2:
                spoil_all(net)
                keeper.send(Resume())  # read only when the run is held
            optimizer.step()
            run.step(loss)
    assert [(record.step, record.skipped) for record in keeper.steps()] == [
        (0, False),
        (1, False),
        (2, True),
        (3, False),
    ]
    events = keeper.events()
    (done,) = [event for event in events if isinstance(event, CommandDone)]
    assert (done.step, done.what) == (2, "resumed")


def test_closure_with_non_finite_gradients_makes_no_update() -> None:
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
def test_non_finite_loss_checked_before_backward_is_dropped(value: float) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=None, on_fault="hold", is_scenario=True) as run:
        assert run.loss(torch.tensor(1.0))
        assert not run.loss(torch.tensor(value))
        assert not run.loss(value)
        assert run.next_step == 0


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
def test_non_finite_loss_ends_an_unattended_run_before_the_update(value: float, keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    weights = copy_of(net)
    with Watch(net, optimizer, link=keeper.link, on_fault="end", is_scenario=True) as run:
        loss = loss_of(net, digit_batches(1)[0]) * value
        run.loss(loss)
        pytest.fail("the run must have ended")
    assert same(copy_of(net), weights)
    where = "step 0: NaN in the batch itself? (before the update)" if math.isnan(value) else "step 0, before the update"
    assert run.outcome == ("diverged", f"loss is {value} at {where}")


def test_fault_names_the_first_non_finite_layer() -> None:
    net = mlp(depth=5, activation="identity")
    batch = digit_batches(1)[0]
    with torch.no_grad():
        net.blocks[2].linear.weight.fill_(3e38)
    found = NanGuard(net).loss_fault(7, math.inf)
    assert found is not None
    fault = search_in(net, lambda: loss_of(net, batch)).explain(found)
    assert fault.step == 7
    assert (fault.layer, fault.cause, fault.operation) == ("blocks.2.linear", "forward", "matmul")
    assert fault.text == "loss is inf at step 7: matmul overflows in blocks.2.linear, before the update"


def test_searching_for_the_layer_leaves_random_state_and_hooks_unchanged() -> None:
    net = nn.Sequential(mlp(), nn.Dropout(0.5))
    batch = digit_batches(1)[0]
    numbers = torch.get_rng_state()
    found = NanGuard(net).loss_fault(0, math.nan)
    assert found is not None
    search_in(net, lambda: net(batch[0])).explain(found)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not any(module._forward_hooks for module in net.modules())


def test_non_finite_loss_with_finite_gradients_is_found_just_after_the_update(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link, on_fault="end") as run:
        for n, batch in enumerate(digit_batches(4)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss if n < 2 else math.nan)
    (ended,) = keeper.events(RunEnded)
    assert (ended.status, ended.step) == ("diverged", 3)
    assert ended.reason == "loss is nan at step 2, found just after the update"


def test_bias_of_a_large_first_layer_shows_every_non_finite_gradient(keeper: FakeKeeper) -> None:
    """A non-finite δ makes the gradients of weight and bias non-finite, whatever the inputs."""
    for value in (math.nan, math.inf, -math.inf):
        net = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 4))
        guard = NanGuard(net)
        guard.layers = structure(net).layers
        x = torch.randn(8, 300) * (torch.rand(8, 300) > 0.5)
        out = net[0](x)
        out.backward(torch.zeros_like(out))
        assert guard.gradient_is_finite()
        assert guard.gradient_fault(0) is None
        net.zero_grad()
        delta = torch.zeros(8, 300)
        delta[3, 7] = value
        net[0](x).backward(delta)
        assert not guard.gradient_is_finite()
        found = guard.gradient_fault(5)
        assert found is not None
        assert (found.step, found.layer) == (5, "0")


@pytest.mark.parametrize("bad", [None, *BAD], ids=str)
def test_biases_are_checked_where_only_biases_train(bad: str | None) -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    guard = NanGuard(net)
    guard.layers = structure(net).layers
    net(torch.randn(8, 6)).square().mean().backward()
    if bad is not None:
        for layer in (net[0], net[1]):
            layer.bias.grad[2] = BAD[bad]  # type: ignore[index, union-attr]
    for _ in range(2):  # the second time the parameter to check is known
        assert guard.gradient_is_finite() == (bad is None)
    fault = guard.gradient_fault(7)
    assert (None if fault is None else fault.layer) == (None if bad is None else "1")
    net.requires_grad_(True)
    net(torch.randn(8, 6)).square().mean().backward()
    assert guard.find_input_most() is net[0].weight, "the weights train now"


def spectral() -> nn.Module:
    return UNUSUAL["complex64"]()


def embedding() -> nn.Module:
    return UNUSUAL["sparse gradient"]()


def empty_first() -> nn.Module:
    """The first layer is empty, so its gradient is always finite."""
    net = UNUSUAL["empty"]()
    assert structure(net).layers[0].weight.numel() == 0
    return net


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("bad", [None, *BAD], ids=str)
@pytest.mark.parametrize("build", [spectral, embedding, empty_first], ids=["complex", "sparse", "empty"])
def test_gradients_of_every_kind_are_checked(build: Callable[[], nn.Module], bad: str | None) -> None:
    net, guard = build(), None
    net(torch.randn(8, 32)).sum().backward()
    guard = NanGuard(net)
    guard.layers = structure(net).layers
    first = next(w.weight.grad for w in guard.layers if w.weight.grad is not None and w.weight.numel())
    assert first is not None
    if bad is not None:
        (first._values() if first.is_sparse else first).view(-1)[2] = BAD[bad]
    for _ in range(2):  # the second time the parameter to check is known
        assert guard.gradient_is_finite() == (bad is None)
    fault = guard.gradient_fault(7)
    assert (fault is None) == (bad is None)
    if fault is not None:
        assert (fault.what, fault.step) == ("gradient", 7)
        assert fault.layer in {w.layer.name for w in guard.layers}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Initializing zero-element")
@pytest.mark.parametrize("name", ["complex64", "quantized", "sparse weight", "meta", "lazy", "empty", "int8"])
def test_place_of_a_non_finite_loss_is_searched_among_weights_of_every_kind(name: str) -> None:
    net = UNUSUAL[name]()
    guard, search = NanGuard(net), search_in(net)
    guard.layers = structure(net).layers
    found = guard.loss_fault(3, math.nan)
    assert found is not None
    assert search.explain(found).layer is None
    with torch.no_grad():
        weight = guard.layers[-1].weight if guard.layers[-1].layer.not_measured is None else guard.layers[0].weight
        weight.view(-1)[0] = math.nan
    fault = search.explain(found)
    assert fault.layer is not None
    assert fault.cause == "weights"
