"""The loss axis for zero, negative and nearly equal losses, and the held-out points."""

from __future__ import annotations

import itertools
import math
import random
import re

import pytest
from factories import started, steps
from fake_run import view

from tui_descent.dashboard.charts.axis import Axis, log_axis
from tui_descent.dashboard.charts.time_axis import gutter
from tui_descent.dashboard.panels.loss_chart import POINT_DISTANCE, LossPanel
from tui_descent.protocol.events import AnyEvent, Evaluated


def falling_below_zero() -> list[AnyEvent]:
    surface = started(0, scenario={"model": {"name": "surface"}}, layers=())
    return [surface, steps(0, [math.exp(-n / 20) for n in range(200)]), steps(200, [-n / 100 for n in range(1, 101)])]


def drawn_loss(events: list[AnyEvent], **look: bool) -> tuple[str, list[str]]:
    panel, seen = LossPanel(), view(events, **look)
    rows = [strip.text for strip in panel.draw(seen, 70, 12)]
    return panel.heading(seen)[0], rows


def test_a_loss_below_zero_switches_to_a_linear_axis_and_says_so() -> None:
    heading, rows = drawn_loss(falling_below_zero())
    assert "linear (≤ 0)" in heading
    assert any(row.lstrip().startswith("-1.00") for row in rows)
    assert any(c > "\u2800" for c in rows[-2][35:]), "the last losses are at the bottom"
    heading, _ = drawn_loss(falling_below_zero()[:2])
    assert "log" in heading
    assert "linear" not in heading
    assert "linear[/dim] [bold $primary]y" in drawn_loss(falling_below_zero(), log=False)[0]


def test_a_loss_of_zero_is_at_the_bottom_of_a_log_axis() -> None:
    heading, rows = drawn_loss([started(), steps(0, [1.0, 0.1, 0.01] + [0.0] * 40)])
    assert "log" in heading
    assert "≤ 0" not in heading
    curve = re.sub(r"[┈ 0]+$", "", rows[-2])
    assert all(c > "\u2800" for c in curve[-20:]), curve


@pytest.mark.parametrize("middle", [2.302585, -1234.5678, 123_456.0, 8e-7])
@pytest.mark.parametrize("width", [6, 8, 11])
@pytest.mark.parametrize("rows", [4, 12, 30])
def test_axis_numbers_fit_their_width_and_are_unique(middle: float, width: int, rows: int) -> None:
    for exponent in range(-9, 3):
        half = abs(middle) * 10.0**exponent
        figures = Axis.linear(middle - half, middle + half).labels(rows, width=width)
        assert all(0 < len(text) <= width for text in figures.values())
        assert len(set(figures.values())) == len(figures) > 0


def test_of_axis_numbers_with_the_same_text_the_most_accurate_is_kept() -> None:
    axis = log_axis(1.2e-3, 2.9e-3)
    figures = axis.labels(12, width=6)
    assert figures[axis.row(2e-3, 12)] == "2e-3"
    assert axis.row(1.5e-3, 12) not in figures


def test_long_axis_numbers_do_not_shift_the_chart() -> None:
    losses = [2.302585 + 1e-7 * math.sin(n / 9) for n in range(200)]
    _, rows = drawn_loss([started(0, layers=()), steps(0, losses)], log=False)
    without_newest = [re.sub(r" \d[\d.]*(?=[ ┈]*$)", "", row) for row in rows[:-1]]
    assert all(all(c == " " or c > "\u2500" for c in row[7:]) for row in without_newest)


@pytest.mark.parametrize("every", [1, 2, 3, 4, 7])
def test_held_out_points_keep_their_distance_and_do_not_move(every: int) -> None:
    before: set[int] = set()
    left = gutter(view([started()]), 70)
    for last in range(2, 56):
        evaluations = [Evaluated(segment=0, step=n, loss=1.5) for n in range(0, last, every)]
        _, rows = drawn_loss([started(), steps(0, [1.0] * last), *evaluations])
        found = sorted(n for row in rows for n, c in enumerate(row) if c == "○")
        assert found[-1] == left + evaluations[-1].step
        assert all(b - a >= POINT_DISTANCE for a, b in itertools.pairwise(found))
        assert len(before - set(found)) <= 1, "only the newest point may disappear"
        before = set(found)


def test_held_out_points_do_not_cover_the_curve() -> None:
    evaluations = [Evaluated(segment=0, step=n, loss=1.5) for n in range(0, 4000, 10)]
    _, rows = drawn_loss([started(), steps(0, [1.0] * 4000), *evaluations])
    found = [n for row in rows for n, c in enumerate(row) if c == "○"]
    assert len(found) >= 6
    assert all(b - a >= POINT_DISTANCE for a, b in itertools.pairwise(found))
    assert found[-1] == max(n for row in rows[:-1] for n, c in enumerate(row) if c == "○" or c > "\u2800"), (
        "the newest point is shown"
    )
    _, rows = drawn_loss([started(), steps(0, [1.0] * 4000), *evaluations[::100]])
    assert sum(row.count("○") for row in rows) == 4, "a few points are all shown"


def test_no_losses_and_no_size_break_the_chart() -> None:
    rng = random.Random(11)
    odd = [math.nan, math.inf, -math.inf, 0.0, 1e308, -1e308, 5e-324, 1e-300, 2.3]
    for _ in range(60):
        kind = rng.randrange(3)
        losses = [
            rng.choice(odd) if kind == 0 else rng.uniform(-2, 2) if kind == 1 else math.exp(rng.gauss(0, 3))
            for _ in range(rng.choice([1, 2, 30, 700]))
        ]
        events: list[AnyEvent] = [started(3), steps(0, losses)]
        events += [Evaluated(segment=0, step=n, loss=rng.choice([*odd, *losses])) for n in range(0, len(losses), 40)]
        look = view(events, log=rng.random() < 0.6, recent=rng.random() < 0.3)
        for width, height in ((rng.randint(1, 90), rng.randint(1, 24)), (300, 100) if rng.random() < 0.1 else (20, 3)):
            rows = LossPanel().draw(look, width, height)
            assert len(rows) <= height
            assert all(row.cell_length == width for row in rows)
