"""When readings come, by the planner and the sampler together, on a clock of their own."""

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


class Taken(NamedTuple):
    step: int
    at_s: float
    tiers: Tiers


class Deaf:
    def attach(self, **_: bool) -> None: ...

    def detach(self) -> None: ...


class Clocked:
    """A loop whose steps and readings take so long, planned as a real one's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, budget: float = 0.01, rare_s: float = 3e-3) -> None:
        self.now_s, self.pace, self.taken = 1000.0, None, list[Taken]()
        monkeypatch.setattr(optimizer_hooks, "time", types.SimpleNamespace(thread_time=lambda: self.now_s))
        self.sampler = Sampler(budget=budget)
        self._rare_s = rare_s
        self._steering = types.SimpleNamespace(pace=None)
        self._progress = Progress(None)
        mode = types.SimpleNamespace(pauses_after=lambda step, ahead: False)
        others: dict[str, Any] = dict.fromkeys(("optimizer", "guard", "results", "again"))
        self._hooks = OptimizerHooks(
            progress=self._progress,
            steering=self._steering,  # type: ignore[arg-type]
            sampler=self.sampler,
            control=types.SimpleNamespace(mode=mode),  # type: ignore[arg-type]
            layers=types.SimpleNamespace(instruments=lambda look: Deaf()),  # type: ignore[arg-type]
            begin=lambda: None,
            **others,
        )
        self._busy_s, self._steps = 0.0, 0

    def go(self, steps: int, step_s: float, *, pace: float | None = None) -> list[Taken]:
        """The readings of so many steps more."""
        before = len(self.taken)
        self._steering.pace = pace
        for _ in range(steps):
            self._hooks.plan()
            took_s = step_s
            tiers, self._hooks._now = self._hooks._now, None
            if tiers is not None:
                costs_s = SIGNALS_S * tiers.signals, SLOW_S * tiers.slow, self._rare_s * tiers.rare
                took_s += NORMS_S + sum(costs_s)
                self.taken.append(Taken(self._progress.step, self.now_s, tiers))
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
def test_cheap_readings_come_as_often_as_a_screen_draws_or_at_every_step_that_takes_longer(
    step_s: float, a_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Clocked(monkeypatch)
    loop.go(round(10 / step_s), step_s)
    taken = loop.go(round(60 / step_s), step_s)
    assert len(taken) / 60 == pytest.approx(a_second, rel=0.1)
    assert max(b.at_s - a.at_s for a, b in pairwise(taken)) <= 0.21 + 2 * step_s
    assert sum(t.tiers.signals for t in taken) >= len(taken) / 4
    assert 60 * 0.3 <= sum(t.tiers.slow for t in taken) <= 61
    assert 4 <= sum(t.tiers.rare for t in taken) <= 7
    assert loop.sampler.cost <= 0.0105


def test_behind_the_dearest_reading_comes_no_silence_where_the_share_was_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Clocked(monkeypatch, rare_s=0.3)
    loop.go(25_000, 0.1)  # by then the rare tier's price is known
    taken = loop.go(25_000, 0.1)
    rare = [n for n, t in enumerate(taken) if t.tiers.rare]
    assert rare
    assert max(b.at_s - a.at_s for a, b in pairwise(taken)) <= 1.0
    assert all(b - a > 100 for a, b in pairwise(rare)), "nor is it read twice for having been planned ahead"


def test_a_run_that_began_with_a_pace_knows_its_prices_when_it_goes_free(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Clocked(monkeypatch)
    paced = loop.go(6000, 0.01, pace=30.0)
    assert len(paced) == 6000, "all of them out of waits"
    loop.go(6000, 0.01)
    taken = loop.go(6000, 0.01)
    free = Clocked(monkeypatch)
    free.go(12_000, 0.01)
    others = free.go(6000, 0.01)
    assert len(taken) == pytest.approx(len(others), rel=0.1)
    assert sum(t.tiers.slow for t in taken) == pytest.approx(sum(t.tiers.slow for t in others), rel=0.3)
    assert loop.sampler.cost == pytest.approx(free.sampler.cost, rel=0.3)
