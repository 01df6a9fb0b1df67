"""When readings are taken, by the hooks and the sampler together, on a simulated clock."""

from __future__ import annotations

import types
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from tui_descent.instruments.sampler import Sampler
from tui_descent.instruments.tiers import Tiers
from tui_descent.training.progress import Progress
from tui_descent.training.watch import optimizer_hooks
from tui_descent.training.watch.optimizer_hooks import OptimizerHooks

NORMS_S, SIGNALS_S, SLOW_S = 3e-4, 1e-4, 2e-3


class Reading(NamedTuple):
    step: int
    at_s: float
    tiers: Tiers


class NoInstruments:
    def attach(self, **_: bool) -> None: ...

    def detach(self) -> None: ...


class SimulatedLoop:
    """A loop on a simulated clock, whose readings are planned as those of a real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, budget: float = 0.01, rare_s: float = 3e-3) -> None:
        self.now_s, self.pace, self.taken = 1000.0, None, list[Reading]()
        monkeypatch.setattr(optimizer_hooks, "time", types.SimpleNamespace(thread_time=lambda: self.now_s))
        self.sampler = Sampler(budget=budget)
        self._rare_s = rare_s
        self._steering = types.SimpleNamespace(pace=None, listen_to_inputs=lambda: None)
        self._progress = Progress(None)
        mode = types.SimpleNamespace(pauses_after=lambda step, ahead: False)
        others: dict[str, Any] = dict.fromkeys(("guard", "results", "search", "replay"))
        self._hooks = OptimizerHooks(
            progress=self._progress,
            steering=self._steering,  # type: ignore[arg-type]
            sampler=self.sampler,
            control=types.SimpleNamespace(mode=mode),  # type: ignore[arg-type]
            layers=types.SimpleNamespace(instruments=lambda compare: NoInstruments()),  # type: ignore[arg-type]
            begin=lambda: None,
            **others,
        )
        self._busy_s, self._steps = 0.0, 0

    def go(self, steps: int, step_s: float, *, pace: float | None = None) -> list[Reading]:
        """Make so many more steps; returns their readings."""
        before = len(self.taken)
        self._steering.pace = pace
        for _ in range(steps):
            self._hooks.plan()
            took_s = step_s
            tiers, self._hooks._tiers = self._hooks._tiers, None
            if tiers is not None:
                costs_s = SIGNALS_S * tiers.signals, SLOW_S * tiers.slow, self._rare_s * tiers.rare
                took_s += NORMS_S + sum(costs_s)
                self.taken.append(Reading(self._progress.step, self.now_s, tiers))
                self.sampler.spent(took_s - step_s, tiers)
            self.now_s += max(took_s, 1 / pace if pace else 0.0)
            self._busy_s += took_s
            self._steps += 1
            self._progress.step += 1
            if self._hooks.measures or tiers is not None or self._steps >= self.sampler.next_look:
                self.sampler.stepped(self._busy_s, steps=self._steps)
                self._busy_s, self._steps = 0.0, 0
        return self.taken[before:]


@pytest.mark.parametrize(
    ("step_s", "a_second"), [(1.3e-3, 10.5), (0.02, 10.5), (0.06, 10.5), (0.1, 9.9), (0.15, 6.6), (1.0, 0.99)]
)
def test_cheap_readings_come_as_often_as_the_screen_draws_or_at_every_longer_step(
    step_s: float, a_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = SimulatedLoop(monkeypatch)
    loop.go(round(10 / step_s), step_s)
    taken = loop.go(round(60 / step_s), step_s)
    assert len(taken) / 60 == pytest.approx(a_second, rel=0.1)
    assert max(b.at_s - a.at_s for a, b in pairwise(taken)) <= 0.21 + 2 * step_s
    assert sum(t.tiers.signals for t in taken) >= len(taken) / 4
    assert 60 * 0.3 <= sum(t.tiers.slow for t in taken) <= 61
    assert 4 <= sum(t.tiers.rare for t in taken) <= 7
    assert loop.sampler.cost <= 0.0105


def test_an_expensive_reading_causes_no_long_gap_while_budget_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = SimulatedLoop(monkeypatch, rare_s=0.3)
    loop.go(25_000, 0.1)  # by then the cost of the rare tier is known
    taken = loop.go(25_000, 0.1)
    rare = [n for n, t in enumerate(taken) if t.tiers.rare]
    assert rare
    assert max(b.at_s - a.at_s for a, b in pairwise(taken)) <= 1.0
    assert all(b - a > 100 for a, b in pairwise(rare)), "and planning ahead does not read it twice"


def test_reading_costs_learned_while_paced_hold_at_full_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = SimulatedLoop(monkeypatch)
    paced = loop.go(6000, 0.01, pace=30.0)
    assert len(paced) == 6000, "all of them during the waits"
    loop.go(6000, 0.01)
    taken = loop.go(6000, 0.01)
    free = SimulatedLoop(monkeypatch)
    free.go(12_000, 0.01)
    others = free.go(6000, 0.01)
    assert len(taken) == pytest.approx(len(others), rel=0.1)
    assert sum(t.tiers.slow for t in taken) == pytest.approx(sum(t.tiers.slow for t in others), rel=0.3)
    assert loop.sampler.cost == pytest.approx(free.sampler.cost, rel=0.3)


def test_interventions_are_followed_by_complete_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = SimulatedLoop(monkeypatch, budget=1e-6)
    assert [t.step for t in loop.go(200, 1e-3)] == [0, 1, 2, 5, 10, 20, 35, 50, 75, 113, 170]
    loop._progress.interventions += 1
    taken = loop.go(60, 1e-3)
    assert [t.step - 200 for t in taken] == [1, 2, 5, 10, 20, 35, 50]
    assert all(t.tiers.complete for t in taken)
    loop._progress.rewind(100, parent=0)
    assert [t.step - 100 for t in loop.go(60, 1e-3)] == [1, 2, 5, 10, 20, 35, 50]
