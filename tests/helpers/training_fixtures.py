from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deferred_loops import Slow
from fake_keeper import FakeKeeper
from range_test_runs import Run

from tui_descent.instruments import deferred
from tui_descent.training.setup.build import Setup
from tui_descent.training.watch import losses, results, watch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def kept(home: Path) -> Iterator[FakeKeeper]:
    gc.collect()  # what other tests have left to be closed is none of this one's
    before = set(os.listdir("/dev/fd"))
    kept = FakeKeeper(home)
    yield kept
    kept.close()
    assert set(os.listdir("/dev/fd")) == before


@pytest.fixture
def begin(kept: FakeKeeper, home: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []
    others: list[FakeKeeper] = []

    def start(made: Setup, **how: Any) -> Run:
        if runs:  # a run beside the first
            folder = home / f"beside{len(runs)}"
            folder.mkdir()
            others.append(FakeKeeper(folder))
        runs.append(Run(others[-1] if others else kept, made, **how))
        return runs[-1]

    yield start
    for run in runs:
        run.end()
    for other in others:
        other.close()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's numbers are not to be looked at at once: sums are wide, as on a GPU."""
    monkeypatch.setattr(deferred, "ASYNCHRONOUS", {"cuda", "cpu"})


@pytest.fixture(params=[(64, 0), (7, 3), (3, 9)], ids=["at once", "soon", "further and further behind"])
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    """So many rows go together, and have come when asked for so many times."""
    rows, asks = request.param
    monkeypatch.setattr(losses, "ROWS", rows)
    monkeypatch.setattr(losses, "SEND_AFTER_S", 0.0 if asks == 0 else math.inf)
    monkeypatch.setattr(Slow, "asks", asks)
    monkeypatch.setattr(losses, "HostCopy", Slow)
    monkeypatch.setattr(results, "HostCopy", Slow)
    Slow.waited = Slow.open = Slow.most_open = 0
    return Slow


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether losses are read at once; a GPU's instruments in either case."""

    def choose(yes: bool) -> None:
        made = losses.HostLosses if yes else lambda: losses.DeviceLosses(torch.device("cpu"))
        monkeypatch.setattr(watch, "losses_of", lambda model: made())

    return choose
