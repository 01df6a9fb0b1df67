"""User loops whose layers change, by a knob or by the loop itself: the rows of their readings."""

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
from tui_descent.training.watch.layer_list import SPARE_ROWS
from tui_descent.training.watch.watch import Watch


class GrowingNet(nn.Module):
    """A net whose layers the loop changes during training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 8)
        self.act = nn.ReLU()
        self.more = nn.Sequential(nn.Linear(8, 8), nn.Identity())
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.more(self.act(self.stem(x))))
        return out


def readings_of(
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


def test_norm_added_to_a_user_loop_is_listed_where_it_runs(keeper: FakeKeeper) -> None:
    net = mlp(depth=3)
    ran: list[str] = []

    def record_order(step: int) -> None:
        ran.clear()
        for name, module in net.named_modules():
            if list(module.parameters(recurse=False)) and step in (3, 6):
                module.register_forward_pre_hook(lambda *_, n=name: ran.append(n))  # type: ignore[misc]

    order: dict[int, list[str]] = {}

    def change(step: int) -> None:
        order[step - 1] = list(dict.fromkeys(ran))
        record_order(step)

    turns = {3: "norm=layer,where=pre,way=instant", 6: "norm=layer,where=post,way=instant"}
    readings = readings_of(keeper, net, turns, change)
    events = keeper.events(LayersChanged)
    assert [[layer.name for layer in event.layers] for event in events] == [order[3], order[6]]
    assert order[3][1:3] == ["blocks.0.norm", "blocks.0.linear"]
    assert order[6][1:3] == ["blocks.0.linear", "blocks.0.norm"]
    assert [reading.structure for reading in readings] == [0] * 3 + [1] * 3 + [2] * 3


def test_net_enlarged_beyond_the_spare_rows_keeps_its_old_rows(
    keeper: FakeKeeper,
) -> None:
    net = GrowingNet()

    def grow(step: int) -> None:
        if step == 2:
            net.more[1] = nn.Sequential(*(nn.Linear(8, 8) for _ in range(SPARE_ROWS + 1)))

    readings = readings_of(keeper, net, {4: "activation=gelu,way=instant"}, grow)
    (event,) = keeper.events(LayersChanged)  # the first of its two units is a block now
    assert [layer.name for layer in event.layers] == ["stem", "more.0", "head"]
    assert [len(reading.ages) for reading in readings] == [3] * 9


def test_layer_removed_by_the_loop_loses_its_row_at_the_next_intervention(keeper: FakeKeeper) -> None:
    net = GrowingNet()

    def shrink(step: int) -> None:
        if step == 2:
            net.more[0] = nn.Identity()

    readings = readings_of(keeper, net, {4: "activation=gelu,way=instant"}, shrink)
    (event,) = keeper.events(LayersChanged)
    assert [layer.name for layer in event.layers] == ["stem", "head"]
    assert [len(reading.ages) for reading in readings] == [3] * 4 + [2] * 5


@pytest.mark.parametrize("noticed", ["by the optimizer", "by the clock"])
def test_layer_that_the_loop_replaces_by_two_gets_two_rows(
    noticed: str, keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = GrowingNet()
    if noticed == "by the clock":
        monkeypatch.setattr(layer_list, "COMPARE_EVERY_S", 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    norms = []
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        for step, batch in enumerate(digit_batches(9)):
            if step == 2:
                net.more = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
                if noticed == "by the optimizer":
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
