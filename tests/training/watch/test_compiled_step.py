"""A compiled optimizer step is compiled as often as without us: our hooks are no part of it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from torch import nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.training.watch.watch import Watch

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


def train(name: str, keeper: FakeKeeper | None) -> tuple[dict[str, int], list[bytes]]:
    """The compiler's counts of graphs, and the weights."""
    import torch._dynamo as compiler
    from torch._dynamo.utils import counters

    compiler.reset()
    counters.clear()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    optimizer = OPTIMIZERS[name](net.parameters())
    watch: Any = contextlib.nullcontext()
    if keeper is not None:
        watch = Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=3))
    with watch as run:
        step = torch.compile(optimizer.step, backend="eager")
        for n in range(8):
            loss = net(torch.full((3, 4), n / 8)).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            step()
            if run is not None:
                assert run.step(loss)
    return dict(counters["stats"]), [p.detach().numpy().tobytes() for p in net.parameters()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own
@pytest.mark.filterwarnings("ignore:.*record_function.*")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_graph_is_added_and_training_is_unchanged(name: str, keeper: FakeKeeper) -> None:
    assert train(name, keeper) == train(name, None)
    assert len(keeper.readings()) == 3
