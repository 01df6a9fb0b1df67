"""Signals to the trainer of a scenario."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tui_descent.training.scenario_run import StopOnSignal

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run() -> SimpleNamespace:
    return SimpleNamespace(control=SimpleNamespace(mode=SimpleNamespace(stop_reason=None)))


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("built", [True, False])
def test_a_signal_stops_the_run_also_before_it_is_built(
    number: signal.Signals, built: bool, run: SimpleNamespace
) -> None:
    stop = StopOnSignal()
    if built:
        stop.watch(run)  # type: ignore[arg-type]
    signal.raise_signal(number)
    if not built:
        stop.watch(run)  # type: ignore[arg-type]
    assert run.control.mode.stop_reason == number.name


def test_an_ignored_hangup_stays_ignored(run: SimpleNamespace) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopOnSignal().watch(run)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGHUP)
    assert run.control.mode.stop_reason is None


def test_the_run_goes_on_without_a_signal(run: SimpleNamespace) -> None:
    StopOnSignal().watch(run)  # type: ignore[arg-type]
    assert run.control.mode.stop_reason is None
