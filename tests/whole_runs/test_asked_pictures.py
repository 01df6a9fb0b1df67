"""Pictures of the task in a real run: they are sent to whoever watches, also while the run is paused."""

from __future__ import annotations

from same_process import AttendedHere

from tui_descent.protocol.commands import Pause, Stop, WatchTask
from tui_descent.protocol.events import CommandDone, StateChanged, TaskTaken


def test_pictures_are_made_until_the_viewer_that_asked_disconnects() -> None:
    live = AttendedHere("saddle", "run.steps=1000000", pace=200.0)
    try:
        a, b = live.viewer(), live.viewer()
        a.until_step(5)
        assert a.events(TaskTaken) == [], "nobody has asked"
        done = a.do(WatchTask(on=True, columns=30, rows=10))
        assert isinstance(done, CommandDone)
        first = b.until_event(TaskTaken)
        assert first.step >= done.step
        assert (first.picture.columns, first.picture.rows) == (30, 10)
        a.close()
        gone = b.until_event(CommandDone, what="pictures of the task are no longer made")
        assert gone.client == a.client
        b.until_step(gone.step + 60)
        assert b.events(TaskTaken)[-1].step <= gone.step
        b.do(Pause())
        b.until_event(StateChanged, state="paused")
        asked = b.do(WatchTask(on=True, columns=40, rows=10))
        paused = b.until_event(TaskTaken)
        assert (paused.step, paused.picture.columns) == (asked.step, 40), "also while the run is paused"
        b.do(Stop())
        b.until_closed()
    finally:
        live.close()
