"""The update panel: which relative updates are green, grey, or orange with a `!`."""

from __future__ import annotations

import math

import pytest
from factories import reading_of, started
from rich.style import Style

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.updates import UpdatesPanel
from tui_descent.dashboard.view import View
from tui_descent.telemetry.history import History


def drawn(*ratios: float | None) -> list[tuple[Style | None, bool]]:
    """The bars' styles and whether they have a `!`, first layer first."""
    history = History()
    history.apply(started(depth=len(ratios) - 2))
    history.apply(reading_of(1, {"update_ratio": ratios}))
    rows = UpdatesPanel().draw(View(history=history), 60, len(ratios))[::-1]
    styles = [next((s.style for s in row if s.style and "█" in s.text), None) for row in rows]
    return [(style, row.text.endswith("!")) for style, row in zip(styles, rows, strict=True)]


# Relative updates that healthy runs had, smallest and largest included. Measured: a transformer whose residual
# connections were just switched on (AdamW 3e-3, init 0.02), a net near its end, fine-tuning with a fresh head, zero
# updates at the start of a warm-up.
HEALTHY = {
    "transformer": (1.3e-2, 1.3e-1, 6.9e-2, 2.1e-1, 6.5e-4, 5.5e-3),
    "late": (8.2e-5, 1.0e-4, 1.5e-4, 9e-5),
    "fine-tuned": (2e-6, 3e-6, 2e-6, 2e-2),
    "warm-up": (0.0, 0.0, 0.0, 0.0),
    "usual": (4.6e-3, 4.7e-3, 5.5e-3, 1e-3),
}


@pytest.mark.parametrize("ratios", HEALTHY.values(), ids=HEALTHY.keys())
def test_healthy_updates_have_no_exclamation_mark(ratios: tuple[float, ...]) -> None:
    bars = drawn(*ratios)
    assert not any(marked for _, marked in bars)
    assert colours.ORANGE not in [style for style, _ in bars]


def test_green_is_the_usual_range_and_grey_is_outside_of_it() -> None:
    (low, _), (inside, _), (high, _), _ = drawn(5e-5, 1e-3, 5e-2, 1e-3)
    assert (low, inside, high) == (colours.DIM, colours.GREEN, colours.DIM)


@pytest.mark.parametrize("large", [1.01, 40.0, math.inf])
def test_an_update_larger_than_the_weights_is_orange(large: float) -> None:
    bars = drawn(1e-3, large, 1e-3, 1e-3)
    assert bars[1] == (colours.ORANGE, True)
    assert [marked for _, marked in bars] == [False, True, False, False], "the others are not slow"


def test_a_layer_that_hardly_moves_while_others_do_is_marked() -> None:
    assert [marked for _, marked in drawn(0.0, 1e-9, 1e-6, 6.7e-3)] == [True, True, False, False]
    assert [marked for _, marked in drawn(1e-9, 1e-8, 1e-9, None)] == [False] * 4
