"""The history when a run is rewound: the abandoned stretch becomes a ghost, redo makes it live again."""

from __future__ import annotations

import math
import random

import factories
import pytest
from factories import history_of, reading_of, received, started, steps, turned

from tui_descent.headless import Progress
from tui_descent.protocol.events import (
    Evaluated,
    KnobState,
    KnobTurned,
    Marked,
    Rewound,
    SnapshotTaken,
)
from tui_descent.telemetry.history import MAX_GHOSTS, MAX_GHOSTS_WITH_GRADS, History
from tui_descent.telemetry.jsonl import JsonLines
from tui_descent.telemetry.pyramid import Pyramid

STARTED = started(layers=(), knobs=(KnobState(name="lr", value="0.1"),))


def grown(steps: int, *, capacity: int = 16) -> Pyramid:
    pyramid = Pyramid(("min", "max", "mean"), capacity=capacity)
    draw = random.Random(1)
    for step in range(steps):
        value = draw.uniform(0.5, 2.0)
        pyramid.add(step, (value, value, value))
    return pyramid


@pytest.mark.parametrize("cut", [1, 2, 7, 16, 29, 31, 32, 40])
def test_pyramid_before_a_step_equals_one_that_ended_there(cut: int) -> None:
    """True while level 0 still has all steps of the newest coarser bins."""
    cut_short, plain = grown(40, capacity=64).before(cut), grown(cut, capacity=64)
    assert [list(lv.bins) for lv in cut_short.levels] == [list(lv.bins) for lv in plain.levels]
    assert [list(lv.values) for lv in cut_short.levels] == [list(lv.values) for lv in plain.levels]


@pytest.mark.parametrize("cut", [3, 100, 501, 900, 983, 999, 1000])
@pytest.mark.parametrize("more", [0, 1, 50])
def test_shortened_pyramid_goes_on_without_gap_or_overlap(cut: int, more: int) -> None:
    pyramid = grown(1000).before(cut)
    for step in range(cut, cut + more):
        pyramid.add(step, (1.0, 1.0, 1.0))
    for width in (1, 4, 64, 256):
        bins = pyramid.window(width, 0, cut + more)
        numbers = [bin_ for bin_, _ in bins]
        assert numbers == sorted(set(numbers))
        assert all(bin_ * width < cut + more for bin_ in numbers)
        assert all(low <= mean <= high for _, (low, high, mean) in bins)


def test_before_does_not_change_the_pyramid() -> None:
    pyramid = grown(300)
    before = pyramid.send()
    pyramid.before(120).add(120, (9.0, 9.0, 9.0))
    assert pyramid.send() == before


def turn(id_: int, step: int) -> KnobTurned:
    return turned(step, str(id_), str(id_ + 1), knob="lr", id=id_, client=1, request=id_)


def rewound(
    start: tuple[int, int], to: tuple[int, int], segment: int, force: tuple[int, ...], *, back: bool
) -> Rewound:
    knobs = (KnobState(name="lr", value=str(len(force) + 1)),)
    return factories.rewound(start, to, segment, back=back, what=f"lr of {len(force)}", in_force=force, knobs=knobs)


def turned_twice() -> History:
    return history_of(
        [
            STARTED,
            steps(0, [3.0] * 100),
            Marked(segment=0, step=50, text="early"),
            turn(1, 100),
            steps(100, [2.0] * 100),
            Evaluated(segment=0, step=150, loss=2.5),
            turn(2, 200),
            steps(200, [1.0] * 100),
        ]
    )


def live(history: History) -> list[float]:
    return [values[0] for _, values in history.losses[history.segment].window(1, 0, 1000)]


def test_undo_shortens_the_curve_and_makes_the_rest_a_ghost() -> None:
    history = turned_twice()
    history.apply(rewound((0, 300), (0, 200), 1, (1,), back=True))
    assert live(history) == [3.0] * 100 + [2.0] * 100
    assert (history.segment, history.steps, history.span, history.loss) == (1, 200, 300, 2.0)
    assert [(g.segment, g.first, g.last, g.label) for g in history.ghosts] == [(0, 200, 299, "undone: lr of 1")]
    assert history.knobs == {"lr": "2"}
    assert [e.id for e in history.interventions if e.segment == 1] == [1]
    assert [e.step for e in history.evaluations if e.segment == 1] == [150]
    assert [m.step for m in history.marks if m.segment == 1] == [50]
    history.apply(steps(200, [0.5] * 10, segment=1))
    assert live(history)[-10:] == [0.5] * 10
    assert history.steps == 210


def test_redo_makes_the_ghost_live_again() -> None:
    history = turned_twice()
    whole = live(history)
    history.apply(rewound((0, 300), (0, 200), 1, (1,), back=True))
    history.apply(rewound((1, 200), (0, 100), 2, (), back=True))
    assert live(history) == [3.0] * 100
    history.apply(steps(100, [9.0] * 30, segment=2))
    history.apply(Marked(segment=2, step=120, text="abandoned"))
    history.apply(rewound((2, 130), (0, 200), 3, (1,), back=False))
    assert live(history) == whole[:200]
    assert [(g.segment, g.first, g.last) for g in history.ghosts] == [(0, 200, 299), (2, 100, 129)]
    history.apply(rewound((3, 200), (0, 300), 4, (1, 2), back=False))
    assert live(history) == whole
    assert [(g.segment, g.first, g.last) for g in history.ghosts] == [(2, 100, 129)]
    assert [e.id for e in history.interventions if e.segment == 4] == [1, 2]
    assert [e.step for e in history.evaluations if e.segment == 4] == [150]
    assert [m.text for m in history.marks if m.segment == 4] == ["early"]


def test_received_history_has_the_ghosts_and_can_redo() -> None:
    history = turned_twice()
    history.apply(SnapshotTaken(segment=0, step=200, reason="before intervention 2", used_bytes=5, budget_bytes=9))
    history.apply(rewound((0, 300), (0, 200), 1, (1,), back=True))
    there = received(history)
    assert there.ghosts == history.ghosts
    assert there.snapshot == history.snapshot
    assert list(there.interventions) == list(history.interventions)
    assert list(there.marks) == list(history.marks)
    assert list(there.log) == list(history.log)
    assert (there.segment, there.steps, live(there)) == (1, 200, live(history))
    again = rewound((1, 200), (0, 300), 2, (1, 2), back=False)
    for side in (history, there):
        side.apply(again)
    assert live(there) == live(history)
    assert there.ghosts == history.ghosts == ()


def test_memory_of_many_undos_is_bounded() -> None:
    history = History()
    history.apply(STARTED)
    for n in range(40):
        segment = 0 if n == 0 else n
        history.apply(steps(0, [1.0] * 40) if n == 0 else steps(10, [1.0] * 30, segment=segment))
        for step in range(10, 40, 5):
            history.apply(reading_of(step, {"grad_rms": [0.1]}, segment=segment))
        history.apply(rewound((segment, 40), (segment, 10), n + 1, (), back=True))
    assert len(history.ghosts) == MAX_GHOSTS
    assert len(history.losses) == MAX_GHOSTS + 1
    assert len(history.grads) <= MAX_GHOSTS_WITH_GRADS + 1
    assert math.isfinite(history.smooth_loss)


def test_snapshot_and_rewind_as_json_lines() -> None:
    lines = JsonLines()
    assert list(lines.lines(SnapshotTaken(segment=0, step=150, reason="before intervention 3", used_bytes=7))) == [
        '{"v":1,"event":"snapshot","segment":0,"step":150,"reason":"before intervention 3"}'
    ]
    (line,) = lines.lines(rewound((0, 400), (0, 150), 1, (1,), back=True))
    assert line == (
        '{"event":"rewound","from":{"segment":0,"step":400},"to":{"segment":0,"step":150},"segment":1,"step":150,'
        '"undone":"lr of 1"}'
    )


def test_headless_progress_prints_the_rewind(capsys: pytest.CaptureFixture[str]) -> None:
    event = rewound((0, 400), (0, 150), 1, (1,), back=True)
    Progress()(event)
    printed = capsys.readouterr().err
    assert printed == "undone: lr of 1; now at step 150 of segment 1 (was at 400 of segment 0)\n"
    assert printed.strip() == "; ".join(event.words()[:2]) + f" ({event.words()[2]})"
