"""The row below a time axis: the names of changes that are close together."""

from __future__ import annotations

import random
import re

import pytest
from factories import history_of, started, steps, turned

from tui_descent.dashboard.charts.time_axis import TimeAxis, marks
from tui_descent.dashboard.charts.time_labels import time_row
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import AnyEvent, Marked

KNOBS = {
    "lr": ("0.2", "0.1953125"),
    "residual": ("on", "off"),
    "norm": ("layer mid",),
    "activation": ("relu", "leaky_relu,slope=0.2"),
    "mark": ("now", "a longer text about what is seen here"),
}


def row_below(changes: list[tuple[int, str, str]], columns: int, *, made: int = 600) -> tuple[str, View, TimeAxis]:
    """The row below an axis of so many columns over `made` steps. A change is its step, knob and value."""
    events: list[AnyEvent] = [started(2), steps(0, [1.0] * made)]
    for number, (step, knob, value) in enumerate(changes):
        is_mark = knob == "mark"
        events.append(
            Marked(segment=0, step=step, text=value) if is_mark else turned(step, "x", value, knob=knob, id=number)
        )
    view = View(history=history_of(events))
    axis = TimeAxis.of(view.history, columns, recent=False)
    return time_row(view, axis, 0, columns).text, view, axis


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ([(150, "residual", "on")], "0        ▲ residual on   400         600          800"),
        ([(150, "residual", "on"), (160, "norm", "layer")], "residual ▲▲ norm layer   400         600          800"),
        ([(150, "residual", "on"), (150, "norm", "layer")], "0        ▲ residual on, norm layer   600          800"),
        ([(150, "lr", "0.2"), (151, "lr", "0.4")], "0        ▲ lr 0.4        400         600          800"),
        ([(150, "residual", "on"), (200, "lr", "0.2"), (420, "norm", "layer")],
         "residual ▲  ▲ lr 0.2      ▲ norm layer            800"),
        ([(150, "activation", "leaky_relu"), (300, "lr", "0.2")],
         "0        ▲        ▲ lr 0.2           600          800"),
        ([(0, "residual", "on"), (200, "norm", "layer")],
         "▲ residual  ▲ norm layer             600          800"),
        ([(0, "mark", "a longer text"), (220, "norm", "layer")],
         "▲ a longer…  ▲ norm layer            600          800"),
        ([(150, "lr", "0.2"), (150, "residual", "on"), (150, "norm", "layer"), (420, "lr", "0.1")],
         "0        ▲ 3 changes      ▲ lr 0.1   600          800"),
    ],
)  # fmt: skip
def test_names_of_changes_that_are_close_together(changes: list[tuple[int, str, str]], row: str) -> None:
    found, _, _ = row_below(changes, 64)
    assert found.rstrip() == row


@pytest.mark.parametrize("seed", range(20))
def test_each_mark_has_an_arrow_and_each_name_stands_alone(seed: int) -> None:
    drawn = random.Random(seed)
    changes = []
    for step in sorted(drawn.randrange(590) for _ in range(drawn.randrange(1, 14))):
        knob = drawn.choice(sorted(KNOBS))
        changes.append((step, knob, drawn.choice(KNOBS[knob])))
    row, view, axis = row_below(changes, drawn.choice((40, 64, 77, 120)))
    columns = {mark.column for mark in marks(view, axis)}
    assert {column for column, character in enumerate(row) if character == "▲"} == columns
    for name in re.finditer(r"[^ ▲]+( [^ ▲]+)*", row):
        # A name has one arrow beside it, and two blanks on the other side; a step number has none.
        before, after = row[max(0, name.start() - 2) : name.start()], row[name.end() : name.end() + 2]
        is_number = re.fullmatch(r"[\d,]+", name[0]) is not None
        assert (before.endswith("▲ ") + after.startswith(" ▲")) == (not is_number), (name[0], row)
