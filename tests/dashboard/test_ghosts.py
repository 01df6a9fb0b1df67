"""Undo on screen: its keys, the stretch left behind dim behind the live curve, and its place in the event log."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from playing import playing
from scripted import started
from textual.strip import Strip

from tui_descent.dashboard import ink
from tui_descent.dashboard.panels.events import words
from tui_descent.dashboard.panels.loss import LossPanel
from tui_descent.dashboard.panels.status import StatusPanel
from tui_descent.dashboard.panels.timeline import Timeline
from tui_descent.dashboard.panels.view import View
from tui_descent.protocol.commands import AnyCommand, Redo, Undo
from tui_descent.protocol.events import AnyEvent, KnobState, Rewound, SnapshotTaken, StateChanged, StepsCompleted
from tui_descent.telemetry.history import History


def stretch(first: int, last: int, loss: float, *, segment: int) -> StepsCompleted:
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
PAST: list[AnyEvent] = [
    started(),
    StateChanged(state="running"),
    stretch(0, 40, 1.0, segment=0),
    stretch(40, 100, 0.2, segment=0),
    BACK,
    stretch(40, 60, 1.0, segment=1),
]


def view(events: list[AnyEvent], **look: object) -> View:
    history = History()
    for event in events:
        history.apply(event)
    return View(history=history, **look)  # type: ignore[arg-type]


def ghostly(strips: list[Strip]) -> int:
    """Cells in the ghost's colour."""
    wanted = f"rgb({','.join(map(str, ink.GHOST))})"
    return sum(
        s.cell_length
        for strip in strips
        for s in strip
        if s.style is not None and s.style.color is not None and s.style.color.name == wanted
    )


def test_what_was_left_is_behind_and_the_axis_holds_it() -> None:
    look = view(PAST)
    panel = LossPanel()
    shown = panel.draw(look, 80, 14)
    text = [s.text for s in shown]
    assert ghostly(shown) > 20
    assert any("undone: residual off → on" in row for row in text)
    timeline = Timeline.of(look.history, 70, recent=False)
    assert timeline.column(99) is not None
    hidden = panel.draw(replace(look, ghosts=False), 80, 14)
    assert ghostly(hidden) == 0
    assert not any("undone" in s.text for s in hidden)
    assert ghostly(panel.draw(look, 80, 14)) == ghostly(shown)


@pytest.mark.parametrize("size", [(20, 3), (30, 5), (150, 40)])
@pytest.mark.parametrize("recent", [False, True])
def test_it_fits_every_size(size: tuple[int, int], recent: bool) -> None:
    rows = LossPanel().draw(view(PAST, recent=recent), *size)
    assert {row.cell_length for row in rows} == {size[0]}


def test_nothing_of_the_curve_drawn_before_the_undo_stays() -> None:
    look, panel = view(PAST[:4]), LossPanel()
    panel.draw(look, 80, 14)
    for event in (BACK, stretch(40, 100, 1.0, segment=1)):
        look.history.apply(event)
    again = [s.text for s in panel.draw(replace(look, ghosts=False), 80, 14)]
    fresh = [s.text for s in LossPanel().draw(replace(look, ghosts=False), 80, 14)]
    assert again == fresh


def test_one_that_diverged_does_not_flatten_the_live_curve() -> None:
    events = list(PAST)
    events[3] = stretch(40, 100, 1e20, segment=0)
    figures = "".join(s.text[:10] for s in LossPanel().draw(view(events), 80, 14))
    assert "1e20" not in figures
    assert "1e+20" not in figures


def test_the_log_says_what_was_undone() -> None:
    assert words(BACK)[0] == "undone: residual off → on, from step 100 to 40"


def test_the_memory_it_takes_is_on_the_status_line() -> None:
    taken = SnapshotTaken(segment=0, step=0, reason="", used_bytes=12_000_000, budget_bytes=256_000_000)
    (line,) = StatusPanel().draw(view([*PAST, taken]), 200, 1)
    assert "undo 12/256 MB " in line.text
    (line,) = StatusPanel().draw(view([*PAST, msgspec.structs.replace(taken, disk_bytes=900_000_000)]), 200, 1)
    assert "undo 12/256 MB + 900 on disk" in line.text


@pytest.mark.parametrize(("key", "command"), [("u", Undo()), ("U", Redo())])
async def test_the_keys_ask(key: str, command: AnyCommand) -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("u undo")
        await play.press(key)
        await play.until(lambda: play.keeper.asked == [command])


async def test_g_hides_and_shows() -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("undone: residual off → on")
        await play.press("g")
        await play.until(lambda: "undone: residual off → on" not in play.text().split("Gradient flow")[0])
        await play.press("g")
        await play.until(lambda: "undone: residual off → on" in play.text().split("Gradient flow")[0])
