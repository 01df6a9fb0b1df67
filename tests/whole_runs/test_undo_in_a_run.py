"""Undo in a real run with two viewers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attended import Viewer
from same_process import AttendedHere

from tui_descent.protocol.commands import Pause, Redo, Resume, RunSteps, Undo
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    HistorySent,
    KnobTurned,
    Rewound,
    SnapshotTaken,
    StateChanged,
    StepsCompleted,
)
from tui_descent.scenario.knobs import parse
from tui_descent.telemetry.history import History


@pytest.fixture
def attended() -> Iterator[AttendedHere]:
    run = AttendedHere("healthy", "run.steps=60", "run.threads=1", "data.batch_size=32", undo_budget=50_000_000)
    yield run
    run.close()


def stretch(viewer: Viewer, segment: int) -> dict[int, float]:
    found = [e for e in viewer.events(StepsCompleted) if e.segment == segment]
    return {e.first + n: loss for e in found for n, loss in enumerate(e.losses)}


def paused_at(viewer: Viewer, steps: int) -> None:
    viewer.do(RunSteps(steps=steps))
    viewer.until_event(StateChanged, state="paused")


def test_undo_and_redo_in_a_real_run(attended: AttendedHere) -> None:
    viewer = attended.viewer()
    viewer.ask(Pause())
    viewer.until_event(StateChanged, state="paused")
    reply = viewer.do(Undo())
    assert isinstance(reply, CommandRejected)
    assert reply.reason.startswith("nothing to undo")
    at = reply.step
    paused_at(viewer, 10)
    viewer.do(parse("residual=on"))
    paused_at(viewer, 15)
    reply = viewer.do(Undo())
    assert isinstance(reply, CommandDone)
    assert (reply.what, reply.segment, reply.step) == ("undone: residual off → on", 1, at + 10)
    rewound = viewer.events(Rewound)[-1]
    assert (rewound.from_segment, rewound.from_step) == (0, at + 25)
    assert (rewound.to_segment, rewound.to_step) == (0, at + 10)
    assert {k.name: k.value for k in rewound.knobs}["residual"] == "off"
    paused_at(viewer, 15)
    assert stretch(viewer, 1).keys() == set(range(at + 10, at + 25))
    assert stretch(viewer, 1)[at + 10 + 14] != stretch(viewer, 0)[at + 10 + 14]

    reply = viewer.do(Redo())
    assert (reply.segment, reply.step) == (2, at + 25)
    # Repeat the steps from before the intervention: bitwise the same losses.
    viewer.do(Undo())
    paused_at(viewer, 15)
    assert stretch(viewer, 3) == stretch(viewer, 1)

    late = attended.viewer()
    history = History.receive(late.until_event(HistorySent))
    assert history.steps == at + 25
    assert [(g.segment, g.first, g.last) for g in history.ghosts] == [(1, at + 10, at + 24), (2, at + 10, at + 24)]
    bins = history.losses[history.segment].window(1, 0, 1000)
    assert [bin_ for bin_, _ in bins] == list(range(at + 25))
    assert [v[0] for _, v in bins][at + 10 :] == list(stretch(viewer, 1).values())
    assert viewer.events(SnapshotTaken)[-1].budget_bytes == 50_000_000


def test_undo_at_the_end_repeats_the_run_to_the_same_end(attended: AttendedHere) -> None:
    viewer = attended.viewer()
    viewer.ask(parse("lr=*2"))
    viewer.until_event(StateChanged, state="waiting")
    viewer.do(Undo())
    viewer.until_event(StateChanged, state="paused")
    viewer.do(Resume())
    viewer.until_event(StateChanged, state="waiting")
    assert max(stretch(viewer, 1)) == 59


def test_undo_of_a_held_run_restores_the_last_good_state() -> None:
    run = AttendedHere("too-hot", "run.threads=1")
    try:
        viewer = run.viewer()
        held = viewer.until_event(StateChanged, state="held")
        assert "; u goes back " in held.reason
        reply = viewer.do(Undo())
        assert isinstance(reply, CommandDone)
        assert (reply.segment, reply.step) == (1, 0)
        viewer.until_event(StateChanged, state="paused")
        viewer.do(parse("lr=/1000"))
        viewer.do(RunSteps(steps=5))
        viewer.until_event(StateChanged, state="paused")
        assert stretch(viewer, 1).keys() == set(range(5))
    finally:
        run.close()


def test_a_state_over_the_budget_is_undone_by_value_and_both_answers_say_so() -> None:
    run = AttendedHere("healthy", "run.steps=60", "run.threads=1", undo_budget=1000)
    try:
        viewer = run.viewer()
        paused_at(viewer, 5)
        turned = viewer.do(parse("lr=*2"))
        assert isinstance(turned, KnobTurned)
        assert turned.note is not None
        assert "an undo will restore only the value: the exact state takes" in turned.note
        paused_at(viewer, 5)
        undone = viewer.do(Undo())
        assert isinstance(undone, CommandDone)
        assert "only the value was restored: the exact state takes" in undone.what
        assert undone.step == turned.step + 5
        assert viewer.events(KnobTurned)[-1].new == turned.old
    finally:
        run.close()
