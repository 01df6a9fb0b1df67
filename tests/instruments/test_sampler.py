"""When readings are taken: at exactly the requested steps, or within a share of the time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tui_descent.instruments.sampler import Sampler
from tui_descent.instruments.tiers import Tiers


def simulate(sampler: Sampler, steps: int, *, step_s: float, cost_s: float, period_s: float | None = None) -> list[int]:
    taken = []
    for step in range(steps):
        tiers = sampler.due(step, period_s=period_s)
        if tiers is not None:
            taken.append(step)
            sampler.spent(cost_s, Tiers(in_wait=tiers.in_wait))
        sampler.stepped(step_s + (cost_s if tiers is not None else 0.0))
    return taken


def simulate_with_looks(
    sampler: Sampler, steps: int, *, step_s: float, clock_s: float, outside_s: Sequence[float], noise: float = 0.0
) -> tuple[int, float, float]:
    """A loop that reports its time to the sampler only when a look is due, as a real one does.

    A reading takes `clock_s` by its own clock, and makes its step and those after it `outside_s` longer. Returns the
    number of readings, their true cost, and the total time.
    """
    chance = random.Random(0)
    taken, spent, whole, since, count, left = 0, 0.0, 0.0, 0.0, 0, list[float]()
    due = sampler.due(0, period_s=None)
    for step in range(steps):
        took = step_s * chance.uniform(1 - noise, 1 + noise)
        if due is not None:
            taken, left = taken + 1, list(outside_s)
            sampler.spent(clock_s)
            took, spent = took + clock_s, spent + clock_s
        if left:
            spent += left[0]
            took += left.pop(0)
        whole, since, count = whole + took, since + took, count + 1
        if due is not None or count >= sampler.next_look:
            sampler.stepped(since, steps=count)
            since, count = 0.0, 0
        due = sampler.due(step + 1, period_s=None)
    return taken, spent, whole


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize(
    "outside_s", [(), (6e-4,), (12e-4, 6e-4, 3e-4, 15e-5)], ids=["none", "in its step", "after it"]
)
def test_cost_of_a_reading_outside_its_own_clock_is_charged(outside_s: tuple[float, ...], noise: float) -> None:
    sampler = Sampler(budget=0.01)
    taken, spent, whole = simulate_with_looks(
        sampler, 50_000, step_s=3e-3, clock_s=15e-4, outside_s=outside_s, noise=noise
    )
    assert taken > 100
    assert 0.0085 <= spent / whole <= 0.0105
    assert 0.9 <= sampler.cost / (spent / whole) <= 1.15


@pytest.mark.parametrize("every", [1, 2, 7, 50])
def test_fixed_interval_reads_its_multiples(every: int) -> None:
    assert simulate(Sampler(every=every), 100, step_s=1e-3, cost_s=1.0) == list(range(0, 100, every))


def test_budget_of_zero_takes_no_readings() -> None:
    assert simulate(Sampler(budget=0.0), 100, step_s=1e-3, cost_s=1e-6) == []
    assert simulate(Sampler(every=0), 100, step_s=1e-3, cost_s=1e-6) == []


def test_extra_steps_are_read_in_addition() -> None:
    assert simulate(Sampler(budget=0.0, at=(3, 70)), 100, step_s=1e-3, cost_s=1.0) == [3, 70]
    assert simulate(Sampler(every=40, at=(3,)), 100, step_s=1e-3, cost_s=1.0) == [0, 3, 40, 80]


@pytest.mark.parametrize(("budget", "cost"), [(0.001, 1e-4), (0.001, 1e-2), (0.01, 1e-3), (0.01, 1e-2), (0.1, 1e-3)])
def test_readings_stay_within_their_share_and_use_it(budget: float, cost: float) -> None:
    sampler = Sampler(budget=budget)
    taken = simulate(sampler, 20_000, step_s=1e-3, cost_s=cost)
    sampler.paused()
    busy = 20_000 * 1e-3 + len(taken) * cost
    assert len(taken) * cost <= budget * busy + cost, "except for the first one, whose cost is unknown"
    assert len(taken) * cost >= 0.8 * budget * busy - 2 * cost
    assert 0.999 <= sampler.cost / (len(taken) * cost / busy) <= 1.1, "the declared share is the true one, never less"


@pytest.mark.parametrize(("budget", "a_second"), [(0.0095, 10.5), (0.01, 10.5), (0.02, 21.0), (0.1, 105.0)])
def test_cheap_readings_come_at_the_rate_of_the_screen_or_of_a_larger_budget(budget: float, a_second: float) -> None:
    taken = simulate(Sampler(budget=budget), 20_000, step_s=1e-3, cost_s=1e-5)
    assert len(taken) == pytest.approx(20 * a_second, rel=0.02)


def test_readings_delayed_until_the_next_look_are_not_fewer() -> None:
    taken, _, whole = simulate_with_looks(
        Sampler(budget=0.01), 20_000, step_s=1e-3, clock_s=1e-4, outside_s=(), noise=0.2
    )
    assert 10.2 <= taken / whole <= 10.6


def test_unused_share_is_not_saved_for_expensive_readings() -> None:
    sampler = Sampler(budget=0.01)
    simulate(sampler, 100_000, step_s=1e-3, cost_s=1e-5)
    expensive = simulate(sampler, 20_000, step_s=1e-3, cost_s=1e-2)
    assert 0.8 * 0.01 * 20.0 <= len(expensive) * 1e-2 <= 0.01 * 20.2 + 1e-2


def test_share_holds_at_every_step_with_varying_costs() -> None:
    random_ = random.Random(0)
    sampler = Sampler(budget=0.02)
    spent = busy = 0.0
    for step in range(20_000):
        cost = random_.uniform(0.5e-3, 1e-3) if sampler.due(step, period_s=None) is not None else 0.0
        if cost:
            sampler.spent(cost)
        sampler.stepped(1e-3 + cost)
        spent, busy = spent + cost, busy + 1e-3 + cost
        if step > 200:
            assert spent <= 0.02 * busy + 1e-3


def test_long_gap_between_two_steps_allows_one_reading() -> None:
    sampler = Sampler(budget=0.01)
    simulate(sampler, 2000, step_s=1e-3, cost_s=2e-3)
    sampler.stepped(3600.0)
    taken = simulate(sampler, 1000, step_s=1e-3, cost_s=2e-3)
    assert taken[0] == 0
    assert 4 <= len(taken) <= 6, "one in 0.2 s, as before"


def test_readings_per_second_do_not_depend_on_the_step_time() -> None:
    sampler = Sampler(budget=0.01)
    for step_s in (1e-3, 10e-3, 1e-3):
        for seconds in (2, 20):  # the change is noticed in the first ones
            taken, _, whole = simulate_with_looks(
                sampler, round(seconds / step_s), step_s=step_s, clock_s=1e-4, outside_s=(), noise=0.2
            )
        assert 10.2 <= taken / whole <= 10.6


def test_first_step_is_always_read_within_a_budget() -> None:
    assert simulate(Sampler(budget=0.01), 1, step_s=1e-3, cost_s=1.0) == [0]


def test_paced_run_reads_every_step_that_has_the_time() -> None:
    assert simulate(Sampler(budget=0.01), 50, step_s=1e-3, cost_s=1e-3, period_s=1 / 30) == list(range(50))
    few = simulate(Sampler(budget=0.01), 50, step_s=1e-3, cost_s=0.1, period_s=1 / 30)
    assert len(few) <= 2, "a reading longer than half the wait would slow the pace"


def test_readings_in_waits_of_a_paced_run_are_not_charged_later() -> None:
    sampler = Sampler(budget=0.01)
    assert len(simulate(sampler, 3000, step_s=1e-3, cost_s=1e-3, period_s=1 / 30)) == 3000
    assert sampler.cost == pytest.approx(0.5, rel=0.01)
    free = simulate(sampler, 20_000, step_s=1e-3, cost_s=1e-3)
    assert free[0] <= 200
    assert 0.8 * 0.01 * 20.2 <= len(free) * 1e-3 <= 0.01 * 20.2 + 2e-3, "at most one reading is saved up"
    assert 0.008 <= sampler.cost <= 0.0101, "the cost is that since the pace was turned off"


def test_tiers_read_in_waits_are_not_charged_later() -> None:
    sampler = Sampler(budget=0.01)
    for step in range(1000):
        tiers = sampler.due(step, period_s=1 / 30)
        assert tiers is not None
        sampler.spent(1e-3, tiers)
        sampler.stepped(2e-3)
    seen = []
    for step in range(20_000):
        tiers = sampler.due(step, period_s=None)
        if tiers is not None:
            seen.append(tiers)
            sampler.spent(1e-3, tiers)
        sampler.stepped(2e-3 if tiers is not None else 1e-3)
    assert any(tiers.signals for tiers in seen)
    assert any(tiers.slow for tiers in seen)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_costs_of_successive_readings_are_all_declared(every: int) -> None:
    sampler = Sampler(every=every)
    _, spent, whole = simulate_with_looks(sampler, 3000, step_s=1e-3, clock_s=5e-4, outside_s=())
    assert sampler.cost == pytest.approx(spent / whole, rel=0.03)


def with_curvature(
    sampler: Sampler, steps: int, *, on: range, reading_s: float, curvature_s: float
) -> tuple[float, float]:
    """Steps of a millisecond on a simulated clock. Returns the shares of readings and of the curvature."""
    now = spent = curved = 0.0
    for step in range(steps):
        sampler.curvature.want(step in on)
        if step in on and sampler.curvature.due(now, paced=False):
            sampler.curvature.took(curvature_s, now, paid=True)
            curved += curvature_s
            now += curvature_s
        due = sampler.due(step, period_s=None) is not None
        if due:
            sampler.spent(reading_s)
            spent += reading_s
        sampler.stepped(1e-3 + (reading_s if due else 0.0))
        now += 1e-3 + (reading_s if due else 0.0)
    return spent / now, curved / now


def test_curvature_is_read_within_the_budget_and_only_while_wanted() -> None:
    readings, curvature = with_curvature(
        Sampler(budget=0.02), 100_000, on=range(20_000, 80_000), reading_s=2e-3, curvature_s=0.02
    )
    assert 0 < curvature <= 0.2 * 0.02 * 0.6 + 0.02 / 100, "its share, except for the first reading"
    assert readings > 0.014
    assert readings + curvature <= 0.0205
    assert with_curvature(Sampler(budget=0.02), 20_000, on=range(0), reading_s=2e-3, curvature_s=1.0)[1] == 0.0


def test_cheap_curvature_is_read_every_ten_seconds_and_never_without_a_budget() -> None:
    sampler = Sampler(budget=1.0)
    sampler.curvature.want(True)
    for _ in range(1000):
        sampler.stepped(0.01)
    sampler.curvature.took(1e-4, 100.0, paid=True)
    assert not sampler.curvature.due(109.0, paced=False)
    assert sampler.curvature.due(110.5, paced=False)
    assert sampler.curvature.due(101.0, paced=True), "in a wait it may be read sooner"
    none = Sampler(budget=0.0)
    none.curvature.want(True)
    assert not none.curvature.due(1e9, paced=False)
    assert not none.curvature.due(1e9, paced=True)


def test_curvature_in_waits_takes_at_most_a_tenth_of_the_time() -> None:
    sampler = Sampler(budget=0.01)
    sampler.curvature.want(True)
    sampler.curvature.took(2.0, 100.0, paid=False)
    assert not sampler.curvature.due(119.0, paced=True)
    assert sampler.curvature.due(120.0, paced=True)


def test_complete_readings_follow_the_start_and_every_change_and_grow_rarer() -> None:
    sampler = Sampler(budget=1e-6)  # it allows no other readings, except for the first one
    sampler.restart(0)
    taken = simulate(sampler, 400, step_s=1e-3, cost_s=1e-4)
    assert taken == [0, 1, 2, 5, 10, 20, 35, 50, 75, 113, 170, 255, 383]
    assert sampler.cost == pytest.approx(len(taken) * 1e-4 / (0.4 + len(taken) * 1e-4), rel=0.05), "they are declared"
    sampler.restart(400)
    tiers = {step: sampler.due(step, period_s=None) for step in range(400, 460)}
    read = {step: tier for step, tier in tiers.items() if tier is not None}
    assert [step - 400 for step in read] == [1, 2, 5, 10, 20, 35, 50]
    assert all(tier.complete and tier.signals and tier.slow for tier in read.values())


def test_fast_steps_end_before_a_reading_after_a_change() -> None:
    sampler = Sampler(budget=1e-6)
    sampler.restart(7)
    sampler.due(8, period_s=None)
    assert [sampler.steps_to_reading(step) for step in (8, 9, 10, 13, 60)] == [0, 0, 2, 4, 22]


def test_key_held_down_does_not_slow_the_run() -> None:
    sampler = Sampler(budget=0.01)
    read = 0
    for step in range(10_000):
        if step % 5 == 0:
            sampler.restart(step)
        taken = sampler.due(step, period_s=None) is not None
        if taken:
            sampler.spent(1e-3)
        read += taken
        sampler.stepped(1e-3 * (1 + taken))
    assert read < 0.04 * 10_000


@pytest.mark.parametrize("sampler", [Sampler(budget=0.0), Sampler(every=3)], ids=["no budget", "fixed steps"])
def test_no_readings_after_a_change_without_a_budget_or_at_fixed_steps(sampler: Sampler) -> None:
    sampler.restart(0)
    assert {step % 3 for step in simulate(sampler, 60, step_s=1e-3, cost_s=1e-4)} <= {0}
    assert sampler.steps_to_reading(61) in (2, float("inf"))
