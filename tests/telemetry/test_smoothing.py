"""The smoothed loss: a moving average of twenty steps that follows a jump after five."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from tui_descent.telemetry.smoothing import JUMP_STEPS, WINDOW, SmoothedLoss


def smooth(losses: list[float], smoothed: SmoothedLoss | None = None, first: int = 0) -> list[float]:
    smoothed = smoothed or SmoothedLoss()
    return [smoothed.add(step, loss) for step, loss in enumerate(losses, first)]


def average(losses: list[float]) -> list[float]:
    """The moving average without jumps, in closed form: the weight of a loss shrinks with each later one."""
    weights = [1.0] + [1 / min(WINDOW, 1 + step / 10) for step in range(1, len(losses))]
    return [
        sum(losses[k] * weights[k] * math.prod(1 - w for w in weights[k + 1 : n + 1]) for k in range(n + 1))
        for n in range(len(losses))
    ]


def noisy(level: float, count: int, seed: int, spread: float = 0.3) -> list[float]:
    random_ = random.Random(seed)
    return [level * math.exp(random_.gauss(0, spread)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_without_a_jump_it_is_a_moving_average(seed: int) -> None:
    losses = noisy(2.3, 120, seed)
    assert smooth(losses) == pytest.approx(average(losses), rel=1e-9)


def test_fast_fall_is_followed_without_lag() -> None:
    losses = noisy(2.3, 150, 1, 0.03) + [2.3 * math.exp(-n / 20) * x for n, x in enumerate(noisy(1.0, 60, 2, 0.1))]
    found = smooth(losses)
    assert all(found[150 + n] < 2.2 * losses[150 + n] for n in range(35, 60))
    assert average(losses)[150 + 45] > 2.5 * losses[150 + 45], "the moving average alone lags"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("after", [0.3, 2e-3, 4e-5, 14.0, 4e3])
def test_jump_is_followed_after_five_steps_and_the_line_stays_smooth(after: float, seed: int) -> None:
    before, then = noisy(2.0, 300, seed), noisy(after, 200, seed + 100)
    found = smooth(before + then)[300 + JUMP_STEPS - 1 :]
    assert found[0] == pytest.approx(math.fsum(then[:JUMP_STEPS]) / JUMP_STEPS)
    assert all(after / 2 < value < after * 2 for value in found)
    steps = [abs(math.log(b / a)) for a, b in itertools.pairwise(found[40:])]
    raw = [abs(math.log(b / a)) for a, b in itertools.pairwise(then[40:])]
    assert sum(steps) < sum(raw) / 4


def test_fall_by_decades_in_twenty_steps_is_followed() -> None:
    falling = [1e6 * 10 ** (-n * 5.6 / 20) for n in range(20)]
    found = smooth([1e6] * 100 + falling + [2.5] * 60)
    assert found[125] < 25
    assert found[140] < 2.7


@pytest.mark.parametrize("spike", [1e3, 1e-6])
def test_up_to_four_outliers_are_no_jump(spike: float) -> None:
    for outliers in (1, JUMP_STEPS - 1):
        losses = [1.0] * 100 + [spike] * outliers + [1.0]
        smoothed = SmoothedLoss()
        smooth(losses, smoothed)
        assert smoothed.start == 0
    losses = [1.0] * 100 + [spike, 1.0, spike, spike, 1.0, spike, spike]
    assert smooth(losses) == pytest.approx(average(losses))


def test_effect_of_a_spike_is_gone_after_five_steps() -> None:
    found = smooth([1.0] * 100 + [1e6] + [1.0] * 10)
    assert found[100] > 1e4
    assert found[100 + JUMP_STEPS :] == pytest.approx([1.0] * 6)


def test_without_noise_a_jump_is_a_factor_of_two() -> None:
    for factor in (0.51, 1.99):
        losses = [1.0] * 100 + [factor] * 5
        assert smooth(losses) == pytest.approx(average(losses))
    for factor in (0.49, 2.01):
        assert smooth([1.0] * 100 + [factor] * 5)[-1] == pytest.approx(factor)


@pytest.mark.parametrize("spread", [0.1, 0.3, 0.6, 1.0, 1.5])
def test_noise_of_any_size_is_averaged(spread: float) -> None:
    smoothed, losses = SmoothedLoss(), noisy(1.0, 20_000, 7, spread)
    restarts = 0
    for step, loss in enumerate(losses):
        start = smoothed.start
        smoothed.add(step, loss)
        restarts += smoothed.start != start
    assert restarts <= 3, "in twenty thousand steps"


def test_with_more_noise_a_jump_must_be_larger() -> None:
    quiet, loud = noisy(1.0, 300, 5, 0.1), noisy(1.0, 300, 5, 0.9)
    for then, followed in ((quiet, True), (loud, False)):
        assert (smooth(then + [0.3] * 5)[-1] == pytest.approx(0.3)) == followed
    assert smooth(loud + [0.003] * 5)[-1] == pytest.approx(0.003)


def test_outliers_on_both_sides_are_no_jump() -> None:
    losses = [1.0] * 100 + [1e-3, 1e-3, 1e-3, 1e-3, 500.0]
    assert smooth(losses) == pytest.approx(average(losses))


def test_jump_to_zero_is_followed() -> None:
    assert smooth([1.0] * 100 + [0.0] * 5)[-1] == 0.0


def test_negative_losses_are_averaged() -> None:
    losses = [1.0] * 60 + [-40.0] * 30
    assert smooth(losses) == pytest.approx(average(losses))


def test_window_of_one_step_returns_the_losses() -> None:
    smoothed = SmoothedLoss()
    assert [smoothed.add(k, x, 1.0) for k, x in enumerate([1.0] * 9 + [1e-9] * 9)] == [1.0] * 9 + [1e-9] * 9


def test_rewinding_before_a_jump_restores_the_window() -> None:
    smoothed = SmoothedLoss()
    found = smooth([1.0] * 300 + [1e-3] * 5, smoothed)
    smoothed.rewind(300, found[299], 1.0)
    assert smooth([2.0], smoothed, 300) == pytest.approx([1.0 + 1 / WINDOW])


def test_mean_of_huge_losses_does_not_overflow() -> None:
    assert smooth([1.0] * 50 + [1e308] * 5)[-1] == pytest.approx(1e308)
