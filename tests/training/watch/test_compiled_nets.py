"""torch.compile compiles a watched net as often as an unwatched one, and what cannot be read inside is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from fake_keeper import FakeKeeper
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import Noted
from tui_descent.training.watch.watch import Watch

pytestmark = [  # torch's own warnings while it compiles or traces
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(16, 16), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


Forward = Callable[[Tensor], Tensor]


def wrapped(net: Net) -> Forward:
    return torch.compile(net, backend="eager")


def in_place(net: Net) -> Forward:
    net.compile(backend="eager")
    return net


def function(net: Net) -> Forward:
    return torch.compile(lambda x: net(x) * 2, backend="eager")


def each_block(net: Net) -> Forward:
    for block in net.blocks:
        block.compile(backend="eager")
    return net


def each_block_wrapped(net: Net) -> Forward:
    for n in range(3):
        net.blocks[n] = torch.compile(net.blocks[n], backend="eager")
    return net


def whole_graph(net: Net) -> Forward:
    return torch.compile(net, backend="eager", fullgraph=True)


FORMS = [wrapped, in_place, function, each_block, each_block_wrapped, whole_graph]


class Trained(NamedTuple):
    losses: list[float]
    frames: int
    graphs: int
    breaks: int
    stance: str


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def train(form: Callable[[Net], Forward], *, first: bool, every: int, keeper: FakeKeeper | None) -> Trained:
    """Train with another batch size from step 3 on, so that torch compiles again. `first`: compile before the watch."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    net, x, losses = Net(), torch.randn(8, 16), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    forward = form(net) if first else None
    run = None if keeper is None else Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=every)).__enter__()
    forward = form(net) if forward is None else forward
    for step in range(6):
        loss = forward(x[:5] if step >= 3 else x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if run is not None:
            run.step(loss)
    if run is not None:
        run.__exit__(None, None, None)
    stance = torch._dynamo.eval_frame._stance.stance
    breaks = sum(counters["graph_break"].values())
    return Trained(losses, counters["frames"]["total"], counters["stats"]["unique_graphs"], breaks, stance)


@pytest.mark.parametrize(
    ("form", "first"), [*((form, True) for form in FORMS), (wrapped, False), (function, False), (each_block, False)]
)
def test_a_watched_net_is_compiled_as_often_as_an_unwatched_one(
    form: Callable[[Net], Forward], first: bool, keeper: FakeKeeper
) -> None:
    plain = train(form, first=first, every=1, keeper=None)
    assert plain.graphs >= 2
    assert train(form, first=first, every=1, keeper=keeper) == plain
    notes = [event.text for event in keeper.events(Noted)]
    readings = keeper.readings()
    assert "not measured: the activations, because their modules run inside a part compiled by torch.compile" in notes
    if form in (each_block, each_block_wrapped):
        assert [f for f in readings[-1].values["backprop_factor"] if f is not None], "between the compiled blocks"
    else:
        assert (
            "not measured: the chain-rule factors, because the blocks run inside a part compiled by torch.compile"
            in notes
        )


def test_readings_at_some_steps_do_not_compile_again(keeper: FakeKeeper) -> None:
    plain = train(wrapped, first=True, every=2, keeper=None)
    assert train(wrapped, first=True, every=2, keeper=keeper) == plain


@pytest.mark.parametrize("inside", ["export", "jit.trace", "fx"])
def test_a_net_is_exported_inside_the_with_as_outside(inside: str) -> None:
    net, x = Net(), torch.randn(4, 16)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def graph() -> str:
        if inside == "export":
            return str(torch.export.export(net, (x,)).graph)
        if inside == "fx":
            return str(torch.fx.symbolic_trace(net).graph)
        return str([node.kind() for node in torch.jit.trace(net, x).inlined_graph.nodes()])

    plain = graph()
    with Watch(net, optimizer, link=None, sampler=Sampler(every=1)) as run:
        for _ in range(2):
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            run.step(loss)
            assert graph() == plain
