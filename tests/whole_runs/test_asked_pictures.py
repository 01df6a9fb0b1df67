"""Pictures of the task and counts for the lens in a real run: they are sent to whoever watches, also in a pause."""

from __future__ import annotations

from same_process import AttendedHere, run

from tui_descent.protocol.commands import Pause, Stop, WatchLens, WatchTask
from tui_descent.protocol.events import CommandDone, LensTaken, StateChanged, StepsCompleted, TaskTaken


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


def test_losses_with_both_views_open_are_those_of_the_headless_run() -> None:
    plain = run("run", "healthy", "--json", "--steps", "40").losses
    live = AttendedHere("healthy", "run.steps=40", "run.evaluate_every=0", pace=100.0)
    try:
        viewer = live.viewer()
        assert isinstance(viewer.do(WatchTask(on=True, columns=70, rows=16)), CommandDone)
        assert isinstance(viewer.do(WatchLens(on=True)), CommandDone)
        viewer.until_event(StateChanged, state="waiting")
        losses = {
            event.first + n: loss for event in viewer.events(StepsCompleted) for n, loss in enumerate(event.losses)
        }
        assert losses
        assert losses == {step: plain[step] for step in losses}
        viewer.until_event(LensTaken, step=40)
        if viewer.events(TaskTaken)[-1].step < 40:
            viewer.until_event(TaskTaken, step=40)  # the last picture is that of the trained net
        viewer.do(Stop())
        viewer.until_closed()
    finally:
        live.close()
