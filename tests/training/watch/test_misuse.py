"""Slips in how a loop uses `watch()` are said once, as a note or a fact; correct loops get neither."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from torch import Tensor, nn

from tui_descent.protocol.events import Noted, RunStarted, StateChanged, WiringFound
from tui_descent.training.watch.optimizer_facts import UNCHANGED
from tui_descent.training.watch.watch import Watch
from tui_descent.training.watch.wiring import MANY_LOSSES, MANY_SKIPPED

BEFORE = "run.step() comes before optimizer.step(): each update is shown with the next one's loss"


def make_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))


def loss_of(net: nn.Module) -> Tensor:
    return net(torch.randn(8, 4)).pow(2).mean()


def notes(keeper: FakeKeeper) -> list[str]:
    """The notes about the loop; there must be no facts about the wiring."""
    events = keeper.events()
    assert not [event for event in events if isinstance(event, WiringFound)]
    return about_the_loop(events)


def about_the_loop(events: list[Any]) -> list[str]:
    """The notes, without those about instruments that cannot measure the loop."""
    return [e.text for e in events if isinstance(e, Noted) and not e.text.startswith("not measured: ")]


def facts(keeper: FakeKeeper) -> list[tuple[str, str | None, dict[str, float | str]]]:
    """The facts about the wiring, none of which has ended; there must be no notes."""
    events = keeper.events()
    assert not about_the_loop(events)
    found = [event for event in events if isinstance(event, WiringFound)]
    assert all(event.present for event in found)
    return [(event.fault, event.layer, event.evidence) for event in found]


def run_loop(
    keeper: FakeKeeper,
    *,
    steps: int = 25,
    stepped: Callable[[nn.Module, torch.optim.Optimizer], torch.optim.Optimizer | None] = lambda net, optimizer: (
        optimizer
    ),
    every: int = 1,
    first: bool = False,
    shown: Callable[[Tensor], Any] = lambda loss: loss,
    reported: bool = True,
    set_to_none: bool = True,
) -> Watch:
    """A loop that steps what `stepped` returns after every `every` batches; `first` calls `run.step` too early."""
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    other = stepped(net, optimizer)
    with Watch(net, optimizer, link=keeper.link) as run:
        for n in range(steps * every):
            loss = loss_of(net)
            if first and reported:
                run.step(shown(loss))
            loss.backward()
            if n % every == every - 1:
                if other is not None:
                    other.step()
                optimizer.zero_grad(set_to_none=set_to_none)
            if not first and reported:
                run.step(shown(loss))
    return run


@pytest.mark.parametrize(
    ("stepped", "other"),
    [
        (lambda net, optimizer: None, {}),
        (lambda net, optimizer: torch.optim.SGD(net.parameters(), lr=0.1), {"other": "SGD", "shares": 1.0}),
        (
            lambda net, optimizer: torch.optim.RMSprop(make_net().parameters()),
            {"other": "RMSprop", "shares": 0.0},
        ),
    ],
)
def test_losses_without_an_update_are_said(
    stepped: Callable[[nn.Module, torch.optim.Optimizer], Any], other: dict[str, float | str], keeper: FakeKeeper
) -> None:
    run = run_loop(keeper, stepped=stepped)
    assert run.next_step == 0
    events = keeper.events()
    assert not [event for event in events if isinstance(event, Noted)]
    (fact,) = (event for event in events if isinstance(event, WiringFound))
    assert fact.fault == "no optimizer step"
    assert fact.evidence == {"losses": MANY_LOSSES, "optimizer": "Adam", **other}
    assert any(isinstance(event, RunStarted) for event in events)
    assert any(isinstance(event, StateChanged) and event.state == "running" for event in events)


@pytest.mark.parametrize("shown", [lambda loss: loss, lambda loss: loss.item(), lambda loss: loss.detach()])
def test_step_reported_before_the_update_is_said(shown: Callable[[Tensor], Any], keeper: FakeKeeper) -> None:
    run_loop(keeper, first=True, shown=shown)
    assert notes(keeper) == [BEFORE]


@pytest.mark.parametrize("updates", [1, 3, 60])
def test_updates_without_a_reported_loss_are_said(updates: int, keeper: FakeKeeper) -> None:
    run_loop(keeper, steps=updates, reported=False)
    plural = "s" if updates > 1 else ""
    assert notes(keeper) == [f"{updates} update{plural}, but run.step(loss) was never called: nothing was recorded"]


def test_losses_are_bounded_without_an_update(keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui_descent.training.watch.results.MOST_LOSSES", 30)
    net = make_net()
    with Watch(net, torch.optim.Adam(net.parameters()), link=keeper.link) as run:
        for _ in range(100):
            run.step(1.0)
            assert len(run._results._losses.rows) <= 30


OTHER_NETS: dict[str, tuple[Callable[[nn.Module], torch.optim.Optimizer], tuple[str, str, int, int] | None]] = {
    "another net": (
        lambda net: torch.optim.SGD(make_net().parameters(), lr=0.1),
        ("foreign parameters", "0", 2, 4),
    ),
    "a copy": (
        lambda net: torch.optim.SGD(copy.deepcopy(net).parameters(), lr=0.1),
        ("foreign parameters", "0", 2, 4),
    ),
    "a new head": (
        lambda net: torch.optim.SGD([*net[0].parameters(), *nn.Linear(6, 1).parameters()], lr=0.1),
        ("foreign parameters", "2", 1, 2),
    ),
    "the head only": (
        lambda net: torch.optim.SGD(net[2].parameters(), lr=0.1),
        ("untrained parameters", "0", 1, 0),
    ),
    "more than the net": (
        lambda net: torch.optim.SGD([*net.parameters(), nn.Parameter(torch.zeros(()))], lr=0.1),
        None,
    ),
    "all": (lambda net: torch.optim.SGD(net.parameters(), lr=0.1), None),
}


@pytest.mark.parametrize("name", OTHER_NETS)
def test_optimizer_of_another_net_is_said(name: str, keeper: FakeKeeper) -> None:
    make, fact = OTHER_NETS[name]
    net = make_net()
    optimizer = make(net)
    with Watch(net, optimizer, link=keeper.link) as run:
        for _ in range(UNCHANGED + 2):
            loss = loss_of(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    if fact is None:
        assert facts(keeper) == []
        return
    fault, layer, absent, foreign = fact
    assert facts(keeper) == [(fault, layer, {"absent": absent, "layers": 2, "foreign": foreign})]


def test_frozen_layers_are_not_missing(keeper: FakeKeeper) -> None:
    net = make_net()
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link) as run:
        for _ in range(UNCHANGED + 2):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()
            run.step(1.0)
    assert facts(keeper) == [("frozen layers", "0", {"frozen": 1, "layers": 2, "in_optimizer": 0})]


@pytest.mark.parametrize("shown", [lambda loss: loss, lambda loss: loss.item()])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("every", [1, 2, 8, 19])
def test_correct_loops_get_no_note(
    every: int, set_to_none: bool, shown: Callable[[Tensor], Any], keeper: FakeKeeper
) -> None:
    run = run_loop(keeper, steps=5, every=every, shown=shown, set_to_none=set_to_none)
    assert run.next_step == 5
    assert notes(keeper) == []


@pytest.mark.parametrize("shown", [lambda loss: loss, lambda loss: loss.item()])
def test_accumulation_with_losses_reported_before_backward_gets_no_note(
    shown: Callable[[Tensor], Any], keeper: FakeKeeper
) -> None:
    run_loop(keeper, steps=5, every=4, first=True, shown=shown)
    assert notes(keeper) == []


class TestScaler:
    """A GradScaler that skips updates. They are steps without an update."""

    @staticmethod
    def train(keeper: FakeKeeper, *, scale: float, steps: int, wrapped: bool = False, **how: Any) -> list[int]:
        """Returns the steps that the scaler skipped."""
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-7)
        scaler, skipped = torch.amp.GradScaler("cpu", init_scale=scale, **how), []
        own = torch.amp.GradScaler.step
        with Watch(net, optimizer, link=keeper.link) as run:
            for n in range(steps):
                loss = loss_of(net)
                before = net[0].weight.detach().clone()
                scaler.scale(loss * 1e4).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                made = run.step(loss)
                assert made == (not torch.equal(before, net[0].weight))
                if not made:
                    skipped.append(n)
            assert run.next_step == steps
        assert torch.amp.GradScaler.step is own
        return skipped

    @pytest.mark.parametrize("scale", [1.0, 2.0**120, 2.0**127])
    def test_skipped_updates_are_steps_marked_as_skipped(self, scale: float, keeper: FakeKeeper) -> None:
        skipped = self.train(keeper, scale=scale, steps=30)
        assert bool(skipped) == (scale > 1)
        records = keeper.steps()
        assert [r.step for r in records] == list(range(30))
        assert [r.step for r in records if r.skipped] == skipped
        assert notes(keeper) == []

    @pytest.mark.parametrize("factor", [0.999, 0.9999, 0.99999])
    def test_scaler_that_skips_everything_is_said(self, factor: float, keeper: FakeKeeper) -> None:
        assert self.train(keeper, scale=2.0**127, steps=25, backoff_factor=factor) == list(range(25))
        assert facts(keeper) == [("every update skipped", None, {"steps": MANY_SKIPPED})]

    @pytest.mark.parametrize("accumulate", [2, 3, 4])
    def test_skips_while_accumulating(self, accumulate: int, keeper: FakeKeeper) -> None:
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-7)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        with Watch(net, optimizer, link=keeper.link) as run:
            for n in range(12 * accumulate):
                loss = loss_of(net)
                scaler.scale(loss * 1e4).backward()
                if n % accumulate == accumulate - 1:
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                run.step(loss)
            assert run.next_step == 12
        assert keeper.steps()[0].skipped
        assert notes(keeper) == []
