"""After an undo, the current values come from the part of the run that was kept."""

from __future__ import annotations

import math

import pytest
from factories import history_of, reading, rewound, started, steps

from tui_descent.protocol.events import AnyEvent, LedgerTaken, Measured


def test_readings_from_an_undone_stretch_are_not_shown_as_current() -> None:
    events: list[AnyEvent] = [started(depth=1), steps(0, [1.0] * 60), reading(30, 0.5, depth=1)]
    events += [Measured(segment=0, step=30, name="alpha", value=0.5), LedgerTaken(segment=0, step=30, entries=[])]
    there = history_of([*events, rewound((0, 60), (0, 40), 1, back=True)])
    assert there.readings is not None
    assert there.ledger is not None
    assert set(there.measured) == {"alpha"}
    gone = history_of([*events, rewound((0, 60), (0, 20), 1, back=True)])
    assert gone.readings is None
    assert gone.ledger is None
    assert not gone.measured
    again = history_of([*events, rewound((0, 60), (0, 20), 1, back=True), steps(20, [1.0] * 5, segment=1)])
    assert again.readings is None


@pytest.mark.parametrize("back_to", [0, 1, 2_600, 9_000])
def test_loss_after_an_undo_is_finite_if_the_curve_has_that_step(back_to: int) -> None:
    losses = [1 + math.exp(-step / 3000) for step in range(10_000)]
    history = history_of([started(), steps(0, losses), rewound((0, 10_000), (0, back_to), 1, back=True)])
    assert history.steps == back_to
    if back_to < 16:
        assert not history.losses[1], "such an early step shares a bin with later ones by now"
        return
    assert history.losses[1], "there is a curve to draw"
    assert history.loss == pytest.approx(losses[back_to - 1], rel=0.02)
    assert math.isfinite(history.shown_loss)
