"""The metrics view: charts that fill their room, scrolling, and names from users."""

from __future__ import annotations

import math

import pytest
from driver import open_dashboard
from factories import started, steps, vanishing
from fake_run import view

from tui_descent.dashboard.panels.metrics import MetricsPanel
from tui_descent.protocol.events import AnyEvent, MetricLogged


def metrics(*names: str, until: int = 100) -> list[AnyEvent]:
    events: list[AnyEvent] = [started(), steps(0, [1.0] * until)]
    return events + [
        MetricLogged(segment=0, step=n, name=name, value=n / until) for n in range(0, until, 4) for name in names
    ]


def text(panel: MetricsPanel, events: list[AnyEvent], width: int, height: int) -> list[str]:
    rows = panel.draw(view(events), width, height)
    assert len(rows) <= height
    assert all(row.cell_length == width for row in rows)
    return [row.text for row in rows]


@pytest.mark.parametrize("size", [(78, 18), (118, 34), (40, 8), (20, 3), (198, 54)])
@pytest.mark.parametrize("count", [1, 2, 5, 32])
def test_charts_fit_into_any_room(size: tuple[int, int], count: int) -> None:
    rows = text(MetricsPanel(), metrics(*(f"metric {n}" for n in range(count))), *size)
    assert "metric 0" in rows[0]


def test_scrolling_reaches_every_metric_and_stops_at_the_ends() -> None:
    panel, events = MetricsPanel(), metrics(*(f"metric {n}" for n in range(12)))
    seen = "\n".join(text(panel, events, 78, 18))
    assert "metric 0 " in seen
    assert "metric 11 " not in seen
    assert panel.heading(view(events))[1] == "1-4 of 12 ↑ ↓"
    for _ in range(30):
        panel.scroll_by(-1)
        seen += "\n".join(text(panel, events, 78, 18))
    assert all(f"metric {n} " in seen for n in range(12))
    assert panel.heading(view(events))[1] == "9-12 of 12 ↑ ↓"
    for _ in range(30):
        panel.scroll_by(1)
    assert "metric 0 " in text(panel, events, 78, 18)[0]


def test_names_that_are_not_kept_are_counted() -> None:
    panel = MetricsPanel()
    events = metrics(*(f"metric {n}" for n in range(40)), until=8)
    text(panel, events, 118, 34)
    assert panel.heading(view(events))[1].endswith("of 32 ↑ ↓ · 8 more names are not kept")
    events = metrics(*(f"metric {n}" for n in range(400)), until=8)
    text(panel, events, 118, 34)
    assert panel.heading(view(events))[1].endswith("100+ more names are not kept")


@pytest.mark.parametrize("name", ["\x1b[31mred", "[bold]markup[/]", "全角" * 40, "a\nb\tc", "‮evil"])
def test_names_from_a_script_are_shown_safely(name: str) -> None:
    rows = text(MetricsPanel(), metrics(name), 78, 18)
    assert all(character not in row for row in rows for character in "\x1b\n\t‮")


@pytest.mark.parametrize(
    "values",
    [
        [math.nan] * 5,
        [math.inf, -math.inf],
        [0.0],
        [1e300, -1e300],
        [5e-324, 1.0],
        [7.0] * 50,
        [1e-9, 1e3],
        [-1.0, 0.0, 1.0],
    ],
)
@pytest.mark.parametrize("log", [True, False])
def test_any_values_are_drawn(values: list[float], log: bool) -> None:
    events: list[AnyEvent] = [started(), steps(0, [1.0] * len(values))]
    events += [MetricLogged(segment=0, step=n, name="x", value=value) for n, value in enumerate(values)]
    rows = MetricsPanel().draw(view(events, log=log), 78, 18)
    assert all(row.cell_length == 78 for row in rows)
    assert "x" in rows[0].text


async def test_view_scrolls_and_a_metric_that_arrives_is_drawn() -> None:
    names = [f"metric {n}" for n in range(9)]
    async with open_dashboard((80, 24), [*vanishing(60), *metrics(*names)[2:]]) as dashboard:
        await dashboard.press("6")
        await dashboard.shows("metric 0", "1-4 of 9")
        await dashboard.press("down", "down", "down", "down", "down")
        await dashboard.shows("metric 8", "6-9 of 9")
        dashboard.keeper.publish(MetricLogged(segment=0, step=60, name="metric 8", value=0.125))
        await dashboard.shows("0.1250")


async def test_held_out_losses_of_a_loop_are_points_of_the_loss_chart() -> None:
    async with open_dashboard((120, 40), vanishing(60)) as dashboard:
        await dashboard.drawn()
        before = dashboard.text().count("○")
        for step in (20, 40, 60):
            dashboard.keeper.publish(MetricLogged(segment=0, step=step, name="val/loss", value=2.0))
        await dashboard.shows("val 2.000")
        await dashboard.drawn()
        assert dashboard.text().count("○") > before
