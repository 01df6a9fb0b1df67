"""The loss's axis where a logarithm has nothing to say: at zero and below it."""

from __future__ import annotations

import math

from scripted import started, steps, view

from tui_descent.dashboard.panels.loss import LossPanel
from tui_descent.protocol.events import AnyEvent


def falling_under_zero() -> list[AnyEvent]:
    surface = started(0, scenario={"model": {"name": "surface"}}, layers=())
    return [surface, steps(0, [math.exp(-n / 20) for n in range(200)]), steps(200, [-n / 100 for n in range(1, 101)])]


def drawn_loss(events: list[AnyEvent], **look: bool) -> tuple[str, list[str]]:
    panel, seen = LossPanel(), view(events, **look)
    rows = [strip.text for strip in panel.draw(seen, 70, 12)]
    return panel.heading(seen)[0], rows


def test_a_loss_that_falls_under_zero_gets_a_linear_axis_that_says_so_and_holds_all_of_it() -> None:
    heading, rows = drawn_loss(falling_under_zero())
    assert "linear (≤ 0)" in heading
    assert any(row.lstrip().startswith("-1.00") for row in rows)
    assert any(c > "\u2800" for c in rows[-2][35:]), "its end is at the bottom"
    heading, _ = drawn_loss(falling_under_zero()[:2])
    assert "log" in heading
    assert "linear" not in heading
    assert "linear[/dim] [bold $primary]y" in drawn_loss(falling_under_zero(), log=False)[0]


def test_a_loss_of_exactly_zero_lies_at_the_bottom_of_a_log_axis() -> None:
    heading, rows = drawn_loss([started(), steps(0, [1.0, 0.1, 0.01] + [0.0] * 40)])
    assert "log" in heading
    assert "≤ 0" not in heading
    assert all(c > "\u2800" for c in rows[-2].rstrip()[-20:])
