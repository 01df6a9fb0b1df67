"""Partial readings of nets with many layers: a third of the weights each time, the others' norms with their age."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from float64_twins import array, close, l2
from nets import digit_batches, loss_of
from torch import nn

from tui_descent.instruments.net_structure import structure
from tui_descent.instruments.norms import MANY_LAYERS, PARTS, Norms
from tui_descent.instruments.sampler import Sampler
from tui_descent.instruments.tiers import Tiers
from tui_descent.protocol.events import ReadingsTaken
from tui_descent.scenario.knobs import parse
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.watch import Watch

EVERY = 3
WEIGHT_COLUMNS = ("weight_norm", "update_norm", "update_ratio")


class EveryThirdStep(Sampler):
    """A sampler with a budget for every third step."""

    def due(self, step: int, **how: Any) -> Tiers | None:
        return Tiers() if step % EVERY == 0 else None

    @property
    def next_look(self) -> int:
        return 1


def deep(layers: int) -> nn.Sequential:
    """A net with BatchNorm, whose weight is a vector, and with a layer without bias."""
    torch.manual_seed(0)
    body = [part for _ in range(layers - 3) for part in (nn.Linear(12, 12), nn.Tanh())]
    return nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), *body, nn.Linear(12, 10, bias=False))


def readings(
    keeper: FakeKeeper, *, layers: int = 40, sampler: Sampler, steps: int = 14, plan: Iterable[tuple[int, str]] = ()
) -> list[ReadingsTaken]:
    """The readings of a run with Adam, compared with the weights before and after each step."""
    net = deep(layers)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    knobs = [(at, parse(text)) for at, text in plan]
    steering = Steering(net, optimizer)
    weights: list[list[torch.Tensor]] = []
    with Watch(net, optimizer, link=keeper.link, sampler=sampler, steering=steering, plan=knobs) as run:
        run.begin_step()
        for n in range(steps):
            watched = [w.weight for w in structure(net).layers]
            weights.append([w.detach().clone() for w in watched])
            optimizer.zero_grad()
            loss = loss_of(net, digit_batches(4)[n % 4])
            loss.backward()
            optimizer.step()
            run.step(loss)
        weights.append([w.detach().clone() for w in watched])
    found = keeper.readings()
    for reading in found:
        for n, age in enumerate(reading.ages):
            before, after = (array(weights[reading.step - age + k][n]) for k in (0, 1))
            moved, size = l2(after - before), l2(before)
            ratio = None if before.ndim < 2 else moved / (size + 1e-12)
            for name, expected in zip(WEIGHT_COLUMNS, (size, moved, ratio), strict=True):
                value = reading.values[name][n]
                assert value == expected or close(value, expected, 1e-5), (name, reading.step, n, age)  # type: ignore[arg-type]
    return found


def test_after_a_whole_reading_the_thirds_alternate_with_correct_ages(keeper: FakeKeeper) -> None:
    found = readings(keeper, sampler=EveryThirdStep(), steps=17)
    assert [reading.step for reading in found] == [0, 3, 6, 9, 12, 15]
    assert found[0].ages == [0] * 40
    ages = [[set(reading.ages[first::PARTS]) for first in range(PARTS)] for reading in found[1:]]
    once, twice = {EVERY}, {2 * EVERY}
    assert ages == [[{0}, once, once], [once, {0}, twice], [twice, once, {0}], [{0}, twice, once], [once, {0}, twice]]
    for reading in found:
        assert None not in reading.values["grad_norm"], "gradients are never partial"


@pytest.mark.usefixtures("deferred_numbers", "slow_arrivals")
def test_deferred_partial_readings_are_the_same(keeper: FakeKeeper) -> None:
    found = readings(keeper, sampler=EveryThirdStep(), steps=40)
    assert [reading.step for reading in found] == list(range(0, 40, EVERY))[: len(found)]
    assert len(found) > 8
    ages = [max(reading.ages) for reading in found]
    whole = ages.index(EVERY)  # those that began before the first one was read
    assert ages == [0] * whole + [EVERY] + [2 * EVERY] * (len(found) - whole - 1)


@pytest.mark.parametrize(
    ("layers", "sampler"),
    [(MANY_LAYERS, EveryThirdStep()), (40, Sampler(every=EVERY)), (40, Sampler(budget=0.0, at=range(0, 100, EVERY)))],
    ids=["few layers", "fixed interval", "fixed steps"],
)
def test_readings_of_few_layers_or_at_fixed_steps_are_whole(keeper: FakeKeeper, layers: int, sampler: Sampler) -> None:
    found = readings(keeper, layers=layers, sampler=sampler)
    assert [reading.step for reading in found] == [0, 3, 6, 9, 12]
    assert all(reading.ages == [0] * layers for reading in found)


def test_readings_of_a_paced_run_are_whole(keeper: FakeKeeper) -> None:
    found = readings(keeper, sampler=EveryThirdStep(), plan=[(4, "pace=5000")])
    assert [max(reading.ages) for reading in found] == [0, EVERY, 0, 0, 0]


def test_first_reading_after_an_intervention_is_whole(keeper: FakeKeeper) -> None:
    found = readings(keeper, sampler=EveryThirdStep(), plan=[(6, "lr=*10"), (8, "weight_decay=0.1")])
    assert [max(reading.ages) for reading in found] == [0, EVERY, 0, 0, EVERY]


@pytest.mark.parametrize("lost", ["never read", "the update raised"])
def test_readings_are_whole_until_one_has_been_read(lost: str) -> None:
    net = deep(33)
    norms = Norms(structure(net).layers, list(net.parameters()))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(4):
        loss_of(net, digit_batches(1)[0]).backward()
        norms.before_update(step=step, partial=True)
        optimizer.step()
        if step < 2 and lost == "the update raised":
            continue
        deferred = norms.after_update()
        if step < 2:
            continue
        columns = deferred.result().layers
        assert min(columns.weight_norm) > 0
        assert columns.ages is None if step == 2 else set(columns.ages or ()) == {0, 1}


def test_gradients_are_released_after_a_reading() -> None:
    net = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300), nn.Linear(300, 7))
    norms = Norms(structure(net).layers, list(net.parameters()))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    grads = []
    for step in range(2):
        net(torch.randn(4, 300)).sum().backward()
        grads += [weakref.ref(p.grad) for p in net.parameters()]
        norms.before_update(step=step)
        optimizer.step()
        norms.after_update().result()
        optimizer.zero_grad()
    assert not [grad for grad in grads if grad() is not None]


def test_empty_parameter_is_not_measured() -> None:
    net = nn.Linear(4, 3)
    net.nothing = nn.Parameter(torch.empty(0, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    norms = Norms(structure(net).layers, list(net.parameters()))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    for step in range(2):
        norms.before_update(step=step)
        optimizer.step()
        grad_norms, *_ = norms.after_update().result()
        assert grad_norms[-1] is None
        assert norms.not_measured == {1: "it is empty: it has no numbers"}
        assert grad_norms[0] == pytest.approx(12**0.5)


def test_frozen_layers_have_no_readings_in_partial_readings() -> None:
    net = deep(33)
    for p in net[2].parameters():  # type: ignore[union-attr]
        p.requires_grad_(False)
    norms = Norms(structure(net).layers, list(net.parameters()))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(net, digit_batches(1)[0]).backward()
        norms.before_update(step=step, partial=True)
        optimizer.step()
        _, columns, *_ = norms.after_update().result()
        assert [n for n, g in enumerate(columns.grad_norm) if g is None] == [
            n for n, u in enumerate(columns.update_norm) if u is None
        ]
        assert sum(g is None for g in columns.grad_norm) == 1
        assert all(math.isfinite(w) for w in columns.weight_norm)
        assert columns.ages is None if step == 0 else set(columns.ages or ()) == set(range(step + 1))
