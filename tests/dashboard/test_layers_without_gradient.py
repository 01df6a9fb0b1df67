"""Layers without a gradient have a word, not a zero."""

from __future__ import annotations

import msgspec
import pytest
from driver import open_dashboard
from factories import reading, started, steps
from fake_run import view

from tui_descent.dashboard.charts.time_axis import gutter
from tui_descent.dashboard.panels.gradients import GradientsPanel
from tui_descent.dashboard.panels.heatmap import HeatmapPanel
from tui_descent.dashboard.panels.updates import UpdatesPanel
from tui_descent.protocol.events import AnyEvent, LayerStatus, ReadingsTaken

STATUSES: list[LayerStatus] = ["used", "frozen", "unused", "used"]
OF_GRADIENTS = ("grad_norm", "grad_rms", "update_norm", "update_ratio")


def idle(step: int) -> ReadingsTaken:
    """A reading in which two of four layers get no gradient."""
    whole = reading(step, 0.5, 2)
    values = {
        name: [v if s == "used" or name not in OF_GRADIENTS else None for v, s in zip(column, STATUSES, strict=True)]
        for name, column in whole.values.items()
    }
    return msgspec.structs.replace(whole, values=values, statuses=STATUSES)


def run_events(last: int = 40) -> list[AnyEvent]:
    return [started(2), *[event for n in range(last) for event in (idle(n), steps(n, [1.0]))]]


def test_bars_of_frozen_and_unused_layers_have_a_word() -> None:
    for panel in (GradientsPanel(), UpdatesPanel()):
        rows = [strip.text for strip in panel.draw(view(run_events()), 60, 4)]
        assert [("frozen" in row, "no grad" in row) for row in rows] == [
            (False, False), (False, True), (True, False), (False, False),
        ]  # fmt: skip
        assert "█" not in rows[1] + rows[2]
        assert "█" in rows[0]


def test_heatmap_rows_of_frozen_and_unused_layers_have_a_word() -> None:
    rows = [strip.text for strip in HeatmapPanel().draw(view(run_events()), 80, 4)]
    assert [("frozen" in row, "no grad" in row) for row in rows] == [
        (False, False), (False, True), (True, False), (False, False),
    ]  # fmt: skip


def test_heatmap_of_a_net_that_is_frozen_from_the_start_says_so_in_every_row() -> None:
    whole = reading(10, 0.5, 2)
    nothing = {name: [None] * 4 if name in OF_GRADIENTS else column for name, column in whole.values.items()}
    frozen = msgspec.structs.replace(whole, values=nothing, statuses=["frozen"] * 4)
    rows = [strip.text for strip in HeatmapPanel().draw(view([started(2), steps(0, [1.0] * 20), frozen]), 80, 4)]
    assert all("frozen" in row for row in rows)


def test_heatmap_keeps_the_readings_before_a_layer_was_frozen() -> None:
    before: list[AnyEvent] = [event for n in range(20) for event in (reading(n, 0.5, 2), steps(n, [1.0]))]
    look = view([started(2), *before, *[e for n in range(20, 40) for e in (idle(n), steps(n, [1.0]))]])
    row = HeatmapPanel().draw(look, 80, 4)[2]
    assert row.text.index("frozen") > gutter(look, 80) + 20, "after the twenty measured columns"
    painted = sum(len(s.text) for s in row if s.style and s.style.bgcolor and s.style.bgcolor.name != "#0f1115")
    assert painted >= 20


async def test_layer_dialog_says_why_there_is_no_gradient() -> None:
    async with open_dashboard((120, 40), run_events()) as dashboard:
        await dashboard.drawn()
        await dashboard.press("up", "up", "enter")
        await dashboard.shows("status", "‖∂L/∂W‖")
        text = dashboard.text()
        assert "its weights are frozen" in text
        await dashboard.press("up")
        await dashboard.shows("does not depend on it")
        assert "‖W‖" in text


WHY = "its weights are integers (int8)"


def run_with_a_layer_that_is_not_measured() -> list[AnyEvent]:
    """Four layers; the second one holds integers."""
    whole = started(2)
    second = msgspec.structs.replace(whole.layers[1], not_measured=WHY)
    start = msgspec.structs.replace(whole, layers=(whole.layers[0], second, *whole.layers[2:]))
    statuses: list[LayerStatus] = ["used", "not measured", "used", "used"]

    def taken(step: int) -> ReadingsTaken:
        values = {name: [column[0], None, *column[2:]] for name, column in reading(step, 0.5, 2).values.items()}
        return msgspec.structs.replace(reading(step, 0.5, 2), values=values, statuses=statuses)

    return [start, *[event for n in range(40) for event in (taken(n), steps(n, [1.0]))]]


def test_layer_that_is_not_measured_has_a_mark_in_every_panel() -> None:
    look = view(run_with_a_layer_that_is_not_measured())
    for panel, width in ((GradientsPanel(), 60), (UpdatesPanel(), 60), (HeatmapPanel(), 80)):
        rows = [strip.text for strip in panel.draw(look, width, 4)]
        assert ["n/a" in row for row in rows] == [False, False, True, False]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_layer_dialog_says_why_a_layer_is_not_measured(size: tuple[int, int]) -> None:
    async with open_dashboard(size, run_with_a_layer_that_is_not_measured()) as dashboard:
        await dashboard.drawn()
        await dashboard.press("up", "up", "enter")
        await dashboard.shows("not measured", WHY)
        rows = [row for row in dashboard.text().splitlines() if "‖∂L/∂W‖" in row or "not measured" in row]
        assert all("n/a" in row for row in rows if "│" in row), rows
