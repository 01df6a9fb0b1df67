"""Fixtures of the training tests."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deferred_loops import SlowArrival
from fake_keeper import FakeKeeper
from range_test_runs import Run

from tui_descent.instruments import deferred
from tui_descent.training.setup.build import Setup
from tui_descent.training.watch import loss_readback, metric_log, results, watch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def keeper(home: Path) -> Iterator[FakeKeeper]:
    gc.collect()  # closes files that earlier tests have left open
    gc.freeze()  # later calls need not look again at what is left, such as all of torch: that would take 0.3 s each
    before = set(os.listdir("/dev/fd"))
    keeper = FakeKeeper(home)
    yield keeper
    keeper.close()
    assert set(os.listdir("/dev/fd")) == before


@pytest.fixture
def start_run(keeper: FakeKeeper, home: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []
    others: list[FakeKeeper] = []

    def start(made: Setup, **how: Any) -> Run:
        if runs:  # a second run has a keeper of its own
            folder = home / f"beside{len(runs)}"
            folder.mkdir()
            others.append(FakeKeeper(folder))
        runs.append(Run(others[-1] if others else keeper, made, **how))
        return runs[-1]

    yield start
    for run in runs:
        run.end()
    for other in others:
        other.close()


@pytest.fixture
def deferred_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of the CPU are deferred, as those of a GPU are."""
    monkeypatch.setattr(deferred, "ASYNCHRONOUS", {"cuda", "cpu"})


# How many rows are sent together, and how often they must be asked for until they have arrived.
ARRIVALS = {"at once": (64, 0), "soon": (7, 3), "late": (3, 9)}


@pytest.fixture(params=ARRIVALS.values(), ids=[*ARRIVALS])
def slow_arrivals(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[SlowArrival]:
    rows, asks = request.param
    monkeypatch.setattr(loss_readback, "ROWS", rows)
    monkeypatch.setattr(loss_readback, "SEND_AFTER_S", 0.0 if asks == 0 else math.inf)
    monkeypatch.setattr(SlowArrival, "asks", asks)
    monkeypatch.setattr(loss_readback, "HostCopy", SlowArrival)
    monkeypatch.setattr(results, "HostCopy", SlowArrival)
    monkeypatch.setattr(metric_log, "HostCopy", SlowArrival)
    SlowArrival.waited = SlowArrival.open = SlowArrival.most_open = 0
    return SlowArrival


@pytest.fixture
def losses_at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """A function that chooses whether losses are read at once or deferred."""

    def choose(yes: bool) -> None:
        made = loss_readback.HostLosses if yes else lambda: loss_readback.DeviceLosses(torch.device("cpu"))
        monkeypatch.setattr(watch, "losses_of", lambda model: made())

    return choose
