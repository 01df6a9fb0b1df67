"""A non-finite loss or gradient of a user loop is reported with its cause, and changes nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import copy_of, same, same_state, state_of
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.protocol.commands import Resume
from tui_descent.protocol.events import NotFinite, RunEnded, StateChanged, StepsCompleted
from tui_descent.training.steering.control import OnFault
from tui_descent.training.watch.watch import Watch

BAD_AT, STEPS = 4, 8
X = torch.randn(STEPS, 16, 8, generator=torch.Generator().manual_seed(1))
Y = X[:, :, :2].clone()
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def with_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 2))


class Rooted(nn.Module):
    """Takes a root between two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 2)
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) → (B, 2)."""
        h = (self.a(x) * self.factor).abs().sqrt()
        return self.c(torch.tanh(self.b(h)))  # type: ignore[no-any-return]


def mse(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(net(x), y)


def by_hand(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (net(x) - y).square().sum() / len(x)


def distance(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean distance of two points, which has no derivative where they are equal."""
    p = net(x)
    q = p.detach().where((y == 0).all(1, keepdim=True), y)
    return (p - q).pow(2).sum(1).sqrt().mean()


def log_likelihood(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Minus the log of a softmax, which underflows where the target is 0."""
    return -(net(x) * (1e5 if bool((y == 0).all()) else 1)).softmax(1).log().mean()


def nothing(net: Any, x: Tensor, y: Tensor) -> None:
    pass


def equal_point(net: Any, x: Tensor, y: Tensor) -> None:
    y[0] = 0


def zero_target(net: Any, x: Tensor, y: Tensor) -> None:
    y.zero_()


def bad_input(net: Any, x: Tensor, y: Tensor) -> None:
    x[3, 1] = math.inf


def nan_input(net: Any, x: Tensor, y: Tensor) -> None:
    x[3, 1] = math.nan


def bad_target(net: Any, x: Tensor, y: Tensor) -> None:
    y[3, 1] = math.inf


def bad_weight(net: Any, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        net[0].weight[0, 0] = math.nan


def zero_root(net: Any, x: Tensor, y: Tensor) -> None:
    net.factor = 0.0


def train(
    keeper: FakeKeeper | None,
    net: nn.Module,
    loss_of: Loss,
    spoil: Any,
    *,
    on_fault: OnFault = "end",
    give: str = "",
    number: bool = False,
    early: bool = False,
    spoil_gradient: Callable[[Any], None] | None = None,
    skip: bool = False,
) -> torch.optim.Optimizer:
    """A user loop whose batch `BAD_AT` is spoiled.

    `give` is what it passes as `batch=`: "" for nothing, "x", "xy" or "loss". `number`: it passes the loss as a number.
    `early`: it calls `run.loss`. `skip`: the twin, a plain loop that leaves the bad batch out.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    run = None if skip else Watch(net, optimizer, link=keeper.link if keeper else None, on_fault=on_fault)
    if run is not None:
        run.__enter__()
    try:
        for n in range(STEPS):
            x, y = X[n].clone(), Y[n].clone()
            if n == BAD_AT:
                spoil(net, x, y)
            loss = loss_of(net, x, y)
            batch = {"": None, "x": x, "xy": (x, y), "loss": lambda x=x, y=y: loss_of(net, x, y)}[give]
            optimizer.zero_grad()
            if keeper is not None and on_fault == "hold" and n == BAD_AT:
                keeper.send(Resume())
            if early and run is not None and not run.loss(loss, batch=batch):
                continue
            loss.backward()
            if n == BAD_AT and spoil_gradient is not None:
                spoil_gradient(net)
            if skip and n == BAD_AT:
                continue
            optimizer.step()
            if run is not None:
                run.step(loss.item() if number else loss, batch=batch)
    except SystemExit as stop:
        assert run is not None
        run.__exit__(type(stop), stop, None)
    else:
        if run is not None:
            run.__exit__(None, None, None)
    return optimizer


def fault_of(keeper: FakeKeeper, *args: Any, **kwargs: Any) -> NotFinite:
    train(keeper, *args, **kwargs)
    return next(event for event in keeper.events(NotFinite) if event.step == BAD_AT)


KNOWN: dict[str, tuple[Callable[[], nn.Module], Loss, Any, str, dict[str, Any]]] = {
    # What is known without the batch.
    "sqrt": (
        mlp,
        distance,
        equal_point,
        "",
        {"cause": "loss function", "where": "sqrt at 0 in the loss function?"},
    ),
    "sqrt, a number": (
        mlp,
        distance,
        equal_point,
        "number",
        {"cause": "loss function", "where": "from the loss function or clipping?"},
    ),
    "infinite input": (
        mlp,
        mse,
        bad_input,
        "",
        {"cause": "batch", "where": "the input of layer 0, the first layer, is not finite"},
    ),
    "root between layers": (
        Rooted,
        mse,
        zero_root,
        "",
        {"cause": "backward", "layer": "a", "where": "it arises between b and a"},
    ),
    "log": (mlp, log_likelihood, zero_target, "", {"what": "loss", "where": "log of 0 in the loss function?"}),
    "log, a number": (mlp, log_likelihood, zero_target, "number", {"cause": "", "where": ""}),
    "NaN input": (mlp, mse, nan_input, "", {"cause": "batch", "where": "NaN in the batch itself?", "layer": None}),
    "NaN input of a net that takes roots": (Rooted, mse, nan_input, "", {"cause": "", "where": ""}),
    "NaN input, a mean by hand": (mlp, by_hand, nan_input, "", {"where": "NaN in the batch, or 0/0?"}),
    "weight": (mlp, mse, bad_weight, "", {"cause": "weights", "layer": "0", "where": "the weight of layer 0 is nan"}),
    # With the input.
    "sqrt, input": (mlp, distance, equal_point, "x", {"cause": "loss function", "operation": "sqrt"}),
    "log, input": (mlp, log_likelihood, zero_target, "x", {"where": "log of 0 in the loss function?"}),
    "root, input": (Rooted, mse, zero_root, "x", {"where": "sqrt at 0 in the net, between b and a", "layer": "a"}),
    "infinite target, batch": (mlp, mse, bad_target, "xy", {"cause": "batch", "what": "loss"}),
    "NaN input, batch": (mlp, mse, nan_input, "xy", {"where": "the batch has nan in sample 3"}),
    # With a function that computes the loss.
    "sqrt, loss": (mlp, distance, equal_point, "loss", {"where": "sqrt at 0 in the loss function", "what": "gradient"}),
    "log, loss": (mlp, log_likelihood, zero_target, "loss", {"where": "log of 0 in the loss function"}),
    "root, loss": (Rooted, mse, zero_root, "loss", {"where": "sqrt at 0 in the net, between b and a"}),
    "infinite input, batch": (mlp, mse, bad_input, "xy", {"where": "the batch has inf in sample 3"}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_cause_is_reported(name: str, keeper: FakeKeeper) -> None:
    build, loss_of, spoil, give, expected = KNOWN[name]
    number = give == "number"
    fault = fault_of(keeper, build(), loss_of, spoil, give="" if number else give, number=number)
    assert {key: getattr(fault, key) for key in expected} == expected
    assert fault.text.startswith(f"{fault.what} is {fault.value} at step {BAD_AT}")
    assert fault.where in fault.text
    assert fault.weights_finite == (spoil is not bad_weight)
    assert (fault.loss is not None and math.isfinite(fault.loss)) == (fault.what == "gradient")


@pytest.mark.parametrize("name", KNOWN)
def test_loop_that_goes_on_gets_the_same_cause(name: str, keeper: FakeKeeper) -> None:
    """Its update has been made when the fault is reported. It has passed batches before, so the weights are kept."""
    build, loss_of, spoil, give, expected = KNOWN[name]
    number = give == "number"
    fault = fault_of(keeper, build(), loss_of, spoil, give="" if number else give, number=number, on_fault="note")
    assert {key: getattr(fault, key) for key in expected} == expected
    assert (fault.weights_finite, fault.then) == (False, "note")
    if spoil is not bad_weight:
        assert "now the weight of " in fault.text.lower()


@pytest.mark.parametrize("give", ["", "x", "loss"])
@pytest.mark.parametrize("loss_of", [mse, distance], ids=["mse", "distance"])
def test_gradient_changed_after_the_backward_pass_is_not_called_the_loss_function(
    give: str, loss_of: Loss, keeper: FakeKeeper
) -> None:
    """As clipping does, which spreads NaN of one layer to all."""

    def spread(net: Any) -> None:
        for p in net.parameters():
            p.grad.fill_(math.nan)

    fault = fault_of(keeper, mlp(), loss_of, nothing, give=give, spoil_gradient=spread)
    assert (fault.what, fault.value) == ("gradient", "nan")
    if loss_of is distance and give != "loss":
        assert fault.where == "sqrt at 0 in the loss function?", "a question, since the graph has a sqrt"
    else:
        assert (fault.cause, fault.where) == ("", "in every layer")


def test_text_never_blames_the_loss_if_it_is_finite(keeper: FakeKeeper) -> None:
    fault = fault_of(keeper, mlp(), distance, equal_point)
    assert fault.text.startswith(f"gradient is nan at step {BAD_AT}, loss {fault.loss:.3g}: ")
    (ended,) = keeper.events(RunEnded) or [None]
    assert ended is None or ended.reason == fault.text


@pytest.mark.parametrize("give", [pytest.param("", marks=pytest.mark.heavy), "xy", "loss"])
@pytest.mark.parametrize("early", [False, True], ids=["step", "loss and step"])
@pytest.mark.parametrize(
    ("build", "loss_of", "spoil"),
    [
        (mlp, distance, equal_point),
        (mlp, log_likelihood, zero_target),
        (with_norm, distance, equal_point),
        (with_norm, mse, bad_target),
    ],
    ids=["sqrt", "log", "sqrt after batch norm and dropout", "target after batch norm and dropout"],
)
def test_dropped_batch_leaves_the_run_bitwise_as_without_it(
    build: Any, loss_of: Loss, spoil: Any, early: bool, give: str, keeper: FakeKeeper
) -> None:
    """Weights, running statistics, optimizer and random numbers equal those of a plain loop that skips the update."""
    ends = []
    for watched in (True, False):
        net = build()
        torch.manual_seed(7)
        link = keeper if watched else None
        optimizer = train(link, net, loss_of, spoil, on_fault="hold", give=give, early=early, skip=not watched)
        ends.append((copy_of(net), [*net.buffers()], state_of(optimizer), torch.get_rng_state()))
    held, plain = ends
    assert same(held[0], plain[0])
    assert all(map(torch.equal, held[1], plain[1]))
    assert same_state(held[2], plain[2])
    assert torch.equal(held[3], plain[3])
    assert keeper.events(NotFinite)


@pytest.mark.parametrize(("spoil", "offers"), [(equal_point, True), (bad_weight, False)], ids=["intact", "NaN weight"])
def test_held_run_offers_to_drop_the_batch_only_with_finite_weights(
    spoil: Any, offers: bool, keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[StateChanged] = []
    emit = keeper.link.emit

    def resume(event: Any, **more: Any) -> None:
        emit(event, **more)
        if isinstance(event, StateChanged) and event.state == "held":
            held.append(event)
            keeper.send(Resume())

    monkeypatch.setattr(keeper.link, "emit", resume)
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with Watch(net, optimizer, link=keeper.link, on_fault="hold") as run:
        for n in range(3):
            x, y = X[n].clone(), Y[n].clone()
            if n == 1:
                spoil(net, x, y)
            loss = distance(net, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    assert held[0].reason.endswith("; space drops this batch · q: leave") == offers
    assert len(held) == (1 if offers else 2)


def test_running_statistics_that_a_bad_batch_has_spoiled_are_reported(keeper: FakeKeeper) -> None:
    fault = fault_of(keeper, with_norm(), mse, nan_input, give="xy")
    assert (fault.cause, fault.weights_finite) == ("batch", False)
    assert "; now the running_mean of layer 1 is nan" in fault.text


def test_batch_that_cannot_be_run_again_is_reported_once_and_training_goes_on(keeper: FakeKeeper) -> None:
    def wrong() -> Tensor:
        raise KeyError("gone")

    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link, on_fault="note") as run:
        for n in range(3):
            loss = distance(net, X[n], Y[n] * (n != 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss, batch=wrong)
    events = keeper.events()
    (fault,) = [e for e in events if isinstance(e, NotFinite)]
    assert fault.where == "sqrt at 0 in the loss function?"
    notes = [e.text for e in events if hasattr(e, "level") and "switched off" in e.text]
    assert notes == ["switched off: the search for the first NaN (KeyError: 'gone'); training goes on"]


@pytest.mark.parametrize("batch", ["dict", "list"])
def test_batch_may_be_a_dict_of_arguments_or_begin_with_the_input(batch: str, keeper: FakeKeeper) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            return {"out": self.layer(x * scale)}

    net = Named()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = X[0].clone()
    x[3, 1] = math.nan
    given: object = {"x": x, "scale": 2.0} if batch == "dict" else [x, Y[0]]
    with Watch(net, optimizer, link=keeper.link, on_fault="end") as run:
        F.mse_loss(net(x)["out"], Y[0]).backward()
        optimizer.step()
        run.step(math.nan, batch=given)
        run.step(math.nan, batch=given)
    fault = keeper.events(NotFinite)[0]
    assert fault.where == "the batch has nan in sample 3"


def test_a_second_fault_is_reported_after_finite_steps_only(keeper: FakeKeeper) -> None:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with Watch(net, optimizer, link=keeper.link, on_fault="note") as run:
        for n in range(140):
            loss = net(X[0, :, :2]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(math.nan if n in (3, 4, 9, 80, 81) else loss)
    assert [event.step for event in keeper.events(NotFinite)] == [3, 80]


def test_overflow_that_a_gradient_scaler_skips_is_no_fault(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with Watch(net, optimizer, link=keeper.link, on_fault="end") as run:
        for n in range(4):
            loss = distance(net, X[n], Y[n] * (n != 2))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            run.step(loss)
    assert run.outcome == ("finished", "")
    assert not keeper.events((NotFinite, StepsCompleted))  # type: ignore[arg-type]
