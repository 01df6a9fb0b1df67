"""Layers that come and go in a loop of one's own, by a knob or by its owner's hand: their rows in the readings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import digit_batches, loss_of, mlp
from torch import Tensor, nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import LayersChanged, ReadingsTaken
from tui_descent.scenario.knobs import parse
from tui_descent.training.watch import layer_list
from tui_descent.training.watch.layer_list import SPARE
from tui_descent.training.watch.watch import Watch


class Grows(nn.Module):
    """A net whose owner adds layers under way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 8)
        self.act = nn.ReLU()
        self.more = nn.Sequential(nn.Linear(8, 8), nn.Identity())
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.more(self.act(self.stem(x))))
        return out


def own(
    keeper: FakeKeeper, net: nn.Module, turns: dict[int, str], change: Callable[[int], None]
) -> list[ReadingsTaken]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    plan = [(at, parse(turn)) for at, turn in turns.items()]
    with Watch(net, optimizer, link=keeper.link, plan=plan, sampler=Sampler(every=1)) as run:
        for step, batch in enumerate(digit_batches(9)):
            change(step)
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        return keeper.readings()


def test_in_an_own_loop_a_norm_stands_where_it_runs_too(keeper: FakeKeeper) -> None:
    net = mlp(depth=3)
    heard: list[str] = []

    def listen(step: int) -> None:
        heard.clear()
        for name, module in net.named_modules():
            if list(module.parameters(recurse=False)) and step in (3, 6):
                module.register_forward_pre_hook(lambda *_, n=name: heard.append(n))  # type: ignore[misc]

    order: dict[int, list[str]] = {}

    def change(step: int) -> None:
        order[step - 1] = list(dict.fromkeys(heard))
        listen(step)

    turns = {3: "norm=layer,where=pre,way=instant", 6: "norm=layer,where=post,way=instant"}
    readings = own(keeper, net, turns, change)
    events = keeper.events(LayersChanged)
    assert [[layer.name for layer in event.layers] for event in events] == [order[3], order[6]]
    assert order[3][1:3] == ["blocks.0.norm", "blocks.0.linear"]
    assert order[6][1:3] == ["blocks.0.linear", "blocks.0.norm"]
    assert [reading.structure for reading in readings] == [0] * 3 + [1] * 3 + [2] * 3


def test_net_enlarged_beyond_the_spare_rows_keeps_its_old_rows(
    keeper: FakeKeeper,
) -> None:
    net = Grows()

    def grow(step: int) -> None:
        if step == 2:
            net.more[1] = nn.Sequential(*(nn.Linear(8, 8) for _ in range(SPARE + 1)))

    readings = own(keeper, net, {4: "activation=gelu,way=instant"}, grow)
    (event,) = keeper.events(LayersChanged)  # the first of its two units is a block now
    assert [layer.name for layer in event.layers] == ["stem", "more.0", "head"]
    assert [len(reading.ages) for reading in readings] == [3] * 9


def test_one_that_its_owner_makes_smaller_loses_the_row_at_the_next_turn(keeper: FakeKeeper) -> None:
    net = Grows()

    def shrink(step: int) -> None:
        if step == 2:
            net.more[0] = nn.Identity()

    readings = own(keeper, net, {4: "activation=gelu,way=instant"}, shrink)
    (event,) = keeper.events(LayersChanged)
    assert [layer.name for layer in event.layers] == ["stem", "head"]
    assert [len(reading.ages) for reading in readings] == [3] * 4 + [2] * 5


@pytest.mark.parametrize("told", ["by its optimizer", "in a second"])
def test_a_layer_that_its_owner_swaps_for_two_is_followed(
    told: str, keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Grows()
    if told == "in a second":
        monkeypatch.setattr(layer_list, "LOOK_EVERY_S", 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    norms = []
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        for step, batch in enumerate(digit_batches(9)):
            if step == 2:
                net.more = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
                if told == "by its optimizer":
                    optimizer.add_param_group({"params": list(net.more.parameters())})
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            net.more.zero_grad()
            loss.backward()
            norms.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm().item())
            optimizer.step()
            run.step(loss)
        readings = keeper.readings()
    (event,) = keeper.events(LayersChanged)
    assert [layer.name for layer in event.layers] == ["stem", "more.0", "more.1", "head"]
    assert [len(reading.ages) for reading in readings] == [3] * 3 + [4] * 6
    for reading, norm in list(zip(readings, norms, strict=True))[3:]:
        assert reading.global_grad_norm == pytest.approx(norm, rel=1e-5)
