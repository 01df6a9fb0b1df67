"""The learning-rate range test in a real run with two viewers, and in a headless run."""

from __future__ import annotations

import time

import pytest
from attended import Viewer
from same_process import AttendedHere, run

from tui_descent.protocol.commands import CancelRangeTest, Pause, Resume, RunRangeTest, RunSteps, Stop
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    HistorySent,
    KnobTurned,
    RangeTestCompleted,
    StateChanged,
    StepsCompleted,
)
from tui_descent.scenario.knobs import parse
from tui_descent.telemetry.history import History

OPTIONS = ("run.steps=60", "run.threads=1", "model.dropout=0.1", 'schedule.name="cosine"')


def losses(viewer: Viewer) -> dict[int, float]:
    return {e.first + n: loss for e in viewer.events(StepsCompleted) for n, loss in enumerate(e.losses)}


@pytest.mark.heavy
def test_a_range_test_does_not_change_the_run_and_every_viewer_gets_the_result() -> None:
    plain = run("run", "healthy", "--json", *(word for o in OPTIONS for word in ("--set", o))).losses
    live = AttendedHere("healthy", *OPTIONS)
    try:
        a, b = live.viewer(), live.viewer()
        a.ask(Pause())
        at = a.until_event(StateChanged, state="paused") and a.do(Pause()).step
        done = a.do(RunRangeTest())
        assert isinstance(done, CommandDone)
        found, same = b.until_event(RangeTestCompleted), a.events(RangeTestCompleted)[-1]
        assert found == same
        assert (found.step, done.step) == (at, at), "it works while paused"
        assert a.events(StateChanged)[-1].state == "paused"
        reasons = [e.reason for e in a.events(StateChanged) if e.state == "testing"]
        assert reasons[0] == "batches 0/100"
        assert found.suggestion is not None
        assert done.what == f"range test: {found.suggestion:.3g} suggested; press f to see it"
        late = History.receive(live.viewer().until_event(HistorySent))
        assert late.swept == found
        assert late.steps == at, "its steps do not count as steps of the run"
        a.do(RunSteps(steps=5))
        a.until_event(StateChanged, state="paused")
        b.do(RunRangeTest())
        b.ask(Resume())
        a.until_event(StateChanged, state="waiting")
        assert losses(a) == dict(enumerate(plain))
        adopted = a.do(parse(f"lr={found.suggestion:.3g}"))
        assert isinstance(adopted, KnobTurned | CommandRejected)  # the schedule has come to 0 at its end
        a.do(Stop())
    finally:
        live.close()


@pytest.fixture
def slow() -> AttendedHere:
    """A run whose test takes seconds."""
    return AttendedHere(
        "transformer", "run.threads=1", "model.depth=4", "model.width=96", "data.batch_size=32", pace=2.0
    )


def test_stop_and_cancel_work_during_a_range_test(slow: AttendedHere) -> None:
    try:
        a, b = slow.viewer(), slow.viewer()
        a.until_step(0)
        number = a.ask(RunRangeTest())
        a.until_event(StateChanged, state="testing")
        assert b.do(CancelRangeTest()).what == "the range test continues: other clients wait for it"  # type: ignore[union-attr]
        joined = b.ask(RunRangeTest())
        assert isinstance(a.do(CancelRangeTest()), CommandDone)
        assert not a.replies(number), "the other viewer still wants the result"
        begun_s = time.monotonic()
        b.do(CancelRangeTest())
        rejected = b.until(lambda m: m in b.replies(joined))
        took_s = time.monotonic() - begun_s
        assert isinstance(rejected, CommandRejected)
        assert rejected.reason.startswith("cancelled at")
        a.until(lambda m: m in a.replies(number))
        assert took_s < 2.0
        assert a.events(StateChanged)[-1].state == "running"
        a.do(Pause())
        a.ask(RunRangeTest())
        a.until_event(StateChanged, state="testing")
        begun_s = time.monotonic()
        a.ask(Stop())
        a.until_closed()
        assert time.monotonic() - begun_s < 5.0, "well before it would have been killed"
        assert not a.events(RangeTestCompleted)
    finally:
        slow.close()


def test_a_range_test_of_a_held_run_is_rejected_with_what_helps() -> None:
    live = AttendedHere("too-hot", "run.threads=1")
    try:
        viewer = live.viewer()
        viewer.until_event(StateChanged, state="held")
        rejected = viewer.do(RunRangeTest())
        assert isinstance(rejected, CommandRejected)
        assert rejected.reason == "a range test needs a finite loss; u goes back to the last good state"
        viewer.do(Stop())
    finally:
        live.close()


def test_the_range_test_flag_prints_an_event_and_changes_no_loss() -> None:
    options = ("healthy", "--json", "--steps", "30")
    plain = run("run", *options)
    tested = run("run", *options, "--range-test", "0", "--range-test", "20")
    assert tested.losses == plain.losses
    assert plain.events("range_test") == []
    first, second = tested.events("range_test")
    assert (first["step"], second["step"]) == (0, 20)
    assert first["suggestion"] == pytest.approx(first["lowest"] / 10)
    assert len(first["rates"]) == len(first["losses"]) == len(first["still"]) == len(first["smooth"]) > 50
    assert first["scales"] == [0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert first["ahead"][0] == plain.losses[0]
    assert run("run", "healthy", "--range-test", "soon").code == 2
