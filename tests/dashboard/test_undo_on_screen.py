"""Undo on screen: its keys, ghosts behind the live curve, and the event log."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from driver import open_dashboard
from factories import reading, started, turned
from rich.color import Color
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.bridge import Exchange
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.time_axis import TimeAxis, gutter
from tui_descent.dashboard.panels.event_lines import describe
from tui_descent.dashboard.panels.events import EventsPanel
from tui_descent.dashboard.panels.footer import FooterPanel
from tui_descent.dashboard.panels.gradients import GradientsPanel
from tui_descent.dashboard.panels.heatmap import HeatmapPanel
from tui_descent.dashboard.panels.loss_chart import LossPanel
from tui_descent.dashboard.panels.status import StatusPanel
from tui_descent.dashboard.view import View
from tui_descent.protocol.commands import AnyCommand, Redo, Undo
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    Evaluated,
    KnobState,
    Marked,
    Noted,
    Rewound,
    SnapshotTaken,
    StateChanged,
    StepsCompleted,
)
from tui_descent.telemetry.history import History


def losses(first: int, last: int, loss: float, *, segment: int) -> StepsCompleted:
    count = last - first
    return StepsCompleted(
        segment=segment,
        first=first,
        losses=[loss] * count,
        lrs=[0.1] * count,
        times_s=[n / 100 for n in range(first, last)],
    )


BACK = Rewound(
    from_segment=0,
    from_step=100,
    to_segment=0,
    to_step=40,
    segment=1,
    step=40,
    what="residual off → on",
    knobs=(KnobState(name="lr", value="0.1"), KnobState(name="residual", value="off")),
)
EARLIER: list[AnyEvent] = [
    started(),
    StateChanged(state="running"),
    losses(0, 40, 1.0, segment=0),
    losses(40, 100, 0.2, segment=0),
    BACK,
    losses(40, 60, 1.0, segment=1),
]


def view(events: list[AnyEvent], **look: object) -> View:
    history = History()
    for event in events:
        history.apply(event)
    return View(history=history, **look)  # type: ignore[arg-type]


def ghost_cells(strips: list[Strip]) -> int:
    """Cells in the ghost's colour."""
    wanted = Color.from_rgb(*colours.palette().ghost)
    return sum(s.cell_length for strip in strips for s in strip if s.style is not None and s.style.color == wanted)


def test_undone_steps_are_drawn_as_a_ghost_within_the_axis() -> None:
    look = view(EARLIER)
    panel = LossPanel()
    shown = panel.draw(look, 80, 14)
    text = [s.text for s in shown]
    assert ghost_cells(shown) > 20
    assert any("undone: residual off → on" in row for row in text)
    time_axis = TimeAxis.of(look.history, 70, recent=False)
    assert time_axis.column(99) is not None
    hidden = panel.draw(replace(look, ghosts=False), 80, 14)
    assert ghost_cells(hidden) == 0
    assert not any("undone" in s.text for s in hidden)
    assert ghost_cells(panel.draw(look, 80, 14)) == ghost_cells(shown)


@pytest.mark.parametrize("size", [(20, 3), (30, 5), (150, 40)])
@pytest.mark.parametrize("recent", [False, True])
def test_a_loss_panel_with_ghosts_fits_every_size(size: tuple[int, int], recent: bool) -> None:
    rows = LossPanel().draw(view(EARLIER, recent=recent), *size)
    assert {row.cell_length for row in rows} == {size[0]}


def test_the_curve_is_redrawn_after_an_undo() -> None:
    look, panel = view(EARLIER[:4]), LossPanel()
    panel.draw(look, 80, 14)
    for event in (BACK, losses(40, 100, 1.0, segment=1)):
        look.history.apply(event)
    again = [s.text for s in panel.draw(replace(look, ghosts=False), 80, 14)]
    fresh = [s.text for s in LossPanel().draw(replace(look, ghosts=False), 80, 14)]
    assert again == fresh


def test_after_an_undo_to_the_start_the_ghost_is_shown_alone() -> None:
    back = msgspec.structs.replace(BACK, from_step=6, to_step=0, step=0, what="the steps since step 0")
    look = view([started(), losses(0, 6, 2.5, segment=0), back])
    shown = LossPanel().draw(look, 80, 14)
    assert ghost_cells(shown) > 20, "the label and the curve"
    assert any("undone: the steps" in strip.text for strip in shown)
    assert ghost_cells(LossPanel().draw(replace(look, ghosts=False), 80, 14)) == 0


def test_a_diverged_ghost_does_not_flatten_the_live_curve() -> None:
    events = list(EARLIER)
    events[3] = losses(40, 100, 1e20, segment=0)
    figures = "".join(s.text[:10] for s in LossPanel().draw(view(events), 80, 14))
    assert "1e20" not in figures
    assert "1e+20" not in figures


@pytest.mark.parametrize("lost", [1e20, 1e-9, 0.0, -1e9])
@pytest.mark.parametrize("log", [True, False])
def test_a_ghost_outside_the_axis_is_not_drawn_at_its_edge(lost: float, log: bool) -> None:
    events = [*EARLIER[:3], losses(40, 70, 1.2, segment=0), losses(70, 100, lost, segment=0), *EARLIER[4:]]
    look = view(events, log=log)
    column = TimeAxis.of(look.history, 80 - gutter(look, 80), recent=False).column(72)
    assert column is not None
    left = gutter(look, 80) + column  # the live curve ends before it, and what is left lies beyond the axis
    rows = [row.text for row in LossPanel().draw(look, 80, 14)][:-1]
    assert sum("\u2800" < c < "\u2900" for row in rows for c in row[:left]) > 40
    if lost or log:  # zero is on a linear axis
        assert not any("\u2800" < c < "\u2900" for row in rows for c in row[left:]), rows


@pytest.mark.parametrize(
    ("axis", "inside", "outside"),
    [
        (Axis(0.0, 2.0, True), [1.0, 100.0, 7.0], [0.99, 101.0, 0.0, -1.0, math.nan, math.inf]),
        (Axis(-1.0, 1.0, False), [-1.0, 1.0, 0.0], [-1.01, 1.01, math.nan, math.inf, -math.inf]),
    ],
)
def test_axis_contains_values_between_its_limits(axis: Axis, inside: list[float], outside: list[float]) -> None:
    assert all(map(axis.contains, inside))
    assert not any(map(axis.contains, outside))


def test_the_event_log_says_what_was_undone() -> None:
    assert describe(BACK)[0] == "undone: residual off → on; now at step 40 of segment 1 (was at 100 of segment 0)"


@pytest.mark.parametrize(("knob", "said"), [("", "rejected: nothing to undo"), ("lr", "rejected lr: nothing to undo")])
def test_the_event_log_names_the_knob_of_a_rejection(knob: str, said: str) -> None:
    refused = CommandRejected(client=1, request=1, source="key", segment=0, step=9, knob=knob, reason="nothing to undo")
    assert describe(refused)[0] == said


def test_the_event_log_is_ordered_by_time_and_shows_segments() -> None:
    first = [Evaluated(segment=0, step=50, loss=0.5), turned(60, "off", "on"), Evaluated(segment=0, step=90, loss=0.2)]
    then = [
        Evaluated(segment=1, step=50, loss=0.4),
        Noted(step=55, text="a note"),
        Marked(segment=1, step=58, text="m"),
    ]
    events = [*EARLIER[:4], *first, BACK, *then]
    for seen in (view(events), View(history=History.receive(view(events).history.send()))):
        rows = [s.text.strip() for s in EventsPanel().draw(seen, 90, 20)]
        starts = [row.split(" ")[0] for row in rows if "·" in row.split(" ")[0]]
        assert starts == ["0·50", "0·60", "0·90", "1·40", "1·50", "1·55", "1·58"]
        assert rows[-1] == "1·58 ▲ m"
    before = [s.text.strip() for s in EventsPanel().draw(view(events[:7]), 90, 20)]
    assert [row.split(" ")[0] for row in before if row.split(" ")[0].isdigit()] == ["50", "60", "90"]


def test_the_status_line_ignores_evaluations_of_undone_steps() -> None:
    events = [
        *EARLIER[:4],
        Evaluated(segment=0, step=20, loss=0.75),
        Evaluated(segment=0, step=90, loss=0.2),
        *EARLIER[4:],
    ]
    assert "val 0.2000" in StatusPanel().draw(view(events[:6]), 120, 1)[0].text
    assert "val 0.7500" in StatusPanel().draw(view(events), 120, 1)[0].text


def test_an_undo_in_a_user_loop_keeps_its_step_counter() -> None:
    own = msgspec.structs.replace(BACK, step=100, back=False)
    assert own.words() == (
        "redone: residual off → on",
        "state of step 40, now at step 100 of segment 1",
        "was at 100 of segment 0",
    )


@pytest.mark.parametrize(("width", "was"), [(120, True), (80, False)])
def test_the_answer_to_undo_names_what_was_undone_and_the_new_step(width: int, was: bool) -> None:
    done = CommandDone(client=7, request=1, segment=1, step=40, what="undone: residual off → on")
    look = replace(view(EARLIER), exchange=Exchange(command=Undo(), reply=done))
    answer = FooterPanel().draw(look, width, 3)[1].text.rstrip()
    assert answer.startswith(" undone  residual off → on  now at step 40 of segment 1")
    assert answer.endswith("(was at 100 of segment 0)") == was
    by_value = msgspec.structs.replace(done, what="undone: lr 1 → 2; only the value was restored: no room", segment=0)
    look = replace(view(EARLIER[:4]), exchange=Exchange(command=Undo(), reply=by_value))
    answer = FooterPanel().draw(look, 120, 3)[1].text.rstrip()
    assert answer == " done at step 40  undone: lr 1 → 2; only the value was restored: no room"


@pytest.mark.parametrize(("used", "shown"), [(0, ""), (12, ""), (120, "undo snapshots 120 MB of 256 MB")])
def test_the_status_line_shows_the_undo_memory_once_it_may_run_out(used: int, shown: str) -> None:
    taken = SnapshotTaken(segment=0, step=0, reason="", used_bytes=used * 10**6, budget_bytes=256_000_000)
    (line,) = StatusPanel().draw(view([*EARLIER, taken]), 200, 1)
    assert shown in line.text
    assert ("undo" in line.text) is bool(shown)


@pytest.mark.parametrize(("key", "command"), [("u", Undo()), ("U", Redo())])
async def test_undo_and_redo_keys_send_their_commands(key: str, command: AnyCommand) -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("u undo")
        await dashboard.press(key)
        await dashboard.wait_until(lambda: dashboard.keeper.received == [command])


async def test_g_hides_and_shows_ghosts() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("undone: residual off → on")
        await dashboard.press("g")
        await dashboard.wait_until(
            lambda: "undone: residual off → on" not in dashboard.text().split("Gradient flow")[0]
        )
        await dashboard.press("g")
        await dashboard.wait_until(lambda: "undone: residual off → on" in dashboard.text().split("Gradient flow")[0])


def test_an_undo_narrows_the_scales_again() -> None:
    panels, history = (HeatmapPanel(), GradientsPanel()), History()
    parts: list[list[AnyEvent]] = [
        [*EARLIER[:3], reading(10, 0.9, top=1e-2)],
        [EARLIER[3], reading(70, 0.9, top=1e20)],
        [*EARLIER[4:], msgspec.structs.replace(reading(45, 0.9, top=1e-2), segment=1)],
    ]
    highs = []
    for part in parts:
        for event in part:
            history.apply(event)
        for panel in panels:
            panel.draw(View(history=history, connected=True), 70, 12)
        highs.append([panel._scale.high for panel in panels])
    assert highs == [[0, 1], [19, 20], [0, 1]]
